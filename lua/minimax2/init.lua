--- minimax2: run MiniMax-M2 models from LuaJIT.
---
---     local mm = require "minimax2"
---     local model = assert(mm.load "MiniMax-M2.5")
---     for piece in model:stream("Once upon a time") do io.write(piece) end
---     model:close()
---
--- What can fail for reasons outside the script (a missing file, too little memory) returns nil and a
--- sentence; misuse raises an error at the line that did it.

if not pcall(require, "ffi") then
    error("minimax2 needs LuaJIT with its FFI, and this is plain " .. _VERSION .. ": run it with luajit", 0)
end

local bit = require "bit"
local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
local Model = require "minimax2.model"
local Sampler = require "minimax2.sampling"
local Tokenizer = require "minimax2.tokenizer"
local trace = require "minimax2.trace"

local lib, raise = native.lib, native.raise

local mm = {
    version = ffi.string(lib.mm2_version()),
    points = trace.points, -- the names of the points a run can stop at
    json = require "minimax2.json", -- encode, decode, null, array
}

-- The small model that comes with the library: MINIMAX2_TINY, else beside the library, else in the
-- source tree.
local function tiny_path()
    local given = os.getenv "MINIMAX2_TINY"
    if given then
        return given
    end
    local beside = native.path and native.path:match "^(.*[/\\])" or ""
    for _, folder in ipairs { beside, native.home .. "../../python/minimax2/" } do
        if native.exists(folder .. "m2-tiny") then
            return folder .. "m2-tiny"
        end
    end
    return nil, "the embedded model m2-tiny is not beside the library: give the path of a model, or "
        .. "set MINIMAX2_TINY"
end

--- mm.load([path][, options]): opens a checkpoint (a directory, or a .gguf file); without a path the
--- small model that comes with the library. Options: threads, isa ("auto", "ref", "avx2", "avx512",
--- "amx", "blas"), precision ("fast", or "exact": float32 products whatever the format), writable
--- (weights may be written to, in this process only), mapped (false reads the weights into memory, for
--- network file systems and files that may shrink), prefix_cache (bytes of memory for what sessions have
--- evaluated: others whose tokens begin alike start behind it, with the same bits), prefix_folder (that
--- exists: pages are kept there too, for other processes), prefix_disk (bytes of files there at most, 10
--- times prefix_cache); see "Shared prefixes" in minimax2.h and model:prefix_stats. nil and a sentence if
--- it cannot be opened.
function mm.load(path, options)
    if type(path) == "table" and options == nil then
        path, options = nil, path
    end
    if path == nil then
        local found, message = tiny_path()
        if not found then
            return nil, message
        end
        path = found
    end
    return Model.load(path, options)
end

--- A model that another Lua state of this process holds open, by its model:address(). The files stay
--- mapped until both have closed it.
mm.attach = Model.attach

--- mm.tokenizer(path): a tokenizer alone, from tokenizer.json, a directory or a GGUF file.
mm.tokenizer = Tokenizer.load

--- The processor and its instruction-set level.
function mm.cpu()
    return ffi.string(lib.mm2_cpu())
end

--- Bytes of memory: of the machine or of the process's control group, and what of it can be had now; the
--- pages of mapped files can.
function mm.memory()
    return tonumber(lib.mm2_memory_present()), tonumber(lib.mm2_memory_available())
end

local function need_model(model, where)
    if handle.kind(model) ~= "model" then
        raise(("%s needs a model, not %s"):format(where, args.show(model)))
    end
    return model
end

local sampler_known = { model = true }

--- mm.sampler { model = model, temperature = 1, ... }: see sampling.lua for the options.
function mm.sampler(options)
    args.known(options, "mm.sampler", sampler_known, Sampler.known)
    local model = need_model(options and options.model, "mm.sampler")
    return Sampler.new(model, options, "mm.sampler")
end

--- mm.chat(model[, options]): a conversation; see model:chat.
function mm.chat(model, options)
    return need_model(model, "mm.chat"):chat(options)
end

--- mm.export_messages(messages, form): messages, in any form that model:generate takes, in that of others, a
--- list: form "openai", its chat interface, thinking as reasoning_content; or "anthropic", whose system text
--- stands apart: here it is the first message. Calls get ids, and results those of their calls.
mm.export_messages = messages.export

--- mm.batch(model[, sessions][, options]): sessions to be advanced together; see model:batch.
function mm.batch(model, sessions, options)
    return need_model(model, "mm.batch"):batch(sessions, options)
end

local function check_bit(mask, id, where)
    if not args.is_mask(mask) then
        raise(("%s needs a mask made by mm.mask, not %s"):format(where, args.show(mask)))
    end
    local bits = ffi.sizeof(mask) * 8
    if args.int(id, "the token id") < 0 or id >= bits then
        raise(("token id %d is outside of the mask's 0..%d"):format(id, bits - 1))
    end
end

--- A vocabulary mask for n tokens: a uint32_t array with one bit a token. No token is allowed at
--- first; all are with allowed = true.
function mm.mask(n, allowed)
    if args.int(n, "the number of tokens") < 1 then
        raise(("a mask needs at least one token, not %d"):format(n))
    end
    local words = math.ceil(n / 32)
    local mask = ffi.new("uint32_t[?]", words)
    if allowed then
        ffi.fill(mask, words * 4, 255)
    end
    return mask
end

--- Allows a token in a mask.
function mm.allow(mask, id)
    check_bit(mask, id, "mm.allow")
    local word = math.floor(id / 32)
    mask[word] = bit.bor(mask[word], bit.lshift(1, id % 32)) % 4294967296
end

--- Forbids a token in a mask.
function mm.forbid(mask, id)
    check_bit(mask, id, "mm.forbid")
    local word = math.floor(id / 32)
    mask[word] = bit.band(mask[word], bit.bnot(bit.lshift(1, id % 32))) % 4294967296
end

return mm

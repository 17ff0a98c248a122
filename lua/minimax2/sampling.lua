--- Sampler: from logits to a token. The options are the fields of mm2_sampling in minimax2.h
--- (temperature, top_k, top_p, min_p, seed, penalties, DRY, ...), and
---   bias      { [id] = value }: added to the logits; -math.huge forbids a token
---   breakers  { id, ... }: tokens that end a DRY repetition, such as newlines
--- What is not given has the checkpoint's default; a missing seed is drawn, and kept in `seed`.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local Tensor = require "minimax2.tensor"

local lib, raise, check, check_list = native.lib, native.raise, native.check, native.check_list

local Sampler = handle.class("sampler", "mm2_sampler", "mm2_sampler_free")

local fields = {
    seed = args.seed, top_k = args.int, temperature = args.number, top_p = args.number,
    min_p = args.number, typical_p = args.number, top_n_sigma = args.number,
    repetition_penalty = args.number, presence_penalty = args.number,
    frequency_penalty = args.number, penalty_window = args.int, dry_multiplier = args.number,
    dry_base = args.number, dry_allowed_length = args.int, dry_window = args.int,
}

--- The names of all options, for functions that take them among others.
Sampler.known = { bias = true, breakers = true }
for name in pairs(fields) do
    Sampler.known[name] = true
end

-- 32 random bits: enough to tell runs apart, few enough to print and type in again.
local function fresh_seed()
    local file = io.open("/dev/urandom", "rb")
    if not file then
        return os.time() % 4294967296
    end
    local a, b, c, d = file:read(4):byte(1, 4)
    file:close()
    return ((a * 256 + b) * 256 + c) * 256 + d
end

--- See mm.sampler. Options are known to be spelled right.
function Sampler.new(model, options, where)
    options = options or {}
    local o = native.sized "mm2_sampling"
    local ptr = model:live()
    lib.mm2_sampling_init(o, ptr)
    local seed = options.seed == nil and fresh_seed() or options.seed
    o.seed = args.seed(seed, where .. ": seed")
    for name, convert in pairs(fields) do
        if name ~= "seed" and options[name] ~= nil then
            o[name] = convert(options[name], where .. ": " .. name)
        end
    end
    local out = ffi.new "mm2_sampler *[1]"
    if lib.mm2_sampler_new(out, ptr, o) < 0 then
        return nil, native.message()
    end
    local self = Sampler.hold(out[0], {
        model = model,
        vocab_size = model.config.vocab_size,
        seed = seed,
    })
    if options.bias ~= nil then
        self:bias(options.bias)
    end
    if options.breakers ~= nil then
        self:breakers(options.breakers)
    end
    return self
end

--- Replaces the bias: { [id] = value }.
function Sampler:bias(values)
    local ptr = self:live()
    if type(values) ~= "table" then
        raise(("bias must be a table { [id] = value }, not %s"):format(args.show(values)))
    end
    local list = {}
    for id in pairs(values) do
        list[#list + 1] = args.int(id, "a token id in bias")
    end
    table.sort(list)
    local ids, count = args.ids(list)
    local added = ffi.new("float[?]", count)
    for i, id in ipairs(list) do
        added[i - 1] = args.number(values[id], ("the bias of token %d"):format(id))
    end
    check_list(lib.mm2_sampler_bias(ptr, ids, added, count))
end

--- Replaces the tokens that end a DRY repetition.
function Sampler:breakers(ids, n)
    local array, count = args.ids(ids, n, "breakers")
    check_list(lib.mm2_sampler_breakers(self:live(), array, count))
end

--- The token that follows the session's last one. mask: nil, or one made by mm.mask. Does not feed
--- it.
function Sampler:next(session, mask)
    local ptr, of = self:live(), args.session(session, "sampler:next")
    return check(lib.mm2_sampler_next(ptr, of, args.mask(mask, self.vocab_size, "sampler:next")))
end

--- The same on any logits: an f32 tensor of vocab_size elements. history: the token ids before, or
--- nil; their number is the position of the draw.
function Sampler:pick(logits, history, mask)
    local ptr = self:live()
    if not Tensor.is(logits) or logits.dtype ~= "f32" or #logits ~= self.vocab_size then
        raise(("sampler:pick needs an f32 tensor of %d logits, not %s"):format(self.vocab_size,
            tostring(logits)))
    end
    if logits._f32 == nil then
        logits = logits:copy()
    end
    local ids, count = args.ids(history or {})
    return (check_list(lib.mm2_sampler_pick(ptr, logits:ptr(), ids, count,
        args.mask(mask, self.vocab_size, "sampler:pick"))))
end

return Sampler

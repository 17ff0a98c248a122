--- Tokenizer: text to token ids and back. `model.tokenizer`, or mm.tokenizer(path) for one alone.
---
--- Fields: vocab_size (highest id + 1) and the ids bos, eos, unk, pad, think_open, think_close, nil
--- where the files name none. Lua strings are bytes: invalid UTF-8 may go in and come out.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
local Encoding = require "minimax2.encoding"

local lib, raise, check_list = native.lib, native.raise, native.check_list

local Tokenizer, properties = handle.class("tokenizer", "mm2_tokenizer", "mm2_tokenizer_release")

local int32_array = ffi.typeof "int32_t[?]"
local char_array = ffi.typeof "char[?]"

local function with_facts(self)
    local ptr = self:live()
    local facts = native.sized "mm2_tokenizer_info"
    native.check(lib.mm2_tokenizer_describe(ptr, facts))
    self.vocab_size = facts.vocab_size
    for _, name in ipairs { "bos", "eos", "unk", "pad", "think_open", "think_close" } do
        self[name] = facts[name] >= 0 and facts[name] or nil
    end
    return self
end

--- See mm.tokenizer.
function Tokenizer.load(path)
    local out = ffi.new "mm2_tokenizer *[1]"
    if lib.mm2_tokenizer_open(out, args.text(path, "the path")) < 0 then
        return nil, native.message()
    end
    return with_facts(Tokenizer.hold(out[0], {}))
end

--- The model's own; it keeps the model alive. nil and a sentence if there is none.
function Tokenizer.of(model)
    if lib.mm2_model_tokenizer(model:live()) == nil then
        return nil, native.message()
    end
    return with_facts(Tokenizer.hold(nil, { model = model }))
end

local own = { live = Tokenizer.live, close = Tokenizer.close }

-- A model's tokenizer lives and ends with the model.
function Tokenizer:live()
    return self.model and lib.mm2_model_tokenizer(self.model:live()) or own.live(self)
end

--- Frees a tokenizer opened by mm.tokenizer; again is allowed. A model's own ends with its model.
function Tokenizer:close()
    if not self.model then
        own.close(self)
    end
end

function properties:closed()
    return (self.model or self).cell.open[0] == 0
end

--- The text of the checkpoint's chat template if it is not a known one; nil: it is known, or there is none.
function properties:unknown_template()
    local text = lib.mm2_tokenizer_unknown_template(self:live())
    return text ~= nil and ffi.string(text) or nil
end

-- Calls fill(array, capacity) with a guess, and again if that was too small; array, length.
local function collect(array_type, guess, fill)
    local array = array_type(guess)
    local length = check_list(fill(array, guess))
    if length > guess then
        array = array_type(length)
        length = check_list(fill(array, length))
    end
    return array, length
end

-- The flags for options of encode and decode.
local function flags_of(options, where)
    options = args.known(options, where, { special = true })
    return args.flag(options.special, false, where .. ": special") and lib.MM2_SPECIAL or 0
end

local function encoding(self, text, options, where)
    self:live()
    if type(text) ~= "string" then
        raise(("the text must be a string, not %s"):format(args.show(text)))
    end
    return Encoding.of(self, text, flags_of(options, where))
end

--- Token ids of a text as an int32_t array, and their number. Options: special = true turns strings
--- such as "<think>" into their token; without it they are plain text.
function Tokenizer:encode(text, options)
    local under_way = encoding(self, text, options, "tokenizer:encode")
    local ids, count = under_way:poll()
    under_way:close()
    return ids, count
end

--- The same in parts, for a long text: encoding:poll(ms) works for about so many milliseconds and
--- returns nil, or what encode returns once it is done.
function Tokenizer:encoding(text, options)
    return encoding(self, text, options, "tokenizer:encoding")
end

local function list(array, count)
    local out = {}
    for i = 1, count do
        out[i] = array[i - 1]
    end
    return out
end

--- The same as a table.
function Tokenizer:ids(text, options)
    return list(self:encode(text, options))
end

--- Text of token ids (a table, a tensor, or an array and its count). Options: special = true writes
--- special tokens out; without it they are left out.
function Tokenizer:decode(ids, n, options)
    local ptr = self:live()
    if type(n) == "table" then
        n, options = nil, n
    end
    local array, count = args.ids(ids, n)
    local flags = flags_of(options, "tokenizer:decode")
    return ffi.string(collect(char_array, count * 8 + 64, function(out, room)
        return lib.mm2_tokenizer_decode(ptr, array, count, flags, out, room)
    end))
end

--- The bytes of one token; nil and a sentence if there is no such id.
function Tokenizer:token(id)
    local length = ffi.new "int32_t[1]"
    local bytes = lib.mm2_tokenizer_token(self:live(), args.int(id, "the id"), length)
    if bytes == nil then
        return nil, native.message()
    end
    return ffi.string(bytes, length[0])
end

--- The ids of added tokens, ascending: control tokens and others such as <think>, that no text becomes.
function Tokenizer:added()
    local ptr = self:live()
    local count = native.check(lib.mm2_tokenizer_added(ptr, nil, 0))
    local ids, out = ffi.new("int32_t[?]", count), {}
    native.check(lib.mm2_tokenizer_added(ptr, ids, count))
    for i = 1, count do
        out[i] = ids[i - 1]
    end
    return out
end

--- The id whose bytes are exactly these, or nil.
function Tokenizer:id(bytes)
    local ptr = self:live()
    if type(bytes) ~= "string" then
        raise(("the token must be a string, not %s"):format(args.show(bytes)))
    end
    local id = lib.mm2_tokenizer_id(ptr, bytes, #bytes)
    return id >= 0 and id or nil
end

--- Messages { {role=, content=, thinking=, tool_calls=}, ... } in the vendor's chat format, as text to
--- read. Options: generation_prompt = false leaves out the opening of the assistant's turn; thinking, true
--- or false or a number of tokens as in model:generate: false and 0 close its block; tools: a list of
--- { type = "function", ["function"] = { name =, description =, parameters = JSON schema } };
--- keep_thinking = true: of all turns; identity: the system text where no message gives one. Messages and
--- tools may be JSON in a string, whose keys then keep their order.
function Tokenizer:render(turns, options)
    local ptr = self:live()
    local c, length = messages.conversation(turns,
        args.known(options, "tokenizer:render", messages.known), "tokenizer:render")
    return ffi.string(collect(char_array, length + 1024, function(out, room)
        return lib.mm2_chat_render(ptr, c, out, room)
    end))
end

local known = { after = true }

--- The same as token ids to feed: an int32_t array and its length. Only the template's own tags become
--- control tokens, whatever the messages hold. Options: likewise, and after: the token ids of a timeline
--- that holds a conversation, sampled answers included, as far back as its last turn's beginning. The ids
--- are then what further turns add to it; what is missing of that turn's end comes first.
function Tokenizer:encode_chat(turns, options)
    local ptr = self:live()
    options = args.known(options, "tokenizer:template", messages.known, known)
    local c, size = messages.conversation(turns, options, "tokenizer:template")
    local after, length
    if options.after ~= nil then
        after, length = args.ids(options.after, nil, "tokenizer:template: after")
    end
    return collect(int32_array, size + 256, function(ids, room)
        if after then
            return lib.mm2_chat_continue(ptr, after, length, c, ids, room)
        end
        return lib.mm2_chat_encode(ptr, c, ids, room)
    end)
end

--- The same as a table.
function Tokenizer:template(turns, options)
    return list(self:encode_chat(turns, options))
end

--- How many of these bytes can be shown without splitting a UTF-8 character.
function Tokenizer.complete(bytes)
    return lib.mm2_text_complete(bytes, #bytes)
end

return Tokenizer

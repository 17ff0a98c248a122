--- Grammar: texts of a form that a script chooses, by masks of the tokens that may come. Made of the options
---   choices       a list of strings: the answer is one of them
---   regex         a regular expression: all of the answer is a match
---   json_schema   JSON in a string, or a table: the answer is JSON of this schema, its properties in the
---                 order of the text (a table's keys have none of their own, see json.lua)
--- minimax2.h says what is known of both languages. The form begins with the answer, behind </think>.

local bit = require "bit"
local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local json = require "minimax2.json"
local messages = require "minimax2.messages"

local lib, raise, check = native.lib, native.raise, native.check

local Grammar = handle.class("grammar", "mm2_grammar", "mm2_grammar_free")
local Constraint = handle.class("constraint", "mm2_constraint", "mm2_constraint_free")

local kinds = { choices = lib.MM2_GRAMMAR_CHOICES, regex = lib.MM2_GRAMMAR_REGEX,
    json_schema = lib.MM2_GRAMMAR_JSON_SCHEMA }
local starts = { text = lib.MM2_START_TEXT, thinking = lib.MM2_START_THINKING,
    answer = lib.MM2_START_ANSWER }

local KEPT = 16 -- grammars of a model, which keep the masks that they have made

--- The names of the options.
Grammar.known = { choices = true, regex = true, json_schema = true }

local readers = {}

function readers.regex(value, where)
    return args.text(value, where)
end

function readers.json_schema(value, where)
    if type(value) == "table" and next(value) == nil then
        return "{}"
    end
    return messages.json(value, where)
end

function readers.choices(value, where)
    if type(value) ~= "table" or #value == 0 then
        raise(("%s must be a list of strings, not %s"):format(where,
            type(value) == "table" and "an empty table" or args.show(value)))
    end
    local list = setmetatable({}, json.array)
    for i, choice in ipairs(value) do
        list[i] = args.text(choice, ("%s: number %d"):format(where, i))
    end
    return json.encode(list)
end

--- The grammar that the options ask for, or nil; what is wrong raises.
function Grammar.of(model, options, where)
    local name
    for _, kind in ipairs { "choices", "json_schema", "regex" } do
        if options[kind] ~= nil and name then
            raise(("%s: %s and %s are both given: a text has one form"):format(where, name, kind))
        end
        name = options[kind] ~= nil and kind or name
    end
    if not name then
        return nil
    elseif not model.tokenizer then
        raise(("%s: %s needs a model with a tokenizer"):format(where, name))
    elseif options.tools ~= nil and options.tool_choice ~= "none" then
        raise(("%s: beside %s no tool can be called; say tool_choice = 'none', or leave the tools "
            .. "out"):format(where, name))
    end
    local tokenizer = model.tokenizer:live()
    local text = readers[name](options[name], where .. ": " .. name)
    for _, made in ipairs(model.grammars) do
        if made.kind == name and made.text == text and not made.closed then
            return made
        end
    end
    local out = ffi.new "mm2_grammar *[1]"
    if lib.mm2_grammar_new(out, tokenizer, kinds[name], text) < 0 then
        raise(("%s: %s"):format(where, native.message()))
    end
    local made = Grammar.hold(out[0], { model = model, kind = name, text = text })
    table.insert(model.grammars, 1, made)
    model.grammars[KEPT + 1] = nil
    return made
end

--- Whether the whole of a text has the form.
function Grammar:matches(text)
    return check(lib.mm2_grammar_matches(self:live(), text, #text)) == 1
end

-- What all constraints have, around a C object.
local function hold(object, grammar, count)
    local size = grammar.model.config.vocab_size
    local words = math.ceil(size / 32)
    return Constraint.hold(object, { grammar = grammar, words = words, size = size, count = count,
        own = ffi.new("uint32_t[?]", words), ids = ffi.new "int32_t[1]" })
end

--- The state of one text. start: as of a reply.
function Grammar:constraint(start)
    local o = native.sized "mm2_constraint_options"
    lib.mm2_constraint_options_init(o)
    o.start, o.vocab_size = starts[start], self.model.config.vocab_size
    local ends, n = args.ids(self.model:end_tokens())
    o.end_tokens, o.end_count = ends, n
    local out = ffi.new "mm2_constraint *[1]"
    check(lib.mm2_constraint_new(out, self:live(), o))
    return hold(out[0], self, 0)
end

--- A second one that stands where this one stands.
function Constraint:fork()
    local out = ffi.new "mm2_constraint *[1]"
    check(lib.mm2_constraint_fork(out, self:live()))
    return hold(out[0], self.grammar, self.count)
end

--- Goes on to the end of a list of tokens, of which it knows the beginning.
function Constraint:follow(ids)
    while self.count < #ids do
        check(lib.mm2_constraint_push(self:live(), ids[self.count + 1]))
        self.count = self.count + 1
    end
end

--- Whether the text so far is complete, and may end.
function Constraint:accepts()
    return check(lib.mm2_constraint_accepts(self:live())) == 1
end

--- The only token that may come next, or nil.
function Constraint:forced()
    return check(lib.mm2_constraint_forced(self:live(), self.ids, 1)) == 1 and self.ids[0] or nil
end

--- What may come next, of that what the script's own mask allows; good until the next call.
function Constraint:mask(mask, where)
    local words = ffi.new "const uint32_t *[1]"
    local own, any = self.own, 0
    check(lib.mm2_constraint_mask(self:live(), words))
    ffi.copy(own, words[0], self.words * 4)
    if mask == nil then
        return own
    end
    local ours = ffi.cast("int32_t *", own) -- bit operations give signed numbers
    local theirs = ffi.cast("const int32_t *", args.mask(mask, self.size, where))
    for i = 0, self.words - 1 do
        ours[i] = bit.band(ours[i], theirs[i])
        any = bit.bor(any, ours[i])
    end
    if any == 0 then
        raise(where .. ": mask forbids every token with which the text could go on in its form")
    end
    return own
end

return Grammar

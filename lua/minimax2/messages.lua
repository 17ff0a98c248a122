--- Chat messages, { { role=, content=, thinking=, tool_calls= }, ... }, as the C library takes them: as
--- JSON. What they may hold, the library knows.

local ffi = require "ffi"
local native = require "minimax2.native"
local args = require "minimax2.args"
local json = require "minimax2.json"
local tools = require "minimax2.tools"

local lib, raise = native.lib, native.raise

local messages = {}

--- Whether a prompt is a table of messages rather than of token ids.
function messages.is(prompt)
    return type(prompt) == "table" and type(prompt[1]) == "table" and prompt[1][1] == nil
        and not messages.has_options(prompt[1])
end

--- Whether one of several prompts is a table { prompt =, ... } with options of its own.
function messages.has_options(item)
    return type(item) == "table" and item.prompt ~= nil
end

--- Whether it is a table of prompts: strings, tables of token ids or of messages, tensors, and tables
--- { prompt =, ... }.
function messages.are_prompts(prompt)
    local first = type(prompt) == "table" and prompt[1]
    return first and type(first) ~= "number" and not messages.is(prompt) or false
end

-- Refuses tools that no conversation can declare: a reply reads them.
local function check_tools(declared)
    local o, out = native.sized "mm2_reply_options", ffi.new "mm2_reply *[1]"
    lib.mm2_reply_options_init(o)
    o.start, o.tools = lib.MM2_START_ANSWER, declared
    native.check_list(lib.mm2_reply_new(out, nil, o))
    lib.mm2_reply_free(out[0])
end

--- JSON of what a script hands in; a string is JSON already. Tools are checked.
function messages.json(value, name)
    if type(value) ~= "table" and type(value) ~= "string" then
        raise(("%s must be a table, not %s"):format(name, args.show(value)))
    end
    local are_tools = name:find "tools$" ~= nil
    if type(value) == "table" then
        if next(value) == nil then
            return "[]"
        end
        value = are_tools and tools.declared(value, name) or value
        local ok, encoded = pcall(json.encode, value)
        if not ok then
            raise(("%s: %s"):format(name, encoded))
        end
        value = encoded
    end
    value = args.text(value, name)
    if are_tools then
        check_tools(value)
    end
    return value
end

--- The option thinking of a call: whether a text begins inside <think>, and how many tokens it may think
--- (nil: no limit). It is true, false or a number of tokens; nil: as `default` says.
function messages.thinking(value, default, where)
    if value == nil then
        return default
    elseif type(value) == "number" then
        local budget = args.count(value, nil, nil, where .. ": thinking")
        return budget > 0, budget
    elseif type(value) ~= "boolean" then
        raise(("%s: thinking must be true, false or a number of tokens, not %s"):format(where,
            args.show(value)))
    end
    return value
end

--- The options that say how messages are rendered.
messages.known = { generation_prompt = true, tools = true, thinking = true, keep_thinking = true,
    identity = true }

local forms = { openai = lib.MM2_FORM_OPENAI, anthropic = lib.MM2_FORM_ANTHROPIC }

--- See mm.export_messages.
function messages.export(turns, form)
    if not forms[form] then
        raise(("the form of messages is %s, must be 'openai' or 'anthropic'"):format(args.show(form)))
    end
    local text = messages.json(turns, "messages")
    local room = lib.mm2_chat_export(text, forms[form], nil, 0)
    local out = ffi.new("char[?]", math.max(native.check_list(room), 1))
    native.check_list(lib.mm2_chat_export(text, forms[form], out, room))
    return assert(json.decode(ffi.string(out, room)))
end

local anchors = setmetatable({}, { __mode = "k" }) -- the strings that a conversation points to

--- An mm2_conversation of messages and the options messages.known of `where`, and the length of its JSON.
function messages.conversation(turns, options, where)
    local c, keep = native.sized "mm2_conversation", { messages.json(turns, "messages") }
    local prompt = args.flag(options.generation_prompt, true, where .. ": generation_prompt")
    local thinks = messages.thinking(options.thinking, true, where)
    local all = args.flag(options.keep_thinking, false, where .. ": keep_thinking")
    c.flags = (prompt and lib.MM2_GENERATION_PROMPT or 0) + (thinks and 0 or lib.MM2_NO_THINKING)
        + (all and lib.MM2_KEEP_THINKING or 0)
    c.messages = keep[1]
    if options.tools ~= nil then
        keep[2] = messages.json(options.tools, "tools")
        c.tools = keep[2]
    end
    if options.identity ~= nil then
        keep[3] = args.text(options.identity, "identity")
        c.identity = keep[3]
    end
    anchors[c] = keep
    return c, #keep[1]
end

return messages

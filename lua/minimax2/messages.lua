--- Chat messages, { { role=, content=, thinking= }, ... }, as the C library takes them.

local ffi = require "ffi"
local native = require "minimax2.native"
local args = require "minimax2.args"

local raise = native.raise

local messages = {}

local known = { role = true, content = true, thinking = true }

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

--- An array of mm2_message and its length. It points into the strings of `turns`, which must stay as
--- they are while it is used.
function messages.array(turns)
    if type(turns) ~= "table" then
        raise(("messages must be a table, not %s"):format(args.show(turns)))
    end
    local count = #turns
    local array = ffi.new("mm2_message[?]", count)
    for i, turn in ipairs(turns) do
        local where = ("message %d"):format(i)
        if type(turn) ~= "table" then
            raise(("%s must be a table { role=, content= }, not %s"):format(where, args.show(turn)))
        end
        args.known(turn, where, known)
        array[i - 1].size = ffi.sizeof "mm2_message"
        for name in pairs(known) do
            if turn[name] ~= nil then -- what must not be missing, the library says
                array[i - 1][name] = args.text(turn[name], where .. ": " .. name)
            end
        end
    end
    return array, count
end

return messages

--- Reply: from sampled ids to thinking, answer and calls. The library keeps the rules: which ids and strings
--- end it, what is thinking, what is held back. Streams and chats are drivers around one.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local json = require "minimax2.json"

local lib, check = native.lib, native.check

local Reply = handle.class("reply", "mm2_reply", "mm2_reply_free")

-- Why a reply has ended, as scripts read it.
local reasons = { [lib.MM2_END_STOP] = "stop", [lib.MM2_END_LENGTH] = "length",
    [lib.MM2_END_CONTEXT] = "context", [lib.MM2_END_CANCELLED] = "cancelled",
    [lib.MM2_END_CALLS] = "tool_calls" }
local starts = { text = lib.MM2_START_TEXT, thinking = lib.MM2_START_THINKING,
    answer = lib.MM2_START_ANSWER }
local numbers = { context = lib.MM2_END_CONTEXT, cancelled = lib.MM2_END_CANCELLED }

--- A reply of a model of at most `most` ids, which ends at the model's end tokens and before the strings
--- of the list `stops`. start: "text"; or of a chat turn "thinking", inside <think>, or "answer", behind
--- it. tools: nil, or the JSON of those that it may call. budget: nil, or ids of thinking at most. call:
--- nil, or the tool that it must call, "" for any. The model's tokenizer must live until the last push:
--- keep a session of the model open.
function Reply.new(model, most, stops, start, tools, budget, call)
    local o = native.sized "mm2_reply_options"
    lib.mm2_reply_options_init(o)
    o.start = starts[start]
    o.max_tokens = most
    o.stop_count = #stops
    local strings = ffi.new("const char *[?]", #stops, stops)
    local lengths = ffi.new("int32_t[?]", #stops)
    for i, stop in ipairs(stops) do
        lengths[i - 1] = #stop
    end
    o.stop, o.stop_len = strings, lengths
    local ends, n = args.ids(model:end_tokens())
    o.end_tokens, o.end_count = ends, n
    o.tools, o.call = tools, call
    o.max_thinking = budget or o.max_thinking
    local tokenizer = model.tokenizer
    local out = ffi.new "mm2_reply *[1]"
    check(lib.mm2_reply_new(out, tokenizer and tokenizer:live() or nil, o))
    return Reply.hold(out[0], { piece = native.sized "mm2_piece", record = native.sized "mm2_call" })
end

-- The piece as Lua values: what came of the answer, why the reply has ended (nil: it goes on), what came
-- of the thinking.
local function read(piece)
    return ffi.string(piece.text, piece.text_len), reasons[piece["end"]],
        ffi.string(piece.thinking, piece.thinking_len)
end

--- The next id. Returns the text that it adds to the answer, and why the reply has ended, nil if it goes
--- on: "stop" (an end token, a stop string), "tool_calls" or "length".
function Reply:push(id)
    check(lib.mm2_reply_push(self:live(), id, self.piece))
    return read(self.piece)
end

--- Ends the reply, "context" or "cancelled"; returns likewise, with what was held back.
function Reply:finish(reason)
    check(lib.mm2_reply_end(self:live(), numbers[reason], self.piece))
    return read(self.piece)
end

--- Everything so far: answer, why it has ended or nil, thinking.
function Reply:all()
    check(lib.mm2_reply_all(self:live(), self.piece))
    return read(self.piece)
end

--- What the answer and the thinking have behind so many bytes each.
function Reply:behind(text, thinking)
    local piece = self.piece
    check(lib.mm2_reply_all(self:live(), piece))
    return ffi.string(piece.text + text, piece.text_len - text),
        ffi.string(piece.thinking + thinking, piece.thinking_len - thinking)
end

--- The id that has to come next because the budget of thinking is spent or a call must come, or nil. As of
--- the last push.
function Reply:forced()
    return self.piece.next >= 0 and self.piece.next or nil
end

local states = { [lib.MM2_CALL_OPEN] = "open", [lib.MM2_CALL_COMPLETE] = "complete",
    [lib.MM2_CALL_CUT] = "cut" }

--- The calls so far, from number `first` (1) on, a list of { name =, json = its arguments as far as they
--- came, arguments = them as a table (nil while it is open), state = "open", "complete" or "cut", known =
--- false if tools were given and none has that name, at = bytes of the text before it }; why the last text
--- that looks like a call is none, or ""; and how many ids are thinking.
function Reply:calls(first)
    local list, call = {}, self.record
    check(lib.mm2_reply_all(self:live(), self.piece))
    for i = first or 1, self.piece.calls do
        check(lib.mm2_reply_call(self:live(), i - 1, call))
        local text = ffi.string(call.arguments, call.arguments_len)
        local state = states[call.state]
        list[#list + 1] = { name = ffi.string(call.name, call.name_len), json = text, state = state,
            arguments = state ~= "open" and json.decode(text) or nil, known = call.known ~= 0,
            at = call.text_at }
    end
    return list, ffi.string(self.piece.reason), self.piece.thought
end

return Reply

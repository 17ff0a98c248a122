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
    local self = Reply.hold(out[0], { piece = native.sized "mm2_piece", record = native.sized "mm2_call" })
    check(lib.mm2_reply_all(self:live(), self.piece)) -- it may have ended already
    return self
end

--- The next id.
function Reply:push(id)
    check(lib.mm2_reply_push(self:live(), id, self.piece))
end

--- Ends the reply, "context" or "cancelled": what was held back joins the text.
function Reply:finish(reason)
    check(lib.mm2_reply_end(self:live(), numbers[reason], self.piece))
end

--- Ids so far, one that ended the reply included.
function Reply:count()
    return self.piece.count
end

--- Why it has ended: "stop" (an end token, a stop string), "tool_calls", "length", "context" or
--- "cancelled"; nil while it goes on.
function Reply:ended()
    return reasons[self.piece["end"]]
end

--- The id that has to come next because the budget of thinking is spent or a call must come, or nil.
function Reply:forced()
    return self.piece.next >= 0 and self.piece.next or nil
end

--- Ids so far that came before the answer began, </think> included; nil while it has not begun.
function Reply:answer_at()
    return self.piece.answer_at >= 0 and self.piece.answer_at or nil
end

--- What the answer has behind its first `text` bytes, and the thinking behind its first `thinking`.
function Reply:behind(text, thinking)
    local piece = self.piece
    check(lib.mm2_reply_all(self:live(), piece))
    return ffi.string(piece.text + text, piece.text_len - text),
        thinking and ffi.string(piece.thinking + thinking, piece.thinking_len - thinking)
end

--- Everything so far: answer, thinking.
function Reply:all()
    return self:behind(0, 0)
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

-- Hands what has come since the last look to `yield`, in the order in which the model wrote it. seen: what
-- has been handed over.
local function tell(self, seen, yield)
    local first, from = seen.ended + 1, seen.text
    local calls = self:calls(first)
    local text, thinking = self:behind(from, seen.thinking)
    local function tell_text(to)
        if to > seen.text then
            yield("text", text:sub(seen.text - from + 1, to - from))
            seen.text = to
        end
    end
    if #thinking > 0 then
        yield("thinking", thinking)
        seen.thinking = seen.thinking + #thinking
    end
    for k, one in ipairs(calls) do
        local i = first + k - 1
        tell_text(one.at)
        if seen.begun < i then
            yield("call", one.name, i)
            seen.begun, seen.json = i, 0
        end
        if #one.json > seen.json then
            yield("arguments", one.json:sub(seen.json + 1), i)
            seen.json = #one.json
        end
        if one.state == "open" then
            return
        end
        yield("call_end", "", i)
        seen.ended = i
    end
    tell_text(from + #text)
end

--- A function that lists what has come since it was called last, in the order in which the model wrote it:
--- { kind, text, call }, as stream:pieces() has them.
function Reply:watch()
    local seen = { thinking = 0, text = 0, begun = 0, ended = 0, json = 0 }
    return function()
        local list = {}
        tell(self, seen, function(...)
            list[#list + 1] = { ... }
        end)
        return list
    end
end

return Reply

--- Stream: a generation in progress, pulled by the script at its own pace.
---
---   for piece in stream do io.write(piece) end      to the end
---   local piece, done = stream:poll(4)              at most about 4 ms and one token, for frame loops
---   local piece = stream:next()                     the next piece; nil at the end
---
--- Pieces end at whole characters and hold back what may become a stop string, so joined they are the
--- final text. After a prompt of messages they are the answer; stream:thinking() grows before it.
--- Pulling one stream of a batch lets those of the other members go on as well.
--- Options: those of mm.sampler, and
---   max_new_tokens    how many tokens at most, 1024; a full context may end it earlier
---   stop              a string or a list: the text ends before the first of them
---   mask              made by mm.mask; or a function(tokens) that returns one, or nil, for each token
---   logits_processor  a function(tokens, logits) that edits an f32 tensor [vocab_size], a copy of the
---                     logits, before each choice
---   top_logprobs      n > 0: info.logprobs[i] = { id=, logprob=, top = { { id=, logprob= }, ... } }, by
---                     the model's own logits
---   hooks             { { point, layer, function(tensor, tap) }, ... }, called at these activations;
---                     without the layer: at all
---   thinking          whether the text begins inside <think>; nil: as the prompt has it; false closes that
---                     block in a prompt of messages, so that the model answers at once; a number: closes
---                     it after so many tokens
---   tools             that a prompt of messages declares, see tokenizer:render; stream:calls() has the
---                     calls of them, whose results are messages of the role "tool"
---   tool_choice       "auto"; "none": calls are forbidden; "required": behind the thinking a call is opened;
---                     the name of a tool: a call of that one
---   keep_thinking     true: of all turns of a prompt of messages
---   yield             true: stream:next() yields between time slices; for use in coroutines
---
--- Fields: session, seed, finish_reason: nil while it goes on, then "stop" (end token or stop string),
--- "tool_calls" (an end token, and the reply calls tools), "length" (max_new_tokens), "context" (it is
--- full) or "cancelled".

local native = require "minimax2.native"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
local tools_of = require "minimax2.tools"
local trace = require "minimax2.trace"
local Reply = require "minimax2.reply"
local Sampler = require "minimax2.sampling"

local lib, raise = native.lib, native.raise

local Stream = {}
Stream.__index = Stream

local DEFAULT_TOKENS = 1024
local YIELD_US = 5000

--- The names of the options, beside those of the sampler.
Stream.known = {
    max_new_tokens = true, stop = true, mask = true, logits_processor = true, top_logprobs = true,
    hooks = true, thinking = true, tools = true, tool_choice = true, keep_thinking = true, yield = true,
}

local function stop_list(stop, where)
    local list = type(stop) == "table" and stop or { stop }
    for key, text in pairs(list) do
        if type(key) ~= "number" or type(text) ~= "string" or text == "" then
            raise(("%s: stop must be a string or a list of strings, none of them empty, not %s"):format(
                where, args.show(type(key) == "number" and text or stop)))
        end
    end
    return list
end

--- A prompt (nil: none) and the options of a stream, all of them checked, and what is made of them: a
--- table for Stream.new. It comes before anything is fed, so that a refused call leaves everything as it
--- was. turn: a function that makes the ids of a chat turn, given whether it thinks. more: names of further
--- options, which are kept in plan.options, of a call that makes a session and so needs a prompt.
function Stream.plan(model, prompt, options, where, turn, more)
    options = args.known(options, where, Stream.known, Sampler.known, more or {})
    if more and prompt == nil then
        raise(where .. ": the prompt must be a string, token ids or a table of messages, not nil")
    end
    local mask, processor, hooks = options.mask, options.logits_processor, options.hooks
    if type(mask) ~= "function" then
        args.mask(mask, model.config.vocab_size, where)
    end
    if processor ~= nil and type(processor) ~= "function" then
        raise(("%s: logits_processor must be a function(tokens, logits), not %s"):format(where,
            args.show(processor)))
    end
    local plan = {
        options = options,
        where = where,
        most = args.count(options.max_new_tokens, DEFAULT_TOKENS, nil, where .. ": max_new_tokens"),
        mask = mask,
        processor = processor,
        top = args.count(options.top_logprobs, 0, model.config.vocab_size, where .. ": top_logprobs"),
        hooks = hooks,
        switches = hooks ~= nil and trace.hook_switches(model, hooks) or nil,
        yields = options.yield,
    }
    local is_messages = messages.is(prompt)
    local answers, thinks, budget = turn ~= nil or is_messages, options.thinking, nil
    if thinks == nil then
        thinks = answers
    elseif type(thinks) == "number" then
        budget = args.count(thinks, nil, nil, where .. ": thinking")
        thinks = budget > 0
    elseif type(thinks) ~= "boolean" then
        raise(("%s: thinking must be true, false or a number of tokens, not %s"):format(where,
            args.show(thinks)))
    end
    plan.thinks = thinks
    local tools = options.tools ~= nil and messages.json(options.tools, where .. ": tools") or nil
    if tools and prompt ~= nil and not is_messages then
        raise(where .. ": tools are for prompts of messages; a prompt that is a text or ids declares its own")
    end
    local stops = stop_list(options.stop, where)
    local call, bias = tools_of.choice(model, options, answers or prompt == nil, where)
    local sampler, message = Sampler.new(model, bias and setmetatable({ bias = bias }, { __index = options })
        or options, where)
    if not sampler then
        raise(("%s: %s"):format(where, message))
    end
    plan.sampler, plan.seed = sampler, sampler.seed
    if turn then
        plan.prompt, plan.count = turn(thinks)
    elseif prompt ~= nil then
        plan.prompt, plan.count = model:prompt_ids(prompt, nil, is_messages and
            { tools = tools, thinking = thinks, keep_thinking = options.keep_thinking } or nil)
    end
    plan.reply = Reply.new(model, plan.most, stops, thinks and "thinking" or answers and "answer" or "text",
        tools, budget, call)
    return plan
end

-- Takes what the reply tells: a piece, and maybe the end.
local function take(self, piece, reason)
    self.fresh = self.fresh .. piece
    if not reason then
        return
    end
    local session = self.session
    self.finish_reason = reason
    if session.current == self then
        session.current = nil
    end
    if self.traced and session.traced == self.traced then
        trace.stop(session)
    end
    if self.owned then
        session:close()
    end
end

--- A stream that goes on with `session`, by a plan, which becomes the stream. owned: the session is
--- closed at the end.
function Stream.new(session, plan, owned)
    local self = setmetatable(plan, Stream)
    if plan.prompt then
        session:feed(plan.prompt, plan.count)
    end
    trace.stop(session)
    self.session = session
    self.owned = owned
    self.logprobs = self.top > 0 and {} or nil
    self.ids = {}
    self.fresh = "" -- text that the script has not got yet
    session.current = self
    if self.switches then
        self.traced = trace.start(session, self.switches)
    end
    local _, reason = self.reply:all()
    take(self, "", reason)
    return self
end

-- The log-probabilities of the token at hand by the model's own logits.
local function keep_logprobs(self, id)
    local ids, values = self.session:top(self.top)
    local top = {}
    for i = 1, #ids do
        top[i] = { id = ids[i], logprob = values[i] }
    end
    table.insert(self.logprobs, { id = id, logprob = self.session:logprobs({ id })[1], top = top })
end

-- Calls a function of the script, which may neither run nor change the session's batch.
local function call(self, fn, ...)
    local batch = self.session.batch
    if batch then
        return batch:call(fn, ...)
    end
    return fn(...)
end

-- Chooses the next token. What a processor edits is a copy: the session's logits stay the model's.
local function choose(self)
    local session, mask = self.session, self.mask
    if type(mask) == "function" then
        mask = call(self, mask, self.ids)
    end
    local id = self.reply:forced()
    if id then -- the budget of thinking is spent
        id = tonumber(id)
    elseif self.processor then
        local logits, tokens = session:logits():copy(), session:tokens()
        call(self, self.processor, tokens, logits)
        id = self.sampler:pick(logits, tokens, mask)
    else
        id = self.sampler:next(session, mask)
    end
    if self.logprobs then
        keep_logprobs(self, id)
    end
    return id
end

-- The session has its logits: one token more.
local function ready(self)
    local session = self.session
    if session.length == session.context then
        return take(self, self.reply:finish "context")
    end
    local id = choose(self)
    native.check(lib.mm2_session_feed(session:live(), args.ids({ id }), 1))
    table.insert(self.ids, id)
    take(self, self.reply:push(id))
end

--- What a run tells, maybe one of somebody else's batch: that the session is at a tap (MM2_TAP, and the
--- event), or else that it has its logits.
function Stream:happened(status, event)
    if self.traced and self.session.traced ~= self.traced then
        raise("the hooks of this stream were ended by another call on its session")
    elseif status ~= lib.MM2_TAP then
        ready(self)
    elseif self.hooks then
        call(self, trace.call_hooks, self.hooks, self.switches, trace.tap(event, self.session))
    end
end

-- Works within a budget, at most one token. Returns the piece (nil if there is none to show yet), and
-- whether the stream has ended.
local function advance(self, budget_us)
    local left = native.timer(budget_us)
    while self.fresh == "" and not self.finish_reason do
        local status, event = self.session:step(left)
        if status == lib.MM2_MORE then
            break
        end
        self:happened(status, event)
        if status ~= lib.MM2_TAP or not left() then
            break
        end
    end
    local piece = self.fresh
    self.fresh = ""
    return piece ~= "" and piece or nil, self.finish_reason ~= nil
end

--- Works for about `ms` milliseconds (nil: no limit) and at most one token. Returns the new piece of
--- text, or nil if there is none yet; and whether the stream has ended.
function Stream:poll(ms)
    return advance(self, args.budget(ms))
end

--- The next piece of text; nil at the end. With the option yield, gives way to other coroutines
--- every few milliseconds.
function Stream:next()
    local slice = self.yields and YIELD_US or trace.SLICE_US
    while true do
        local piece, done = advance(self, slice)
        if piece or done then
            return piece
        end
        if self.yields then
            coroutine.yield()
        end
    end
end

Stream.__call = Stream.next

--- All the text so far.
function Stream:text()
    return (self.reply:all())
end

--- What stood before </think> so far; nil unless the prompt was a table of messages.
function Stream:thinking()
    return self.thinks and select(3, self.reply:all()) or nil
end

--- The calls of tools so far, a list of { name =, arguments =, json =, state =, known =, at = }; and why
--- the last text that looks like a call is none, "" where there is no such text. state: "complete"; "open"
--- while the arguments come, which are then nil, and json, their text so far, grows; "cut" where the reply
--- ended inside. known = false: tools were given, and none has that name. at: bytes of the text before it.
function Stream:calls()
    return self.reply:calls()
end

--- The assistant's message so far, for a conversation: role, content, thinking, tool_calls.
function Stream:message()
    local message = { role = "assistant", content = self:text(), thinking = self:thinking() }
    for i, one in ipairs((self:calls())) do
        message.tool_calls = message.tool_calls or {}
        message.tool_calls[i] = { name = one.name, arguments = one.json }
    end
    return message
end

-- Hands what has come since the last look to `yield`, in the order in which the model wrote it. seen: what
-- has been handed over.
local function tell(self, seen, yield)
    local first, from = seen.ended + 1, seen.text
    local calls = self.reply:calls(first)
    local text, thinking = self.reply:behind(from, seen.thinking)
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

--- An iterator over kind, text, call: "thinking", "text", "call" (the name of one that begins), "arguments"
--- (JSON that joins up to the object), "call_end"; call: which one, from 1.
function Stream:pieces()
    local seen, queue, at = { thinking = 0, text = 0, begun = 0, ended = 0, json = 0 }, {}, 0
    return function()
        while at == #queue do
            local finished = self.finish_reason
            queue, at = {}, 0
            tell(self, seen, function(...)
                queue[#queue + 1] = { ... }
            end)
            if #queue == 0 then
                if finished then
                    return nil
                end
                self:poll(trace.SLICE_US / 1000)
            end
        end
        at = at + 1
        return unpack(queue[at])
    end
end

--- The tokens so far, an end token included: a table.
function Stream:tokens()
    local list = {}
    for i, id in ipairs(self.ids) do
        list[i] = id
    end
    return list
end

--- What generate returns beside the text: tokens, finish_reason, seed, thinking, thinking_tokens, calls,
--- reason, logprobs.
function Stream:info()
    local calls, reason, thought = self:calls()
    return {
        calls = calls,
        reason = reason,
        thinking_tokens = thought,
        tokens = self:tokens(),
        finish_reason = self.finish_reason,
        seed = self.seed,
        thinking = self:thinking(),
        logprobs = self.logprobs,
    }
end

--- Pulls to the end: text, info.
function Stream:finish()
    repeat
        local piece = self:next()
    until not piece
    return self:text(), self:info()
end

--- Ends the stream now. What it held back joins the text.
function Stream:cancel()
    if not self.finish_reason then
        if self.session.batch then
            self.session.batch:idle()
        end
        take(self, self.reply:finish "cancelled")
    end
end

return Stream

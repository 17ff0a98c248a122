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
---                     block in a prompt of messages, so that the model answers at once
---   yield             true: stream:next() yields between time slices; for use in coroutines
---
--- Fields: session, seed, finish_reason: nil while it goes on, then "stop" (end token or stop string),
--- "length" (max_new_tokens), "context" (it is full) or "cancelled".

local native = require "minimax2.native"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
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
    hooks = true, thinking = true, yield = true,
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

-- A chat prompt, which ends inside <think>, with that block closed and empty.
local function without_thinking(tokenizer, ids, count, where)
    if not (tokenizer.think_open and tokenizer.think_close) then
        raise(where .. ": thinking = false needs a tokenizer with <think> and </think>")
    end
    local opened = count - 1
    while opened >= 0 and ids[opened] ~= tokenizer.think_open do
        opened = opened - 1
    end
    local list, blank = {}, tokenizer:ids "\n\n"
    for i = 0, opened do
        list[i + 1] = ids[i]
    end
    for _, part in ipairs { blank, { tokenizer.think_close }, blank } do
        for _, id in ipairs(part) do
            list[#list + 1] = id
        end
    end
    return args.ids(list)
end

--- A prompt (nil: none) and the options of a stream, all of them checked, and what is made of them: a
--- table for Stream.new. It comes before anything is fed, so that a refused call leaves everything as it
--- was. chat: the prompt is the ids of a chat turn. more: names of further options, which are kept in
--- plan.options, of a call that makes a session and so needs a prompt.
function Stream.plan(model, prompt, options, where, chat, more)
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
    local answers, thinks = chat or messages.is(prompt), options.thinking
    if thinks == nil then
        thinks = answers
    elseif type(thinks) ~= "boolean" then
        raise(("%s: thinking must be true or false, not %s"):format(where, args.show(thinks)))
    end
    plan.thinks = thinks
    local stops = stop_list(options.stop, where)
    local sampler, message = Sampler.new(model, options, where)
    if not sampler then
        raise(("%s: %s"):format(where, message))
    end
    plan.sampler, plan.seed = sampler, sampler.seed
    if prompt ~= nil then
        plan.prompt, plan.count = model:prompt_ids(prompt)
        if answers and not thinks then
            plan.prompt, plan.count = without_thinking(model.tokenizer, plan.prompt, plan.count, where)
        end
    end
    plan.reply = Reply.new(model, plan.most, stops, thinks and "thinking" or answers and "answer" or "text")
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
    local id
    if self.processor then
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

--- The tokens so far, an end token included: a table.
function Stream:tokens()
    local list = {}
    for i, id in ipairs(self.ids) do
        list[i] = id
    end
    return list
end

--- What generate returns beside the text: tokens, finish_reason, seed, thinking, logprobs.
function Stream:info()
    return {
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

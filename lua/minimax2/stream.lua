--- Stream: a generation in progress, pulled by the script at its own pace.
---
---   for piece in stream do io.write(piece) end      to the end
---   local piece, done = stream:poll(4)              at most about 4 ms and one token, for frame loops
---   local piece = stream:next()                     the next piece; nil at the end
---
--- Pieces end at whole characters and hold back what may become a stop string, so joined they are the
--- final text. After a prompt of messages they are the answer; stream:thinking() grows before it.
--- Pulling one stream of a batch lets those of the other members go on as well. The options stand in
--- request.lua.
---
--- What a hook, mask or logits_processor refuses by raising an error is not lost: the next call asks it
--- again, for the same activation or token. Of several hooks, those that had returned are not called again.
---
--- Fields: session, seed, finish_reason: nil while it goes on, then "stop" (end token or stop string),
--- "tool_calls" (an end token, and the reply calls tools), "length" (max_new_tokens), "context" (it is
--- full) or "cancelled".

local native = require "minimax2.native"
local args = require "minimax2.args"
local trace = require "minimax2.trace"

local lib, raise = native.lib, native.raise

local Stream = {}
Stream.__index = Stream

local YIELD_US = 5000

-- The reply has ended: the session is free again.
local function let_go(self, reason)
    local session = self.session
    self.finish_reason = reason
    self.proposals = not session.closed and session:speculation() or {}
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

-- Gives the reply the token that was fed last, if it has not got it.
local function catch_up(self)
    local reply, count = self.reply, self.reply:count()
    if not reply:ended() and self.start + count < self.session.length then
        self.ids[count + 1] = self.chosen
        reply:push(self.chosen)
    end
    if reply:ended() then
        let_go(self, reply:ended())
    end
end

--- A stream that goes on with `session`, which was fed, by a request. owned: the session is closed at the
--- end.
function Stream.new(session, request, owned)
    local self = setmetatable({
        session = session,
        request = request,
        reply = request.reply,
        seed = request.sampler.seed,
        owned = owned,
        start = session.length,
        ids = {},
        given = 0, -- bytes of the text that the script has got
        logprobs = request.top > 0 and {} or nil,
    }, Stream)
    trace.stop(session)
    session.current = self
    native.check(lib.mm2_session_speculate(session:live(), request.speculate))
    if request.hooks then
        self.traced = trace.start(session, request.hooks)
    end
    catch_up(self)
    return self
end

-- Refuses to go on where somebody else has moved the session.
local function check(self)
    local session = self.session
    session:live()
    if session.current ~= self then
        raise("another call has fed or cut this stream's session: it cannot go on; cancel() it, or let a "
            .. "stream end before its session is used")
    elseif self.traced and session.traced ~= self.traced then
        raise("the hooks of this stream were ended by another call on its session")
    end
end

-- Calls a function of the script, which may neither run nor change the session's batch.
local function call(self, fn, ...)
    local batch = self.session.batch
    if batch then
        return batch:call(fn, ...)
    end
    return fn(...)
end

-- Chooses the next token; nil if the mask or processor has cancelled the stream. What a processor edits is a
-- copy: the session's logits stay the model's.
local function choose(self)
    local session, request, mask = self.session, self.request, self.request.mask
    if type(mask) == "function" then
        mask = call(self, mask, self.ids)
    end
    local forced = self.reply:forced()
    if self.finish_reason then
        return nil
    elseif forced then -- the budget of thinking is spent, or a call must come
        return forced
    end
    if request.constraint then
        request.constraint:follow(self.ids)
        mask = request.constraint:mask(mask, request.where)
    end
    if not request.processor then
        return request.sampler:next(session, mask)
    end
    local logits, tokens = session:logits():copy(), session:tokens()
    call(self, request.processor, tokens, logits)
    return not self.finish_reason and request.sampler:pick(logits, tokens, mask) or nil
end

-- The log-probabilities of a token by the model's own logits.
local function logprobs_of(self, id)
    local ids, values = self.session:top(self.request.top)
    local top = {}
    for i = 1, #ids do
        top[i] = { id = ids[i], logprob = values[i] }
    end
    return { id = id, logprob = self.session:logprobs({ id })[1], top = top }
end

-- The session has its logits: one token more.
local function add_token(self)
    local session, reply = self.session, self.reply
    if session.length == session.context then
        reply:finish "context"
        return catch_up(self)
    end
    local id = choose(self)
    if id then
        if self.logprobs then
            self.logprobs[reply:count() + 1] = logprobs_of(self, id)
        end
        self.chosen = id
        native.check(lib.mm2_session_feed(session:live(), args.ids { id }, 1))
        catch_up(self)
    end
end

--- What a run tells, maybe one of somebody else's batch: that the session is at a tap (MM2_TAP, and the
--- event), or else that it has its logits.
function Stream:happened(status, event)
    local hooks = self.request.hooks
    check(self)
    if status ~= lib.MM2_TAP then
        catch_up(self)
        if not self.finish_reason then
            add_token(self)
        end
    elseif hooks then
        call(self, hooks.call, hooks, trace.tap(event, self.session))
    end
end

--- Calls the hooks that are left at a tap where one of them raised an error. Comes before the session is
--- run again. Returns whether there were some.
function Stream:go_on()
    local hooks = self.request.hooks
    local left = hooks ~= nil and hooks.tap ~= nil and self.session.traced == self.traced
    if left then
        call(self, hooks.go_on, hooks)
    end
    return left
end

--- The rows that were in flight are evaluated again: its session has entered or left a batch.
function Stream:forget_tap()
    if self.request.hooks then
        self.request.hooks.tap = nil
    end
end

-- Works within a budget, at most one token. Returns the piece (nil if there is none to show yet), and
-- whether the stream has ended.
local function advance(self, budget_us)
    local left = native.timer(budget_us)
    local piece = self.reply:behind(self.given)
    while piece == "" and not self.finish_reason do
        check(self)
        local status, event = lib.MM2_TAP
        if not self:go_on() then
            status, event = self.session:step(left)
            if status ~= lib.MM2_MORE then
                self:happened(status, event)
            end
        end
        piece = self.reply:behind(self.given)
        if status ~= lib.MM2_TAP or not left() then
            break
        end
    end
    self.given = self.given + #piece
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
    local yields = self.request.yields
    while true do
        local piece, done = advance(self, yields and YIELD_US or trace.SLICE_US)
        if piece or done then
            return piece
        end
        if yields then
            coroutine.yield()
        end
    end
end

Stream.__call = Stream.next

--- An iterator over kind, text, call: "thinking", "text", "call" (the name of one that begins), "arguments"
--- (JSON that joins up to the object), "call_end"; call: which one, from 1.
function Stream:pieces()
    local look, queue, at = self.reply:watch(), {}, 0
    return function()
        while at == #queue do
            local finished = self.finish_reason
            queue, at = look(), 0
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

--- All the text so far.
function Stream:text()
    return (self.reply:all())
end

--- What stood before </think> so far; nil unless the prompt was a table of messages.
function Stream:thinking()
    return self.request.thinks and select(2, self.reply:all()) or nil
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

--- The tokens so far, an end token included: a table.
function Stream:tokens()
    local list = {}
    for i, id in ipairs(self.ids) do
        list[i] = id
    end
    return list
end

--- What generate returns beside the text: tokens, finish_reason, seed, thinking, thinking_tokens, calls,
--- reason, logprobs; proposed, accepted and speculating, see the option speculate.
function Stream:info()
    local calls, reason, thought = self:calls()
    local told = self.proposals or self.session:speculation()
    return {
        proposed = told.proposed or 0,
        accepted = told.accepted or 0,
        speculating = told.speculating or false,
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
        self.reply:finish "cancelled"
        let_go(self, self.reply:ended())
    end
end

return Stream

--- Batch: several sessions of one model advanced through the weights together, each with the bits it
--- would have alone. Feed, rewind and sample the members as ever; run the batch. Members that decode go
--- first, and wait for others' prompts no longer than `rows` tokens take.
---
--- Streams of members go on whenever the batch runs, whoever runs it:
---     local batch = assert(model:batch())
---     local first, second = batch:stream("Once"), batch:stream("Twice", { seed = 3 })
---     while not batch:run(4) do end
---
--- A hook, mask or logits_processor of a member's stream may neither run nor change the batch.
---
--- Fields: model, sessions (the members, for reading), closed.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local messages = require "minimax2.messages"
local trace = require "minimax2.trace"
local Request = require "minimax2.request"
local Sampler = require "minimax2.sampling"
local Session = require "minimax2.session"
local Stream = require "minimax2.stream"

local lib, raise, check = native.lib, native.raise, native.check

local Batch = handle.class("batch", "mm2_batch", "mm2_batch_free")

local known = { rows = true }

--- See model:batch.
function Batch.new(model, sessions, options, where)
    options = args.known(options, where, known)
    local o = native.sized "mm2_batch_options"
    lib.mm2_batch_options_init(o)
    if options.rows ~= nil then
        o.rows = args.positive(options.rows, where .. ": rows")
    end
    local out = ffi.new "mm2_batch *[1]"
    if lib.mm2_batch_new(out, model:live(), o) < 0 then
        return nil, native.message()
    end
    local self = Batch.hold(out[0], {
        event = native.sized "mm2_event",
        model = model,
        sessions = {}, -- members, in the library's order
        waiting = {}, -- [member] = true: has its logits, met by a run that was not batch:next
    })
    for _, session in ipairs(sessions or {}) do
        self:add(session)
    end
    return self
end

--- The C object, for what a callback of a member's stream may not do; raises inside one.
function Batch:idle()
    if self.calling then
        raise("a hook, mask or logits_processor is being called: it cannot run or change its batch")
    end
    return self:live()
end

--- Calls fn(...), a callback of a member's stream, and returns its result.
function Batch:call(fn, ...)
    self:idle()
    self.calling = true
    local ok, result = pcall(fn, ...)
    self.calling = nil
    if not ok then
        error(result, 0)
    end
    return result
end

-- Notes the batch of a session, or nil. What it has in flight is evaluated again.
local function join(session, batch)
    session.batch = batch
    if session.current then
        session.current:forget_tap()
    end
end

--- Adds a session of the same model. Returns the batch.
function Batch:add(session)
    check(lib.mm2_batch_add(self:idle(), args.session(session, "batch:add")))
    table.insert(self.sessions, session)
    join(session, self)
    return self
end

--- Takes a session out; it goes on alone. A session that is closed is taken out by that.
function Batch:remove(session)
    check(lib.mm2_batch_remove(self:idle(), args.session(session, "batch:remove")))
    for i, member in ipairs(self.sessions) do
        if member == session then
            table.remove(self.sessions, i)
            break
        end
    end
    self.waiting[session] = nil
    join(session, nil)
end

-- Runs until something happens to a member. Returns the library's status, the event, and the member;
-- nothing if it was a member's stream that went on by it, or if it did not happen to `mine`, a member that
-- its own stream or trace runs (nil: all are meant).
function Batch:advance(budget_us, mine)
    local event = self.event
    self:idle()
    for _, member in ipairs(self.sessions) do
        if member.current then
            member.current:go_on()
        end
    end
    local status = check(lib.mm2_batch_run(self:live(), budget_us, event))
    if status == lib.MM2_OK or status == lib.MM2_MORE then
        return status, event
    end
    local member = self.sessions[event.session + 1]
    if member ~= mine and member.current then
        member.current:happened(status, event)
    elseif member == mine or not mine then
        return status, event, member
    elseif status == lib.MM2_READY then
        self.waiting[member] = true
    end
end

-- Streams that start where their session has its logits already, or whose mask or processor raised an
-- error when they were to choose a token.
local function wake(self)
    for _, member in ipairs { unpack(self.sessions) } do
        if not member.closed and member.current and member.pos == member.length then
            member.current:happened(lib.MM2_READY)
        end
    end
end

-- Runs the batch for `ms`. Returns the status and what Batch.advance said to it.
local function run(self, ms, wanted)
    self:idle()
    local left = native.timer(args.budget(ms))
    local budget_us = left() or 1
    wake(self)
    repeat
        local status, event, member = self:advance(budget_us)
        if status and (status ~= lib.MM2_READY or status == wanted) then
            return status, event, member
        end
        budget_us = left()
    until not budget_us
    return lib.MM2_MORE
end

--- As session:run, for all members; a tap tells its session. Streams of members go on meanwhile: true
--- is when they have ended, and every other member has caught up.
function Batch:run(ms)
    local status, event, member = run(self, ms)
    if status == lib.MM2_TAP then
        return false, trace.tap(event, member)
    end
    return status == lib.MM2_OK
end

--- The same, but also returns when a member that has no stream has caught up: that session, which has its
--- logits now, once after what was fed to it. Otherwise nil and what batch:run returns.
function Batch:next(ms)
    self:idle()
    args.budget(ms)
    for _, member in ipairs(self.sessions) do
        if self.waiting[member] then
            self.waiting[member] = nil
            if member:has_logits() then -- neither rewound nor fed again since
                return member
            end
        end
    end
    local status, event, member = run(self, ms, lib.MM2_READY)
    if status == lib.MM2_READY then
        return member
    elseif status == lib.MM2_TAP then
        return nil, false, trace.tap(event, member)
    end
    return nil, status == lib.MM2_OK
end

--- A stream that goes on with a prompt, in a session of its own that is a member until the stream ends.
--- See request.lua for the options; those of model:session are taken too.
function Batch:stream(prompt, options)
    self:idle()
    return self:start(Request.new(self.model, prompt, options, "batch:stream", nil, Session.known))
end

-- The same, by a request.
function Batch:start(request)
    local session = Session.for_request(self.model, request)
    self:add(session)
    return Stream.new(session, request, true)
end

-- A prompt, and its options: those for all, and over them those that stand beside it.
local function parted(item, options, where)
    if not messages.has_options(item) then
        return item, options
    end
    local own = {}
    for name, value in pairs(options) do
        own[name] = value
    end
    for name, value in pairs(args.known(item, where, { prompt = true }, Session.known, Request.known,
        Sampler.known)) do
        own[name] = value
    end
    own.prompt = nil
    return item.prompt, own
end

--- Goes on with several prompts at once, each in a session of its own. Returns a table of texts and one
--- of infos, in the prompts' order, each as model:generate would alone. A prompt may be a table
--- { prompt =, seed = 1, ... } with options of its own, which come before the common ones. All are
--- checked before anything is fed. Options: those of model:generate.
function Batch:generate(prompts, options, where)
    where = where or "batch:generate"
    self:idle()
    options = args.known(options, where, Session.known, Request.known, Sampler.known)
    if type(prompts) ~= "table" then
        raise(("%s: prompts must be a table, not %s"):format(where, args.show(prompts)))
    end
    local requests, streams, texts, infos = {}, {}, {}, {}
    for i, prompt in ipairs(prompts) do
        local at = ("%s: prompt %d"):format(where, i)
        local text, own = parted(prompt, options, at)
        requests[i] = Request.new(self.model, text, own, at, nil, Session.known)
    end
    local ok, message = pcall(function()
        for i, request in ipairs(requests) do
            streams[i] = self:start(request)
        end
        for i, stream in ipairs(streams) do
            texts[i], infos[i] = stream:finish()
        end
    end)
    if not ok then
        for _, stream in ipairs(streams) do
            stream:cancel()
        end
        error(message, 0)
    end
    return texts, infos
end

local free = Batch.close

--- Frees the batch; again is allowed. The members go on alone.
function Batch:close()
    if not self.closed then
        self:idle()
    end
    free(self)
    for _, session in ipairs(self.sessions) do
        join(session, nil)
    end
    self.sessions, self.waiting = {}, {}
end

return Batch

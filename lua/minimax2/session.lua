--- Session: one timeline of tokens with its KV cache. Feed it tokens, run it, look at the logits.
---
--- Fields: model, context (positions there is room for), kv_dtype ("bf16", "f32" or "int8"), pos (tokens
--- evaluated), length (tokens fed), reused (positions taken from the model's cache of prefixes instead of
--- being evaluated).
--- To be used by one thread at a time. Closing frees the cache at once; the collector does it too, but
--- cannot see how large the cache is.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local Tensor = require "minimax2.tensor"
local edits = require "minimax2.edits"
local trace = require "minimax2.trace"
local Request = require "minimax2.request"
local Sampler = require "minimax2.sampling"
local Stream = require "minimax2.stream"

local lib, raise, check, check_list = native.lib, native.raise, native.check, native.check_list

local Session, properties = handle.class("session", "mm2_session", "mm2_session_free")

--- The names of the options, for functions that take them among others.
Session.known = { context = true, kv_dtype = true, chunk = true }

local function hold(object, model)
    return Session.hold(object, {
        event = native.sized "mm2_event",
        model = model,
        taps = {}, -- [point * layers + layer] = true: those that the script switched on
    })
end

--- Options of a session as the library wants them.
function Session.options(model, options, where)
    local o = native.sized "mm2_session_options"
    lib.mm2_session_options_init(o)
    if options.context ~= nil then
        o.context = args.positive(options.context, where .. ": context")
    end
    if options.chunk ~= nil then
        o.chunk = args.positive(options.chunk, where .. ": chunk")
    end
    o.kv_dtype = args.kv_dtype(options.kv_dtype, model, where)
    return o
end

--- See model:session.
function Session.new(model, options, where)
    options = args.known(options, where, Session.known)
    local out = ffi.new "mm2_session *[1]"
    if lib.mm2_session_new(out, model:live(), Session.options(model, options, where)) < 0 then
        return nil, native.message()
    end
    return hold(out[0], model)
end

--- A session that is fed a prompt of `count` tokens, with room for `more`, or as many as the model has, if
--- `options`, of which those of sessions count, do not say otherwise. Raises if it cannot be made.
function Session.for_prompt(model, ids, count, more, options, where)
    local positions = model.config.max_position_embeddings
    if count > positions then
        raise(("the prompt is %d tokens long, the model has %d positions: shorten it"):format(count,
            positions))
    end
    local own = { context = math.min(positions, count + more) }
    for name in pairs(Session.known) do
        if options and options[name] ~= nil then
            own[name] = options[name]
        end
    end
    local session, message = Session.new(model, own, where)
    return session and session:feed(ids, count) or raise(message)
end

--- The same for a request.
function Session.for_request(model, request)
    return Session.for_prompt(model, request.prompt, request.count, request.most, request.options,
        request.where)
end

--- A second session that stands where this one stands: tokens, those not evaluated yet too, and logits.
--- It shares the cache, so it takes microseconds, and memory only as one of the two goes on; both go on
--- with the bits of sessions that were never forked. Taps and a membership in a batch stay with this one.
--- nil and a sentence if there is no memory for it.
function Session:fork()
    local out = ffi.new "mm2_session *[1]"
    if lib.mm2_session_fork(out, self:live()) < 0 then
        return nil, native.message()
    end
    return hold(out[0], self.model)
end

--- Writes the session to a file, from which model:restore(path) makes one that goes on: tokens, keys and
--- values, context and logits. Whatever happens meanwhile, the path names the old file or the new one,
--- each whole. Takes seconds if the cache is gigabytes: save a fork of it from another thread then.
--- Returns true; false if interrupt() ended it, nil and a sentence if it cannot be written: then nothing is.
function Session:save(path)
    local status = lib.mm2_session_save(self:live(), args.text(path, "the path"))
    if status < 0 then
        return nil, native.message()
    end
    return status == lib.MM2_OK
end

--- See model:restore.
function Session.restore(model, path, options, where)
    options = args.known(options, where, Session.known, { mapped = true })
    local o = native.sized "mm2_restore_options"
    lib.mm2_restore_options_init(o)
    o.flags = args.flag(options.mapped, true, where .. ": mapped") and 0 or lib.MM2_IN_MEMORY
    if options.context ~= nil then
        o.context = args.positive(options.context, where .. ": context")
    end
    if options.kv_dtype ~= nil then
        o.kv_dtype = args.kv_dtype(options.kv_dtype, model, where)
    end
    if options.chunk ~= nil then
        o.chunk = args.positive(options.chunk, where .. ": chunk")
    end
    local out = ffi.new "mm2_session *[1]"
    if lib.mm2_session_restore(out, model:live(), args.text(path, "the path"), o) < 0 then
        return nil, native.message()
    end
    return hold(out[0], model)
end

local free = Session.close

--- Frees the session; again is allowed. A member leaves its batch first.
function Session:close()
    if self.batch and not self.closed then
        self.batch:remove(self)
    end
    free(self)
end

function Session:describe()
    return ("%d of %d positions"):format(self.length, self.context)
end

-- Calls that move the timeline end a trace that was left before its end, and overtake a stream.
local function moved(self)
    trace.stop(self)
    self.current = nil
end

--- Appends a prompt (a string, token ids or a table of messages) to the timeline. No work is done
--- yet. Returns the session.
function Session:feed(prompt, n)
    local ptr = self:live()
    local ids, count = self.model:prompt_ids(prompt, n)
    check_list(lib.mm2_session_feed(ptr, ids, count))
    moved(self)
    return self
end

--- Says which tokens are likely to come behind the last one fed, such as those of an old text. The next run
--- evaluates them too, up to 15, and keeps their logits aside; they are no part of the timeline. Choose and
--- feed a token at a time, as ever, with the same results: those that come as foretold take no time.
--- Nothing happens while taps are on, or in a batch of several.
function Session:draft(ids, n)
    local ptr = self:live()
    local list, count = args.ids(ids, n)
    check_list(lib.mm2_session_draft(ptr, list, count))
end

-- What came of proposals since a stream began to make them.
function Session:speculation()
    local raw = native.sized "mm2_speculation"
    check(lib.mm2_session_speculation(self:live(), raw))
    return {
        proposed = tonumber(raw.proposed),
        accepted = tonumber(raw.accepted),
        runs = tonumber(raw.runs),
        speculating = raw.most > 0 and raw.closed == 0,
    }
end

--- Evaluates what was fed, for at most `ms` milliseconds if given. Returns true when all is done;
--- false when time is up; false and the tap when stopped at one.
function Session:run(ms)
    local ptr, budget_us = self:live(), args.budget(ms)
    trace.stop(self)
    local status = check(lib.mm2_session_run(ptr, budget_us, self.event))
    if status == lib.MM2_TAP then
        return false, trace.tap(self.event, self)
    end
    return status == lib.MM2_OK
end

-- Works until everything is evaluated (MM2_OK or MM2_READY), a tap is reached (MM2_TAP, and the event) or
-- there is nothing `left` (MM2_MORE). A member of a batch is run by its batch, and others' streams go on
-- by it.
function Session:step(left)
    local budget_us = left() or 1
    repeat
        local ptr, batch = self:live(), self.batch
        if not batch then
            return check(lib.mm2_session_run(ptr, budget_us, self.event)), self.event
        end
        batch:idle()
        if self.pos == self.length then
            return lib.MM2_OK
        end
        local status, event = batch:advance(budget_us, self)
        if status then
            return status, event
        end
        budget_us = left()
    until not budget_us
    return lib.MM2_MORE
end

--- From any thread: a run in progress, or a save, returns at its next unit of work.
function Session:interrupt()
    lib.mm2_session_interrupt(self:live())
end

--- How far the last run came: units done, units fed (token-layers).
function Session:progress()
    self:live()
    return tonumber(self.event.done), tonumber(self.event.total)
end

--- Changes of activations from the next token evaluated on, in the place of those that it has: see
--- edits.lua. nil: none. A fork has the same.
function Session:set_edits(list)
    edits.set(self, list, "session:set_edits")
end

--- Switches the tap at a point on (or off, with on = false), at a layer or, without one, at all.
function Session:tap(point, layer, on)
    local ptr = self:live()
    local number = trace.point(point)
    layer = layer == nil and -1 or args.int(layer, "a layer")
    on = on ~= false
    check(lib.mm2_session_tap(ptr, number, layer, on and 1 or 0))
    local layers = self.model.config.num_hidden_layers
    for at = math.max(layer, 0), layer < 0 and layers - 1 or layer do
        self.taps[number * layers + at] = on or nil
    end
end

--- for tap in session:trace(prompt, points, layers): evaluates the prompt and stops at each of these
--- activations. points: a name or a list; layers: a number or a list, from 0; nil: all.
function Session:trace(prompt, points, layers)
    local switches = trace.switches(self.model, points, layers)
    if prompt ~= nil then
        self:feed(prompt)
    end
    trace.stop(self)
    return trace.iterate(self, switches)
end

--- The token that follows the last one, chosen by `sampler` (nil: one with the model's defaults and
--- a fresh seed, kept for this session). Does not feed it.
function Session:sample(sampler, mask)
    self:live()
    if sampler == nil then
        if not self.sampler then
            self.sampler = assert(Sampler.new(self.model, nil, "session:sample"))
        end
        sampler = self.sampler
    elseif handle.kind(sampler) ~= "sampler" then
        raise(("session:sample needs a sampler, not %s"):format(args.show(sampler)))
    end
    return (sampler:next(self, mask))
end

-- Starts a stream. A lone table without a first element is the options.
local function start_stream(self, prompt, options, where)
    if options == nil and type(prompt) == "table" and prompt[1] == nil then
        prompt, options = nil, prompt
    end
    self:live()
    local request = Request.new(self.model, prompt, options, where)
    if request.prompt then
        self:feed(request.prompt, request.count)
    end
    return Stream.new(self, request)
end

--- session:stream([prompt][, options]): goes on with the prompt, or where the timeline ends; a stream
--- of text. See request.lua for the options.
function Session:stream(prompt, options)
    return start_stream(self, prompt, options, "session:stream")
end

--- The same, to the end: text, info.
function Session:generate(prompt, options)
    return start_stream(self, prompt, options, "session:generate"):finish()
end

--- The tokens fed so far: an i32 tensor, a read-only view.
function Session:tokens()
    local raw = ffi.new "mm2_tensor"
    check(lib.mm2_session_tokens(self:live(), raw))
    return Tensor.view(raw, self)
end

--- Cuts the timeline back to its first `length` tokens.
function Session:rewind(length)
    check(lib.mm2_session_rewind(self:live(), args.int(length, "the length")))
    moved(self)
end

--- Makes the timeline equal to `ids`: keeps the common beginning, feeds the rest. Returns how many
--- tokens were kept. At least the last one is fed again if anything was cut, for its logits. What cannot
--- be fed is refused before anything is cut.
function Session:sync(prompt, n)
    self:live()
    local ids, count = self.model:prompt_ids(prompt, n)
    local room, vocab = self.context, self.model.config.vocab_size
    if count > room then
        raise(("%d tokens do not fit into %d positions"):format(count, room))
    end
    for i = 0, count - 1 do
        if ids[i] < 0 or ids[i] >= vocab then
            raise(("token %d of %d is %d, outside the vocabulary 0..%d"):format(i + 1, count, ids[i],
                vocab - 1))
        end
    end
    local old, length = self:tokens(), self.length
    local common = 0
    while common < length and common < count and old[common] == ids[common] do
        common = common + 1
    end
    if common < length then
        common = math.min(common, count - 1)
        self:rewind(common)
    end
    if common < count then
        self:feed(ids + common, count - common)
    end
    return common
end

--- Logits of the last token evaluated: f32 [vocab_size], a writable view.
function Session:logits()
    local raw = ffi.new "mm2_tensor"
    check(lib.mm2_session_logits(self:live(), raw))
    return Tensor.view(raw, self)
end

--- Whether there are logits: something was evaluated, and all that was fed.
function Session:has_logits()
    return lib.mm2_session_logits(self:live(), ffi.new "mm2_tensor") >= 0
end

--- Natural-log probabilities of these ids by the logits: a table in their order.
function Session:logprobs(ids, n)
    local ptr = self:live()
    local array, count = args.ids(ids, n)
    local out = ffi.new("float[?]", count)
    check_list(lib.mm2_session_logprobs(ptr, array, count, out))
    local list = {}
    for i = 1, count do
        list[i] = out[i - 1]
    end
    return list
end

--- The n (10) best tokens by the logits, best first: a table of ids and one of log-probabilities.
function Session:top(n)
    local ptr = self:live()
    n = n == nil and 10 or args.int(n, "the number of tokens")
    if n < 1 or n > self.model.config.vocab_size then
        raise(("the number of tokens must be 1..%d, not %d"):format(self.model.config.vocab_size, n))
    end
    local ids, out = ffi.new("int32_t[?]", n), ffi.new("float[?]", n)
    check(lib.mm2_session_top(ptr, n, ids, out))
    local tokens, logprobs = {}, {}
    for i = 1, n do
        tokens[i], logprobs[i] = ids[i - 1], out[i - 1]
    end
    return tokens, logprobs
end

function properties.pos(self)
    return lib.mm2_session_position(self:live())
end

function properties.length(self)
    return lib.mm2_session_length(self:live())
end

function properties.kv_dtype(self)
    return native.text(lib.mm2_dtype_name(lib.mm2_session_kv_dtype(self:live())))
end

function properties.reused(self)
    return lib.mm2_session_reused(self:live())
end

function properties.context(self)
    return lib.mm2_session_context(self:live())
end

return Session

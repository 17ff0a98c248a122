--- Stream: a generation in progress, pulled by the script at its own pace.
---
---   for piece in stream do io.write(piece) end      to the end
---   local piece, done = stream:poll(4)              at most about 4 ms and one token, for frame loops
---   local piece = stream:next()                     the next piece; nil at the end
---
--- Pieces end at whole characters and hold back what may become a stop string, so joined they are the
--- final text. After a prompt of messages they are the answer; stream:thinking() grows before it.
--- Options: those of mm.sampler, and
---   max_new_tokens    how many tokens at most, 1024; a full context may end it earlier
---   stop              a string or a list: the text ends before the first of them
---   mask              made by mm.mask; or a function(tokens) that returns one, or nil, for each token
---   logits_processor  a function(tokens, logits) that edits the f32 tensor before each choice
---   top_logprobs      n > 0: info.logprobs[i] = { id=, logprob=, top = { { id=, logprob= }, ... } }, by
---                     the model's own logits
---   hooks             { { point, layer, function(tensor, tap) }, ... }, called at these activations;
---                     without the layer: at all
---   yield             true: stream:next() yields between time slices; for use in coroutines
---
--- Fields: session, seed, finish_reason: nil while it goes on, then "stop" (end token or stop string),
--- "length" (max_new_tokens), "context" (it is full) or "cancelled".

local native = require "minimax2.native"
local args = require "minimax2.args"
local trace = require "minimax2.trace"
local Sampler = require "minimax2.sampling"
local Tokenizer = require "minimax2.tokenizer"

local lib, raise, check = native.lib, native.raise, native.check

local Stream = {}
Stream.__index = Stream

local DEFAULT_TOKENS = 1024
local YIELD_US = 5000

--- The names of the options, beside those of the sampler.
Stream.known = {
    max_new_tokens = true, stop = true, mask = true, logits_processor = true, top_logprobs = true,
    hooks = true, yield = true,
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

--- The options of a stream, all of them checked, and what is made of them: a table for Stream.new. It
--- comes before anything is fed, so that a refused call leaves everything as it was.
function Stream.plan(model, options, where)
    options = args.known(options, where, Stream.known, Sampler.known)
    local mask, processor, hooks = options.mask, options.logits_processor, options.hooks
    if type(mask) ~= "function" then
        args.mask(mask, model.config.vocab_size, where)
    end
    if processor ~= nil and type(processor) ~= "function" then
        raise(("%s: logits_processor must be a function(tokens, logits), not %s"):format(where,
            args.show(processor)))
    end
    local plan = {
        most = args.count(options.max_new_tokens, DEFAULT_TOKENS, nil, where .. ": max_new_tokens"),
        stops = stop_list(options.stop, where),
        mask = mask,
        processor = processor,
        top = args.count(options.top_logprobs, 0, model.config.vocab_size, where .. ": top_logprobs"),
        hooks = hooks,
        switches = hooks ~= nil and trace.hook_switches(model, hooks) or nil,
        yields = options.yield,
    }
    local sampler, message = Sampler.new(model, options, where)
    if not sampler then
        raise(("%s: %s"):format(where, message))
    end
    plan.sampler, plan.seed = sampler, sampler.seed
    return plan
end

--- A stream that goes on with `session`, by a plan, which becomes the stream. thinking: the text begins
--- inside a <think> block. owned: close the session at the end.
function Stream.new(session, plan, thinking, owned)
    local self = setmetatable(plan, Stream)
    self.session = session
    self.owned = owned
    self.tokenizer = session.model.tokenizer
    self.logprobs = self.top > 0 and {} or nil
    self.ids = {}
    self.pieces = {}
    self.held = "" -- bytes that may still become part of a character or of a stop string
    self.thought = thinking and "" or nil
    self.in_thought = thinking
    if self.switches then
        self.traced = trace.start(session, self.switches)
    end
    return self
end

-- Takes bytes off the front of what is held, as the next piece.
local function show(self, count)
    local piece = self.held:sub(1, count)
    self.held = self.held:sub(count + 1)
    if piece ~= "" then
        table.insert(self.pieces, piece)
        return piece
    end
end

-- Ends the stream. Returns what was held back, its last piece.
local function finish(self, reason)
    self.finish_reason = reason
    local session = self.session
    if self.traced and session.traced == self.traced then
        trace.stop(session)
    end
    if self.owned then
        session:close()
    end
    return show(self, #self.held)
end

-- Where the first stop string in the held bytes begins, or nil; and how many bytes at the end may be
-- the beginning of one.
local function find_stop(self)
    local held, first, partial = self.held, nil, 0
    for _, stop in ipairs(self.stops) do
        local at = held:find(stop, 1, true)
        if at and (not first or at < first) then
            first = at
        end
        for length = math.min(#stop - 1, #held), partial + 1, -1 do
            if held:sub(-length) == stop:sub(1, length) then
                partial = length
                break
            end
        end
    end
    return first, partial
end

-- Adds a token's text. Returns the piece to show now.
local function read(self, id)
    local tokenizer = self.tokenizer
    if not tokenizer then
        return nil
    end
    if id == tokenizer.eos or id == tokenizer.turn_end then
        return finish(self, "stop")
    elseif id >= tokenizer.vocab_size then
        return nil -- a padding row of the head: it writes nothing
    end
    if self.in_thought and id == tokenizer.think_close then
        self.in_thought = false
        return nil
    end
    local bytes = tokenizer:decode({ id })
    if self.in_thought then
        self.thought = self.thought .. bytes
        return nil
    end
    if self.thought and self.held == "" and #self.pieces == 0 then
        bytes = bytes:gsub("^\n+", "") -- the format's blank lines between thinking and answer
    end
    self.held = self.held .. bytes
    local first, partial = find_stop(self)
    if first then
        self.held = self.held:sub(1, first - 1)
        return finish(self, "stop")
    end
    return show(self, Tokenizer.complete(self.held:sub(1, #self.held - partial)))
end

-- Evaluates what is pending, within a budget; true when all is done.
local function evaluate(self, budget_us)
    local session = self.session
    while true do
        local ptr = session:live() -- a hook may have closed it
        if self.traced and session.traced ~= self.traced then
            raise("the hooks of this stream were ended by another call on its session")
        end
        local status = check(lib.mm2_session_run(ptr, budget_us, session.event))
        if status ~= lib.MM2_TAP then
            return status == lib.MM2_OK
        end
        if self.hooks then
            trace.call_hooks(self.hooks, self.traced.switches,
                trace.tap(session.event, session, session))
        end
    end
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

-- Chooses the next token. What a processor edits is a copy: the session's logits stay the model's.
local function choose(self)
    local session, mask = self.session, self.mask
    if type(mask) == "function" then
        mask = mask(self.ids)
    end
    local id
    if self.processor then
        local logits, tokens = session:logits():copy(), session:tokens()
        self.processor(tokens, logits)
        id = self.sampler:pick(logits, tokens, mask)
    else
        id = self.sampler:next(session, mask)
    end
    if self.logprobs then
        keep_logprobs(self, id)
    end
    return id
end

-- At most one token: its piece (nil if there is none to show yet), and whether the stream has ended.
local function advance(self, budget_us)
    if self.finish_reason then
        return nil, true
    end
    local session = self.session
    if #self.ids == self.most then
        return finish(self, "length"), true
    elseif not evaluate(self, budget_us) then
        return nil, false
    elseif session.length == session.context then
        return finish(self, "context"), true
    end
    local id = choose(self)
    check(lib.mm2_session_feed(session:live(), args.ids({ id }), 1))
    table.insert(self.ids, id)
    local piece = read(self, id)
    if #self.ids == self.most and not self.finish_reason then
        piece = (piece or "") .. (finish(self, "length") or "")
    end
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
    return table.concat(self.pieces)
end

--- What stood before </think> so far; nil unless the prompt was a table of messages.
function Stream:thinking()
    if self.thought then
        local bytes = self.thought
        if self.in_thought then
            bytes = bytes:sub(1, Tokenizer.complete(bytes))
        end
        return (bytes:gsub("^\n+", ""):gsub("\n+$", ""))
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
        finish(self, "cancelled")
    end
end

return Stream

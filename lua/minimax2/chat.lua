--- Chat: a conversation on one session. `model:chat { system = "..." }`, then chat:send(text) turn after
--- turn. The tokens that were sampled stay in the timeline as they are, thinking included; only what is
--- new is rendered and fed.
---
--- Fields: session; give it a restored one, and what is said from here on goes on with that.
--- messages: the turns so far, a copy. Assign a list, and the conversation is that one, in any form that
--- model:generate takes: of the messages that it begins with as the old one did, the tokens stay as they
--- were sampled; from there on it is rendered anew.

local ffi = require "ffi"
local native = require "minimax2.native"
local args = require "minimax2.args"
local Request = require "minimax2.request"
local tools = require "minimax2.tools"
local Sampler = require "minimax2.sampling"
local Session = require "minimax2.session"
local Stream = require "minimax2.stream"

local raise = native.raise

local Chat = {}

local MOST_ROUNDS = 10
local int32_array = ffi.typeof "int32_t[?]"

local known = { system = true, messages = true }

local function copied(value)
    if type(value) ~= "table" then
        return value
    end
    local copy = {}
    for key, item in pairs(value) do
        copy[key] = copied(item)
    end
    return setmetatable(copy, getmetatable(value))
end

local function equal(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then
        return a == b
    end
    for key, value in pairs(a) do
        if not equal(value, b[key]) then
            return false
        end
    end
    for key in pairs(b) do
        if a[key] == nil then
            return false
        end
    end
    return true
end

-- Refuses what is no list of messages, one after the other.
local function check_list(turns, where)
    local count = 0
    for _, turn in pairs(type(turns) == "table" and turns or { 0 }) do
        count = type(turn) == "table" and count + 1 or -math.huge
    end
    if count < 0 or count ~= #turns then
        raise(("%s must be a list of messages, not %s"):format(where, args.show(turns)))
    end
    return turns
end

-- What is said, as a list of messages of our own.
local function messages_of(text, where)
    if type(text) ~= "table" then
        return { { role = "user", content = args.text(text, where .. ": the text") } }
    elseif text.role ~= nil then
        return { copied(text) }
    elseif #text == 0 then
        raise(where .. ": the text must be a string, a message or a list of messages, not an empty table")
    end
    return copied(check_list(text, where .. ": the text"))
end

-- The session, if it is open.
local function session_of(self)
    self.held:live()
    return self.held
end

-- Goes on with a session; one that is put in another's place begins a new count.
local function set_session(self, session)
    args.session(session, "chat.session")
    if self.held and session.model ~= self.held.model then
        raise "chat.session must be a session of the chat's own model"
    elseif session.batch then
        raise "chat.session must be no member of a batch"
    end
    self.held, self.last, self.turns = session, nil, {}
    self.ends = { { 0, session.length } } -- how many messages the first so many tokens are
end

-- All messages, and where the tokens of answers end, with the last answer as far as it came.
local function all_of(self)
    local session = session_of(self)
    local turns, ends = { unpack(self.turns) }, { unpack(self.ends) }
    if self.last then
        turns[#turns + 1] = self.last:message()
        ends[#ends + 1] = { #turns, session.length }
    end
    return turns, ends
end

-- The whole timeline of messages of which those of the last end stand in it, by their tokens.
local function ids_of(self, turns, ends, options)
    local session, count, length = self.session, unpack(ends[#ends])
    local tokenizer, new = session.model.tokenizer, { unpack(turns, count + 1) }
    options.keep_thinking = self.defaults.keep_thinking
    if length == 0 then
        local waits = options.generation_prompt == false -- then tools may still be declared
        for _, message in ipairs(new) do
            waits = waits and (message.role == "system" or message.role == "developer")
        end
        if waits then
            return nil, 0
        end
        return tokenizer:encode_chat(new, options)
    end
    local kept = int32_array(length)
    ffi.copy(kept, session:tokens():ptr(), length * 4)
    if #new == 0 then
        return kept, length
    end
    options.after, options.tools = kept, nil
    local ids, more = tokenizer:encode_chat(new, options)
    local whole = int32_array(length + more)
    ffi.copy(whole, kept, length * 4)
    ffi.copy(whole + length, ids, more * 4)
    return whole, length + more
end

-- Makes the conversation one of these messages.
local function set_messages(self, turns)
    local old, ends = all_of(self)
    turns = copied(check_list(turns, "chat.messages"))
    local common = 0
    while turns[common + 1] and equal(turns[common + 1], old[common + 1]) do
        common = common + 1
    end
    while ends[#ends][1] > common do
        ends[#ends] = nil
    end
    local session = self.session
    local ids, count = ids_of(self, turns, ends, { generation_prompt = false, tools = self.defaults.tools })
    if ids then
        session:sync(ids, count)
    else
        session:rewind(0)
    end
    if self.last then
        self.last:cancel()
    end
    self.turns, self.ends, self.last = turns, ends, nil
end

function Chat.__index(self, key)
    if key == "messages" then
        return copied((all_of(self)))
    elseif key == "session" then
        return rawget(self, "held")
    end
    return Chat[key]
end

function Chat.__newindex(self, key, value)
    if key == "messages" then
        set_messages(self, value)
    elseif key == "session" then
        set_session(self, value)
    else
        rawset(self, key, value)
    end
end

local function new_chat(session, defaults)
    local self = setmetatable({ defaults = defaults }, Chat)
    set_session(self, session)
    return self
end

--- See model:chat.
function Chat.new(model, options)
    options = args.known(options, "model:chat", known, Session.known, Request.known, Sampler.known)
    local begin = {}
    if options.system ~= nil then
        begin[1] = { role = "system", content = args.text(options.system, "model:chat: system") }
    end
    for _, message in ipairs(check_list(options.messages or {}, "model:chat: messages")) do
        begin[#begin + 1] = message
    end
    if #begin > 0 and model.tokenizer then
        model.tokenizer:render(begin, { generation_prompt = false }) -- refuses now what a turn would
    end
    local defaults, own = {}, {}
    for name, value in pairs(options) do
        if not known[name] then
            local place = Session.known[name] and own or defaults
            place[name] = value
        end
    end
    Request.new(model, nil, defaults, "model:chat") -- refuses now what each turn would
    tools.functions(defaults.tools, "model:chat")
    local session, message = Session.new(model, own, "model:chat")
    if not session then
        return nil, message
    end
    local self = new_chat(session, defaults)
    if #begin > 0 then
        set_messages(self, begin)
    end
    return self
end

--- Takes back what the user said last, and all behind it; returns these messages.
function Chat:undo()
    local turns, at = self.messages, nil
    for i, message in ipairs(turns) do
        at = message.role == "user" and i or at
    end
    if not at then
        raise "there is nothing to take back: the user has said nothing"
    end
    set_messages(self, { unpack(turns, 1, at - 1) })
    return { unpack(turns, at) }
end

--- A second conversation that stands where this one stands, an answer under way included. Its session is
--- a fork: what was said is shared, what comes is not. nil and a sentence if there is no memory for it.
function Chat:fork()
    local turns, ends = all_of(self)
    local session, message = self.session:fork()
    if not session then
        return nil, message
    end
    local defaults = {}
    for name, value in pairs(self.defaults) do
        defaults[name] = value
    end
    local made = new_chat(session, defaults)
    made.turns, made.ends = copied(turns), ends
    return made
end

-- Starts a reply. Nothing is changed before everything is checked and fed.
local function start(self, text, options, where)
    local session = session_of(self)
    if not session.model.tokenizer then
        raise(session.model.no_tokenizer)
    end
    local all = {}
    for name, value in pairs(self.defaults) do
        all[name] = value
    end
    for name, value in pairs(args.known(options, where, Request.known, Sampler.known)) do
        all[name] = value
    end
    if session.length > 0 and all.tools ~= self.defaults.tools then
        raise(where .. ": tools stand at the beginning of a conversation; give them to the chat, or to its "
            .. "first turn")
    end
    tools.functions(all.tools, where)
    local turns, ends = all_of(self)
    local new
    if text == nil then
        local last = turns[#turns]
        if not last or ends[#ends][1] == #turns or last.role ~= "user" and last.role ~= "tool" then
            raise(where .. ": there is nothing to answer: the last message is not the user's")
        end
    else
        new = messages_of(text, where)
        for _, message in ipairs(new) do
            turns[#turns + 1] = message
        end
    end
    local request = Request.new(session.model, nil, all, where, function(thinks)
        local length = session.length
        if new and length > 0 then
            return session.model.tokenizer:encode_chat(new, { after = session:tokens(), thinking = thinks })
        end
        local ids, count = ids_of(self, turns, ends, { tools = all.tools, thinking = thinks })
        local rest = int32_array(count - length)
        ffi.copy(rest, ids + length, (count - length) * 4)
        return rest, count - length
    end)
    session:feed(request.prompt, request.count)
    local stream = Stream.new(session, request)
    if self.last then
        self.last:cancel()
        turns[ends[#ends][1]] = self.last:message() -- with what it held back
    end
    self.defaults.tools = all.tools
    self.turns, self.ends, self.last = turns, ends, stream
    return stream
end

--- Says something: the answer as a stream. text: what the user says; or a message, or a list of them, such
--- as the results of tools, { { role = "tool", content = ... }, ... }, one for each call; nil: the last
--- message is still to be answered. An answer that was not pulled to its end is closed where it stopped.
--- Calls of tools are not made; see chat:pieces.
function Chat:stream(text, options)
    return start(self, text, options, "chat:stream")
end

-- The replies of one turn, each behind the results of the one before it.
local function begin_turn(self, text, options, where)
    local own, rounds = {}, MOST_ROUNDS
    for name, value in pairs(type(options) == "table" and options or {}) do
        own[name] = value
    end
    if own.max_rounds ~= nil then
        rounds, own.max_rounds = args.count(own.max_rounds, nil, nil, where .. ": max_rounds"), nil
    end
    local stream = start(self, text, options ~= nil and type(options) ~= "table" and options or own, where)
    local choice = own.tool_choice or self.defaults.tool_choice
    own.tool_choice = choice == "none" and choice or "auto"
    return { chat = self, where = where, stream = stream, rounds = rounds, later = own,
        functions = tools.functions(self.defaults.tools, where) }
end

-- The calls of a reply that has come to its end, if they are to be made.
local function due(turn)
    local calls = turn.stream:calls()
    local made = turn.stream.finish_reason == "tool_calls" and turn.rounds > 0
        and turn.later.tool_choice ~= "none" and next(turn.functions) ~= nil
    for _, call in ipairs(calls) do
        made = made and (turn.functions[call.name] ~= nil or not call.known)
    end
    turn.rounds = turn.rounds - 1
    return made and calls or {}
end

local function answer(turn, call)
    return { role = "tool", content = tools.answer(turn.functions, call) }
end

--- The same, to the end: text, info. Calls of tools that have a function `call` are made, and the model
--- goes on with their results, at most max_rounds (an option, 10) times. Arguments that do not fit, and
--- errors of the function, are results too: "error: ...". A reply that calls a tool without a function comes
--- back as it is, and so does one behind the last round.
function Chat:send(text, options)
    local turn = begin_turn(self, text, options, "chat:send")
    while true do
        turn.stream:finish()
        local results = {}
        for i, call in ipairs(due(turn)) do
            results[i] = answer(turn, call)
        end
        if #results == 0 then
            return turn.stream:text(), turn.stream:info()
        end
        turn.stream = start(self, results, turn.later, "chat:send")
    end
end

--- As chat:send, told while it comes: an iterator over kind, text, call, as of stream:pieces(), and
--- "result", what a tool has answered.
function Chat:pieces(text, options)
    local turn = begin_turn(self, text, options, "chat:pieces")
    local pull, calls, results = turn.stream:pieces(), nil, nil
    return function()
        while true do
            if not calls then
                local kind, piece, call = pull()
                if kind then
                    return kind, piece, call
                end
                calls, results = due(turn), {}
            end
            local i = #results + 1
            if calls[i] then
                results[i] = answer(turn, calls[i])
                return "result", results[i].content, i
            elseif i == 1 then
                return nil
            end
            turn.stream, calls = start(self, results, turn.later, "chat:pieces"), nil
            pull = turn.stream:pieces()
        end
    end
end

--- Closes the session; again is allowed.
function Chat:close()
    self.session:close()
end

return Chat

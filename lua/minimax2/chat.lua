--- Chat: a conversation on one session. `model:chat { system = "..." }`, then chat:send(text) turn after
--- turn. The tokens that were sampled stay in the timeline as they are, thinking included; only what is
--- new is rendered and fed.
---
--- Fields: session, messages (the turns, for reading).

local native = require "minimax2.native"
local args = require "minimax2.args"
local Sampler = require "minimax2.sampling"
local Session = require "minimax2.session"
local Stream = require "minimax2.stream"

local Chat = {}
Chat.__index = Chat

local known = { system = true, context = true }

--- See model:chat.
function Chat.new(model, options)
    options = args.known(options, "model:chat", known, Stream.known, Sampler.known)
    if options.system ~= nil then
        args.text(options.system, "model:chat: system")
    end
    local defaults = {}
    for name, value in pairs(options) do
        if not known[name] then
            defaults[name] = value
        end
    end
    Stream.plan(model, nil, defaults, "model:chat") -- refuses now what each turn would
    local session, message = Session.new(model, { context = options.context }, "model:chat")
    if not session then
        return nil, message
    end
    return setmetatable({
        session = session,
        messages = options.system and { { role = "system", content = options.system } } or {},
        defaults = defaults,
    }, Chat)
end

-- Writes the last answer down, as far as it came.
local function close_turn(self)
    local last = self.last
    if last then
        last:cancel()
        self.last = nil
        table.insert(self.messages,
            { role = "assistant", content = last:text(), thinking = last:thinking() })
    end
end

-- The ids that a message adds to the timeline, and their number.
local function new_ids(self, message)
    local session, tokenizer = self.session, self.session.model.tokenizer
    if session.length > 0 then
        return tokenizer:encode_further(session:tokens(), { message })
    end
    local turns = { unpack(self.messages) }
    turns[#turns + 1] = message
    return tokenizer:encode_chat(turns)
end

-- Starts a turn. Nothing is changed before everything is checked and fed.
local function start(self, text, options, where)
    local session = self.session
    session:live()
    if not session.model.tokenizer then
        native.raise(session.model.no_tokenizer)
    end
    local all = {}
    for name, value in pairs(self.defaults) do
        all[name] = value
    end
    for name, value in pairs(args.known(options, where, Stream.known, Sampler.known)) do
        all[name] = value
    end
    local message = { role = "user", content = args.text(text, where .. ": the text") }
    local plan = Stream.plan(session.model, nil, all, where, true)
    session:feed(new_ids(self, message))
    close_turn(self)
    table.insert(self.messages, message)
    self.last = Stream.new(session, plan)
    return self.last
end

--- Says something: the answer as a stream. An answer that was not pulled to its end is closed where it
--- stopped.
function Chat:stream(text, options)
    return start(self, text, options, "chat:stream")
end

--- The same, to the end: text, info.
function Chat:send(text, options)
    local answer, info = start(self, text, options, "chat:send"):finish()
    close_turn(self)
    return answer, info
end

--- Closes the session; again is allowed.
function Chat:close()
    self.session:close()
end

return Chat

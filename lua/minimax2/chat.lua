--- Chat: a conversation on one session. `model:chat { system = "..." }`, then chat:send(text) turn after
--- turn. The tokens that were sampled stay in the timeline as they are, thinking included; only what is
--- new is rendered and fed.
---
--- Fields: session, messages (the turns, for reading).

local native = require "minimax2.native"
local args = require "minimax2.args"
local Request = require "minimax2.request"
local Sampler = require "minimax2.sampling"
local Session = require "minimax2.session"
local Stream = require "minimax2.stream"

local raise = native.raise

local Chat = {}
Chat.__index = Chat

local known = { system = true }

--- See model:chat.
function Chat.new(model, options)
    options = args.known(options, "model:chat", known, Session.known, Request.known, Sampler.known)
    if options.system ~= nil then
        args.text(options.system, "model:chat: system")
    end
    local defaults, own = {}, {}
    for name, value in pairs(options) do
        local of_turns = not (known[name] or Session.known[name])
        local place = of_turns and defaults or own
        place[name] = value
    end
    own.system = nil
    Request.new(model, nil, defaults, "model:chat") -- refuses now what each turn would
    local session, message = Session.new(model, own, "model:chat")
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
        table.insert(self.messages, last:message())
    end
end

-- The ids that new messages add to the timeline.
local function new_ids(self, new, options, thinks)
    local session, tokenizer = self.session, self.session.model.tokenizer
    if session.length > 0 then
        return tokenizer:encode_chat(new, { after = session:tokens(), thinking = thinks })
    end
    local turns = { unpack(self.messages) }
    for _, message in ipairs(new) do
        turns[#turns + 1] = message
    end
    return tokenizer:encode_chat(turns, { tools = options.tools, thinking = thinks })
end

-- Starts a turn. Nothing is changed before everything is checked and fed.
local function start(self, text, options, where)
    local session = self.session
    session:live()
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
    local new = text
    if type(text) ~= "table" then
        new = { { role = "user", content = args.text(text, where .. ": the text") } }
    elseif text.role ~= nil then
        new = { text }
    elseif #text == 0 then
        raise(where .. ": the text must be a string, a message or a list of messages, not an empty table")
    end
    local request = Request.new(session.model, nil, all, where, function(thinks)
        return new_ids(self, new, all, thinks)
    end)
    session:feed(request.prompt, request.count)
    local stream = Stream.new(session, request)
    close_turn(self)
    self.defaults.tools = all.tools
    for _, message in ipairs(new) do
        table.insert(self.messages, message)
    end
    self.last = stream
    return stream
end

--- Says something: the answer as a stream. text: what the user says; or a message, or a list of them, such
--- as the results of tools, { { role = "tool", content = ... }, ... }, one for each call.
--- An answer that was not pulled to its end is closed where it
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

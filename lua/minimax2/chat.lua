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
    local session, message = Session.new(model, { context = options.context }, "model:chat")
    if not session then
        return nil, message
    end
    local defaults = {}
    for name, value in pairs(options) do
        if not known[name] then
            defaults[name] = value
        end
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
        self.last = nil
        table.insert(self.messages,
            { role = "assistant", content = last:text(), thinking = last:thinking() })
    end
end

-- The ids that the newest message adds to the timeline. Rendered behind a stand-in for the turns before
-- and cut off there: what the format puts between two turns stays.
local function new_ids(self)
    local session, tokenizer = self.session, self.session.model.tokenizer
    local turns = self.messages
    local length = session.length
    if length == 0 then
        return tokenizer:template(turns)
    end
    local before = { role = "user", content = "." }
    local head = tokenizer:template({ before }, { generation_prompt = false })
    local both = tokenizer:template { before, turns[#turns] }
    local cut = #head
    while head[cut] ~= tokenizer.eos do
        cut = cut - 1
    end
    if session:tokens()[length - 1] ~= tokenizer.eos then
        cut = cut - 1 -- the last turn was cut short: close it first
    end
    local ids = {}
    for i = cut + 1, #both do
        ids[#ids + 1] = both[i]
    end
    return ids
end

--- Says something: the answer as a stream. A turn that was cut short is closed where it stopped.
function Chat:stream(text, options)
    local all = {}
    for name, value in pairs(self.defaults) do
        all[name] = value
    end
    for name, value in pairs(args.known(options, "chat:stream", Stream.known, Sampler.known)) do
        all[name] = value
    end
    self.session:live()
    if not self.session.model.tokenizer then
        native.raise(self.session.model.no_tokenizer)
    end
    close_turn(self)
    table.insert(self.messages, { role = "user", content = text })
    local ok, message = pcall(function()
        self.session:feed(new_ids(self))
    end)
    if not ok then
        table.remove(self.messages)
        error(message, 0)
    end
    self.last = Stream.new(self.session, all, "chat:stream", true)
    return self.last
end

--- The same, to the end: text, info.
function Chat:send(text, options)
    local answer, info = self:stream(text, options):finish()
    close_turn(self)
    return answer, info
end

--- Closes the session; again is allowed.
function Chat:close()
    self.session:close()
end

return Chat

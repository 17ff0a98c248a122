local support = require "support"

local model, greedy = support.model, support.greedy
local tokenizer = model.tokenizer

-- A sampler option that makes the model say exactly these tokens.
local function script(ids)
    local at = 0
    return function(_, logits)
        at = at + 1
        for i = 0, #logits - 1 do
            logits[i] = -1000
        end
        logits[ids[at] or ids[#ids]] = 1000
    end
end

local function say(text, options)
    local ids = tokenizer:ids(text)
    options = greedy(options.max_new_tokens or #ids, options)
    options.logits_processor = script(ids)
    return model:stream(support.prompt, options)
end

-- A hook's edit.
local function push(tensor)
    for i = 0, #tensor - 1 do
        tensor[i] = tensor[i] + 3
    end
end

-- A function that raises an error the first time, and one that says how often it was called.
local function raising_once()
    local calls = 0
    return function()
        calls = calls + 1
        if calls == 1 then
            error("not now", 0)
        end
    end, function()
        return calls
    end
end

describe("a stream", function()
    it("iterates over the pieces of what generate returns", function()
        local whole, info = model:generate(support.prompt, { seed = 3, max_new_tokens = 20 })
        local pieces = {}
        local stream = model:stream(support.prompt, { seed = 3, max_new_tokens = 20 })
        for piece in stream do
            pieces[#pieces + 1] = piece
            assert.equal(table.concat(pieces), stream:text())
        end
        assert.equal(whole, table.concat(pieces))
        assert.same(info.tokens, stream:tokens())
        assert.equal(3, stream.seed)
        assert.equal("length", stream.finish_reason)
        assert.is_nil(stream:next())
    end)

    it("polls within a budget, with the same tokens", function()
        local _, info = model:generate(support.prompt, { seed = 3, max_new_tokens = 20 })
        local stream = model:stream(support.prompt, { seed = 3, max_new_tokens = 20 })
        local polls, text, done, piece = 0, ""
        repeat
            local before = #stream:tokens()
            piece, done = stream:poll(0.02)
            text = text .. (piece or "")
            polls = polls + 1
            assert.is_true(#stream:tokens() <= before + 1)
        until done
        assert.is_true(polls > 20)
        assert.same(info.tokens, stream:tokens())
        assert.equal(text, stream:text())
        assert.same({ nil, true }, { stream:poll(1) })
    end)

    it("gives way in coroutines", function()
        local whole = model:generate(support.prompt, greedy(10))
        local turns = {}
        local routines = {}
        for i = 1, 2 do
            routines[i] = coroutine.create(function()
                local stream = model:stream(support.prompt, greedy(10, { yield = true }))
                for _ in stream do
                    turns[#turns + 1] = i
                    coroutine.yield()
                end
                return stream:text()
            end)
        end
        local text = {}
        while not (text[1] and text[2]) do
            for i, routine in ipairs(routines) do
                if not text[i] then
                    local _, result = assert(coroutine.resume(routine))
                    text[i] = result
                end
            end
        end
        assert.same({ whole, whole }, text)
        local changes = 0
        for i = 2, #turns do
            changes = changes + (turns[i] ~= turns[i - 1] and 1 or 0)
        end
        assert.is_true(changes > 4)
    end)

    it("yields inside a long prompt", function()
        local yields = 0
        local routine = coroutine.wrap(function()
            local stream = model:stream(("word "):rep(1500), greedy(1, { yield = true }))
            stream:finish()
            return "end"
        end)
        while routine() ~= "end" do
            yields = yields + 1
        end
        assert.is_true(yields > 1)
    end)

    it("ends before a stop string, across token borders", function()
        local text = "one two three four five"
        for _, case in ipairs {
            { "three", "one two ", "stop" },
            { "o thr", "one tw", "stop" },
            { { "five", "e two" }, "on", "stop" },
            { { "zebra", "fourth" }, text, "length" },
            { "five!", text, "length" },
            { "one", "", "stop" },
        } do
            local stream = say(text, { stop = case[1] })
            local pieces = {}
            for piece in stream do
                pieces[#pieces + 1] = piece
            end
            assert.equal(case[2], table.concat(pieces))
            assert.equal(case[3], stream.finish_reason)
        end
    end)

    it("never splits a character", function()
        local text = "naïve 日本語 🙂 end"
        local whole = 0
        for piece in say(text, {}) do
            assert.equal(#piece, tokenizer.complete(piece))
            whole = whole + #piece
        end
        assert.equal(#text, whole)
        -- Cut short, the bytes that were there come out.
        local ids = tokenizer:ids "🙂"
        if #ids > 1 then
            local stream = say("🙂", { max_new_tokens = #ids - 1 })
            assert.equal(tokenizer:decode { unpack(ids, 1, #ids - 1) }, (stream:finish()))
        end
    end)

    it("ends at the end token, which stays in the tokens", function()
        local ids = tokenizer:ids "so"
        ids[#ids + 1] = tokenizer.eos
        local text, info = model:generate(support.prompt, greedy(50, { logits_processor = script(ids) }))
        assert.equal("so", text)
        assert.equal("stop", info.finish_reason)
        assert.same(ids, info.tokens)
    end)

    it("parts thinking and answer after messages", function()
        local ids = tokenizer:ids "\nhmm 日本\n"
        ids[#ids + 1] = tokenizer.think_close
        for _, id in ipairs(tokenizer:ids "\n\nIt is so.") do
            ids[#ids + 1] = id
        end
        ids[#ids + 1] = tokenizer.eos
        local stream = model:stream({ { role = "user", content = "?" } },
            greedy(80, { logits_processor = script(ids), stop = "hmm" }))
        local text, info = stream:finish()
        assert.equal("It is so.", text)
        assert.equal("hmm 日本", info.thinking)
        assert.equal("stop", info.finish_reason)
    end)

    it("takes a mask, fixed or made for each token", function()
        local mm = require "minimax2"
        local mask = mm.mask(model.config.vocab_size)
        mm.allow(mask, 65)
        mm.allow(mask, 66)
        local _, info = model:generate(support.prompt, { max_new_tokens = 6, mask = mask })
        for _, id in ipairs(info.tokens) do
            assert.is_true(id == 65 or id == 66)
        end
        local _, alternate = model:generate(support.prompt, { max_new_tokens = 6, mask = function(tokens)
            local one = mm.mask(model.config.vocab_size)
            mm.allow(one, 100 + #tokens)
            return one
        end })
        assert.same({ 100, 101, 102, 103, 104, 105 }, alternate.tokens)
    end)

    it("reports the model's own log-probabilities after an edit", function()
        local function spoil(_, logits)
            for i = 0, #logits - 1 do
                logits[i] = 0
            end
            logits[9] = 50
        end
        local _, info = model:generate(support.prompt,
            greedy(1, { logits_processor = spoil, top_logprobs = 1 }))
        local session = assert(model:session())
        session:feed(support.prompt):run()
        assert.equal(session:logprobs({ 9 })[1], info.logprobs[1].logprob)
        assert.equal(session:top(1)[1], info.logprobs[1].top[1].id)
    end)

    it("calls hooks while it writes", function()
        local plain = model:generate(support.prompt, greedy(8))
        local seen = 0
        local function nothing(_, tap)
            seen = seen + tap.count
        end
        local ids = tokenizer:ids(support.prompt)
        assert.equal(plain, (model:generate(support.prompt,
            greedy(8, { hooks = { { "resid_mid", 1, nothing } } }))))
        assert.equal(#ids + 7, seen)
        local function zero(tensor)
            for i = 0, #tensor - 1 do
                tensor[i] = 0
            end
        end
        assert.are_not.equal(plain, (model:generate(support.prompt,
            greedy(8, { hooks = { { "resid_post", zero } } }))))
        local session = assert(model:session())
        session:generate(support.prompt, greedy(2, { hooks = { { "resid_post", zero } } }))
        assert.is_true(session:run()) -- the taps are off again
    end)

    it("goes on over ids that have no token, which write nothing", function()
        assert.is_true(tokenizer.vocab_size < model.config.vocab_size)
        local padding = model.config.vocab_size - 1
        local ids = tokenizer:ids "on and on"
        table.insert(ids, 2, padding)
        local text, info = model:generate(support.prompt, greedy(#ids, { logits_processor = script(ids) }))
        assert.equal("on and on", text)
        assert.same(ids, info.tokens)
        local session = assert(model:session())
        text, info = session:generate(support.prompt, greedy(3, { bias = { [padding] = 1e9 } }))
        assert.equal("", text)
        assert.same({ padding, padding, padding }, info.tokens)
        text = session:generate(greedy(5)) -- and for ever after
        assert.is_true(#text > 0)
    end)

    it("leaves the logits as they were when a draw is refused", function()
        local session = assert(model:session())
        session:feed(support.prompt):run()
        local before, length = session:logits():bytes(), session.length
        local function spoil(_, logits)
            logits[3] = 0 / 0
        end
        local function fail(_, logits)
            logits[3] = 1
            error "no"
        end
        for _, options in ipairs {
            { logits_processor = spoil }, { logits_processor = fail },
            { mask = require("minimax2").mask(model.config.vocab_size) },
            { mask = function() error "no" end }, { mask = function() return {} end },
        } do
            local stream = session:stream(nil, greedy(5, options))
            for _ = 1, 2 do
                support.failure(stream.poll, stream)
            end
            assert.equal(before, session:logits():bytes())
            assert.equal(length, session.length)
        end
    end)

    it("calls a hook again that raised an error, and those behind it once", function()
        local plain = { { "resid_post", 1, push }, { "resid_post", 1, push }, { "resid_post", 1, push } }
        local _, whole = model:generate(support.prompt, greedy(4, { hooks = plain }))
        local before, behind = 0, 0
        local raises, calls = raising_once()
        local stream = model:stream(support.prompt, greedy(4, { hooks = {
            { "resid_post", 1, function(tensor)
                before = before + 1
                push(tensor)
            end },
            { "resid_post", 1, function(tensor)
                raises()
                push(tensor)
            end },
            { "resid_post", 1, function(tensor)
                behind = behind + 1
                push(tensor)
            end },
        } }))
        assert.equal("not now", support.failure(stream.finish, stream))
        local _, info = stream:finish()
        assert.same(whole.tokens, info.tokens)
        assert.same({ before, before, before + 1 }, { behind, before, calls() })
        assert.equal(4, before) -- the prompt, and three of the four tokens
    end)

    it("asks a mask and a logits_processor again that raised an error", function()
        local _, whole = model:generate(support.prompt, { seed = 3, max_new_tokens = 5, top_logprobs = 1 })
        for _, name in ipairs { "mask", "logits_processor" } do
            local raises = raising_once()
            local asked = {}
            local stream = model:stream(support.prompt, { seed = 3, max_new_tokens = 5, top_logprobs = 1,
                [name] = function(tokens)
                    asked[#asked + 1] = #tokens
                    if #asked > 2 then
                        raises()
                    end
                end })
            assert.equal("not now", support.failure(stream.finish, stream))
            assert.same(whole.logprobs, select(2, stream:finish()).logprobs)
            assert.equal(6, #asked)
            assert.equal(asked[3], asked[4])
        end
    end)

    it("says that its session was fed, cut or taken by others", function()
        local taken = "^another call has fed or cut this stream's session: it cannot go on; cancel%(%) it"
        for _, overtake in ipairs {
            function(session) session:feed { 5 } end,
            function(session) session:rewind(session.length - 1) end,
            function(session)
                session:rewind(session.length - 1)
                session:feed { 4000 }
            end,
            function(session) session:sync "Something else" end,
            function(session) session:generate(greedy(3)) end,
            function(session) session:stream({ 7 }, greedy(3)) end,
        } do
            local session = assert(model:session { context = 128 })
            session:feed(support.prompt)
            local stream = session:stream(greedy(6))
            stream:poll()
            local tokens, text = stream:tokens(), stream:text()
            overtake(session)
            for _, call in ipairs { "poll", "next", "finish" } do
                assert.matches(taken, support.failure(stream[call], stream))
            end
            assert.same(tokens, stream:tokens())
            assert.equal(text, stream:text())
            stream:cancel()
            assert.same({ nil, true }, { stream:poll() })
            assert.equal("cancelled", stream.finish_reason)
        end
        local session = assert(model:session())
        local stream = session:stream(support.prompt, greedy(6))
        stream:poll()
        session:run() -- changes nothing, and neither does what is refused or changes nothing
        support.failure(session.feed, session, { -1 })
        support.failure(session.rewind, session, 1000)
        session:sync(session:tokens())
        local _, info = stream:finish()
        assert.same(select(2, model:generate(support.prompt, greedy(6))).tokens, info.tokens)
        session:feed { 5 } -- it has ended
        assert.same({ nil, true }, { stream:poll() })
    end)

    it("can be cancelled by its own callbacks", function()
        for _, name in ipairs { "mask", "logits_processor", "hooks" } do
            local stream
            local function cancel()
                stream:cancel()
            end
            stream = model:stream(support.prompt, greedy(3, {
                [name] = name == "hooks" and { { "q", 0, cancel } } or cancel }))
            local _, info = stream:finish()
            assert.same({ "cancelled", {} }, { info.finish_reason, info.tokens })
        end
    end)

    it("says that others have gone past its hooks", function()
        local raises, calls = raising_once()
        local session = assert(model:session())
        local stream = session:stream(support.prompt, greedy(3, { hooks = { { "q", 0, raises } } }))
        support.failure(stream.finish, stream)
        assert.is_true(session:run())
        assert.equal("the hooks of this stream were ended by another call on its session",
            support.failure(stream.finish, stream))
        assert.equal(1, calls())
    end)

    it("can be cancelled, and generates nothing when told so", function()
        local stream = model:stream(support.prompt, greedy(50))
        stream:poll()
        stream:cancel()
        stream:cancel()
        assert.equal("cancelled", stream.finish_reason)
        assert.same({ nil, true }, { stream:poll() })
        local text, info = model:generate(support.prompt, { max_new_tokens = 0 })
        assert.equal("", text)
        assert.same({}, info.tokens)
        assert.equal("length", info.finish_reason)
    end)
end)

describe("a chat", function()
    it("keeps the sampled tokens and feeds only what is new", function()
        local chat = assert(model:chat { system = "Be short.", max_new_tokens = 40, temperature = 0 })
        local first, info = chat:send "Hello!"
        assert.equal(first, (model:generate({
            { role = "system", content = "Be short." },
            { role = "user", content = "Hello!" },
        }, greedy(40))))
        assert.is_string(info.thinking)
        local before = chat.session.length
        local stream = chat:stream "And you?"
        local ids = chat.session:tokens()
        local added = {}
        for i = before, #ids - 1 do
            added[#added + 1] = ids[i]
        end
        local new = tokenizer:decode(added, { special = true })
        local rendered = tokenizer:render {
            { role = "user", content = "." }, { role = "user", content = "And you?" },
        }
        assert.equal(new, rendered:sub(-#new))
        assert.matches("And you?", new, 1, true)
        assert.is_nil(new:find("Hello", 1, true))
        stream:finish()
        chat:send "Good."
        assert.equal(7, #chat.messages)
        assert.same({ "system", "user", "assistant", "user", "assistant", "user", "assistant" },
            (function()
                local roles = {}
                for i, message in ipairs(chat.messages) do
                    roles[i] = message.role
                end
                return roles
            end)())
        chat:close()
        assert.matches("closed", support.failure(chat.send, chat, "x"))
    end)

    it("ends a turn at the format's tag, whatever end token the files name", function()
        local tag = tokenizer:id "[e~["
        for _, eos in ipairs { "[0, " .. tag .. "]", "2" } do
            local folder = support.edited_model("generation_config.json", '"eos_token_id": %d+',
                '"eos_token_id": ' .. eos)
            local other = assert(require("minimax2").load(folder))
            local chat = assert(other:chat { max_new_tokens = 5 })
            for _, id in ipairs(other:end_tokens()) do
                local _, info = other:generate("hello", greedy(5, { bias = { [id] = 1e9 } }))
                assert.same({ { id }, "stop" }, { info.tokens, info.finish_reason })
            end
            local _, info = chat:send("hello", { bias = { [tag] = 1e9 } })
            assert.same({ { tag }, "stop" }, { info.tokens, info.finish_reason })
            chat:send("hello", { seed = 1 })
            chat:send("hello", { seed = 1 })
            local ends = 0
            local ids = chat.session:tokens()
            for i = 0, #ids - 1 do
                ends = ends + (ids[i] == tag and 1 or 0)
            end
            assert.equal(6, ends) -- of the system's turn, three questions and two answers
            chat:close()
            other:close()
            support.remove(folder)
        end
    end)

    it("answers at once without thinking", function()
        local blank = tokenizer:ids "\n\n"
        local closed = tokenizer:template { { role = "user", content = "Hello!" } }
        while closed[#closed] ~= tokenizer.think_open do
            table.remove(closed)
        end
        for _, part in ipairs { blank, { tokenizer.think_close }, blank } do
            for _, id in ipairs(part) do
                closed[#closed + 1] = id
            end
        end
        local options = greedy(12, { thinking = false })
        local text, info = model:generate({ { role = "user", content = "Hello!" } }, options)
        local _, plain = model:generate(closed, greedy(12))
        assert.same(plain.tokens, info.tokens)
        assert.is_nil(info.thinking)
        local chat = assert(model:chat(options))
        assert.equal(text, (chat:send "Hello!"))
        chat:send "And you?"
        chat:close()
        assert.matches("thinking must be true, false or a number", support.failure(model.generate, model, "x",
            { thinking = "x" }))
        local _, opened = model:generate("x", greedy(4, { thinking = true }))
        assert.is_string(opened.thinking)
    end)

    it("refuses results of tools where no call stands before them", function()
        local chat = assert(model:chat { temperature = 0, max_new_tokens = 4, seed = 1 })
        local result = { role = "tool", content = "4" }
        assert.equal("message 2 is of a tool, but the assistant has called none before it",
            support.failure(chat.send, chat, { { role = "user", content = "Hi" }, result }))
        chat:send "Hi"
        local length, turns = chat.session.length, #chat.messages
        for at, new in ipairs { { result }, { { role = "user", content = "x" }, result } } do
            assert.equal(("message %d is of a tool, but the assistant has called none before it"):format(at),
                support.failure(chat.send, chat, new))
            assert.same({ length, turns }, { chat.session.length, #chat.messages })
        end
        local call = { role = "assistant", content = "", tool_calls = { { name = "f", arguments = {} } } }
        chat:send { { role = "user", content = "x" }, call, result }
        assert.is_true(chat.session.length > length)
        chat:close()
    end)

    it("is ended by the next turn", function()
        local chat = assert(model:chat { temperature = 0, max_new_tokens = 30 })
        local first = chat:stream "Hello!"
        first:poll()
        first:poll()
        local second = chat:stream "And you?"
        assert.equal("cancelled", first.finish_reason)
        assert.same({ nil, true }, { first:poll() })
        assert.equal(first:text(), chat.messages[2].content)
        second:finish()
        chat:close()
    end)
end)

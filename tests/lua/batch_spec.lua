local mm = require "minimax2"
local support = require "support"

local model, greedy, failure = support.model, support.greedy, support.failure

local prompts = { support.prompt, "def add(a, b):\n", { 5, 6, 7 }, { { role = "user", content = "Hello!" } } }

describe("a fork", function()
    it("goes on with the bits of a session that was never forked", function()
        local ids = model.tokenizer:ids(support.prompt)
        local session = assert(model:session())
        session:feed(ids):run()
        local forks = {}
        for i = 1, 3 do
            forks[i] = assert(session:fork())
            assert.equal(session.context, forks[i].context)
            assert.equal(session:logits():bytes(), forks[i]:logits():bytes())
            forks[i]:feed { i, i + 1 }
        end
        session:feed { 9 }
        for i = 1, 3 do
            local whole = { unpack(ids) }
            whole[#whole + 1], whole[#whole + 2] = i, i + 1
            assert.equal(support.alone(whole), support.logits(forks[i]))
        end
        ids[#ids + 1] = 9
        session:close()
        forks[1]:rewind(#ids - 1)
        forks[1]:feed { 9 }
        assert.equal(support.alone(ids), support.logits(forks[1]))
    end)

    it("takes pending tokens along, but neither taps nor a batch", function()
        local session = assert(model:session())
        local batch = assert(model:batch { session })
        session:tap("resid_post", 1)
        session:feed(support.prompt)
        local fork = assert(session:fork())
        assert.equal(session.length, fork.length)
        assert.is_true(fork:run())
        assert.equal(support.alone(support.prompt), fork:logits():bytes())
        batch:close()
        session:close()
        assert.matches("the session is closed", failure(session.fork, session))
    end)
end)

describe("a batch of prompts", function()
    it("generates what each would alone", function()
        local texts, infos = model:generate(prompts, { seed = 7, max_new_tokens = 12, top_logprobs = 1 })
        assert.equal(#prompts, #texts)
        for i, prompt in ipairs(prompts) do
            local text, info = model:generate(prompt, { seed = 7, max_new_tokens = 12, top_logprobs = 1 })
            assert.equal(text, texts[i])
            assert.same(info, infos[i])
        end
    end)

    it("takes options beside a prompt, over those for all", function()
        local batch = assert(model:batch(nil, { rows = 3 }))
        local texts, infos = batch:generate({
            { prompt = "Once", max_new_tokens = 2 }, { prompt = "Once", temperature = 1, seed = 4 }, "Once",
        }, { max_new_tokens = 6, temperature = 0 })
        assert.same({ (model:generate("Once", greedy(2))),
            (model:generate("Once", { seed = 4, max_new_tokens = 6, temperature = 1 })),
            (model:generate("Once", greedy(6))) }, texts)
        assert.equal(4, infos[2].seed)
        assert.same({}, batch.sessions)
        local empty, none = batch:generate {}
        assert.same({ {}, {} }, { empty, none })
        batch:close()
    end)

    it("ends with stop strings, end tokens and contexts of each", function()
        local eos = model.tokenizer.eos
        local _, infos = model:generate({
            { prompt = "Once", bias = { [eos] = 1e9 } },
            { prompt = "Once", stop = (model:generate("Once", greedy(3))) },
            { prompt = "Once" },
        }, { max_new_tokens = 5, temperature = 0 })
        assert.same({ eos }, infos[1].tokens)
        assert.equal("stop", infos[2].finish_reason)
        assert.equal("length", infos[3].finish_reason)
    end)

    it("is refused whole, and leaves nothing behind", function()
        local batch = assert(model:batch())
        local function refused(word, list, options)
            assert.matches(word, failure(batch.generate, batch, list, options))
            assert.same({}, batch.sessions)
        end
        refused("prompt 2: unknown option 'sed'", { "a", { prompt = "b", sed = 1 } })
        refused("unknown option 'max_tokens'", { "a" }, { max_tokens = 1 })
        refused("the prompt is empty", { "a", "" })
        refused("prompt 1: temperature", { { prompt = "a", temperature = -1 } })
        refused("prompts must be a table", "a")
        refused("stop here", { "a", { prompt = "b", mask = function() error "stop here" end } })
        refused("shorten it", { "a", ("x "):rep(model.config.max_position_embeddings) })
        assert.matches("rows must be an integer", failure(model.batch, model, nil, { rows = 0.5 }))
        assert.matches("unknown option 'row'", failure(model.batch, model, nil, { row = 1 }))
        assert.is_nil((model:batch(nil, { rows = 5000 })))
        batch:close()
        assert.equal("the batch is closed", failure(batch.stream, batch, "x"))
        assert.equal("the batch is closed", failure(batch.generate, batch, { "x" }))
    end)
end)

describe("streams of a batch", function()
    it("go on together, whoever is pulled", function()
        local batch = assert(model:batch())
        local first = batch:stream(prompts[1], greedy(10))
        local second = batch:stream(prompts[2], greedy(4))
        for i = 1, 3 do
            first:poll(1000)
            assert.is_true(#first:tokens() <= i)
        end
        local text = first:finish()
        assert.equal((model:generate(prompts[1], greedy(10))), text)
        assert.equal("length", second.finish_reason)
        local pieces = {}
        for piece in second do
            pieces[#pieces + 1] = piece
        end
        assert.equal((model:generate(prompts[2], greedy(4))), table.concat(pieces))
        assert.same({ nil, true }, { second:poll(1) })
        assert.same({}, batch.sessions)
    end)

    it("keep a budget, and come and go while others run", function()
        local batch = assert(model:batch())
        local streams = { batch:stream(prompts[1], greedy(8)) }
        local runs = 0
        while not batch:run(0.02) do
            runs = runs + 1
            if runs == 5 then
                streams[2] = batch:stream(prompts[2], greedy(8))
                streams[3] = batch:stream(prompts[1], greedy(8))
            elseif runs == 20 then
                streams[3]:cancel()
                assert.equal("cancelled", streams[3].finish_reason)
                assert.equal(2, #batch.sessions)
            end
        end
        assert.is_true(runs > 20)
        for i = 1, 2 do
            assert.equal((model:generate(prompts[i], greedy(8))), streams[i]:text())
        end
    end)

    it("call their hooks, and no others", function()
        local function zero(tensor)
            for i = 0, #tensor - 1 do
                tensor[i] = 0
            end
        end
        local hooks = { { "mlp_out", 1, zero } }
        local texts = model:generate({ { prompt = support.prompt, hooks = hooks }, support.prompt },
            greedy(6))
        assert.equal((model:generate(support.prompt, greedy(6, { hooks = hooks }))), texts[1])
        assert.equal((model:generate(support.prompt, greedy(6))), texts[2])
        assert.are_not.equal(texts[1], texts[2])
    end)

    it("survive an error of one of them", function()
        local batch = assert(model:batch())
        local fails = true
        local good = batch:stream(support.prompt, greedy(6))
        local bad = batch:stream(support.prompt, greedy(6, { logits_processor = function()
            if fails then
                error "not now"
            end
        end }))
        local errors = 0
        repeat
            local ok, _, done = pcall(good.poll, good)
            errors = errors + (ok and 0 or 1)
        until ok and done
        assert.is_true(errors > 0)
        assert.matches("not now", failure(batch.run, batch))
        fails = false
        assert.is_true(batch:run())
        assert.equal(good:text(), bad:text())
        assert.equal((model:generate(support.prompt, greedy(6))), good:text())
    end)

    it("call hooks again that raised an error, whoever is pulled", function()
        for _, pulled in ipairs { "good", "bad", "batch" } do
            local calls, batch = 0, assert(model:batch())
            local good = batch:stream(support.prompt, greedy(6))
            local bad = batch:stream(support.prompt, greedy(6, { hooks = {
                { "resid_post", 0, function()
                    calls = calls + 1
                    if calls == 2 or calls == 3 then
                        error "not now"
                    end
                end },
            } }))
            local function pull()
                if pulled == "batch" then
                    while not batch:run() do end
                else
                    (pulled == "good" and good or bad):finish()
                end
            end
            for _ = 1, 2 do
                assert.equal("not now", failure(pull))
            end
            pull()
            bad:finish()
            assert.equal(8, calls) -- the prompt, five of the six tokens, two errors
            assert.equal((model:generate(support.prompt, greedy(6))), bad:text())
            assert.equal(bad:text(), (good:finish()))
            batch:close()
        end
    end)

    it("go on without one that was cancelled at a tap, or meet the tap again alone", function()
        local allowed, batch = false, assert(model:batch())
        local seen = {}
        local good = batch:stream(support.prompt, greedy(6))
        local function stubborn(_, tap)
            seen[#seen + 1] = tap.first
            if not allowed then
                error "no"
            end
        end
        local options = greedy(6, { hooks = { { "resid_post", 0, stubborn } } })
        local bad = batch:stream(support.prompt, options)
        failure(good.finish, good)
        bad:cancel()
        good:poll()
        local other = batch:stream(support.prompt, options)
        failure(good.finish, good)
        batch:remove(other.session)
        allowed, seen = true, {}
        assert.equal((model:generate(support.prompt, greedy(6))), (other:finish()))
        local length = #model.tokenizer:ids(support.prompt)
        assert.same({ 0, length, length + 1, length + 2, length + 3, length + 4 }, seen)
        assert.equal(other:text(), (good:finish()))
        batch:close()
    end)

    it("say that their session was fed or cut by others", function()
        local batch = assert(model:batch())
        local first, second = batch:stream("a", greedy(9)), batch:stream("b", greedy(9))
        first:poll()
        first.session:feed { 7 }
        assert.matches("^another call has fed or cut this stream's session", failure(first.poll, first))
        assert.equal((model:generate("b", greedy(9))), (second:finish()))
        first:cancel()
        assert.same({}, batch.sessions)
        batch:close()
    end)

    it("may be of sessions that the script added", function()
        local a, b = assert(model:session()), assert(model:session())
        local batch = assert(mm.batch(model, { a, b }))
        a:feed(support.prompt)
        b:feed { 1, 2, 3 }
        local ready = {}
        repeat
            local session, done = batch:next()
            if session then
                ready[#ready + 1] = session
            end
        until done
        assert.is_true(#ready == 2 and ready[1] ~= ready[2])
        assert.equal(support.alone(support.prompt), a:logits():bytes())
        local text = a:generate(greedy(5)) -- it has its logits already
        assert.equal((model:generate(support.prompt, greedy(5))), text)
        assert.same({ a, b }, batch.sessions)
        local seen = {}
        for tap in b:trace({ 4 }, "resid_post") do
            seen[#seen + 1] = tap.layer
            assert.equal(b, tap.session)
        end
        assert.equal(model.config.num_hidden_layers, #seen)
        assert.equal(support.alone { 1, 2, 3, 4 }, b:logits():bytes())
        assert.equal(a, (batch:next())) -- the last token of its stream was evaluated meanwhile
        b:tap("embed")
        b:feed { 5 }
        local session, done, tap = batch:next()
        assert.same({ nil, false, "embed" }, { session, done, tap.point })
        b:tap("embed", nil, false)
        batch:close()
        assert.is_true(b:run())
    end)

    it("go on alone when the batch is closed", function()
        local batch = assert(model:batch())
        local streams = { batch:stream(prompts[1], greedy(6)), batch:stream(prompts[2], greedy(6)) }
        streams[1]:poll()
        batch:close()
        for i = 1, 2 do
            assert.equal((model:generate(prompts[i], greedy(6))), (streams[i]:finish()))
        end
    end)

    it("name the members that became ready meanwhile", function()
        local sessions = {}
        for i = 1, 4 do
            sessions[i] = assert(model:session())
        end
        local batch = assert(model:batch(sessions))
        for i = 1, 4 do
            sessions[i]:feed { i, i + 1 }
        end
        batch:generate({ "c" }, greedy(8))
        sessions[2]:feed { 9 }
        sessions[3]:rewind(1)
        sessions[4]:close()
        local named = {}
        for i = 1, 2 do
            named[i] = batch:next()
        end
        assert.equal(sessions[1], named[1])
        assert.equal(sessions[2], named[2])
        local none, done = batch:next()
        assert.is_nil(none)
        assert.is_true(done)
        assert.equal(support.alone { 1, 2 }, sessions[1]:logits():bytes())
        batch:close()
        assert.equal("the batch is closed", failure(batch.next, batch))
    end)

    it("have callbacks that cannot run or change the batch", function()
        local batch, other = assert(model:batch()), assert(model:session())
        local member = assert(model:session())
        batch:add(member)
        local tried, stream = {}, batch:stream("z", greedy(20))
        local function attempt()
            for name, action in pairs {
                run = function() batch:run() end, next = function() batch:next() end,
                add = function() batch:add(other) end, close = function() batch:close() end,
                remove = function() batch:remove(member) end, closing = function() member:close() end,
                stream = function() batch:stream "x" end, cancel = function() stream:cancel() end,
                generate = function() batch:generate { "x" } end,
            } do
                assert.matches("^a hook, mask or logits_processor is being called", failure(action))
                tried[name] = (tried[name] or 0) + 1
            end
            model:generate("y", greedy(1)) -- other work is free
        end
        local prompt = support.prompt
        local texts = batch:generate({
            { prompt = prompt, hooks = { { "resid_post", 0, attempt } } },
            { prompt = prompt, mask = attempt }, { prompt = prompt, logits_processor = attempt },
        }, greedy(3))
        local text = model:generate(prompt, greedy(3))
        assert.same({ text, text, text }, texts)
        assert.is_true(tried.run >= 9)
        assert.equal((model:generate("z", greedy(20))), (stream:finish()))
        assert.same({ member }, batch.sessions)
        assert.equal("mine", failure(batch.generate, batch, { "x" },
            greedy(3, { hooks = { { "resid_post", function() error("mine", 0) end } } })))
        assert.same({ member }, batch.sessions)
        assert.is_true(batch:run())
        batch:close()
    end)

    it("are collected with their batch", function()
        assert.equal("10 0", support.script [[
            local mm = require "minimax2"
            local model, count = assert(mm.load()), 0
            for i = 1, 10 do
                local batch = assert(model:batch())
                local stream = batch:stream("Once", { hooks = { { "resid_post", function() end } } })
                batch:stream("Twice", { max_new_tokens = 3 })
                stream:poll()
                local fork = assert(stream.session:fork())
                batch, stream = nil, nil
                collectgarbage()
                fork:run()
                count = count + 1
            end
            local batch = assert(model:batch())
            left = batch:stream "At the end"
            left:poll()
            io.write(count)
        ]])
    end)

    it("end with their session", function()
        local batch = assert(model:batch())
        local stream, other = batch:stream("a", greedy(9)), batch:stream("b", greedy(9))
        stream:poll()
        stream.session:close()
        assert.equal("the session is closed", failure(stream.poll, stream))
        assert.equal((model:generate("b", greedy(9))), (other:finish()))
        batch:close()
    end)
end)

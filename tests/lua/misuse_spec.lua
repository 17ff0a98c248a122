local ffi = require "ffi"
local mm = require "minimax2"
local support = require "support"

local model, failure = support.model, support.failure
local vocab = model.config.vocab_size

describe("misuse", function()
    it("is told at the line that did it", function()
        local ok, message = pcall(function()
            model:generate("x", { temprature = 1 })
        end)
        local line = debug.getinfo(1, "l").currentline - 2
        assert.is_false(ok)
        assert.matches("misuse_spec.lua:" .. line .. ": model:generate: unknown option 'temprature'",
            message, 1, true)
        assert.matches("temperature", message)
    end)

    it("names misspelt options everywhere", function()
        for where, call in pairs {
            ["mm.load"] = function(o) return mm.load(nil, o) end,
            ["model:session"] = function(o) return model:session(o) end,
            ["model:sampler"] = function(o) return model:sampler(o) end,
            ["model:stream"] = function(o) return model:stream("x", o) end,
            ["model:chat"] = function(o) return model:chat(o) end,
            ["tokenizer:encode"] = function(o) return model.tokenizer:encode("x", o) end,
            ["tokenizer:render"] = function(o) return model.tokenizer:render({}, o) end,
        } do
            assert.matches(where .. ": unknown option 'nonsense'", failure(call, { nonsense = 1 }), 1, true)
            assert.matches("options must be a table", failure(call, 5))
        end
        assert.matches("mm.sampler: unknown option", failure(mm.sampler, { nonsense = 1 }), 1, true)
        assert.matches("needs a model", failure(mm.sampler, {}))
        assert.matches("needs a model", failure(mm.batch))
    end)

    it("A1: token ids that are none", function()
        local session = assert(model:session())
        for _, id in ipairs { 1.5, 2 ^ 31, 2 ^ 40, -2 ^ 40, 0 / 0, 1 / 0, "7", true, {} } do
            assert.matches("token 2 of 3 must be an integer", failure(session.feed, session, { 1, id, 2 }))
        end
        for _, id in ipairs { -1, vocab, 2 ^ 31 - 1, -2 ^ 31 } do
            assert.matches("at index 2 is outside the vocabulary", failure(session.feed, session, { 1, id }))
        end
        for _, prompt in ipairs { 5, true, print, ffi.new("float[3]"), ffi.new("int64_t[3]"), 3LL } do
            assert.matches("token ids must be", failure(session.feed, session, prompt))
        end
        assert.matches("token ids must be", failure(session.feed, session))
        assert.equal(0, session.length)
        for _, id in ipairs { -1, model.tokenizer.vocab_size, 2 ^ 31 - 1 } do
            assert.is_string(failure(model.tokenizer.decode, model.tokenizer, { id }))
        end
        local ids = ffi.new("int32_t[3]", { 1, 2, 3 })
        session:feed(ids):feed(ids, 2):feed(ffi.cast("const int32_t *", ids), 3)
        session:feed(session:tokens())
        assert.equal(16, session.length)
        assert.matches("the array holds 3", failure(session.feed, session, ids, 4))
        assert.matches("token ids must be", failure(session.feed, session, ffi.cast("int32_t *", ids)))
    end)

    it("A6: prompts that are empty or too long", function()
        local session = assert(model:session { context = 3 })
        assert.matches("prompt is empty", failure(session.feed, session, {}))
        assert.matches("prompt is empty", failure(session.feed, session, ""))
        assert.matches("prompt is empty", failure(model.generate, model, ""))
        assert.matches("prompt is empty", failure(session.sync, session, {}))
        local long = ("x "):rep(model.config.max_position_embeddings + 1)
        for _, call in ipairs { model.generate, model.stream, model.logits, model.trace } do
            assert.matches("the prompt is %d+ tokens long, the model has %d+ positions",
                failure(call, model, long))
        end
        assert.matches("3 positions", failure(session.feed, session, { 1, 2, 3, 4 }))
        session:feed { 1, 2, 3 }
        assert.is_true(session:run())
    end)

    it("prompts and samplers that are missing or something else", function()
        local batch, session = assert(model:batch()), assert(model:session())
        for where, call in pairs {
            ["model:generate"] = function() return model:generate(nil) end,
            ["model:stream"] = function() return model:stream() end,
            ["batch:stream"] = function() return batch:stream() end,
        } do
            local ok, message = pcall(call)
            assert.is_false(ok)
            assert.matches("misuse_spec.lua:%d+: " .. where .. ": the prompt must be a string", message)
        end
        assert.same({}, batch.sessions)
        session:feed({ 1, 2 }):run()
        for _, sampler in ipairs { 5, {}, session, true } do
            local ok, message = pcall(function()
                return (session:sample(sampler))
            end)
            assert.is_false(ok)
            assert.matches("misuse_spec.lua:%d+: session:sample needs a sampler, not", message)
        end
    end)

    it("A7: logits that are not there yet", function()
        local session = assert(model:session())
        for _, call in ipairs { session.logits, session.top, session.sample } do
            assert.matches("no logits", failure(call, session))
        end
        session:feed { 1, 2 }
        for _, call in ipairs { session.logits, session.top, session.sample } do
            assert.matches("run the session first", failure(call, session))
        end
        assert.matches("cannot rewind to 3", failure(session.rewind, session, 3))
        assert.matches("cannot rewind to %-1", failure(session.rewind, session, -1))
    end)

    it("A8: use after close, and closing twice", function()
        local own = assert(mm.load())
        local tokenizer = own.tokenizer
        local session = assert(own:session())
        session:feed({ 1, 2 }):run()
        local logits, weight = session:logits(), own:tensor "model.norm.weight"
        local copy = logits:copy()
        local sampler, batch = assert(own:sampler()), assert(own:batch())

        own:close()
        own:close()
        assert.equal("minimax2 model (closed)", tostring(own))
        for _, call in ipairs { own.session, own.batch, own.address, own.tensors, own.sampler } do
            assert.equal("the model is closed", failure(call, own))
        end
        assert.equal("the model is closed", failure(own.tensor, own, "x"))
        assert.equal("the model is closed", failure(own.generate, own, "x"))
        assert.equal("the model is closed", failure(function() return own.threads end))
        assert.equal("the model is closed", failure(tokenizer.ids, tokenizer, "x"))
        assert.equal("this tensor belongs to something that is closed", failure(function()
            return weight[0]
        end))

        -- The session goes on with token ids: the library counts references.
        assert.equal("the model is closed", failure(session.feed, session, "x"))
        assert.equal("the model is closed", failure(session.generate, session, { 3 }))
        assert.equal("the model is closed", failure(session.sample, session))
        assert.equal("the model is closed", failure(batch.stream, batch, { 3 }))
        assert.is_true(session:feed({ 3 }):run())
        assert.is_number(session:sample(sampler))
        assert.equal(support.alone { 1, 2, 3 }, logits:bytes())
        session:close()
        session:close()
        assert.equal("minimax2 session (closed)", tostring(session))
        for _, call in ipairs { session.run, session.logits, session.tokens, session.interrupt } do
            assert.equal("the session is closed", failure(call, session))
        end
        assert.equal("the session is closed", failure(function() return session.pos end))
        assert.equal("the session is closed", failure(sampler.next, sampler, session))
        assert.equal("the session is closed", failure(batch.add, batch, session))
        for _, name in ipairs { "bytes", "copy", "f32", "ptr", "buffer" } do
            assert.matches("is closed", failure(logits[name], logits))
        end
        assert.matches("is closed", failure(function() logits[0] = 1 end))
        assert.is_number(copy[0])

        sampler:close()
        sampler:close()
        assert.equal("the sampler is closed", failure(sampler.bias, sampler, {}))
        batch:close()
        batch:close()
        assert.equal("the batch is closed", failure(batch.run, batch))
    end)

    it("A8: closing a session that a batch goes on with", function()
        local session = assert(model:session())
        local batch = assert(model:batch { session })
        session:feed { 1, 2 }
        session:close()
        assert.same({}, batch.sessions)
        assert.is_nil(session.batch)
        local member, done = batch:next()
        assert.is_nil(member)
        assert.is_true(done)
        assert.is_true(batch:run())
        batch:close()
        session:close()
    end)

    it("A17, A18: sampling options", function()
        assert.matches("seed must be an integer", failure(model.sampler, model, { seed = -1 }))
        assert.matches("seed must be an integer", failure(model.sampler, model, { seed = 1.5 }))
        assert.matches("seed must be an integer", failure(model.sampler, model, { seed = "1" }))
        assert.matches("top_k must be an integer", failure(model.sampler, model, { top_k = 2 ^ 31 }))
        assert.matches("temperature must be a number", failure(model.sampler, model, { temperature = "hot" }))
        assert.matches("bias must be a table", failure(model.sampler, model, { bias = 5 }))
        assert.matches("a token id in bias", failure(model.sampler, model, { bias = { x = 5 } }))
        assert.is_string(failure(model.sampler, model, { bias = { [vocab] = 5 } }))
        assert.is_string(failure(model.sampler, model, { bias = { [1] = 0 / 0 } }))
        assert.is_string(failure(model.sampler, model, { breakers = { -1 } }))
        assert.matches("max_new_tokens", failure(model.generate, model, "x", { max_new_tokens = -1 }))
        assert.matches("stop must be a string or a list of strings",
            failure(model.generate, model, "x", { stop = "" }))
        local sampler = assert(model:sampler())
        assert.matches("needs a session", failure(sampler.next, sampler, model))
        assert.matches("f32 tensor of", failure(sampler.pick, sampler, { 1, 2 }))
        assert.matches("f32 tensor of", failure(sampler.pick, sampler, model:logits({ 1, 2 }, "all")))
    end)

    it("A2, A3: masks of another size or type", function()
        local small = mm.mask(vocab - 32)
        assert.matches("the vocabulary", failure(model.generate, model, "x", { mask = small }))
        for _, mask in ipairs { { 1 }, ffi.new("int32_t[?]", vocab) } do
            assert.matches("mask must come from mm.mask",
                failure(model.generate, model, "x", { mask = mask }))
        end
        local mask = mm.mask(64)
        assert.matches("outside of the mask's 0..63", failure(mm.allow, mask, 64), 1, true)
        assert.matches("outside", failure(mm.forbid, mask, -1))
        assert.matches("integer", failure(mm.allow, mask, 0.5))
        assert.matches("needs a mask", failure(mm.allow, {}, 1))
        assert.matches("at least one", failure(mm.mask, 0))
    end)

    it("A2: options are refused, by name, before anything is fed", function()
        local session, chat = assert(model:session()), assert(model:chat { system = "Be kind." })
        session:feed({ 1, 2, 3 }):run()
        local logits = session:logits():bytes()
        for name, values in pairs {
            max_new_tokens = { -1, 1.5, "7" }, top_logprobs = { -1, vocab + 1, true },
            stop = { "", 5, false, { "x", "" }, { text = "x" } },
            mask = { 5, {}, mm.mask(vocab - 32) }, logits_processor = { 5, {} },
            hooks = { 5, { print }, { { { "q" }, print } }, { { "q", 99, print } } },
            temperature = { -1, "hot", 0 / 0 }, top_k = { -1, 1.5 }, top_p = { 1.5 },
            seed = { -1, 0.5 }, bias = { 5, { x = 1 }, { [vocab] = 1 }, { [1] = 0 / 0 } },
            breakers = { 5, { -1 }, { vocab } }, repetition_penalty = { 0 }, max_tokens = { 5 },
        } do
            for i, value in ipairs(values) do
                local options, where = { [name] = value }, name .. " " .. i
                local word = name == "hooks" and "[hl][oa][oy][ke]" or name
                assert.matches(word, failure(session.generate, session, { 4, 5 }, options), where)
                assert.matches(word, failure(session.stream, session, { 4, 5 }, options), where)
                assert.matches(word, failure(chat.send, chat, "Hi", options), where)
                assert.matches(word, failure(chat.stream, chat, "Hi", options), where)
                assert.matches(word, failure(model.generate, model, "Hi", options), where)
                assert.matches(word, failure(model.chat, model, options), where)
            end
        end
        for _, text in ipairs { 5, "a\0b", {} } do
            assert.matches("the text", failure(chat.send, chat, text))
        end
        assert.matches("nothing to answer", failure(chat.send, chat))
        assert.equal(3, session.length)
        assert.equal(logits, session:logits():bytes())
        assert.same({ { role = "system", content = "Be kind." } }, chat.messages)
        assert.equal(0, chat.session.length)
        assert.matches("max_new_tokens", failure(model.generate, model, "x", { max_tokens = 5 }))
        assert.matches("unknown option 'nonsense'", failure(model.chat, model, { nonsense = 1 }))
        assert.matches("system must be a string", failure(model.chat, model, { system = 5 }))
    end)

    it("A2: a refused call does not end a trace", function()
        local session = assert(model:session())
        local taps = session:trace({ 1, 2 }, "resid_post")
        assert.equal(0, taps().layer)
        for _, call in ipairs {
            function() session:feed { -1 } end, function() session:feed {} end,
            function() session:run(-1) end, function() session:rewind(5) end,
            function() session:sync { -1 } end, function() session:generate({ 3 }, { stop = 5 }) end,
            function() session:trace({ 1 }, "no point") end,
        } do
            failure(call)
        end
        assert.equal(1, taps().layer)
        session:feed { 3 }
        assert.matches("ended by another call", failure(taps))
    end)

    it("A2: a chat that is full, or cannot render, stays as it was", function()
        local chat = assert(model:chat { context = 80, max_new_tokens = 3 })
        chat:send "Hi"
        local turns, length = #chat.messages, chat.session.length
        assert.matches("context", failure(chat.send, chat, ("word "):rep(100)))
        assert.equal(turns, #chat.messages)
        assert.equal(length, chat.session.length)
        chat:close()
    end)

    it("A19, A20: sizes of models and sessions", function()
        for _, threads in ipairs { 1025, 10 ^ 6 } do
            local none, message = mm.load(nil, { threads = threads })
            assert.is_nil(none)
            assert.matches("threads", message)
        end
        for _, count in ipairs { 0, -1 } do
            assert.matches("mm.load: threads must be 1 or more, not " .. count,
                failure(mm.load, nil, { threads = count }), 1, true)
            assert.matches("context must be 1 or more", failure(model.session, model, { context = count }))
            assert.matches("chunk must be 1 or more", failure(model.session, model, { chunk = count }))
            assert.matches("rows must be 1 or more", failure(model.batch, model, nil, { rows = count }))
        end
        for _, value in ipairs { 0, 1, "no", {} } do
            assert.matches("writable must be true or false", failure(mm.load, nil, { writable = value }))
            assert.matches("mapped must be true or false", failure(mm.load, nil, { mapped = value }))
        end
        assert.matches("threads must be an integer", failure(mm.load, nil, { threads = 1.5 }))
        assert.matches("isa must be", failure(mm.load, nil, { isa = "sse2" }))
        assert.matches("precision must be", failure(mm.load, nil, { precision = "best" }))
        for _, context in ipairs { model.config.max_position_embeddings + 1, 2 ^ 31 - 1 } do
            local none, message = model:session { context = context }
            assert.is_nil(none)
            assert.matches("context", message)
        end
        assert.matches("context must be an integer", failure(model.session, model, { context = 2 ^ 31 }))
        assert.is_nil((model:session { chunk = 5000 }))
        assert.matches("kv_dtype must be", failure(model.session, model, { kv_dtype = "f64" }))
        local session = assert(model:session())
        for _, ms in ipairs { -1, 0 / 0, "4" } do
            assert.matches("time budget", failure(session.run, session, ms))
        end
        assert.is_true(session:run(1e12))
        assert.matches("number of tokens", failure(session.top, session, 2 ^ 31))
    end)

    it("A22: paths", function()
        local none, message = mm.load "/no/such/model"
        assert.is_nil(none)
        assert.matches("/no/such/model", message, 1, true)
        assert.matches("NUL", failure(mm.load, "a\0b"))
        assert.matches("must be a string", failure(mm.load, 5))
        assert.is_nil((mm.load(("x"):rep(5000))))
        assert.is_nil((mm.load "\255\254"))
    end)

    it("points, layers and hooks", function()
        assert.matches("unknown point 'resid'; known are embed, ", failure(model.trace, model, "x", "resid"))
        assert.matches("a layer must be", failure(model.trace, model, "x", "resid_post", 99))
        assert.matches("a layer must be", failure(model.trace, model, "x", "resid_post", "1"))
        local session = assert(model:session())
        assert.matches("layer", failure(session.tap, session, "q", 99))
        assert.matches("layer", failure(session.tap, session, "embed", 1))
        assert.matches("hook 1", failure(model.run_with_hooks, model, "x", { { "q" } }))
        assert.matches("hooks must be", failure(model.run_with_hooks, model, "x", print))
    end)

    it("messages", function()
        local function ask(turns)
            return failure(model.generate, model, turns)
        end
        assert.matches("role", ask { { role = "robot", content = "x" } })
        assert.matches("message 1 has no role", ask { { role = 5, content = "x" } })
        assert.matches("message 1 has no content", ask { { role = "user" } })
        assert.matches("message 2 has no role", ask { { role = "user", content = "x" }, { content = "x" } })
        assert.matches("message 2 has the role \"robot\"",
            ask { { role = "user", content = "x" }, { role = "robot", content = "message 1 at index 1" } })
        assert.matches("expected an object", ask { { role = "user", content = "x" }, "y" })
        assert.matches('message 1 has "text"', ask { { role = "user", text = "x" } })
        assert.matches("NUL", ask { { role = "user", content = "a\0b" } })
    end)

    it("options of rendering, which are those of generate", function()
        local tokenizer, hi = model.tokenizer, { { role = "user", content = "Hi" } }
        for _, name in ipairs { "generation_prompt", "keep_thinking" } do
            assert.matches("tokenizer:render: " .. name .. " must be true or false, not 0",
                failure(tokenizer.render, tokenizer, hi, { [name] = 0 }))
        end
        for _, value in ipairs { "no", {} } do
            assert.matches("tokenizer:template: thinking must be true, false or a number of tokens, not",
                failure(tokenizer.template, tokenizer, hi, { thinking = value }))
        end
        for _, value in ipairs { -1, 0.5 } do
            assert.matches("thinking must", failure(tokenizer.render, tokenizer, hi, { thinking = value }))
        end
        for value, same in pairs { [0] = false, [5] = true } do
            assert.equal(tokenizer:render(hi, { thinking = same }),
                tokenizer:render(hi, { thinking = value }))
        end
        for _, name in ipairs { "keep_thinking", "yield" } do
            assert.matches(name .. " must be true or false", failure(model.generate, model, hi,
                { [name] = 1 }))
        end
        assert.matches("special must be true or false", failure(tokenizer.ids, tokenizer, "x",
            { special = 0 }))
    end)

    it("sentences name no function of C", function()
        local tokenizer, session = model.tokenizer, assert(model:session())
        for _, call in ipairs {
            function() return mm.load "" end, function() return mm.tokenizer "" end,
            function() return mm.load(nil, { threads = 1025 }) end, function() return session:save "" end,
            function() return tokenizer:token(-1) end, function() return tokenizer:decode { -1 } end,
            function() return tokenizer:render { { role = "robot" } } end,
            function() return tokenizer:template { { role = "robot" } } end,
            function() return model:cost(0) end,
        } do
            local _, raised, message = pcall(call)
            local sentence = raised and raised:gsub("^[^:]+:%d+: ", "") or message
            assert.is_nil(sentence:match "^%l+_%l+" or sentence:match "mm2_")
        end
    end)

    it("sessions of another model", function()
        local other = assert(mm.load())
        local session = assert(other:session())
        local batch = assert(model:batch())
        assert.matches("another model", failure(batch.add, batch, session))
        assert.matches("needs a session", failure(batch.add, batch, other))
        other:close()
    end)
end)

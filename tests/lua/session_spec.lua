local mm = require "minimax2"
local support = require "support"

local model, greedy = support.model, support.greedy

local long = support.prompt .. (" girl who lived in a small house near the forest."):rep(8)

describe("a session", function()
    local session

    before_each(function()
        session = assert(model:session())
    end)

    after_each(function()
        session:close()
    end)

    it("counts what was fed and what is evaluated", function()
        local ids = model.tokenizer:ids(support.prompt)
        assert.equal(session, session:feed(support.prompt))
        assert.equal(0, session.pos)
        assert.equal(#ids, session.length)
        assert.is_true(session:run())
        assert.equal(#ids, session.pos)
        assert.equal(session, session:feed(ids[1] and { ids[1] }))
        assert.equal(#ids + 1, session.length)
        assert.is_true(session:run())
        assert.is_true(session:run())
        local tokens = session:tokens()
        assert.equal("i32", tokens.dtype)
        assert.equal(ids[2], tokens[1])
        assert.equal(ids[1], tokens[#ids])
        assert.equal(model, session.model)
        assert.equal(math.min(8192, model.config.max_position_embeddings), session.context)
    end)

    it("keeps a time budget and gives the same bits", function()
        session:feed(long)
        local slices = 0
        while not session:run(0.05) do
            slices = slices + 1
            local done, total = session:progress()
            assert.is_true(done <= total)
        end
        assert.is_true(slices > 3)
        assert.equal(support.alone(long), session:logits():bytes())
    end)

    it("gives the same bits whatever the chunks", function()
        local bytes = support.alone(long)
        for _, chunk in ipairs { 1, 7, 4096 } do
            assert.equal(bytes, support.alone(long, { chunk = chunk }))
        end
        for _, id in ipairs(model.tokenizer:ids(long)) do
            session:feed { id }
        end
        assert.equal(bytes, support.logits(session))
    end)

    it("keeps the cache in f32 if asked", function()
        assert.are_not.equal(support.alone(long), support.alone(long, { kv_dtype = "f32" }))
    end)

    it("keeps the cache in int8 if asked", function()
        local int8 = support.alone(long, { kv_dtype = "int8" })
        assert.are_not.equal(support.alone(long), int8)
        assert.equal(int8, support.alone(long, { kv_dtype = "int8", chunk = 7 }))
        local bytes = model:cost(1, 100, "bf16").kv_bytes
        assert.is_true(model:cost(1, 100, "int8").kv_bytes < 0.6 * bytes)
    end)

    it("has its options wherever a prompt is given", function()
        local f32 = support.alone(long, { kv_dtype = "f32" })
        local options = { kv_dtype = "f32", chunk = 7, context = 300 }
        assert.equal(f32, model:logits(long, nil, options):bytes())
        assert.equal(f32, model:logits(long, "all", options):bytes():sub(-#f32))
        assert.equal(f32, model:run_with_hooks(long, {}, options):bytes())
        local last
        for tap in model:trace(long, "logits", nil, { kv_dtype = "f32" }) do
            last = tap.tensor:bytes()
        end
        assert.equal(f32, last:sub(-#f32))
        local stream = model:stream(long, { kv_dtype = "f32", context = 200 })
        assert.equal(200, stream.session.context)
        local chat = assert(mm.chat(model, { context = 99, kv_dtype = "f32" }))
        assert.equal(99, chat.session.context)
        local wrong = { chunks = 1 }
        assert.matches("model:logits: unknown option 'chunks'",
            support.failure(model.logits, model, long, "all", wrong))
        assert.matches("model:run_with_hooks: unknown option 'chunks'",
            support.failure(model.run_with_hooks, model, long, {}, wrong))
        assert.matches("model:trace: unknown option 'chunks'",
            support.failure(model.trace, model, long, "q", 1, wrong))
    end)

    it("keeps the cache in f32 where the model is exact", function()
        local exact = assert(mm.load(nil, { precision = "exact" }))
        local whole = exact:logits(support.prompt):bytes()
        assert.equal(whole, exact:logits(support.prompt, nil, { kv_dtype = "f32" }):bytes())
        assert.are_not.equal(whole, exact:logits(support.prompt, nil, { kv_dtype = "bf16" }):bytes())
        exact:close()
    end)

    it("goes on after a rewind as if it had never gone further", function()
        local ids = model.tokenizer:ids(long)
        session:feed(ids):run()
        session:rewind(10)
        assert.equal(10, session.pos)
        assert.matches("no logits", support.failure(session.logits, session))
        local rest = {}
        for i = 11, #ids do
            rest[#rest + 1] = ids[i]
        end
        session:feed(rest)
        assert.equal(support.alone(ids), support.logits(session))
    end)

    it("keeps the common beginning in sync", function()
        local ids = model.tokenizer:ids(long)
        assert.equal(0, session:sync(ids))
        assert.is_true(session:run())
        assert.equal(#ids, session:sync(ids))
        assert.equal(#ids, session.pos)
        local other = { unpack(ids) }
        other[#other] = (ids[#ids] + 1) % 1000
        assert.equal(#ids - 1, session:sync(other))
        assert.equal(support.alone(other), support.logits(session))
        local short = { unpack(ids, 1, 8) }
        assert.equal(7, session:sync(short))
        assert.equal(support.alone(short), support.logits(session))
        assert.equal(8, session:sync(ids))
        assert.equal(support.alone(ids), support.logits(session))
        assert.matches("outside the vocabulary", support.failure(session.sync, session, { 1, -1 }))
        assert.matches("do not fit", support.failure(session.sync, session, ("x "):rep(session.context)))
        assert.equal(#ids, session.pos)
    end)

    it("orders its best tokens", function()
        session:feed(support.prompt):run()
        local ids, logprobs = session:top(5)
        assert.equal(5, #ids)
        assert.equal(10, #session:top())
        for i = 2, 5 do
            assert.is_true(logprobs[i] <= logprobs[i - 1])
        end
        assert.same(logprobs, session:logprobs(ids))
        assert.equal(ids[1], session:sample(model:sampler(greedy(1).temperature == 0
            and { temperature = 0 })))
        local sum, logits = 0, session:logits()
        local all = {}
        for i = 0, #logits - 1 do
            all[i + 1] = i
        end
        for _, value in ipairs(session:logprobs(all)) do
            sum = sum + math.exp(value)
        end
        assert.near(1, sum, 1e-5)
    end)

    it("samples, feeds, and so generates", function()
        local _, info = model:generate(support.prompt, { seed = 11, max_new_tokens = 8 })
        local sampler = assert(model:sampler { seed = 11 })
        session:feed(support.prompt)
        for i = 1, 8 do
            session:run()
            local id = session:sample(sampler)
            assert.equal(info.tokens[i], id)
            session:feed { id }
        end
        assert.is_number(session:run() and session:sample())
    end)

    it("generates turn after turn on one timeline", function()
        local _, info = session:generate(support.prompt, greedy(6))
        local _, more = session:generate(greedy(6))
        local _, whole = model:generate(support.prompt, greedy(12))
        for _, id in ipairs(more.tokens) do
            table.insert(info.tokens, id)
        end
        assert.same(whole.tokens, info.tokens)
        local ids = model.tokenizer:ids(support.prompt)
        assert.equal(#ids + 12, session.length)
    end)

    it("tells when its context is full", function()
        local small = assert(model:session { context = 4 })
        assert.matches("context", support.failure(small.feed, small, { 1, 2, 3, 4, 5 }))
        assert.equal(0, small.length)
        small:feed { 1, 2, 3, 4 }
        assert.matches("context", support.failure(small.feed, small, { 5 }))
        small:run()
        local text, info = small:generate(greedy(5))
        assert.equal("", text)
        assert.equal("context", info.finish_reason)
        small:rewind(2)
        text, info = small:generate({ 3 }, greedy(5))
        assert.equal(1, #info.tokens)
        assert.equal("context", info.finish_reason)
        assert.equal(model.tokenizer:decode(info.tokens), text)
        small:close()
    end)

    it("can be interrupted before it runs, without harm", function()
        session:feed(long)
        session:interrupt()
        assert.equal(support.alone(long), support.logits(session))
    end)
end)

describe("a batch", function()
    it("gives each session the bits it has alone", function()
        local a, b, c = assert(model:session()), assert(model:session()), assert(model:session())
        local batch = assert(model:batch { a, b })
        assert.equal(batch, batch:add(c))
        a:feed(long)
        b:feed(support.prompt)
        c:feed { 42 }
        assert.is_true(batch:run())
        assert.equal(support.alone(long), a:logits():bytes())
        assert.equal(support.alone(support.prompt), b:logits():bytes())
        assert.equal(support.alone { 42 }, c:logits():bytes())
        assert.matches("batch", support.failure(a.run, a))
        b:rewind(3)
        b:feed { 7, 8 }
        c:feed { 43 }
        while not batch:run(0.1) do end
        local ids = model.tokenizer:ids(support.prompt)
        assert.equal(support.alone { ids[1], ids[2], ids[3], 7, 8 }, b:logits():bytes())
        assert.equal(support.alone { 42, 43 }, c:logits():bytes())
        batch:close()
        a:feed { 9 }
        local whole = model.tokenizer:ids(long)
        whole[#whole + 1] = 9
        assert.equal(support.alone(whole), support.logits(a))
    end)

    it("tells which session a tap belongs to", function()
        local a, b = assert(model:session()), assert(model:session())
        local batch = assert(mm.batch(model, { a, b }))
        b:tap("resid_post", 1)
        a:feed(support.prompt)
        b:feed { 1, 2, 3 }
        local done, tap = batch:run()
        assert.is_false(done)
        assert.equal(b, tap.session)
        assert.same({ "resid_post", 1, 0, 3 }, { tap.point, tap.layer, tap.first, tap.count })
        for i = 0, #tap.tensor - 1 do
            tap.tensor[i] = 0
        end
        assert.is_true(batch:run())
        assert.equal(support.alone(support.prompt), a:logits():bytes())
        assert.are_not.equal(support.alone { 1, 2, 3 }, b:logits():bytes())
        batch:remove(a)
        assert.matches("not a member", support.failure(batch.remove, batch, a))
        batch:close()
    end)

    it("leaves a tap's view its memory, whatever runs later", function()
        assert.equal("true true 0", support.script [[
            local mm = require "minimax2"
            local model = assert(mm.load())
            local session = assert(model:session())
            local batch = assert(model:batch { session })
            session:tap("resid_post", 1)
            session:feed { 1, 2, 3 }
            local _, tap = batch:run()
            session:tap("resid_post", 1, false)
            local before = tap.tensor:bytes()
            for _ = 1, 20 do
                batch:add(assert(model:session()))
            end
            io.write(tostring(tap.tensor:bytes() == before), " ")
            batch:run()
            session:feed({ 4 })
            io.write(tostring(#tap.tensor:bytes() == #before))
        ]])
    end)

    it("keeps its members alive", function()
        local batch = assert(model:batch { assert(model:session()) })
        batch.sessions[1]:feed(support.prompt)
        collectgarbage()
        collectgarbage()
        assert.is_true(batch:run())
        assert.equal(support.alone(support.prompt), batch.sessions[1]:logits():bytes())
        batch:close()
    end)
end)

local support = require "support"

local model = support.model

describe("a session on disk", function()
    local path = os.tmpname()

    teardown(function()
        os.remove(path)
    end)

    local function saved(prompt)
        local session = assert(model:session { context = 200 })
        session:feed(prompt)
        local bytes = support.logits(session)
        assert.is_true(session:save(path))
        return session, bytes
    end

    it("goes on with the same bits", function()
        local session, bytes = saved(support.prompt)
        for _, mapped in ipairs { true, false } do
            local again = assert(model:restore(path, { mapped = mapped }))
            assert.equal(model, again.model)
            assert.equal(session.pos, again.pos)
            assert.equal(200, again.context)
            assert.equal(bytes, again:logits():bytes())
            local fork = assert(again:fork())
            again:close()
            fork:feed { 5, 6 }
            assert.is_true(fork:save(path)) -- over the file that it comes from, in its middle
            assert.equal(2, fork.length - assert(model:restore(path)).pos)
            local rest = support.logits(fork)
            local other = saved(support.prompt)
            other:feed { 5, 6 }
            assert.equal(support.logits(other), rest)
        end
    end)

    it("lets a generation go on with the same draws", function()
        local options = { seed = 7, max_new_tokens = 30, repetition_penalty = 1.1 }
        local _, whole = model:generate(support.prompt, options)
        options.max_new_tokens = 12
        local session = assert(model:session())
        local _, half = session:generate(support.prompt, options)
        assert.is_true(session:save(path))
        options.max_new_tokens = 30 - #half.tokens
        local _, rest = assert(model:restore(path)):generate(options)
        for _, id in ipairs(rest.tokens) do
            table.insert(half.tokens, id)
        end
        assert.same(whole.tokens, half.tokens)
    end)

    it("says what is wrong", function()
        local session = saved(support.prompt)
        local function none(says, value, message)
            assert.is_nil(value)
            assert.truthy(message:find(says, 1, true), message)
        end
        none("No such file", session:save "/nowhere/session")
        none("directory", session:save "/tmp")
        none("No such file", model:restore "/nowhere/session")
        none("no saved session", model:restore(model:info "path" .. "/tokenizer.json"))
        none("a context of 3", model:restore(path, { context = 3 }))
        none("f32 was asked for", model:restore(path, { kv_dtype = "f32" }))
        assert.equal("the path must be a string, not 5", support.failure(session.save, session, 5))
        assert.equal("the path holds a NUL byte", support.failure(session.save, session, "a\0b"))
        for says, options in pairs {
            ["unknown option 'maped'"] = { maped = false },
            ["mapped must be true"] = { mapped = 1 },
            ["1 or more"] = { context = 0 },
        } do
            assert.truthy(support.failure(model.restore, model, path, options):find(says, 1, true))
        end
        session:close()
        assert.equal("the session is closed", support.failure(session.save, session, path))
    end)

    it("is refused when it is damaged", function()
        saved(support.prompt)
        local file = assert(io.open(path, "r+b"))
        file:seek("set", 70000)
        file:write "damage"
        file:close()
        local session = assert(model:restore(path))
        session:feed { 5 }
        assert.truthy(support.failure(session.run, session):find("is damaged", 1, true))
        session:rewind(0)
        session:feed(support.prompt)
        assert.equal(support.alone(support.prompt), support.logits(session))
    end)
end)

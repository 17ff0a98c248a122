local support = require "support"

local mm = require "minimax2"

describe("the cache of prefixes", function()
    local ids = {}
    for i = 1, 700 do
        ids[i] = (i * i * 7 + 13 * i) % 4000
    end
    local expected

    setup(function()
        local session = assert(support.model:session())
        session:feed(ids)
        expected = support.logits(session)
        assert.equal(0, session.reused)
        session:close()
    end)

    local function evaluate(model)
        local session = assert(model:session())
        session:feed(ids)
        assert.equal(expected, support.logits(session))
        local reused = session.reused
        session:close()
        return reused
    end

    it("lets sessions start behind what others have evaluated", function()
        local model = assert(mm.load { prefix_cache = 2 ^ 30, threads = 2 })
        assert.equal(0, evaluate(model))
        assert.equal(512, evaluate(model))
        local stats = model:prefix_stats()
        assert.equal(2, stats.pages)
        assert.equal(2, stats.added)
        assert.equal(512, stats.reused)
        assert.equal(2 ^ 30, stats.limit)
        assert.is_true(stats.bytes > 0)
        assert.is_nil(stats.problem)
        model:close()
    end)

    it("keeps pages in a folder", function()
        local folder = os.tmpname()
        os.remove(folder)
        assert.equal(0, os.execute("mkdir " .. folder))
        finally(function() os.execute("rm -r " .. folder) end)
        for round = 1, 2 do
            local model = assert(mm.load { prefix_cache = 2 ^ 30, prefix_folder = folder,
                prefix_disk = 2 ^ 33, threads = 2 })
            assert.equal(round == 1 and 0 or 512, evaluate(model))
            assert.equal(round == 1 and 0 or 2, model:prefix_stats().read)
            model:close()
            collectgarbage()
        end
    end)

    it("is not there unless it is asked for", function()
        assert.equal(0, support.model:prefix_stats().limit)
    end)

    it("refuses what cannot be", function()
        for _, wrong in ipairs { "1", 0, -1, 1.5, 2 ^ 54, 0 / 0 } do
            assert.has_error(function() mm.load { prefix_cache = wrong } end)
            assert.has_error(function() mm.load { prefix_cache = 1, prefix_disk = wrong } end)
        end
        assert.has_error(function() mm.load { prefix_cache = 1, prefix_folder = 5 } end)
        local model, message = mm.load { prefix_folder = "/tmp" }
        assert.is_nil(model)
        assert.is_truthy(message:find "needs prefix_cache")
        model, message = mm.load { prefix_cache = 1, prefix_folder = "/no/such/place" }
        assert.is_nil(model)
        assert.is_truthy(message:find "/no/such/place")
    end)
end)

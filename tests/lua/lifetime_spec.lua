local ffi = require "ffi"
local mm = require "minimax2"
local support = require "support"

local model, greedy = support.model, support.greedy

local function collect()
    collectgarbage()
    collectgarbage()
end

describe("lifetimes", function()
    it("keep owners alive as long as views look at them", function()
        local function weight_of_a_lost_model()
            local lost = assert(mm.load())
            return lost:tensor "model.norm.weight"
        end
        local function logits_of_a_lost_session()
            local lost = assert(assert(mm.load()):session())
            lost:feed(support.prompt):run()
            return lost:logits(), lost:tokens(), lost:logits():buffer()
        end
        local weight = weight_of_a_lost_model()
        local logits, tokens, buffer = logits_of_a_lost_session()
        for _ = 1, 20 do
            collect()
            for _ = 1, 1000 do
                assert.is_truthy(ffi.new("char[?]", 64)) -- reuses what was freed by mistake
            end
        end
        assert.equal(model:tensor("model.norm.weight"):bytes(), weight:bytes())
        assert.equal(support.alone(support.prompt), logits:bytes())
        assert.equal(support.alone(support.prompt), buffer:tostring())
        assert.same(model.tokenizer:ids(support.prompt)[1], tokens[0])
    end)

    it("end when nothing looks any more", function()
        local gone = setmetatable({}, { __mode = "v" })
        do
            local session = assert(model:session())
            session:feed({ 1, 2 }):run()
            gone.session, gone.pointer = session, session.ptr
            gone.logits = session:logits()
        end
        collect()
        assert.is_nil(gone.logits)
        collect()
        assert.is_nil(gone.session)
        assert.is_nil(gone.pointer)
    end)

    it("hold for tokenizers, samplers, streams and batches", function()
        local tokenizer = assert(mm.load()).tokenizer
        local sampler = assert(assert(mm.load()):sampler { temperature = 0 })
        local stream = assert(mm.load()):stream(support.prompt, greedy(5))
        local trace = assert(mm.load()):trace(support.prompt, "resid_post", 0)
        collect()
        assert.same(model.tokenizer:ids "still here", tokenizer:ids "still here")
        local session = assert(sampler.model:session())
        session:feed { 1 }
        collect()
        session:run()
        assert.is_number(sampler:next(session))
        assert.equal((model:generate(support.prompt, greedy(5))), (stream:finish()))
        local tap = trace()
        trace = nil
        collect()
        assert.is_true(tap.tensor[0] == tap.tensor[0])
        assert.is_nil(trace)
    end)

    it("survive a collection at every step", function()
        local text, info = model:generate(support.prompt, { seed = 4, max_new_tokens = 6 })
        local pause = collectgarbage("setpause", 0)
        local mul = collectgarbage("setstepmul", 10000)
        local stream = model:stream(support.prompt, { seed = 4, max_new_tokens = 6,
            bias = { [1] = -math.huge }, breakers = { 3 }, stop = { "@@@@" } })
        repeat
            collectgarbage "step"
            local _, done = stream:poll(0.05)
            collect()
        until done
        for tap in model:trace(support.prompt, { "resid_post", "expert_indices" }) do
            collectgarbage "step"
            assert.is_number(tap.tensor[0])
            collect()
        end
        collectgarbage("setpause", pause)
        collectgarbage("setstepmul", mul)
        assert.equal(text, stream:text())
        assert.same(info.tokens, stream:tokens())
    end)

    it("come and go many times without leaving memory behind", function()
        local function megabytes()
            collect()
            local file = assert(io.open "/proc/self/statm")
            local pages = file:read "*n"
            file:close()
            return pages * 4096 / 2 ^ 20
        end
        local function many(count)
            for i = 1, count do
                local session = assert(model:session { context = 512 })
                session:feed({ i % 100 }):run()
                assert(assert(mm.load()):sampler())
                assert(model:batch())
                if i % 3 == 0 then
                    session:close()
                elseif i % 20 == 0 then
                    collect()
                end
            end
        end
        many(20)
        local before, lua = megabytes(), collectgarbage "count"
        many(100)
        for _ = 1, 20000 do
            assert(model:tensor "model.norm.weight")
        end
        assert.is_true(megabytes() < before + 50)
        assert.is_true(collectgarbage "count" < lua + 256)
    end)

    it("close in any order, from finalisers too", function()
        -- A state of its own, ended with everything still alive.
        assert.equal("end 0", support.script [[
            local mm = require "minimax2"
            model = assert(mm.load())
            session = assert(model:session())
            batch = assert(model:batch { session })
            sampler = assert(model:sampler())
            session:feed { 1, 2, 3 }
            batch:run()
            logits = session:logits()
            tokenizer = assert(mm.tokenizer(model:info "path"))
            stream = model:stream("x", { max_new_tokens = 3 })
            stream:poll()
            for _ in model:trace("x") do break end
            io.write "end"
        ]])
    end)
end)

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
            local filler = {}
            for i = 1, 1000 do
                filler[i] = ffi.new("char[?]", 64)
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
        if not info.tokens[1] == 1 then
            assert.equal(text, stream:text())
        end
        assert.same(info.tokens, stream:tokens())
    end)

    it("come and go many times", function()
        collect()
        local before = collectgarbage "count"
        for i = 1, 2000 do
            local session = assert(model:session { context = 64 })
            session:feed { i % 100 }
            if i % 2 == 0 then
                session:close()
            end
        end
        for _ = 1, 20000 do
            assert(model:tensor "model.norm.weight")
        end
        collect()
        collect()
        assert.is_true(collectgarbage "count" < before + 512)
    end)

    it("close in any order, from finalisers too", function()
        -- A state of its own, ended with everything still alive.
        local script = [[
            package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
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
        ]]
        local name = os.tmpname()
        local file = assert(io.open(name, "w"))
        file:write(script)
        file:close()
        local pipe = assert(io.popen("luajit " .. name .. " 2>&1; echo \" $?\""))
        local output = pipe:read "*a"
        pipe:close()
        os.remove(name)
        assert.equal("end 0\n", output)
    end)
end)

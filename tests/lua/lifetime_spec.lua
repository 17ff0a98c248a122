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
            gone.session, gone.cell = session, session.cell
            gone.logits = session:logits()
        end
        collect()
        assert.is_nil(gone.logits)
        collect()
        assert.is_nil(gone.session)
        assert.is_nil(gone.cell)
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
        assert.is_true(collectgarbage "count" < lua + 1024) -- 20,000 tensors that stayed would be 4 MB
    end)

    it("end with taps that were never finished", function()
        assert.equal("import os: tap tap tap tap 0", support.script [[
            local mm = require "minimax2"
            model = assert(mm.load())
            session = assert(model:session())
            io.write("import os:")
            taps = session:trace("import os", "resid_post")
            io.write(taps() and " tap")
            others = model:trace "import os"
            io.write(others() and " tap")
            member = assert(model:session())
            batch = assert(model:batch { member })
            member:tap("resid_post", 1)
            member:feed { 1, 2, 3 }
            io.write(select(2, batch:run()) and " tap")
            stream = model:stream("import os", { hooks = { { "resid_post", function() error "left" end } } })
            io.write(pcall(stream.poll, stream) and "" or " tap")
        ]])
    end)

    it("end in cycles", function()
        assert.equal("alive 0", support.script [[
            local mm = require "minimax2"
            for _ = 1, 20 do
                local model = assert(mm.load())
                local session = assert(model:session())
                local taps = session:trace("import os", "resid_post")
                local tap = taps()
                local box = { taps = taps, tap = tap, model = model, tokenizer = model.tokenizer }
                box.box, session.box, model.box = box, box, box
                box.batch = assert(model:batch { assert(model:session()) })
                box.batch.box = box
                model, session, taps, tap, box = nil
                collectgarbage()
            end
            io.write "alive"
        ]])
    end)

    it("close in all orders, and are collected in between", function()
        assert.equal("720 orders 0", support.script [[
            local mm = require "minimax2"
            local names = { "model", "session", "batch", "sampler", "tokenizer", "member" }
            local count = 0
            local function close_in(order)
                local all = { model = assert(mm.load()) }
                all.session, all.member = assert(all.model:session()), assert(all.model:session())
                all.batch = assert(all.model:batch { all.member })
                all.sampler, all.tokenizer = assert(all.model:sampler()), all.model.tokenizer
                local taps = all.session:trace({ 1, 2 }, "resid_post")
                local tap = taps()
                for i, name in ipairs(order) do
                    all[name]:close()
                    if (count + i) % 7 == 0 then
                        all[name] = nil
                        collectgarbage()
                    end
                end
                assert(not pcall(taps) and not pcall(tap.tensor.bytes, tap.tensor))
                count = count + 1
            end
            local function orders(chosen, left)
                if #left == 0 then
                    close_in(chosen)
                end
                for i, name in ipairs(left) do
                    local rest, more = { unpack(left) }, { unpack(chosen) }
                    table.remove(rest, i)
                    more[#more + 1] = name
                    orders(more, rest)
                end
            end
            orders({}, names)
            io.write(count, " orders")
        ]])
    end)

    it("leave nothing that can be called", function()
        assert.equal(" 0", support.script [[
            local mm = require "minimax2"
            local model = assert(mm.load())
            local session = assert(model:session())
            local all = { session, assert(model:sampler()), assert(model:batch()),
                assert(mm.tokenizer(model:info "path")), model.tokenizer, model }
            for _, object in ipairs(all) do
                object:close()
            end
            for _, object in ipairs(all) do
                assert(object.closed)
            end
            for i, name in ipairs { "session", "sampling", "batch", "tokenizer", "tokenizer", "model" } do
                -- Functions of no object, and one that sessions of a closed model go on with.
                local calls = { close = true, load = true, attach = true, new = true, of = true, hold = true,
                    complete = true, prompt_ids = true }
                for method, call in pairs(require("minimax2." .. name)) do
                    if not calls[method] and type(call) == "function" then
                        for _, argument in ipairs { "x", 1, { 1 }, session } do
                            local ok, message = pcall(call, all[i], argument)
                            if ok then
                                print(name, method, "goes on")
                            elseif not message:find("%l+") then
                                print(name, method, message)
                            end
                        end
                        local _, message = pcall(call, all[i])
                        assert(type(message) == "string")
                    end
                end
            end
        ]])
    end)

    it("are told to finalisers that run late, in any order", function()
        assert.equal("asked 50 times 0", support.script [[
            local ffi = require "ffi"
            local mm = require "minimax2"
            model, keep = assert(mm.load()), {}
            local asked = 0
            local function ask(object, method, ...)
                local ok, message = pcall(object[method], object, ...)
                if not (ok or message:find "the %l+ is closed$") then
                    io.write(message, "\n")
                end
            end
            for i = 1, 50 do
                local session, sampler = assert(model:session()), assert(model:sampler())
                session:feed { 1, 2, 3 }
                session:run()
                local logits = session:logits()
                keep[i] = ffi.gc(ffi.new "int[1]", function()
                    ask(session, "run")
                    ask(session, "sample", sampler)
                    ask(session, "close")
                    ask(sampler, "close")
                    ask(model, "info", "path")
                    local ok, message = pcall(logits.bytes, logits)
                    if not (ok or message:find "is closed$") then
                        io.write(message, "\n")
                    end
                    asked = asked + 1
                    if asked == 50 then
                        io.write("asked 50 times")
                        io.flush()
                    end
                end)
            end
        ]])
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

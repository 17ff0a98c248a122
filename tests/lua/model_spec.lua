local mm = require "minimax2"
local support = require "support"

local model, greedy = support.model, support.greedy

describe("the module", function()
    it("tells its version and the processor", function()
        assert.matches("^%d+%.%d+%.%d+$", mm.version)
        assert.matches("core", mm.cpu())
        assert.equal("embed", mm.points[1])
        assert.equal("logits", mm.points[#mm.points])
    end)

    it("survives being loaded again", function()
        assert.equal("true true true 0", support.script [[
            local mm = require "minimax2"
            local old = assert(mm.load())
            local tensor = old:logits { 1, 2, 3 }
            for name in pairs(package.loaded) do
                if name:match "^minimax2" then
                    package.loaded[name] = nil
                end
            end
            local again = require "minimax2"
            local new = assert(again.load())
            io.write(tostring(again ~= mm), " ", tostring(new:logits({ 1, 2, 3 })[5] == tensor[5]), " ",
                tostring(old:logits({ 1, 2, 3 }):bytes() == tensor:bytes()))
        ]])
    end)

    it("says that it needs LuaJIT", function()
        assert.equal("minimax2 needs LuaJIT with its FFI, and this is plain Lua 5.1: run it with luajit 0",
            support.script [[
                package.preload.ffi, package.loaded.ffi = nil, nil
                package.cpath = ""
                io.write(select(2, pcall(require, "minimax2")))
            ]])
    end)

    it("refuses a library of another ABI", function()
        local script = [[
            package.loaded["minimax2.cdef"] = require("minimax2.cdef"):gsub("MM2_ABI = %d+", "MM2_ABI = 99")
            io.write(select(2, pcall(require, "minimax2")))
        ]]
        local library = require("minimax2.native").path
        assert.matches("has ABI %d+, these Lua files need ABI 99: install them together 0$",
            support.script(("os.getenv = function() return %q end\n"):format(library) .. script))
    end)
end)

describe("a model", function()
    it("knows its configuration", function()
        local config = model.config
        assert.equal("table", type(config))
        assert.is_true(config.num_hidden_layers > 0)
        assert.is_true(config.use_qk_norm)
        assert.equal(0, config.hidden_size % 32)
        assert.equal("safetensors", model:info "format")
        assert.is_nil(model:info "no such key")
        assert.is_true(model.threads >= 1)
        assert.is_true(model.nbytes > model.parameters)
        assert.matches("^minimax2 model: ", tostring(model))
    end)

    it("tells all facts at once, and the ids that end a generation", function()
        local facts = model:info()
        for key, value in pairs(facts) do
            assert.equal(value, model:info(key))
        end
        assert.is_string(facts.path)
        assert.same({ model.tokenizer.eos }, model:end_tokens())
    end)

    it("may be read into memory instead of mapped", function()
        local own = assert(mm.load(nil, { mapped = false }))
        assert.equal(model:logits({ 1, 2, 3 }):bytes(), own:logits({ 1, 2, 3 }):bytes())
        local name = "model.norm.weight"
        assert.is_true(own:tensor(name).readonly)
        own:close()
    end)

    it("measures the machine and counts what tokens take", function()
        local limits = model:limits()
        assert.equal(model.threads, limits.threads)
        assert.is_true(limits.plain_read > 1e8 and limits.best_read >= limits.plain_read)
        for _, name in ipairs { "int8_ops", "bf16_ops", "f32_ops" } do
            assert.is_true(limits[name] > 1e8)
        end
        local layers, rest = model:cost()
        assert.is_true(layers.weight_bytes + rest.weight_bytes < model.nbytes)
        assert.equal(0, layers.kv_bytes)
        assert.equal(layers.weight_bytes, model:cost(1, 10).weight_bytes)
        assert.equal(2 * model:cost(1, 10).kv_bytes, model:cost(1, 10, "f32").kv_bytes)
        assert.matches("tokens must be an integer", support.failure(model.cost, model, 1.5))
        assert.matches("kv_dtype must be 'bf16', 'f32' or 'int8', not 'q8'",
            support.failure(model.cost, model, 1, 1, "q8"))
        assert.matches("0 tokens behind 0", support.failure(model.cost, model, 0))
    end)

    it("plans before it allocates", function()
        local plan = model:plan { context = 1000, sessions = 3, kv_dtype = "int8", depths = { 0, 500 } }
        assert.equal("int8", plan.kv_dtype)
        assert.equal(1000, plan.context)
        assert.equal(1000, plan.chunk)
        assert.equal(3 * 4 * plan.cache_page, plan.cache)
        assert.equal(plan.weights + plan.cache + plan.session + plan.buffers, plan.needed)
        assert.is_true(plan.weights <= model.nbytes and plan.fits)
        local present, available = mm.memory()
        assert.equal(present, plan.present)
        assert.is_true(0 < available and available <= present)
        assert.same({ depth = 500, weight_bytes = plan.at_depth[1].weight_bytes,
            kv_bytes = model:cost(1, 500, "int8").kv_bytes }, plan.at_depth[2])
        assert.equal(8192 < model.config.max_position_embeddings and 8192
            or model.config.max_position_embeddings, model:plan().context)
        assert.matches("context must be 1..", support.failure(model.plan, model, { context = 1e9 }))
        assert.matches("session", support.failure(model.plan, model, { sessions = 0 }))
        assert.matches("depths must be a table, not 5", support.failure(model.plan, model, { depths = 5 }))
        assert.matches("depth 2 must be", support.failure(model.plan, model, { depths = { 1, "x" } }))
    end)

    it("measures attention", function()
        for _, kv_dtype in ipairs { "bf16", "int8" } do
            local attention = model:attention_limits(kv_dtype ~= "bf16" and kv_dtype or nil)
            assert.equal(model.threads, attention.threads)
            assert.is_true(attention.read > 1e8 and attention.ops > 1e8)
        end
        assert.matches("kv_dtype must be 'bf16', 'f32' or 'int8', not 'q8'",
            support.failure(model.attention_limits, model, "q8"))
    end)

    it("lists its tensors in file order, with views on them", function()
        local count, bytes = 0, 0
        for name, tensor in model:tensors() do
            count, bytes = count + 1, bytes + tensor.nbytes
            assert.equal(tensor.nbytes, model:tensor(name).nbytes)
        end
        assert.is_true(count > 10)
        assert.equal(model.nbytes, bytes)
    end)

    it("says which tensor is missing", function()
        local tensor, message = model:tensor "model.layers.99.nothing"
        assert.is_nil(tensor)
        assert.matches("model.layers.99.nothing", message, 1, true)
        assert.is_nil((model:weight "nothing"))
    end)

    it("decodes weights with their scales", function()
        local name = "model.embed_tokens.weight"
        local stored = model:tensor(name)
        local rows = model:weight(name, 2, 3)
        assert.same({ 3, stored.shape[2] }, rows.shape)
        for i = 0, stored.shape[2] - 1 do
            assert.equal(stored:get(4, i), rows:get(2, i))
        end
        assert.same(stored.shape, model:weight(name).shape)
    end)

    it("applies FP8 block scales", function()
        local name, codes
        for candidate, tensor in model:tensors() do
            if tensor.dtype == "f8_e4m3" then
                name, codes = candidate, tensor
                break
            end
        end
        local scale = model:tensor(name .. "_scale_inv")
        local row = model:weight(name, 0, 1)
        for i = 0, math.min(#row, 128) - 1 do
            local expected = require("ffi").new("float[1]", codes[i] * scale[0])[0]
            assert.equal(expected, row[i])
        end
    end)

    it("says what a weight is that lies in several tensors", function()
        local name = "model.layers.1.self_attn.q_proj.weight"
        local codes, scale = model:tensor(name), model:tensor(name .. "_scale_inv")
        assert.same({
            shape = codes.shape, dtype = "f8_e4m3", nbytes = codes.nbytes + scale.nbytes, is_part = false,
        }, model:weight_info(name))
        assert.same({
            shape = scale.shape, dtype = "f32", nbytes = scale.nbytes, is_part = true,
        }, model:weight_info(name .. "_scale_inv"))
        local none, message = model:weight_info("absent")
        assert.is_nil(none)
        assert.matches("no tensor", message)
    end)

    it("gives the logits of the last token, and of all", function()
        local ids = model.tokenizer:ids(support.prompt)
        local last = model:logits(ids)
        local all = model:logits(ids, "all")
        assert.same({ model.config.vocab_size }, last.shape)
        assert.same({ #ids, model.config.vocab_size }, all.shape)
        assert.equal(last:bytes(), all:bytes():sub(-last.nbytes))
        assert.equal(last:bytes(), model:logits(support.prompt):bytes())
        local first = model:logits { ids[1] }
        assert.equal(first:bytes(), all:bytes():sub(1, first.nbytes))
    end)

    it("generates, and again with the same seed", function()
        local text, info = model:generate(support.prompt, { max_new_tokens = 12 })
        assert.equal(12, #info.tokens)
        assert.equal("length", info.finish_reason)
        assert.equal(text, model.tokenizer:decode(info.tokens))
        local same, same_info = model:generate(support.prompt, { max_new_tokens = 12, seed = info.seed })
        assert.equal(text, same)
        assert.same(info.tokens, same_info.tokens)
    end)

    it("draws another seed each time", function()
        local seeds = {}
        for i = 1, 3 do
            local _, info = model:generate("a", { max_new_tokens = 1 })
            seeds[i] = info.seed
        end
        assert.is_false(seeds[1] == seeds[2] and seeds[2] == seeds[3])
    end)

    it("reports log-probabilities by its own logits", function()
        local _, info = model:generate(support.prompt, greedy(4, { top_logprobs = 3,
            bias = { [5] = 100 } }))
        assert.equal(4, #info.logprobs)
        local session = assert(model:session())
        session:feed(support.prompt):run()
        for _, entry in ipairs(info.logprobs) do
            local ids, values = session:top(3)
            assert.equal(5, entry.id)
            assert.equal(session:logprobs({ 5 })[1], entry.logprob)
            assert.same({ id = ids[1], logprob = values[1] }, entry.top[1])
            assert.equal(3, #entry.top)
            session:feed({ entry.id }):run()
        end
    end)

    it("answers messages as a chat turn", function()
        local turns = { { role = "user", content = "Hello!" } }
        local text, info = model:generate(turns, greedy(200))
        assert.is_string(info.thinking)
        local session = assert(model:session())
        local _, plain = session:generate(model.tokenizer:template(turns), greedy(200))
        assert.same(plain.tokens, info.tokens)
        assert.is_nil(plain.thinking)
        local close = model.tokenizer.think_close
        local answer, seen = {}, false
        for _, id in ipairs(info.tokens) do
            if seen then
                answer[#answer + 1] = id
            end
            seen = seen or id == close
        end
        assert.equal((model.tokenizer:decode(answer):gsub("^\n+", "")), text)
    end)

    it("can be shared by address", function()
        local other = mm.attach(model:address())
        local a, b = other:logits { 1, 2 }, model:logits { 1, 2 }
        assert.equal(a:bytes(), b:bytes())
        other:close()
        assert.equal(b:bytes(), model:logits({ 1, 2 }):bytes())
    end)

    it("gives the same bits whatever its threads", function()
        local one = assert(mm.load(nil, { threads = 1 }))
        local three = assert(mm.load { threads = 3 })
        assert.equal(1, one.threads)
        assert.equal(3, three.threads)
        assert.equal(one:logits(support.prompt):bytes(), three:logits(support.prompt):bytes())
        one:close()
        three:close()
    end)

    it("lets weights be edited in memory when writable", function()
        local own = assert(mm.load(nil, { writable = true }))
        local before = own:logits({ 1, 2, 3 }):bytes()
        local norm = own:tensor "model.norm.weight"
        assert.is_false(norm.readonly)
        assert.is_true(model:tensor("model.norm.weight").readonly)
        local words = norm:ptr()
        for i = 0, #norm - 1 do
            words[i] = 0
        end
        local after = own:logits { 1, 2, 3 }
        assert.are_not.equal(before, after:bytes())
        assert.equal(0, after[7])
        assert.equal(before, model:logits({ 1, 2, 3 }):bytes())
        own:close()
    end)
end)

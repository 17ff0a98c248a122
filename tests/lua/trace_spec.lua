local mm = require "minimax2"
local support = require "support"

local model = support.model
local config = model.config
local layers = config.num_hidden_layers

describe("a trace", function()
    it("stops at every point, in the order of the data flow", function()
        local ids = model.tokenizer:ids(support.prompt)
        local order, count = {}, 0
        for i, name in ipairs(mm.points) do
            order[name] = i
        end
        local layer, last = 0, 0
        for tap in model:trace(ids) do
            count = count + 1
            if tap.layer ~= layer then
                layer, last = layer + 1, 0
            end
            assert.equal(layer, tap.layer)
            assert.is_true(order[tap.point] > last)
            last = order[tap.point]
            assert.equal(0, tap.first)
            assert.equal(#ids, tap.count)
            assert.equal(#ids, tap.tensor.shape[1])
            assert.equal(tap.point == "expert_indices" and "i32" or "f32", tap.tensor.dtype)
        end
        assert.equal((#mm.points - 3) * layers + 3, count)
    end)

    it("has the shapes of the header", function()
        local shapes = {
            embed = { config.hidden_size },
            q = { config.num_attention_heads, config.head_dim },
            k = { config.num_key_value_heads, config.head_dim },
            v = { config.num_key_value_heads, config.head_dim },
            z = { config.num_attention_heads, config.head_dim },
            router_logits = { config.num_local_experts },
            expert_indices = { config.num_experts_per_tok },
            expert_weights = { config.num_experts_per_tok },
            logits = { config.vocab_size },
        }
        for tap in model:trace({ 1, 2, 3 }) do
            local expected = { 3, unpack(shapes[tap.point] or { config.hidden_size }) }
            assert.same(expected, tap.tensor.shape)
        end
    end)

    it("selects points and layers", function()
        local seen = {}
        for tap in model:trace({ 1, 2 }, { "logits", "resid_post" }, { 1, -1 }) do
            seen[#seen + 1] = tap.point .. tap.layer
        end
        assert.same({ "resid_post1", "resid_post" .. layers - 1, "logits" .. layers - 1 }, seen)
    end)

    it("gives the same bits in chunks", function()
        local ids = model.tokenizer:ids(support.prompt)
        local whole
        for tap in model:trace(ids, "resid_post", 2) do
            whole = tap.tensor:bytes()
        end
        local session = assert(model:session { chunk = 3 })
        local parts, next_row = {}, 0
        for tap in session:trace(ids, "resid_post", 2) do
            parts[#parts + 1] = tap.tensor:bytes()
            assert.equal(next_row, tap.first)
            next_row = tap.first + tap.count
        end
        assert.equal(whole, table.concat(parts))
        assert.is_true(#parts > 1)
        assert.equal(support.alone(ids), session:logits():bytes())
    end)

    it("goes on with what is written", function()
        local ids = { 5, 6, 7 }
        local plain = model:logits(ids)
        local donor
        for tap in model:trace({ 8, 9, 10 }, "resid_post", 1) do
            donor = tap.tensor:copy()
        end
        local session = assert(model:session())
        for tap in session:trace(ids, "resid_post", 1) do
            for i = 0, #tap.tensor - 1 do
                tap.tensor[i] = donor[i]
            end
        end
        -- From here on the stream is the donor's, but the first layers' keys and values are not read
        -- again: the logits are the donor's.
        assert.equal(support.alone { 8, 9, 10 }, session:logits():bytes())
        assert.are_not.equal(plain:bytes(), session:logits():bytes())
    end)

    it("routes to the experts that are written, and refuses impossible ones", function()
        local seen
        local session = assert(model:session())
        for tap in session:trace({ 1, 2 }, { "expert_indices", "mlp_out" }, 1) do
            if tap.point == "expert_indices" then
                for row = 0, 1 do
                    for i = 0, config.num_experts_per_tok - 1 do
                        tap.tensor:set(i, row, i)
                    end
                end
            else
                seen = tap.tensor:bytes()
            end
        end
        local usual
        for tap in model:trace({ 1, 2 }, "mlp_out", 1) do
            usual = tap.tensor:bytes()
        end
        assert.are_not.equal(usual, seen)
        local broken = assert(model:session())
        local message = support.failure(function()
            for tap in broken:trace({ 1, 2 }, "expert_indices", 1) do
                tap.tensor[0] = config.num_local_experts
            end
        end)
        assert.matches("expert", message)
    end)

    it("may be left early", function()
        local session = assert(model:session())
        for tap in session:trace(support.prompt, "resid_post") do
            if tap.layer == 1 then
                break
            end
        end
        assert.is_true(session:run())
        assert.equal(support.alone(support.prompt), session:logits():bytes())
        local first = session:trace({ 1 }, "embed")
        first()
        local second = session:trace({ 2 }, "embed")
        assert.matches("ended by another call", support.failure(first))
        assert.equal("embed", second().point)
        assert.is_nil(second())
        assert.is_nil(second())
    end)

    it("leaves the script's own taps on", function()
        local session = assert(model:session())
        session:tap("resid_post", 1)
        session:tap("embed")
        for _ in session:trace({ 1 }, "resid_post") do end
        session:feed { 2 }
        local seen = {}
        while true do
            local done, tap = session:run()
            if done then
                break
            end
            seen[#seen + 1] = tap.point .. tap.layer
        end
        assert.same({ "embed0", "resid_post1" }, seen)
        session:tap("resid_post", nil, false)
        session:tap("embed", 0, false)
        assert.is_true(session:feed({ 3 }):run())
    end)
end)

describe("hooks", function()
    it("see the activations of a trace", function()
        local traced = {}
        for tap in model:trace(support.prompt, "attn_out") do
            traced[#traced + 1] = tap.tensor:bytes()
        end
        local hooked = {}
        local logits = model:run_with_hooks(support.prompt, {
            { "attn_out", function(tensor, tap)
                assert.equal("attn_out", tap.point)
                hooked[#hooked + 1] = tensor:bytes()
            end },
        })
        assert.same(traced, hooked)
        assert.equal(support.alone(support.prompt), logits:bytes())
    end)

    it("change what comes after, at their layer only", function()
        local calls = 0
        local logits = model:run_with_hooks(support.prompt, {
            { "mlp_out", 2, function(tensor)
                calls = calls + 1
                for i = 0, #tensor - 1 do
                    tensor[i] = 0
                end
            end },
        })
        assert.equal(1, calls)
        assert.are_not.equal(support.alone(support.prompt), logits:bytes())
    end)

    it("may fail; the error reaches the caller", function()
        assert.equal("stop here", support.failure(model.run_with_hooks, model, { 1 }, {
            { "embed", function() error("stop here") end },
        }))
        assert.equal(support.alone { 1 }, model:logits({ 1 }):bytes())
    end)
end)

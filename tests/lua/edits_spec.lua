local mm = require "minimax2"
local support = require "support"

local model = support.model
local config = model.config
local vector, head = {}, {}
for i = 1, config.hidden_size do
    vector[i] = math.sin(i)
end
for i = 1, config.head_dim do
    head[i] = math.cos(i)
end

local function edited(edits)
    local session = assert(model:session { context = 100 })
    session:set_edits(edits)
    session:feed(support.prompt)
    local bytes = support.logits(session)
    session:close()
    return bytes
end

local function hooked(point, layer, fn)
    return model:run_with_hooks(support.prompt, { { point, layer, fn } }):bytes()
end

-- The chosen experts of a layer, by row, and their weights.
local function routing(edits, layer)
    local session, seen = assert(model:session { context = 100 }), {}
    session:set_edits(edits)
    session:feed(support.prompt)
    for _, point in ipairs { "expert_indices", "expert_weights" } do
        session:tap(point, layer)
    end
    local done, tap = session:run()
    while not done or tap do
        if tap then
            seen[tap.point] = tap.tensor:copy()
        end
        done, tap = session:run()
    end
    session:close()
    return seen.expert_indices, seen.expert_weights
end

describe("edits", function()
    it("are what hooks would write", function()
        assert.equal(hooked("resid_post", 2, function(tensor)
            for i = 0, #tensor - 1 do
                tensor[i] = tensor[i] + vector[i % #vector + 1]
            end
        end), edited { { "add", "resid_post", values = vector, layers = 2 } })
        local zeros = function(tensor)
            for i = 0, #tensor - 1 do
                tensor[i] = 0
            end
        end
        assert.equal(hooked("mlp_out", -1, zeros), edited { { "set", "mlp_out", values = 0, layers = -1 } })
        local width = config.num_attention_heads * config.head_dim
        assert.equal(hooked("z", 1, function(tensor)
            for i = 0, #tensor - 1 do
                local at = i % width
                if at >= config.head_dim and at < 2 * config.head_dim then
                    tensor[i] = head[at - config.head_dim + 1]
                end
            end
        end), edited { { "ablate_heads", 1, mean = head, layers = { 1 } } })
    end)

    it("take tensors, positions and ranges of layers", function()
        local tensor = mm.tensor and mm.tensor(vector) or vector
        local one = edited { { "add", "resid_mid", values = tensor, factor = 2, layers = { 0, 1, 3 },
            positions = { 2, 5 } } }
        local two = edited {
            { "add", "resid_mid", values = vector, factor = 2, layers = { 3 }, positions = { 2, 5 } },
            { "add", "resid_mid", values = vector, factor = 2, layers = { 1, 0 }, positions = { 2, 5 } } }
        assert.equal(one, two)
        assert.not_equal(one, edited(nil))
        assert.equal(edited(nil), edited {})
    end)

    it("choose and weigh experts", function()
        local chosen, weights = routing({ { "mask_experts", { 3, 4 } }, { "force_experts", 5, layers = 1 },
            { "weigh_experts", { [5] = 0 } }, { "keep_experts", 2 } }, 1)
        local found = false
        for row = 0, chosen.shape[1] - 1 do
            local active = 0
            for i = row * chosen.shape[2], (row + 1) * chosen.shape[2] - 1 do
                assert.is_true(chosen[i] ~= 3 and chosen[i] ~= 4)
                found = found or chosen[i] == 5
                assert.is_true(chosen[i] ~= 5 or weights[i] == 0)
                active = active + (weights[i] > 0 and 1 or 0)
            end
            assert.equal(2, active)
        end
        assert.is_true(found)
    end)

    it("stay with forks, and go", function()
        local session = assert(model:session { context = 100 })
        session:set_edits { { "scale", "v", values = 0.5 }, { "clamp", "resid_post", low = -9, high = 9 },
            { "cap", "logits", limit = 20 }, { "project_out", "resid_pre", values = { vector } },
            { "bias_experts", { [2] = 0.5 } } }
        session:feed(support.prompt)
        local expected = support.logits(session)
        local fork = assert(session:fork())
        fork:rewind(0)
        fork:feed(support.prompt)
        assert.equal(expected, support.logits(fork))
        fork:set_edits()
        fork:rewind(0)
        fork:feed(support.prompt)
        assert.equal(edited(nil), support.logits(fork))
        session:close()
        fork:close()
    end)

    it("are refused by a sentence", function()
        local session = assert(model:session { context = 100 })
        for _, wrong in ipairs {
            { 5, "edits must be a list" }, { { 5 }, "edit 1 must be a table" },
            { { "add", "z", values = 1 }, "edits are a list of such tables" },
            { { { "fly" } }, "there is no kind 'fly'" }, { { { "add", "resid" } }, "unknown point 'resid'" },
            { { { "add", "z", values = { 1 } } }, "takes 384 values, there are 1" },
            { { { "add", "z", values = "x" } }, "values must be" },
            { { { "add", "z", value = 1 } }, "unknown option 'value'" },
            { { { "set", "z", values = 0, layers = 9 } }, "a layer must be" },
            { { { "set", "resid_post", values = 0, heads = 1 } }, "resid_post has no heads" },
            { { { "set", "z", values = 0, heads = 6 } }, "a head must be" },
            { { { "set", "z", values = 0, positions = 3 } }, "positions must be" },
            { { { "mask_experts", 99 } }, "an expert must be" },
            { { { "bias_experts", 3 } }, "there must be a table of experts" },
            { { { "keep_experts", 0 } }, "count" }, { { { "clamp", "z", low = 1 } }, "high must be" } } do
            local message = support.failure(session.set_edits, session, wrong[1])
            assert.is_truthy(message:find(wrong[2], 1, true), message)
        end
        session:close()
    end)
end)

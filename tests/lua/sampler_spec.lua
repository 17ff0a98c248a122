local ffi = require "ffi"
local mm = require "minimax2"
local support = require "support"

local model = support.model
local vocab = model.config.vocab_size

-- Logits that are 0 but for { [id] = value }.
local function logits_of(values)
    local tensor = model:logits { 1 }
    for i = 0, #tensor - 1 do
        tensor[i] = values[i] or 0
    end
    return tensor
end

local function pick(options, values, history, mask)
    options.model = model
    local sampler = assert(mm.sampler(options))
    return sampler:pick(logits_of(values), history, mask)
end

describe("a sampler", function()
    it("takes the best one at temperature 0, the lower id among equals", function()
        assert.equal(7, pick({ temperature = 0 }, { [7] = 3, [5] = 2 }))
        assert.equal(5, pick({ temperature = 0 }, { [7] = 3, [5] = 3 }))
        assert.equal(0, pick({ temperature = 0 }, {}))
    end)

    it("draws by seed and position only", function()
        local options = { temperature = 1, top_k = 0, top_p = 1 }
        local drawn, distinct = {}, 0
        for position = 0, 19 do
            local history = {}
            for i = 1, position do
                history[i] = i % 3
            end
            options.seed = 5
            local id = pick(options, {}, history)
            assert.equal(id, pick(options, {}, history))
            distinct = distinct + (drawn[id] and 0 or 1)
            drawn[id] = true
        end
        assert.is_true(distinct > 15)
        options.seed = ffi.new("uint64_t", 5)
        local five = pick(options, {})
        options.seed = 5
        assert.equal(five, pick(options, {}))
    end)

    it("knows every option", function()
        assert.is_number(pick({ temperature = 0.7, top_k = 5, top_p = 0.9, min_p = 0.01,
            typical_p = 0.95, top_n_sigma = 3, repetition_penalty = 1.1, presence_penalty = 0.1,
            frequency_penalty = 0.1, penalty_window = 64, dry_multiplier = 0.8, dry_base = 1.75,
            dry_allowed_length = 2, dry_window = -1, seed = 1, breakers = { 10 },
            bias = { [3] = 1 } }, { [3] = 4 }, { 1, 2, 3 }))
    end)

    it("applies bias, penalties and masks", function()
        local best = { [7] = 3, [5] = 2.5, [9] = 2 }
        assert.equal(5, pick({ temperature = 0, bias = { [7] = -math.huge } }, best))
        assert.equal(9, pick({ temperature = 0, bias = { [9] = 2 } }, best))
        assert.equal(5, pick({ temperature = 0, presence_penalty = 1, penalty_window = -1 }, best, { 7 }))
        local mask = mm.mask(vocab)
        mm.allow(mask, 9)
        mm.allow(mask, 31)
        mm.allow(mask, 32)
        assert.equal(9, pick({ temperature = 0 }, best, nil, mask))
        mm.forbid(mask, 9)
        assert.equal(31, pick({ temperature = 0 }, best, nil, mask))
        mm.forbid(mask, 31)
        assert.equal(32, pick({ temperature = 0 }, best, nil, mask))
        local all = mm.mask(vocab, true)
        mm.forbid(all, 7)
        assert.equal(5, pick({ temperature = 0 }, best, nil, all))
    end)

    it("changes its bias and breakers later", function()
        local sampler = assert(model:sampler { temperature = 0 })
        local logits = logits_of { [7] = 3, [5] = 2 }
        sampler:bias { [5] = 5 }
        assert.equal(5, sampler:pick(logits))
        sampler:bias {}
        sampler:breakers { 1, 2 }
        assert.equal(7, sampler:pick(logits))
        assert.equal(3, logits[7])
    end)

    it("follows a session and does not touch its logits", function()
        local session = assert(model:session())
        session:feed(support.prompt):run()
        local before = session:logits():bytes()
        local sampler = assert(model:sampler { temperature = 0 })
        assert.equal((session:top(1))[1], sampler:next(session))
        assert.equal(before, session:logits():bytes())
    end)

    it("refuses what is out of range, with the field's name", function()
        for name, value in pairs { temperature = -1, top_k = -1, top_p = 1.5, min_p = 2,
            typical_p = -0.5, repetition_penalty = 0, dry_base = 0.5, dry_allowed_length = 0,
            penalty_window = -2 } do
            local sampler, message = model:sampler { [name] = value }
            assert.is_nil(sampler)
            assert.matches(name, message, 1, true)
            sampler, message = model:sampler { temperature = 0 / 0 }
            assert.is_nil(sampler)
            assert.matches("temperature", message, 1, true)
            assert.matches(name, support.failure(model.generate, model, "x", { [name] = value }), 1, true)
        end
    end)

    it("refuses logits that leave nothing to choose", function()
        assert.matches("NaN", support.failure(pick, { temperature = 1 }, { [4] = 0 / 0 }))
        assert.is_string(support.failure(pick, { temperature = 1 }, {}, nil, mm.mask(vocab)))
    end)
end)

local ffi = require "ffi"
local support = require "support"

local model, failure = support.model, support.failure
local text = ("alpha beta gamma delta epsilon zeta eta theta\n"):rep(4)

local function generate(prompt, options, extra)
    local own = { max_new_tokens = 40 }
    for _, from in ipairs { options, extra } do
        for name, value in pairs(from) do
            own[name] = value
        end
    end
    return model:generate(prompt, own)
end

describe("speculation", function()
    it("changes no token", function()
        local messages = { { role = "user", content = "What is 3 + 4? And 3 + 4?" } }
        for _, options in ipairs {
            { seed = 9, temperature = 0 }, { seed = 1 }, { seed = 2, temperature = 1.4, stop = "e" },
            { seed = 3, repetition_penalty = 1.2, top_logprobs = 2 }, { seed = 4, thinking = 6 },
        } do
            for _, prompt in ipairs { text, messages } do
                if not (options.thinking and prompt == text) then
                    local plain, told = generate(prompt, options, { speculate = false })
                    local most = options.seed == 1 and 3 or true
                    local made, info = generate(prompt, options, { speculate = most })
                    assert.equal(plain, made)
                    assert.equal(0, told.proposed)
                    assert.is_false(told.speculating)
                    assert.is_true(info.accepted <= info.proposed)
                    for _, of in ipairs { told, info } do
                        of.proposed, of.accepted, of.speculating = nil, nil, nil
                    end
                    assert.same(told, info)
                end
            end
        end
    end)

    it("proposes what repeats itself", function()
        local ids = model.tokenizer:ids(text)
        local count, prompt, rest = #ids / 2, {}, {}
        for i, id in ipairs(ids) do
            table.insert(i <= count and prompt or rest, id)
        end
        local function say(tokens)
            local mask = ffi.new("uint32_t[?]", math.ceil(model.config.vocab_size / 32))
            local id = rest[#tokens + 1]
            mask[math.floor(id / 32)] = bit.lshift(1, id % 32)
            return mask
        end
        local _, info = model:generate(prompt, { max_new_tokens = #rest, mask = say, speculate = true })
        assert.same(rest, info.tokens)
        assert.is_true(info.accepted > 0)
        _, info = model:generate(prompt, { max_new_tokens = #rest, mask = say })
        assert.equal(0, info.proposed)
    end)

    it("may be told what comes", function()
        local ids = model.tokenizer:ids(text)
        local expected = support.alone(ids)
        local session = assert(model:session())
        session:feed({ unpack(ids, 1, #ids - 5) }):run()
        session:feed { ids[#ids - 4] }
        session:draft { unpack(ids, #ids - 3) }
        session:run()
        assert.equal(#ids - 4, session.length)
        session:feed { unpack(ids, #ids - 3) }
        assert.equal(expected, support.logits(session))
        session:draft {}
        assert.matches("token id", failure(session.draft, session, { -1 }))
        assert.matches("must be", failure(session.draft, session, "x"))
        session:close()
    end)

    it("is refused where it is no number of tokens", function()
        for _, value in ipairs { -1, 16, 1.5, "x" } do
            assert.matches("speculate", failure(model.generate, model, "x", { speculate = value }))
        end
    end)
end)

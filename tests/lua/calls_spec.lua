--- Calls of tools, budgets of thinking, JSON.

local mm = require "minimax2"

local TOOLS = { { type = "function", ["function"] = { name = "get_weather", parameters = {
    type = "object", properties = { city = { type = "string" }, days = { type = "integer" } } } } } }
local CALL = '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln "x"</parameter>\n'
    .. '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
local ASK = { { role = "user", content = "How is the weather?" } }

describe("calls", function()
    local model

    setup(function()
        model = assert(mm.load())
    end)

    teardown(function()
        model:close()
    end)

    -- Options that make the model write a text.
    local function scripted(text, options)
        local script = model.tokenizer:ids(text, { special = true })
        options = options or {}
        options.seed = 1
        options.mask = function(done)
            local mask = mm.mask(model.config.vocab_size)
            mm.allow(mask, script[#done + 1])
            return mask
        end
        return options
    end

    it("are read, typed and kept apart from the text", function()
        local text, info = model:generate(ASK, scripted("hm\n</think>\n\nLet me look.\n" .. CALL .. "[e~[",
            { tools = TOOLS }))
        assert.equal("Let me look.", text)
        assert.equal("hm", info.thinking)
        local call = info.calls[1]
        assert.same({ name = "get_weather", known = true, state = "complete", at = #text,
            json = '{"city": "Köln \\"x\\"", "days": 3}', arguments = { city = 'Köln "x"', days = 3 } }, call)
        local _, plain = model:generate(ASK, scripted("</think>\n\n" .. CALL .. "[e~["))
        assert.equal("3", plain.calls[1].arguments.days)
    end)

    it("come in pieces, in order", function()
        local session = assert(model:session())
        local script = "hm\n</think>\n\nä\n" .. CALL .. "mid" .. CALL .. " end[e~["
        local stream = session:stream(ASK, scripted(script, { tools = TOOLS }))
        local kinds, joined = {}, {}
        for kind, text, call in stream:pieces() do
            if kinds[#kinds] ~= kind then
                kinds[#kinds + 1] = kind
            end
            local key = kind .. (call or "")
            joined[key] = (joined[key] or "") .. text
        end
        assert.same({ "thinking", "text", "call", "arguments", "call_end", "text", "call", "arguments",
            "call_end", "text" }, kinds)
        assert.equal("ämid end", joined.text)
        assert.equal("hm", joined.thinking)
        assert.equal(stream:calls()[1].json, joined.arguments1)
        assert.equal(stream:calls()[2].json, joined.arguments2)
        session:close()
    end)

    it("get their results in a chat", function()
        local chat = assert(model:chat { system = "Be brief.", tools = TOOLS })
        chat:send("How is the weather?", scripted("hm\n</think>\n\nLook.\n" .. CALL .. "[e~["))
        assert.equal("Sunny.", (chat:send({ role = "tool", content = "sunny" },
            scripted("so\n</think>\n\nSunny.[e~["))))
        assert.equal(5, #chat.messages)
        local fed = model.tokenizer:decode(chat.session:tokens(), { special = true })
        assert.equal(model.tokenizer:render(chat.messages, { tools = TOOLS, generation_prompt = false }),
            fed .. "\n")
        assert.error_matches(function()
            chat:send("x", { tools = {} })
        end, "beginning")
        chat:close()
    end)

    it("say why a text is none", function()
        local text, info = model:generate(ASK, scripted("</think>\n\n<minimax:tool_call>no[e~["))
        assert.equal("<minimax:tool_call>no", text)
        assert.same({}, info.calls)
        assert.matches("invoke", info.reason)
    end)
end)

describe("thinking", function()
    it("is closed after a number of tokens", function()
        local model = assert(mm.load())
        local tokenizer = model.tokenizer
        local word = tokenizer:ids(" we")[1]
        local mask = mm.mask(model.config.vocab_size)
        mm.allow(mask, word)
        local text, info = model:generate(ASK, { thinking = 3, mask = mask, max_new_tokens = 8, seed = 1 })
        assert.equal(" we we we", info.thinking)
        assert.equal(" we we", text)
        local _, off = model:generate(ASK, { thinking = 0, max_new_tokens = 3, seed = 1 })
        local _, also = model:generate(ASK, { thinking = false, max_new_tokens = 3, seed = 1 })
        assert.same(off.tokens, also.tokens)
        assert.error_matches(function()
            model:generate(ASK, { thinking = "no" })
        end, "thinking must be")
        assert.error_matches(function()
            model:generate("x", { tools = TOOLS })
        end, "prompts of messages")
        model:close()
    end)
end)

describe("tools", function()
    it("are counted from 1 in sentences", function()
        local model = assert(mm.load())
        local ok, sentence = pcall(function()
            model.tokenizer:render({ { role = "user", content = "x" } },
                { tools = { { name = "a" }, { description = "b" } } })
        end)
        assert.is_false(ok)
        assert.matches("tool 2 has no name", sentence)
        model:close()
    end)
end)

describe("json", function()
    local json = mm.json

    it("goes there and back", function()
        for _, text in ipairs { '{"name": "f", "description": "d", "parameters": {}, "a": [1, 2.5, -3e+20]}',
            '["\\n\\u0001\\"\\\\", true, false, null, [], {"k": "日本"}]', '"x"', "5", "[[[]]]", "0.1" } do
            assert.equal(text, json.encode(assert(json.decode(text))))
        end
        assert.equal("🙂é/", json.decode '"\\ud83d\\ude42\\u00e9\\/"')
    end)

    it("says what it is not", function()
        local bad = { "", "{", "[1,]", "{1: 2}", '"a', "tru", "1 2", '{"a" 1}', "'a'", ("["):rep(70) }
        for _, text in ipairs(bad) do
            local value, sentence = json.decode(text)
            assert.is_nil(value)
            assert.matches("JSON byte", sentence)
        end
        local circle = {}
        circle.circle = circle
        for _, value in ipairs { circle, { [1.5] = 2 }, { print }, { 0 / 0 } } do
            assert.is_false(pcall(json.encode, value))
        end
    end)
end)

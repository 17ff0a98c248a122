-- Answers in a form that the script chooses: choices, regular expressions, JSON schemas.

local mm = require "minimax2"
local Grammar = require "minimax2.grammar"
local support = require "support"

local model = support.model
local wild = { temperature = 1.5, max_new_tokens = 200 }

local function with(options, more)
    local all = {}
    for _, list in ipairs { wild, options, more or {} } do
        for name, value in pairs(list) do
            all[name] = value
        end
    end
    return all
end

local colours = { "red", "dark green", "bl\195\188" }
local schema = [[{"type": "object", "required": ["size", "name"], "properties": {
    "size": {"type": "integer", "minimum": 1, "maximum": 30},
    "name": {"type": "string", "maxLength": 6}, "tags": {"items": {"enum": ["a", "b"]}, "maxItems": 2}}}]]

local function is_colour(text)
    return text == colours[1] or text == colours[2] or text == colours[3]
end

local function check_object(text)
    local value = assert(mm.json.decode(text))
    assert.is_true(value.size >= 1 and value.size <= 30 and value.size % 1 == 0)
    assert.are.equal("string", type(value.name))
    assert.is_truthy(text:match '^{"size": ?%d+, ?"name": ?"')
end

describe("the form of an answer", function()
    it("is one of the choices, whatever is sampled", function()
        for seed = 1, 5 do
            local text, info = model:generate("Once", with({ choices = colours, seed = seed }))
            assert.is_true(is_colour(text))
            assert.are.equal("stop", info.finish_reason)
        end
    end)

    it("matches a regular expression", function()
        for seed = 1, 5 do
            local text = model:generate("Once", with({ regex = "[a-f]{2,4}-\\d{1,3}(?:!|\\?)", seed = seed }))
            assert.is_truthy(text:match "^[a-f][a-f][a-f]?[a-f]?%-%d+[!?]$", text)
        end
    end)

    it("fits a JSON schema, in a string or a table", function()
        for seed = 1, 5 do
            check_object((model:generate("Once", with({ json_schema = schema, seed = seed }))))
        end
        local text = model:generate("Once", with({ seed = 1, json_schema = { type = "object",
            properties = { b = { const = 2 }, a = { const = "x" } }, required = { "a", "b" } } }))
        assert.are.same({ a = "x", b = 2 }, mm.json.decode(text))
    end)

    it("begins behind the thinking", function()
        local prompt = { { role = "user", content = "Say a colour." } }
        for seed = 1, 3 do
            for _, thinking in ipairs { 12, 0 } do
                local text, info = model:generate(prompt, with({ choices = colours, seed = seed,
                    thinking = thinking }))
                assert.is_true(is_colour(text))
                assert.are.equal("stop", info.finish_reason)
                assert.are.equal(thinking > 0, info.thinking_tokens > 0)
            end
        end
    end)

    it("holds in batches, streams and chats, next to members without one", function()
        local texts = model:generate({ { prompt = "Once", choices = colours, seed = 1 }, "Once",
            { prompt = "Once", json_schema = schema, seed = 2 } }, wild)
        assert.are.equal((model:generate("Once", with({ choices = colours, seed = 1 }))), texts[1])
        check_object(texts[3])
        local chat = assert(model:chat { thinking = false })
        local text = chat:send("Say a colour.", with { choices = colours, seed = 3 })
        assert.is_true(is_colour(text))
        check_object((chat:send("And now?", with { json_schema = schema, seed = 4 })))
        chat.session:close()
        local stream, joined = assert(model:stream("Once", with { choices = colours, seed = 1 })), ""
        while true do
            local piece, done = stream:poll(1)
            joined = joined .. (piece or "")
            if done then
                break
            end
        end
        assert.are.equal(texts[1], joined)
    end)

    it("joins with the script's own mask, and a logits_processor", function()
        local only = mm.mask(model.config.vocab_size, false)
        for _, c in ipairs { "r", "e", "d" } do
            mm.allow(only, model.tokenizer:id(c))
        end
        for _, id in ipairs(model:end_tokens()) do
            mm.allow(only, id)
        end
        assert.are.equal("red", (model:generate("Once", with { choices = { "red", "blue" }, mask = only })))
        assert.are.equal("red", (model:generate("Once", with { choices = { "red", "blue" },
            mask = function() return only end, logits_processor = function() end })))
        assert.error_matches(function()
            model:generate("Once", with { choices = { "x" }, mask = only })
        end, "mask forbids every token")
    end)

    it("is refused by name before anything is fed", function()
        local session = assert(model:session())
        for message, options in pairs {
            ["choices must be a list of strings, not an empty table"] = { choices = {} },
            ["choices: number 2"] = { choices = { "a", 1 } },
            ["choices and regex are both given"] = { choices = { "a" }, regex = "a" },
            ["regex: byte 2: lazy"] = { regex = "a??" },
            ["regex must be"] = { regex = 5 },
            ["json_schema: #/items: multipleOf: this keyword is not known"] = {
                json_schema = { items = { type = "integer", multipleOf = 3 } } },
            ["json_schema: #: type"] = { json_schema = {} },
        } do
            assert.error_matches(function() session:generate("x", options) end, message, 1, true)
            assert.are.equal(0, session.length)
        end
        session:close()
        local tools = { { name = "f", parameters = { type = "object" } } }
        local prompt = { { role = "user", content = "x" } }
        assert.error_matches(function()
            model:generate(prompt, { tools = tools, choices = colours })
        end, "beside choices no tool can be called", 1, true)
        assert.is_true(is_colour((model:generate(prompt, with { tools = tools, tool_choice = "none",
            choices = colours, thinking = false }))))
    end)

    it("can be followed by hand", function()
        local grammar = Grammar.of(model, { regex = "ab*" }, "here")
        assert.is_true(grammar:matches "abb")
        assert.is_false(grammar:matches "ba")
        local constraint = grammar:constraint "text"
        local a = model.tokenizer:id "a"
        constraint:follow { a }
        assert.is_true(constraint:accepts())
        local fork = constraint:fork()
        assert.is_nil(fork:forced())
        assert.has_error(function() fork:follow { a, a } end)
        constraint:close()
        grammar:close()
        assert.is_true(fork:accepts())
    end)

    it("is compiled once", function()
        for _ = 1, 3 do
            model:generate("x", { regex = "[ab]{3}", seed = 1 })
        end
        local count = 0
        for _, made in ipairs(model.grammars) do
            count = count + (made.text == "[ab]{3}" and 1 or 0)
        end
        assert.equal(1, count)
        for i = 1, 20 do
            model:generate("x", { choices = { "n" .. i }, seed = 1 })
        end
        assert.equal(16, #model.grammars)
    end)
end)

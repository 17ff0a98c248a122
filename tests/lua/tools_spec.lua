--- Tools that are called, and conversations that are edited, forked and exported.

local mm = require "minimax2"
local support = require "support"

local model = support.model

local calculate = {
    name = "calculate",
    description = "Calculator",
    parameters = { type = "object", required = { "expression" }, properties = {
        expression = { type = "string", description = "what to compute" } } },
    call = function(arguments)
        local left, sign, right = arguments.expression:match "^(%d+) ([-+*]) (%d+)$"
        if not left then
            return nil, "no sum: " .. arguments.expression
        end
        return { result = sign == "+" and left + right or sign == "-" and left - right or left * right }
    end,
}

-- What a model writes to call a tool.
local function say(name, arguments)
    local parts = {}
    for key, value in pairs(arguments or {}) do
        parts[#parts + 1] = ('<parameter name="%s">%s</parameter>\n'):format(key, value)
    end
    return ('\n<minimax:tool_call>\n<invoke name="%s">\n%s</invoke>\n</minimax:tool_call>'):format(name,
        table.concat(parts))
end

-- Options that make the model write these replies, one after the other.
local function scripted(...)
    local scripts, begun = {}, 0
    for i, reply in ipairs { ... } do
        scripts[i] = model.tokenizer:ids("hm\n</think>\n\n" .. reply .. "[e~[", { special = true })
    end
    return { seed = 1, mask = function(done)
        begun = begun + (#done == 0 and 1 or 0)
        local mask = mm.mask(model.config.vocab_size)
        mm.allow(mask, scripts[begun][#done + 1])
        return mask
    end }
end

local function results(chat)
    local list = {}
    for _, message in ipairs(chat.messages) do
        if message.role == "tool" then
            list[#list + 1] = message.content
        end
    end
    return list
end

describe("tools", function()
    it("are called by the model itself, and it says the result", function()
        local right, asked = 0, 0
        for line in io.lines "tests/tiny/heldout.jsonl" do
            local item = mm.json.decode(line)
            local _, count = item.expected:gsub("<invoke", "")
            if count == 1 and item.expected:find('<invoke name="calculate">', 1, true) and asked < 5 then
                asked = asked + 1
                for i, tool in ipairs(item.tools) do
                    item.tools[i] = tool["function"].name == "calculate" and calculate or tool
                end
                local chat = assert(model:chat { system = item.messages[1].content, tools = item.tools,
                    temperature = 0, max_new_tokens = 200 })
                local text = chat:send(item.messages[2].content)
                local result = results(chat)[1]
                if result and text == ("The result is %d."):format(mm.json.decode(result).result) then
                    right = right + 1
                end
                chat:close()
            end
        end
        assert.equal(5, asked)
        assert.is_true(right >= 4)
    end)

    it("are checked when they are given", function()
        local call = calculate.call
        for sentence, tool in pairs {
            ["tools: the call of f must be a function, not 5"] = { name = "f", call = 5 },
            ["tools: f has the field paramters; a tool has"] = { name = "f", call = call,
                paramters = {} },
            ['tool 1, "f", has a whole number as its parameters'] = { name = "f", call = call,
                parameters = 5 },
            ["tool 1 has no name"] = { name = "", call = call },
            ['tool 1, "f", has an object in "schema"'] = { name = "f", schema = {} },
        } do
            local ok, message = pcall(model.chat, model, { tools = { tool } })
            assert.is_false(ok)
            assert.is_truthy(tostring(message):find(sentence, 1, true), tostring(message))
            local ask = { { role = "user", content = "x" } }
            assert.is_false((pcall(model.tokenizer.render, model.tokenizer, ask, { tools = { tool } })))
        end
        assert.is_nil(model.tokenizer.unknown_template)
    end)

    it("give results that JSON has no place for", function()
        local f = { name = "f", parameters = { properties = { kind = { type = "string" } } },
            call = function(arguments)
                return ({ nan = { 0 / 0 }, inf = math.huge, nul = "a\0" })[arguments.kind]
            end }
        local chat = assert(model:chat { tools = { f } })
        chat:send("x", scripted(say("f", { kind = "nan" }) .. say("f", { kind = "inf" })
            .. say("f", { kind = "nul" }), "B"))
        local nothing = "error: JSON has no place for NaN and infinity"
        assert.same({ nothing, nothing,
            "error: the result holds a NUL character, which no message can have" }, results(chat))
        chat:close()
    end)

    it("run in a loop", function()
        local chat = assert(model:chat { tools = { calculate } })
        local text, info = chat:send("x", scripted("Look." .. say("calculate", { expression = "2 + 3" }),
            say("calculate", { expression = "4 * 4" }), "Done."))
        assert.equal("Done.", text)
        assert.equal("stop", info.finish_reason)
        assert.same({ '{"result": 5}', '{"result": 16}' }, results(chat))
        local fed = model.tokenizer:decode(chat.session:tokens(), { special = true })
        assert.equal(fed .. "\n", model.tokenizer:render(chat.messages,
            { tools = { calculate }, generation_prompt = false }))
        chat:close()
    end)

    it("tell their results as pieces", function()
        local chat, told = assert(model:chat { tools = { calculate } }), {}
        for kind, text, call in chat:pieces("x", scripted(say("calculate", { expression = "1 + 1" })
            .. say("calculate", { expression = "2 * 2" }), "B")) do
            if kind ~= "arguments" and kind ~= "thinking" then
                told[#told + 1] = kind .. " " .. text .. (call and " " .. call or "")
            end
        end
        assert.same({ "call calculate 1", "call_end  1", "call calculate 2", "call_end  2",
            'result {"result": 2} 1', 'result {"result": 4} 2', "text B" }, told)
        chat:close()
    end)

    it("answer with what went wrong", function()
        local typed = { name = "typed", call = function() return "ok" end, parameters = { type = "object",
            ["$defs"] = { kind = { enum = { "a", "b" } } }, required = { "n" }, properties = {
                n = { type = "integer" }, k = { ["$ref"] = "#/$defs/kind" },
                l = { type = "array", items = { anyOf = { { type = "string" }, { type = "null" } } } },
                o = { type = "object", properties = { x = { type = "boolean" } } } } } }
        local throws = { name = "throws", call = function() error "no luck" end }
        local chat = assert(model:chat { tools = { calculate, typed, throws } })
        chat:send("x", scripted(say("calculate", { expression = "1 / 0" }) .. say "typed"
            .. say("typed", { n = "x" }) .. say("typed", { n = "5", k = "c" })
            .. say("typed", { n = "5", z = "1" })
            .. say("typed", { n = "5", l = '["a", 5]' }) .. say("typed", { n = "5", o = '{"x": 1}' })
            .. say("typed", { n = "5", k = "a", l = "[null]", o = '{"y": 1}' }) .. say "what" .. say "throws",
            "B"))
        local list = results(chat)
        assert.matches("^error: .*no luck$", table.remove(list))
        assert.same({ "error: no sum: 1 / 0", "error: n is missing", 'error: n must be an integer, not "x"',
            'error: k must be one of "a", "b", not "c"', "error: z is no argument; there are: k, l, n, o",
            "error: l[2] must be a string, not 5", "error: o.x must be true or false, not 1", "ok",
            "error: there is no tool what; there are: calculate, throws, typed" }, list)
        chat:close()
    end)

    it("end after the last round, and come back without a function", function()
        local again = say("calculate", { expression = "1 + 1" })
        for rounds = 0, 1 do
            local chat = assert(model:chat { tools = { calculate } })
            local options = scripted(again, again)
            options.max_rounds = rounds
            local _, info = chat:send("x", options)
            assert.equal("tool_calls", info.finish_reason)
            assert.equal(rounds, #results(chat))
            chat:close()
        end
        local other = { type = "function", ["function"] = { name = "other", parameters = {} } }
        local chat = assert(model:chat { tools = { calculate, other } })
        local _, info = chat:send("x", scripted(again .. say "other"))
        assert.equal(2, #info.calls)
        assert.same({}, results(chat))
        assert.error_matches(function()
            chat:send("y", { max_rounds = -1 })
        end, "max_rounds")
        chat:close()
        assert.error_matches(function()
            model:chat { tools = { calculate, calculate } }
        end, "two are called calculate")
    end)

    it("must be called, or must not", function()
        local options = { tools = { calculate }, temperature = 0, max_new_tokens = 60, seed = 1 }
        local function calls(choice, text)
            options.tool_choice = choice
            local _, info = model:generate({ { role = "user", content = text } }, options)
            return info.calls
        end
        assert.equal("calculate", calls("calculate", "Hi")[1].name)
        assert.equal(1, #calls("auto", "Calculate 2 + 3 with the tool."))
        assert.equal(0, #calls("none", "Calculate 2 + 3 with the tool."))
        assert.error_matches(function() calls("other", "x") end, "no such tool")
        assert.error_matches(function() calls(5, "x") end, "tool_choice must be")
        assert.error_matches(function()
            model:generate("x", { tool_choice = "required" })
        end, "prompts of messages")
    end)
end)

describe("a conversation", function()
    it("keeps the tokens of what is kept", function()
        local chat = assert(model:chat { system = "S", seed = 1, max_new_tokens = 8 })
        for _, text in ipairs { "a", "b", "c" } do
            chat:send(text)
        end
        local before, all = chat.messages, chat.session:tokens():bytes()
        chat.messages = before
        assert.equal(all, chat.session:tokens():bytes())
        chat.messages = { unpack(before, 1, 5) }
        local kept = chat.session:tokens():bytes()
        assert.equal(all:sub(1, #kept), kept)
        chat:send "c"
        assert.equal(all, chat.session:tokens():bytes())
        assert.equal("c", chat:undo()[1].content)
        assert.same({ unpack(before, 1, 5) }, chat.messages)
        chat.messages = { before[1], before[2], before[3], { role = "user", content = "other" } }
        chat:send()
        assert.equal(5, #chat.messages)
        chat.messages = { before[1], { role = "user", content = "new" }, before[2], before[3] }
        assert.same(model.tokenizer:template(chat.messages, { generation_prompt = false }),
            model.tokenizer:ids(model.tokenizer:decode(chat.session:tokens(), { special = true }),
                { special = true }))
        chat.messages = {}
        assert.equal(0, chat.session.length)
        assert.error_matches(function() chat:undo() end, "nothing to take back")
        assert.error_matches(function() chat:send() end, "nothing to answer")
        chat:close()
    end)

    it("can be given, and is refused as a whole", function()
        local turns = { { role = "user", content = "2 + 3?" }, { role = "assistant", content = "5" },
            { role = "user", content = "4 + 4?" } }
        local text = model:generate(turns, { seed = 1, max_new_tokens = 40 })
        local chat = assert(model:chat { messages = turns, seed = 1, max_new_tokens = 40 })
        assert.equal(text, (chat:send()))
        local length, count = chat.session.length, #chat.messages
        assert.error_matches(function()
            chat.messages = { { role = "robot", content = "x" } }
        end, "message 1 has the role")
        assert.error_matches(function()
            chat.messages = "x"
        end, "list of messages")
        assert.same({ length, count }, { chat.session.length, #chat.messages })
        chat:close()
    end)

    it("forks", function()
        local chat = assert(model:chat { system = "S", seed = 1, max_new_tokens = 6 })
        chat:send "a"
        local other = assert(chat:fork())
        assert.equal((chat:send "b"), (other:send "b"))
        other:undo()
        assert.same({ 5, 3 }, { #chat.messages, #other.messages })
        other:close()
        chat:close()
    end)

    it("goes on with a restored session", function()
        local chat, place = assert(model:chat { seed = 1, max_new_tokens = 6 }), os.tmpname()
        finally(function() os.remove(place) end)
        chat:send "a"
        chat.session:save(place)
        local text = chat:send "b"
        chat.session = assert(model:restore(place))
        local length = chat.session.length
        assert.same({}, chat.messages)
        assert.equal(text, (chat:send "b"))
        chat:undo()
        assert.equal(length, chat.session.length)
        chat:close()
    end)

    it("is exported", function()
        local turns = { { role = "user", content = "U" },
            { role = "assistant", thinking = "R", tool_calls = { { name = "f", arguments = { a = 1 } } } },
            { role = "tool", content = "r" } }
        local openai = mm.export_messages(turns, "openai")
        assert.same({ role = "tool", tool_call_id = "call_0", content = "r" }, openai[3])
        local anthropic = mm.export_messages(openai, "anthropic")
        assert.equal("tool_use", anthropic[2].content[2].type)
        assert.same(openai, mm.export_messages(anthropic, "openai"))
        assert.equal(model.tokenizer:render(turns), model.tokenizer:render(anthropic))
        assert.error_matches(function() mm.export_messages(turns, "gemini") end, "'openai' or 'anthropic'")
        assert.error_matches(function() mm.export_messages({ { role = "x" } }, "openai") end, "message 1 has")
    end)
end)

describe("n answers", function()
    it("are those of their seeds", function()
        local texts, infos = model:generate("import os", { n = 3, seed = 7, max_new_tokens = 8 })
        for i = 1, 3 do
            local text, info = model:generate("import os", { seed = 6 + i, max_new_tokens = 8 })
            assert.equal(text, texts[i])
            assert.same(info.tokens, infos[i].tokens)
        end
        assert.error_matches(function() model:generate("x", { n = 0 }) end, "n must be")
        assert.error_matches(function() model:generate("x", { n = 1e9 }) end, "n must be at most 4096")
        assert.error_matches(function() model:generate({ "x", "y" }, { n = 2 }) end, "one prompt")
        assert.error_matches(function()
            model:generate("import os", { n = 2, mask = function() error "not now" end })
        end, "not now")
    end)
end)

describe("a conversation", function()
    it("refuses what is no list of messages, and stays", function()
        local chat = model:chat { system = "Be brief.", context = 64 }
        local one = { role = "user", content = "x" }
        for _, turns in ipairs { one, { one, nil, one }, { 5 }, { one, x = one } } do
            assert.error_matches(function() chat.messages = turns end, "must be a list of messages")
            assert.error_matches(function() model:chat { messages = turns } end, "must be a list of messages")
            assert.equal("Be brief.", chat.messages[1].content)
        end
        assert.error_matches(function() chat.messages = 5 end, "must be a list of messages, not 5")
        assert.error_matches(function()
            model:chat { system = "s", messages = { { role = "system", content = "t" } } }
        end, "only the first message")
    end)

    it("refuses sessions that do not fit, and stays", function()
        local other, chat = assert(mm.load { threads = 1 }), model:chat { context = 64 }
        local session, closed = chat.session, model:session { context = 8 }
        local member = model:session { context = 8 }
        local batch = model:batch { member }
        closed:close()
        for _, bad in ipairs { 5, closed, member, other:session { context = 8 } } do
            assert.is_false(pcall(function() chat.session = bad end))
            assert.equal(session, chat.session)
        end
        batch:close()
        chat.session = member
        assert.equal(member, chat.session)
    end)

    it("refuses a choice of tools that is empty", function()
        assert.error_matches(function() model:chat { tool_choice = "" } end, "tool_choice must be")
        assert.error_matches(function() model:chat { tools = { name = "x" } } end, "must be a list of tools")
    end)
end)

local ffi = require "ffi"
local mm = require "minimax2"
local support = require "support"

local model = support.model
local tokenizer = model.tokenizer

describe("a tokenizer", function()
    it("goes there and back", function()
        for _, text in ipairs { "", "Hello, world!", "  two  spaces\n\n\tand tabs", "naïve 日本語 🙂",
            "a\0b", ("x"):rep(5000), "12345 + 678" } do
            local ids, n = tokenizer:encode(text)
            assert.equal("ctype<int [?]>", tostring(ffi.typeof(ids)))
            assert.equal(text, tokenizer:decode(ids, n))
            local list = tokenizer:ids(text)
            assert.equal(n, #list)
            assert.equal(text, tokenizer:decode(list))
        end
    end)

    it("replaces what is not UTF-8", function()
        assert.equal("a\239\191\189b", tokenizer:decode(tokenizer:ids "a\255b"))
        local broken = ("\255"):rep(100)
        assert.equal(("\239\191\189"):rep(100), tokenizer:decode(tokenizer:ids(broken)))
    end)

    it("keeps control strings as text unless asked", function()
        local control = tokenizer:token(tokenizer.eos)
        assert.is_true(#tokenizer:ids(control) > 1)
        assert.same({ tokenizer.eos }, tokenizer:ids(control, { special = true }))
        assert.equal("", tokenizer:decode { tokenizer.eos })
        assert.equal(control, tokenizer:decode({ tokenizer.eos }, { special = true }))
        assert.equal(control, tokenizer:decode({ tokenizer.eos }, nil, { special = true }))
        assert.equal(control, tokenizer:decode(tokenizer:ids(control)))
    end)

    it("knows its tokens", function()
        assert.is_true(tokenizer.vocab_size > 300)
        for id = 0, tokenizer.vocab_size - 1 do
            local bytes = tokenizer:token(id)
            if bytes and #bytes > 0 then
                local found = tokenizer:id(bytes)
                assert.equal(bytes, tokenizer:token(found))
            end
        end
        assert.is_nil(tokenizer:id "no token has these bytes, we hope")
        local none, message = tokenizer:token(tokenizer.vocab_size)
        assert.is_nil(none)
        assert.is_true(#message > 10)
        assert.is_nil((tokenizer:token(-1)))
        assert.equal("<think>", tokenizer:token(tokenizer.think_open))
        assert.equal("</think>", tokenizer:token(tokenizer.think_close))
    end)

    it("tells added tokens from words", function()
        local added, known = tokenizer:added(), {}
        for i, id in ipairs(added) do
            assert.is_true(i == 1 or id > added[i - 1])
            known[id] = true
        end
        assert.is_true(known[tokenizer.eos] and known[tokenizer.think_close])
        for _, id in ipairs(tokenizer:ids "def f():\n    return '</think>' + \"[e~[\"") do
            assert.is_nil(known[id])
        end
    end)

    it("renders messages, and encodes them so that they cannot forge turns", function()
        local control = tokenizer:token(tokenizer.eos)
        local turns = {
            { role = "system", content = "Be kind." },
            { role = "user", content = "Hi " .. control .. " there" },
            { role = "assistant", content = "Hello.", thinking = "A greeting." },
            { role = "user", content = "Bye" },
        }
        local text = tokenizer:render(turns)
        assert.matches("Be kind.", text, 1, true)
        assert.matches("<think>\n$", text)
        assert.is_nil(text:find("A greeting", 1, true)) -- thinking before the last user turn is dropped
        local open = tokenizer:render(turns, { generation_prompt = false })
        assert.equal(open, text:sub(1, #open))
        assert.is_true(#open < #text)
        local ids = tokenizer:template(turns)
        assert.equal(text, tokenizer:decode(ids, { special = true }))
        local ends = 0
        for _, id in ipairs(ids) do
            ends = ends + (id == tokenizer.eos and 1 or 0)
        end
        assert.equal(4, ends)
        local cdata, n = tokenizer:encode_chat(turns)
        assert.same(ids, (function()
            local list = {}
            for i = 1, n do
                list[i] = cdata[i - 1]
            end
            return list
        end)())
    end)

    it("encodes a long text in parts", function()
        local text = (" "):rep(300000) .. ("one two\n"):rep(30000) .. "<think>"
        local whole, total = tokenizer:encode(text, { special = true })
        local encoding, polls = tokenizer:encoding(text, { special = true }), 0
        local ids, n
        repeat
            ids, n = encoding:poll(0)
            polls = polls + 1
        until ids
        assert.is_true(polls > 100)
        assert.equal(ffi.string(whole, 4 * total), ffi.string(ids, 4 * n))
        assert.equal(tokenizer.think_open, ids[n - 1])
        assert.equal(n, select(2, encoding:poll()))
        encoding:close()
        assert.matches("the encoding is closed", support.failure(encoding.poll, encoding))
        assert.equal(9000, select(2, tokenizer:encode(("\255"):rep(3000)))) -- more ids than bytes
        assert.matches("string", support.failure(tokenizer.encoding, tokenizer, 1))
        assert.matches("specal", support.failure(tokenizer.encoding, tokenizer, "", { specal = true }))
    end)

    it("is not used by an encoding once it is closed", function()
        local alone = assert(mm.tokenizer(model:info "path"))
        local encoding = alone:encoding "text"
        alone:close()
        assert.matches("the tokenizer is closed", support.failure(encoding.poll, encoding))
    end)

    it("opens without a model", function()
        local alone = assert(mm.tokenizer(model:info "path"))
        assert.same(tokenizer:ids "on its own", alone:ids "on its own")
        alone:close()
        alone:close()
        assert.matches("closed", support.failure(alone.ids, alone, "x"))
        local none, message = mm.tokenizer "/no/such/folder"
        assert.is_nil(none)
        assert.matches("/no/such/folder", message, 1, true)
    end)
end)

-- The examples run as they stand.

local support = require "support"

local function run(example)
    local pipe = assert(io.popen("luajit lua/examples/" .. example .. " 2>&1; echo \" $?\""))
    local output = pipe:read "*a"
    pipe:close()
    return output
end

describe("the example", function()
    it("demo lists the tokens of its seed", function()
        local _, info = support.model:generate("def read_lines(path):\n", { seed = 6, temperature = 0.7,
            max_new_tokens = 64 })
        assert.matches("tokens: " .. table.concat(info.tokens, " ") .. "\n 0\n$", run "demo.lua")
    end)

    it("poll comes to an end", function()
        assert.matches("%d+ tokens in %d+ frames, %l+\n 0\n$", run "poll.lua")
    end)

    it("steer changes the text, and by 0 does not", function()
        local plain, steered = run("steer.lua 0"):match "plain:   (.*)\nsteered: (.*)\n 0\n$"
        assert.equal(plain, steered)
        plain, steered = run("steer.lua"):match "plain:   (.*)\nsteered: (.*)\n 0\n$"
        assert.are_not.equal(plain, steered)
    end)

    it("together says what each branch would alone", function()
        local output = run "together.lua Once 3"
        for i = 1, 3 do
            local text = support.model:generate("Once", { seed = i, max_new_tokens = 24 })
            assert.matches(i .. ": Once" .. text, output, 1, true)
        end
        assert.matches("\n 0\n$", output)
    end)
end)

-- What the specs share: the small model, opened once, and a few helpers.

local mm = require "minimax2"

local support = {}

support.model = assert(mm.load())
support.prompt = "Once upon a time there was a little"

-- Sampling that leaves nothing to chance.
function support.greedy(count, extra)
    local options = { temperature = 0, max_new_tokens = count, seed = 1 }
    for name, value in pairs(extra or {}) do
        options[name] = value
    end
    return options
end

-- The bytes of the logits that `session` has after evaluating everything.
function support.logits(session)
    while not session:run() do end
    return session:logits():bytes()
end

-- The bytes of the logits after a prompt in a session of its own.
function support.alone(prompt, options)
    local session = assert(support.model:session(options))
    session:feed(prompt)
    local bytes = support.logits(session)
    session:close()
    return bytes
end

-- The message of the error that fn(...) raises, without its place.
function support.failure(fn, ...)
    local ok, message = pcall(fn, ...)
    assert(not ok, "an error was expected")
    return (message:gsub("^[^:]+:%d+: ", ""))
end

-- What a script prints in a LuaJIT of its own, and its exit status: "output 0". (Inside busted some
-- of the FFI is patched.) Memory that is freed is overwritten there, so that nobody reads it unnoticed.
function support.script(text)
    local name = os.tmpname()
    local file = assert(io.open(name, "w"))
    file:write('package.path = "lua/?.lua;lua/?/init.lua;" .. package.path\n', text)
    file:close()
    local pipe = assert(io.popen("MALLOC_PERTURB_=165 luajit " .. name .. " 2>&1; echo \" $?\""))
    local output = pipe:read "*a"
    pipe:close()
    os.remove(name)
    return (output:gsub("\n$", ""))
end

return support

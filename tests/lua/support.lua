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

-- A copy of the small model in which `old`, in one of its JSON files, is `new`. Returns its folder,
-- for support.remove.
function support.edited_model(name, old, new)
    local folder = os.tmpname()
    assert(os.remove(folder))
    assert(os.execute(("cp -r '%s' '%s' && chmod -R u+w '%s'"):format(support.model:info "path", folder,
        folder)) == 0)
    local file = assert(io.open(folder .. "/" .. name))
    local text, count = file:read("*a"):gsub(old, new)
    file:close()
    assert(count == 1, "the file has no " .. old)
    file = assert(io.open(folder .. "/" .. name, "w"))
    file:write(text)
    file:close()
    return folder
end

function support.remove(folder)
    assert(folder:match "^/tmp/")
    os.execute(("rm -r '%s'"):format(folder))
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

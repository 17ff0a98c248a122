--- The only file that touches the C library: finds it, loads it once, checks its ABI and turns its
--- statuses into Lua errors.

local ffi = require "ffi"

local native = {}

-- Hosts such as LÖVE and Neovim reload modules; declaring the same names twice would be an error.
if not pcall(ffi.typeof, "mm2_model") then
    ffi.cdef(require "minimax2.cdef")
end

-- The folder of this file, with its slash.
local home = debug.getinfo(1, "S").source:match("^@(.*[/\\])") or "./"
native.home = home

function native.exists(path)
    local file = io.open(path, "rb")
    if file then
        file:close()
    end
    return file ~= nil
end

-- The number of the ABI is part of the library's name.
local NAME = "libminimax2.so." .. tonumber(ffi.C.MM2_ABI)

-- Search order: MINIMAX2_LIBRARY, beside this file, the source tree's Python package and build
-- folder, then the system's own search.
local function load_library()
    local given = os.getenv "MINIMAX2_LIBRARY"
    if given then
        return ffi.load(given), given
    end
    for _, place in ipairs { NAME, "../../python/minimax2/" .. NAME, "../../build/release/libminimax2.so" } do
        local path = home .. place
        if native.exists(path) then
            return ffi.load(path), path
        end
    end
    local found, library = pcall(ffi.load, NAME)
    if not found then
        error("minimax2: no " .. NAME .. " beside " .. home .. ", in the source tree it belongs to, "
            .. "or among the system's libraries: run `make lib`, or set MINIMAX2_LIBRARY to its path",
            0)
    end
    return library, nil
end

-- Kept in an upvalue of everything below: a collected library would be unmapped.
local lib, path = load_library()
if lib.mm2_abi() ~= lib.MM2_ABI then
    error(("minimax2: %s has ABI %d, these Lua files need ABI %d: install them together"):format(
        path or NAME, lib.mm2_abi(), lib.MM2_ABI), 0)
end
native.lib = lib
native.path = path

--- The sentence of the last failure.
function native.message()
    return ffi.string(lib.mm2_error())
end

--- Raises `message` at the line outside this package that called into it, however deep we are.
function native.raise(message)
    local level = 2
    while true do
        local frame = debug.getinfo(level, "S")
        if not frame then
            error(message, 0)
        end
        if frame.what ~= "C" and frame.source:sub(1, #home + 1) ~= "@" .. home then
            error(message, level)
        end
        level = level + 1
    end
end

--- Returns a status or count of the library; a negative one is raised with its sentence.
function native.check(status)
    if status < 0 then
        native.raise(native.message())
    end
    return status
end

-- Where the library's sentences count the elements of a list, from 0.
local counted = {
    "^(message )(%d+)", "^(chat_%l+: message )(%d+)", "^(chat_%l+: tool )(%d+)",
    "( at index )(%d+)", "( ids%[)(%d+)", "^(history%[)(%d+)",
}

--- The same for calls that were given lists: their sentences count as Lua does, from 1.
function native.check_list(status)
    if status < 0 then
        local message = native.message()
        for _, pattern in ipairs(counted) do
            message = message:gsub(pattern, function(before, index)
                return before .. index + 1
            end, 1)
        end
        native.raise(message)
    end
    return status
end

-- Of the system, under a name of our own: the host may have declared it too.
local Time = ffi.typeof "struct { int64_t seconds, nanoseconds; }"
if not pcall(ffi.typeof, "mm2_lua_clock") then
    ffi.cdef [[
        typedef int32_t mm2_lua_clock;
        int mm2_lua_gettime(mm2_lua_clock clock, void *time) __asm__("clock_gettime");
    ]]
end
local MONOTONIC = 1
local time = Time()

local function now_us()
    ffi.C.mm2_lua_gettime(MONOTONIC, time)
    return tonumber(time.seconds) * 1e6 + tonumber(time.nanoseconds) / 1e3
end

--- What is left of a budget in microseconds, a function: 0 if there is no limit, nil when it is spent.
function native.timer(budget_us)
    if budget_us == 0 then
        return function()
            return 0
        end
    end
    local ending = now_us() + budget_us
    return function()
        local left = ending - now_us()
        return left >= 1 and left or nil
    end
end

--- A struct that begins with its size, zero but for that.
function native.sized(name)
    local struct = ffi.new(name)
    struct.size = ffi.sizeof(name)
    return struct
end

--- A NUL-terminated string as a Lua string, NULL as nil.
function native.text(chars)
    if chars ~= nil then
        return ffi.string(chars)
    end
end

return native

--- Checks of what scripts pass in. The FFI would truncate 1.5 and cut 2^40 without a word.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local Tensor = require "minimax2.tensor"

local raise = native.raise
local floor = math.floor

local args = {}

local int32_array = ffi.typeof "int32_t[?]"

--- A value as it should appear in a sentence.
local function show(value)
    if type(value) == "string" then
        return ("'%s'"):format(value)
    end
    return type(value) == "table" and "a table" or tostring(value)
end
args.show = show

local function is_int32(value)
    return type(value) == "number" and floor(value) == value
        and value >= -2147483648 and value <= 2147483647
end

function args.int(value, what)
    if not is_int32(value) then
        raise(("%s must be an integer of 32 bits, not %s"):format(what, show(value)))
    end
    return value
end

--- An integer 0..most (nil: no limit), or the default for nil.
function args.count(value, default, most, what)
    if value == nil then
        return default
    end
    if args.int(value, what) < 0 then
        raise(("%s must not be negative, got %d"):format(what, value))
    elseif most and value > most then
        raise(("%s must be 0..%d, not %d"):format(what, most, value))
    end
    return value
end

--- An integer from 1.
function args.positive(value, what)
    if args.int(value, what) < 1 then
        raise(("%s must be 1 or more, not %d"):format(what, value))
    end
    return value
end

--- Bytes: a whole number of at least 1, which a Lua number holds exactly.
function args.bytes(value, what)
    if type(value) ~= "number" or value < 1 or value % 1 ~= 0 or value > 2 ^ 53 then
        raise(("%s must be a whole number of bytes, 1 or more, not %s"):format(what, show(value)))
    end
    return value
end

--- true or false, or the default for nil.
function args.flag(value, default, what)
    if value == nil then
        return default
    elseif type(value) ~= "boolean" then
        raise(("%s must be true or false, not %s"):format(what, show(value)))
    end
    return value
end

function args.number(value, what)
    if type(value) ~= "number" then
        raise(("%s must be a number, not %s"):format(what, show(value)))
    end
    return value
end

--- A seed: an integer 0..2^53 as a Lua number, or a 64-bit cdata.
function args.seed(value, what)
    if type(value) == "number" then
        if not (value >= 0 and value <= 9007199254740992 and floor(value) == value) then
            raise(("%s must be an integer 0..2^53 or a uint64_t, not %s"):format(what, show(value)))
        end
    elseif not (ffi.istype("uint64_t", value) or ffi.istype("int64_t", value) and value >= 0) then
        raise(("%s must be an integer, not %s"):format(what, show(value)))
    end
    return value
end

--- A string for a C function that stops at NUL.
function args.text(value, what)
    if type(value) ~= "string" then
        raise(("%s must be a string, not %s"):format(what, show(value)))
    end
    if value:find("\0", 1, true) then
        raise(what .. " holds a NUL byte")
    end
    return value
end

--- An options table, or nil for none; every key must be in one of the sets of names that follow.
function args.known(options, where, ...)
    if options == nil then
        return {}
    end
    if type(options) ~= "table" then
        raise(("%s: options must be a table, not %s"):format(where, show(options)))
    end
    local sets = { ... }
    for key in pairs(options) do
        local found = false
        for _, set in ipairs(sets) do
            found = found or set[key] ~= nil
        end
        if not found then
            local names = {}
            for _, set in ipairs(sets) do
                for name in pairs(set) do
                    names[#names + 1] = name
                end
            end
            table.sort(names)
            raise(("%s: unknown option %s; known are %s"):format(where, show(key),
                table.concat(names, ", ")))
        end
    end
    return options
end

--- Microseconds for the library from milliseconds; nil, no limit, is its 0.
function args.budget(ms)
    if ms == nil then
        return 0
    end
    if type(ms) ~= "number" or ms < 0 or ms ~= ms then
        raise(("a time budget must be milliseconds, 0 or more, not %s"):format(show(ms)))
    end
    return math.max(1, math.min(floor(ms * 1000), 2147483647))
end

--- Token ids as an int32_t array and their count, from a table, an i32 tensor, an int32_t array, or
--- an int32_t pointer with its count. where: what the sentences begin with, nil for nothing.
function args.ids(value, n, where)
    where = where and where .. ": " or ""
    if type(value) == "table" then
        local count = #value
        local ids = int32_array(count)
        for i = 1, count do
            if not is_int32(value[i]) then
                raise(("%stoken %d of %d must be an integer of 32 bits, not %s"):format(where, i, count,
                    show(value[i])))
            end
            ids[i - 1] = value[i]
        end
        return ids, count
    end
    if type(value) == "cdata" then
        local kind = tostring(ffi.typeof(value))
        local room
        if Tensor.is(value) and value.dtype == "i32" then
            value, room = value:ptr(), #value
        elseif kind:find("^ctype<int %[") or kind:find("^ctype<const int %[") then
            room = ffi.sizeof(value) / 4
        elseif kind == "ctype<int *>" or kind == "ctype<const int *>" then
            room = n
        end
        if room then
            n = n == nil and room or args.int(n, "the number of tokens")
            if n < 0 or n > room then
                raise(("%sthe number of tokens is %d, the array holds %d"):format(where, n, room))
            end
            return value, n
        end
    end
    raise(("%stoken ids must be a table, an i32 tensor or an int32_t array, not %s"):format(where,
        show(value)))
end

--- The C object of an open session.
function args.session(value, what)
    if handle.kind(value) ~= "session" then
        raise(("%s needs a session, not %s"):format(what, show(value)))
    end
    return value:live()
end

local mask_type = tostring(ffi.typeof "uint32_t[?]")

--- Whether a value was made by mm.mask.
function args.is_mask(value)
    return type(value) == "cdata" and tostring(ffi.typeof(value)) == mask_type
end

--- A vocabulary mask made by mm.mask, or nil; it must have a bit for each of `vocab_size` tokens.
function args.mask(mask, vocab_size, where)
    if mask == nil then
        return nil
    end
    if not args.is_mask(mask) then
        raise(("%s: mask must come from mm.mask, not be %s"):format(where, show(mask)))
    end
    local words = ffi.sizeof(mask) / 4
    if words < math.ceil(vocab_size / 32) then
        raise(("%s: the mask has %d bits, the vocabulary %d tokens"):format(where, words * 32,
            vocab_size))
    end
    return mask
end

local kv_dtypes = {
    bf16 = native.lib.MM2_BF16,
    f32 = native.lib.MM2_F32,
    int8 = native.lib.MM2_INT8,
}

--- The number of a cache's dtype; nil: bf16.
function args.kv_dtype(value, where)
    return kv_dtypes[value == nil and "bf16" or value]
        or raise(("%s: kv_dtype must be 'bf16', 'f32' or 'int8', not %s"):format(where, show(value)))
end

return args

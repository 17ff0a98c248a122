--- JSON, as the C library takes messages and tools and gives the arguments of calls.
---
--- json.encode(value): keys in alphabetical order, but for name, description, type and parameters, which
--- come first in this order, as everybody writes them. A table with the metatable json.array, or with
--- items, is an array; an empty one is an object. json.null stands for null.
--- json.decode(text): arrays get that metatable, so that they can be encoded again. nil and a sentence if
--- it is no JSON. The keys of a decoded object have no order: keep the text where that matters.

local json = {}

json.array = {}
json.null = setmetatable({}, { __tostring = function() return "null" end })

local DEPTH = 64

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(text)
    return '"' .. text:gsub('[%z\1-\31"\\]', function(c)
        return escapes[c] or ("\\u%04x"):format(c:byte())
    end) .. '"'
end

local first = { name = 1, description = 2, type = 3, parameters = 4 }

local function before(a, b)
    local x, y = first[a] or 5, first[b] or 5
    if x ~= y then
        return x < y
    end
    return a < b
end

local encode

local function encode_table(value, depth)
    if depth == DEPTH then
        error("a table is nested deeper than " .. DEPTH .. " levels, or holds itself", 0)
    end
    local parts = {}
    if getmetatable(value) == json.array or #value > 0 then
        for i = 1, #value do
            parts[i] = encode(value[i], depth + 1)
        end
        return "[" .. table.concat(parts, ", ") .. "]"
    end
    local keys = {}
    for key in pairs(value) do
        if type(key) ~= "string" then
            error(("a table has the key %s; the keys of an object are strings"):format(tostring(key)), 0)
        end
        keys[#keys + 1] = key
    end
    table.sort(keys, before)
    for i, key in ipairs(keys) do
        parts[i] = quote(key) .. ": " .. encode(value[key], depth + 1)
    end
    return "{" .. table.concat(parts, ", ") .. "}"
end

function encode(value, depth)
    local kind = type(value)
    if value == json.null then
        return "null"
    elseif kind == "string" then
        return quote(value)
    elseif kind == "boolean" then
        return tostring(value)
    elseif kind == "number" and value == value and value ~= math.huge and value ~= -math.huge then
        return ("%.17g"):format(value) == ("%d"):format(value) and ("%d"):format(value)
            or tonumber(("%.15g"):format(value)) == value and ("%.15g"):format(value)
            or ("%.17g"):format(value)
    elseif kind == "table" then
        return encode_table(value, depth)
    end
    error("JSON has no place for " .. (kind == "number" and "NaN and infinity" or "a " .. kind), 0)
end

--- The JSON of a value. Raises an error for what JSON has no place for.
function json.encode(value)
    return encode(value, 0)
end

local short = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function utf8(code)
    if code < 0x80 then
        return string.char(code)
    elseif code < 0x800 then
        return string.char(0xc0 + math.floor(code / 0x40), 0x80 + code % 0x40)
    elseif code < 0x10000 then
        return string.char(0xe0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40,
            0x80 + code % 0x40)
    end
    return string.char(0xf0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40,
        0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
end

local function fail(at, what)
    error(("JSON byte %d: expected %s"):format(at - 1, what), 0)
end

local function decode_string(text, at)
    local parts, from = {}, at + 1
    while true do
        local stop = text:find('[%z\1-\31"\\]', from)
        local c = stop and text:sub(stop, stop)
        if not c or c ~= '"' and c ~= "\\" then
            fail(stop or #text + 1, "a closing quote")
        end
        parts[#parts + 1] = text:sub(from, stop - 1)
        if c == '"' then
            return table.concat(parts), stop + 1
        end
        local kind = text:sub(stop + 1, stop + 1)
        if kind == "u" then
            local code = tonumber(text:match("^%x%x%x%x", stop + 2) or fail(stop, "an escape"), 16)
            from = stop + 6
            local low = code >= 0xd800 and code < 0xdc00 and text:match("^\\u(%x%x%x%x)", from)
            if low and tonumber(low, 16) >= 0xdc00 and tonumber(low, 16) < 0xe000 then
                code = 0x10000 + (code - 0xd800) * 0x400 + tonumber(low, 16) - 0xdc00
                from = from + 6
            end
            parts[#parts + 1] = utf8(code)
        else
            parts[#parts + 1] = short[kind] or fail(stop, "an escape")
            from = stop + 2
        end
    end
end

local words = { t = { "true", true }, f = { "false", false }, n = { "null", json.null } }

local decode_value

local function skip(text, at)
    return text:find("[^ \t\r\n]", at) or #text + 1
end

-- The members of an object or the items of an array, whose opening bracket is at `at`.
local function decode_list(text, at, depth, is_array)
    if depth == DEPTH then
        fail(at, "at most " .. DEPTH .. " levels of nesting")
    end
    local out, close = is_array and setmetatable({}, json.array) or {}, is_array and "]" or "}"
    at = skip(text, at + 1)
    if text:sub(at, at) == close then
        return out, at + 1
    end
    while true do
        local key
        if not is_array then
            if text:sub(at, at) ~= '"' then
                fail(at, "a key")
            end
            key, at = decode_string(text, at)
            at = skip(text, at)
            if text:sub(at, at) ~= ":" then
                fail(at, "a colon")
            end
            at = at + 1
        end
        local value
        value, at = decode_value(text, at, depth + 1)
        out[key or #out + 1] = value
        at = skip(text, at)
        local c = text:sub(at, at)
        if c == close then
            return out, at + 1
        elseif c ~= "," then
            fail(at, "a comma or " .. close)
        end
        at = skip(text, at + 1)
    end
end

function decode_value(text, at, depth)
    at = skip(text, at)
    local c = text:sub(at, at)
    if c == "{" or c == "[" then
        return decode_list(text, at, depth, c == "[")
    elseif c == '"' then
        return decode_string(text, at)
    end
    local word = words[c]
    if word and text:sub(at, at + #word[1] - 1) == word[1] then
        return word[2], at + #word[1]
    end
    local number = text:match("^-?%d+%.?%d*[eE]?[+-]?%d*", at)
    if not number or not tonumber(number) then
        fail(at, "a value")
    end
    return tonumber(number), at + #number
end

--- The value of a JSON text; nil and a sentence if it is none.
function json.decode(text)
    local ok, value, at = pcall(decode_value, text, 1, 0)
    if ok and skip(text, at) <= #text then
        ok, value = pcall(fail, skip(text, at), "nothing more")
    end
    if not ok then
        return nil, value
    end
    return value
end

return json

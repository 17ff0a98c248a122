--- Handle: the life of every object of the library that a script holds; sessions, models, batches,
--- samplers and tokenizers are classes made here.
---
--- close() frees the object, and again is allowed. Using it afterwards raises "the session is closed".
--- What is never closed, the collector frees: in any order, and at the end of the Lua state while other
--- finalisers may still run. So a finaliser marks its object closed just as close() does, and there is
--- no way to a pointer but :live(), which looks at that mark.

local ffi = require "ffi"
local native = require "minimax2.native"

local lib, raise = native.lib, native.raise

local handle = {}

--- A class of objects of the C type `ctype`, which the library's function `release` frees; `name` is
--- what sentences call one. Returns the class, a table for methods, and a table for properties:
--- functions that give the value of a field when it is read. An object's text (tostring) ends with what
--- its method `describe` says.
---
--- The class has live, close, the property closed, and hold(object, fields): an instance made of the
--- table `fields` that owns `object`, or nothing if that is nil.
function handle.class(name, ctype, release)
    local class, properties = {}, {}
    -- An anonymous struct is a new C type each time: a reloaded module makes its own.
    local Cell = ffi.typeof(("struct { int32_t open[1]; %s *object; }"):format(ctype))

    local metatable = {
        handle = name,
        __index = function(self, key)
            local property = properties[key]
            if property then
                return property(self)
            end
            return class[key]
        end,
        __tostring = function(self)
            local state = self.closed and " (closed)" or self.describe and ": " .. self:describe() or ""
            return "minimax2 " .. name .. state
        end,
    }

    -- `lib` is an upvalue here: a collected library would be unmapped.
    local function free(cell)
        if cell.open[0] == 1 then
            cell.open[0] = 0
            lib[release](cell.object)
        end
    end

    function class.hold(object, fields)
        fields.cell = object ~= nil and ffi.gc(Cell({ 1 }, object), free) or nil
        return setmetatable(fields, metatable)
    end

    --- The C object; raises once it is closed.
    function class:live()
        local cell = self.cell
        if cell.open[0] == 0 then
            raise(("the %s is closed"):format(name))
        end
        return cell.object
    end

    --- Frees the object; again is allowed.
    function class:close()
        free(self.cell)
    end

    --- Whether close was called.
    function properties:closed()
        return self.cell.open[0] == 0
    end

    return class, properties
end

--- What kind of object a value is, "session" say; nil if it is none of the library's.
function handle.kind(value)
    local metatable = type(value) == "table" and getmetatable(value)
    return metatable and metatable.handle or nil
end

return handle

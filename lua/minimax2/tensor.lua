--- Tensor: a view on memory of the library, or a copy that owns its memory. Indices count from 0, as
--- in the C header and in Python; only the `shape` table begins at 1, as Lua tables do.
---
--- A view keeps its owner (model, session or batch) from being collected. Closing the owner by hand
--- ends its views: they raise from then on. What :ptr() and :buffer() give is not guarded so.

local ffi = require "ffi"
local native = require "minimax2.native"

local lib, raise = native.lib, native.raise
local floor = math.floor

local Tensor = {}
local properties = {}

-- An anonymous struct is a new C type each time, so a reloaded module may set its metatype again.
local View = ffi.typeof [[struct {
    mm2_tensor _raw;
    const int32_t *_open; // 0 once the owner is closed
    float *_f32;          // the data, if it is f32 and contiguous
    int32_t *_i32;        // likewise
    double _count;        // of elements
    int32_t _contiguous;
}]]

-- What a view needs alive; the view itself is the weak key.
local anchors = setmetatable({}, { __mode = "k" })
local always_open = ffi.new("int32_t[1]", 1)

local float_array = ffi.typeof "float[?]"
local byte_array = ffi.typeof "uint8_t[?]"
local float_pointer = ffi.typeof "float *"
local int32_pointer = ffi.typeof "int32_t *"
local byte_pointer = ffi.typeof "uint8_t *"
local pointer_types = {
    [lib.MM2_F32] = float_pointer,
    [lib.MM2_I32] = int32_pointer,
    [lib.MM2_F16] = ffi.typeof "uint16_t *",
    [lib.MM2_BF16] = ffi.typeof "uint16_t *",
}

-- LuaJIT's own arrays end at 2 GB.
local MOST_BYTES = 0x7fffffff - 64

local function make(raw, anchor, open)
    local self = View()
    self._raw = raw
    self._open = open
    local count, contiguous = 1, true
    for axis = raw.ndim - 1, 0, -1 do
        local size = tonumber(raw.shape[axis])
        contiguous = contiguous and (size == 1 or tonumber(raw.strides[axis]) == count)
        count = count * size
    end
    self._count = count
    self._contiguous = contiguous and 1 or 0
    if contiguous and raw.dtype == lib.MM2_F32 then
        self._f32 = ffi.cast(float_pointer, raw.data)
    elseif contiguous and raw.dtype == lib.MM2_I32 then
        self._i32 = ffi.cast(int32_pointer, raw.data)
    end
    anchors[self] = anchor
    return self
end

--- A view on `raw` (an mm2_tensor, copied) whose memory belongs to `owner`.
function Tensor.view(raw, owner)
    return make(raw, owner, owner.cell.open)
end

--- A tensor of zeros that owns its memory. `shape`: sizes, outermost first.
function Tensor.new(dtype, shape)
    local raw = ffi.new "mm2_tensor"
    local count = 1
    raw.ndim = #shape
    raw.dtype = dtype
    for axis = #shape - 1, 0, -1 do
        raw.shape[axis] = shape[axis + 1]
        raw.strides[axis] = count
        count = count * shape[axis + 1]
    end
    local bytes = count / lib.mm2_dtype_block(dtype) * lib.mm2_dtype_bytes(dtype)
    if bytes > MOST_BYTES then
        raise(("a tensor of %.0f bytes is more than a LuaJIT array holds (2 GB): take it in parts"):format(
            bytes))
    end
    local memory = dtype == lib.MM2_F32 and float_array(count) or byte_array(bytes)
    raw.data = memory
    raw.nbytes = bytes
    return make(raw, memory, always_open)
end

local function alive(self)
    if self._open[0] == 0 then
        raise("this tensor belongs to something that is closed")
    end
    return self
end

local function check_index(self, i)
    if not (i >= 0 and i < self._count and floor(i) == i) then
        raise(("index %s is outside 0..%.0f"):format(tostring(i), self._count - 1))
    end
end

-- Where flat element i lies, in elements from the start of a strided tensor.
local function offset(self, i)
    local raw, at = self._raw, 0
    for axis = raw.ndim - 1, 0, -1 do
        local size = tonumber(raw.shape[axis])
        at = at + i % size * tonumber(raw.strides[axis])
        i = floor(i / size)
    end
    return at
end

-- Elements that cannot be read in place are decoded, with the block they lie in.
local function decode_element(self, i)
    local dtype = self._raw.dtype
    local block, bytes = lib.mm2_dtype_block(dtype), lib.mm2_dtype_bytes(dtype)
    local at = self._contiguous == 1 and i or offset(self, i)
    local part = ffi.new "mm2_tensor"
    part.data = ffi.cast(byte_pointer, self._raw.data) + floor(at / block) * bytes
    part.ndim, part.dtype, part.nbytes = 1, dtype, bytes
    part.shape[0], part.strides[0] = block, 1
    local out = float_array(block)
    native.check(lib.mm2_tensor_decode(part, out, block))
    return out[at % block]
end

local function read(self, i)
    alive(self)
    check_index(self, i)
    if self._f32 ~= nil then
        return self._f32[i]
    elseif self._i32 ~= nil then
        return self._i32[i]
    elseif self._raw.dtype == lib.MM2_I32 then
        return ffi.cast(int32_pointer, self._raw.data)[offset(self, i)]
    end
    return decode_element(self, i)
end

local function write(self, i, value)
    alive(self)
    if type(i) ~= "number" then
        raise(("tensors have no field '%s' to set"):format(tostring(i)))
    end
    check_index(self, i)
    if self._raw.flags % 2 == lib.MM2_READ_ONLY then
        raise("this tensor is read-only")
    end
    if type(value) ~= "number" then
        raise(("elements are numbers, not %s"):format(type(value)))
    end
    local dtype = self._raw.dtype
    if dtype == lib.MM2_I32 then
        if floor(value) ~= value or value < -2147483648 or value > 2147483647 then
            raise(("%s is not an integer of 32 bits"):format(tostring(value)))
        end
    elseif dtype ~= lib.MM2_F32 then
        raise(("elements of a %s tensor cannot be set, only those of f32 and i32"):format(self.dtype))
    end
    local at = self._contiguous == 1 and i or offset(self, i)
    ffi.cast(pointer_types[dtype], self._raw.data)[at] = value
end

-- The flat index of a full set of indices.
local function flat(self, ...)
    local raw = self._raw
    local given = select("#", ...)
    if given ~= raw.ndim then
        raise(("%d indices for a tensor of %d dimensions"):format(given, raw.ndim))
    end
    local i = 0
    for axis = 0, raw.ndim - 1 do
        local index = select(axis + 1, ...)
        local size = tonumber(raw.shape[axis])
        if not (type(index) == "number" and index >= 0 and index < size and floor(index) == index) then
            raise(("index %s of dimension %d is outside 0..%d"):format(tostring(index), axis, size - 1))
        end
        i = i * size + index
    end
    return i
end

--- t:get(i, j, ...): the element at these indices, from 0.
function Tensor:get(...)
    return read(self, flat(self, ...))
end

--- t:set(value, i, j, ...)
function Tensor:set(value, ...)
    write(self, flat(self, ...), value)
end

--- The memory: float *, int32_t *, uint16_t * (f16, bf16) or uint8_t *. Valid while the owner is
--- open and reachable; keep the tensor beside it.
function Tensor:ptr()
    alive(self)
    return ffi.cast(pointer_types[self._raw.dtype] or byte_pointer, self._raw.data)
end

local function need_contiguous(self)
    if self._contiguous == 0 then
        raise("this tensor is not contiguous: use :copy() or :f32() first")
    end
end

--- The bytes as they lie in memory, as a Lua string (a copy).
function Tensor:bytes()
    need_contiguous(alive(self))
    return ffi.string(self._raw.data, self._raw.nbytes)
end

--- The bytes as a string.buffer that borrows the memory: no copy, valid while the owner is open.
function Tensor:buffer()
    need_contiguous(alive(self))
    local buffer = require("string.buffer").new()
    buffer:set(ffi.cast("const char *", self._raw.data), tonumber(self._raw.nbytes))
    anchors[buffer] = self
    return buffer
end

--- Every element decoded to float32: a copy. FP8 codes come without their block scales; of weights,
--- model:weight() gives the scaled values.
function Tensor:f32()
    local copy = Tensor.new(lib.MM2_F32, alive(self).shape)
    if self._contiguous == 1 then
        native.check(lib.mm2_tensor_decode(self._raw, copy._f32, self._count))
    else
        for i = 0, self._count - 1 do
            copy._f32[i] = read(self, i)
        end
    end
    return copy
end

--- A contiguous, writable copy of the same dtype that owns its memory.
function Tensor:copy()
    local copy = Tensor.new(alive(self)._raw.dtype, self.shape)
    if self._contiguous == 1 then
        ffi.copy(copy._raw.data, self._raw.data, self._raw.nbytes)
    else
        local width = lib.mm2_dtype_bytes(self._raw.dtype)
        local from, to = ffi.cast(byte_pointer, self._raw.data), ffi.cast(byte_pointer, copy._raw.data)
        for i = 0, self._count - 1 do
            ffi.copy(to + i * width, from + offset(self, i) * width, width)
        end
    end
    return copy
end

local function sizes(self, of)
    local list = {}
    for axis = 0, self._raw.ndim - 1 do
        list[axis + 1] = tonumber(of[axis])
    end
    return list
end

function properties.shape(self)
    return sizes(self, self._raw.shape)
end

function properties.strides(self)
    return sizes(self, self._raw.strides)
end

function properties.ndim(self)
    return self._raw.ndim
end

function properties.nbytes(self)
    return tonumber(self._raw.nbytes)
end

function properties.dtype(self)
    return ffi.string(lib.mm2_dtype_name(self._raw.dtype))
end

function properties.readonly(self)
    return self._raw.flags % 2 == lib.MM2_READ_ONLY
end

ffi.metatype(View, {
    __index = function(self, key)
        if type(key) == "number" then
            return read(self, key)
        end
        local property = properties[key]
        if property then
            return property(self)
        end
        return Tensor[key]
    end,
    __newindex = write,
    __len = function(self)
        return self._count
    end,
    __tostring = function(self)
        return ("%s tensor [%s]"):format(self.dtype, table.concat(self.shape, ", "))
    end,
})

--- Whether a value is a tensor made by this module.
function Tensor.is(value)
    return ffi.istype(View, value)
end

return Tensor

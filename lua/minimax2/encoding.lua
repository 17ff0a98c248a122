--- Encoding: the token ids of a long text, made in parts. tokenizer:encoding(text, options).

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"

local lib, check = native.lib, native.check

local Encoding = handle.class("encoding", "mm2_encoding", "mm2_encoding_free")

local SLICE_US = 100000 -- without a limit it comes back this often, so that Ctrl-C gets its turn
local int32_array = ffi.typeof "int32_t[?]"

--- See Tokenizer:encoding. flags: 0 or MM2_SPECIAL.
function Encoding.of(tokenizer, text, flags)
    local out = ffi.new "mm2_encoding *[1]"
    check(lib.mm2_encoding_new(out, tokenizer:live(), text, #text, flags))
    local room = #text + 16
    return Encoding.hold(out[0], { tokenizer = tokenizer, text = text, ids = int32_array(room),
        room = room, count = 0 })
end

-- Twice the room for ids.
local function grow(self)
    local ids = int32_array(2 * self.room)
    ffi.copy(ids, self.ids, 4 * self.count)
    self.ids, self.room = ids, 2 * self.room
end

--- Works for about `ms` milliseconds (nil: no limit). Returns nil while there is more to do; then the
--- ids, an int32_t array, and their number.
function Encoding:poll(ms)
    local encoding, left = self:live(), native.timer(args.budget(ms))
    local written = ffi.new "int32_t[1]"
    local budget_us = left() or 1
    repeat
        self.tokenizer:live() -- it makes the ids
        if self.count == self.room then
            grow(self)
        end
        local slice = budget_us > 0 and math.min(budget_us, SLICE_US) or SLICE_US
        local status = check(lib.mm2_encoding_run(encoding, slice, self.ids + self.count,
            self.room - self.count, written))
        self.count = self.count + written[0]
        if status == lib.MM2_OK then
            return self.ids, self.count
        end
        budget_us = left()
    until not budget_us
end

return Encoding

--- Batch: several sessions of one model advanced through the weights together, each with the bits it
--- would have alone. Feed, rewind and sample the members as ever; run the batch.

local ffi = require "ffi"
local native = require "minimax2.native"
local args = require "minimax2.args"
local trace = require "minimax2.trace"

local lib, raise, check = native.lib, native.raise, native.check

local Batch = {}
Batch.__index = Batch

--- See model:batch.
function Batch.new(model, sessions)
    local out = ffi.new "mm2_batch *[1]"
    if lib.mm2_batch_new(out, model:live(), nil) < 0 then
        return nil, native.message()
    end
    local self = setmetatable({
        ptr = native.wrap(out, "mm2_batch_free"),
        open = ffi.new("int32_t[1]", 1),
        event = native.sized "mm2_event",
        model = model,
        sessions = {}, -- members, in the library's order
    }, Batch)
    for _, session in ipairs(sessions or {}) do
        self:add(session)
    end
    return self
end

local function live(self)
    if self.open[0] == 0 then
        raise("the batch is closed")
    end
    return self.ptr
end

--- Adds a session of the same model. Returns the batch.
function Batch:add(session)
    check(lib.mm2_batch_add(live(self), args.session(session, "batch:add")))
    table.insert(self.sessions, session)
    return self
end

--- Takes a session out; it goes on alone.
function Batch:remove(session)
    check(lib.mm2_batch_remove(live(self), args.session(session, "batch:remove")))
    for i, member in ipairs(self.sessions) do
        if member == session then
            table.remove(self.sessions, i)
            break
        end
    end
end

--- As session:run, for all members; a tap tells its session.
function Batch:run(ms)
    local status
    repeat
        status = check(lib.mm2_batch_run(live(self), args.budget(ms), self.event))
    until status ~= lib.MM2_READY
    if status == lib.MM2_TAP then
        return false, trace.tap(self.event, self, self.sessions[self.event.session + 1])
    end
    return status == lib.MM2_OK
end

--- Frees the batch; again is allowed. The members go on alone.
function Batch:close()
    if self.open[0] == 1 then
        native.release(self.ptr, "mm2_batch_free")
        self.open[0] = 0
        self.sessions = {}
    end
end

return Batch

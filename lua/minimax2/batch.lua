--- Batch: several sessions of one model advanced through the weights together, each with the bits it
--- would have alone. Feed, rewind and sample the members as ever; run the batch.

local ffi = require "ffi"
local native = require "minimax2.native"
local handle = require "minimax2.handle"
local args = require "minimax2.args"
local trace = require "minimax2.trace"

local lib, check = native.lib, native.check

local Batch = handle.class("batch", "mm2_batch", "mm2_batch_free")

--- See model:batch.
function Batch.new(model, sessions)
    local out = ffi.new "mm2_batch *[1]"
    if lib.mm2_batch_new(out, model:live(), nil) < 0 then
        return nil, native.message()
    end
    local self = Batch.hold(out[0], {
        event = native.sized "mm2_event",
        model = model,
        sessions = {}, -- members, in the library's order
    })
    for _, session in ipairs(sessions or {}) do
        self:add(session)
    end
    return self
end

--- Adds a session of the same model. Returns the batch.
function Batch:add(session)
    check(lib.mm2_batch_add(self:live(), args.session(session, "batch:add")))
    table.insert(self.sessions, session)
    return self
end

--- Takes a session out; it goes on alone.
function Batch:remove(session)
    check(lib.mm2_batch_remove(self:live(), args.session(session, "batch:remove")))
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
        status = check(lib.mm2_batch_run(self:live(), args.budget(ms), self.event))
    until status ~= lib.MM2_READY
    if status == lib.MM2_TAP then
        return false, trace.tap(self.event, self, self.sessions[self.event.session + 1])
    end
    return status == lib.MM2_OK
end

local free = Batch.close

--- Frees the batch; again is allowed. The members go on alone.
function Batch:close()
    free(self)
    self.sessions = {}
end

return Batch

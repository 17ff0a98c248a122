--- Points, taps and the loops that stop at them. A tap is a stop of the run at an activation; what is
--- written into its tensor is what the run goes on with.

local native = require "minimax2.native"
local args = require "minimax2.args"
local Tensor = require "minimax2.tensor"

local lib, raise = native.lib, native.raise

local trace = {}

-- A run without a limit comes back this often, so that Ctrl-C and coroutines get their turn.
trace.SLICE_US = 100000

trace.points = {} -- the names, in the order of the data flow
local numbers = {}
for point = 0, lib.MM2_POINT_COUNT - 1 do
    local name = native.text(lib.mm2_point_name(point))
    trace.points[point + 1] = name
    numbers[name] = point
end

-- Points that exist once, not at every layer.
local once = { [lib.MM2_POINT_EMBED] = true, [lib.MM2_POINT_FINAL_NORM] = true,
    [lib.MM2_POINT_LOGITS] = true }

--- The number of a point, from its name.
function trace.point(name)
    local point = numbers[name]
    if not point then
        raise(("unknown point %s; known are %s"):format(args.show(name),
            table.concat(trace.points, ", ")))
    end
    return point
end

--- The tap that `event`, an mm2_event, tells of. The tensor is live: borrowed until the next call on the
--- session.
function trace.tap(event, session)
    return {
        point = trace.points[event.point + 1],
        layer = event.layer,
        first = event.first,
        count = event.count,
        tensor = Tensor.view(event.tensor, session),
        session = session,
    }
end

local function list(value)
    return type(value) == "table" and value or { value }
end

--- Pairs { point, layer } for names and layers as scripts give them; nil means all, and negative
--- layers count from the end.
function trace.switches(model, points, layers)
    local count = model.config.num_hidden_layers
    local switches = {}
    for _, name in ipairs(list(points == nil and trace.points or points)) do
        local point = trace.point(name)
        if layers == nil or once[point] then
            switches[#switches + 1] = { point, -1 }
        else
            for _, layer in ipairs(list(layers)) do
                if args.int(layer, "a layer") < -count or layer >= count then
                    raise(("a layer must be %d..%d, not %d"):format(-count, count - 1, layer))
                end
                switches[#switches + 1] = { point, layer % count }
            end
        end
    end
    return switches
end

-- Functions of a script that wait for activations: a list of switches { point, layer, fn }.
-- Fields: tap, whose functions are being called, or were when one raised an error; at, which one.
local Hooks = {}
Hooks.__index = Hooks

--- Hooks from a list of { point, function } or { point, layer, function }.
function trace.hooks(model, list_of_hooks)
    if type(list_of_hooks) ~= "table" then
        raise("hooks must be a table of { point, layer, function }")
    end
    local hooks = {}
    for i, hook in ipairs(list_of_hooks) do
        if type(hook) ~= "table" or type(hook[1]) ~= "string" or type(hook[#hook]) ~= "function"
            or #hook < 2 or #hook > 3 then
            raise(("hook %d must be { point, function } or { point, layer, function }"):format(i))
        end
        local switch = trace.switches(model, hook[1], #hook == 3 and hook[2] or nil)[1]
        hooks[i] = { switch[1], switch[2], hook[#hook] }
    end
    return setmetatable(hooks, Hooks)
end

--- Calls those that wait for this tap: fn(tensor, tap).
function Hooks:call(tap)
    self.tap, self.at = tap, 1
    self:go_on()
end

--- Calls those that are left of a tap at which one raised an error, that one first.
function Hooks:go_on()
    local tap = self.tap
    while self.at <= #self do
        local point, layer, fn = unpack(self[self.at])
        if point == numbers[tap.point] and (layer < 0 or layer == tap.layer) then
            fn(tap.tensor, tap)
        end
        self.at = self.at + 1
    end
    self.tap = nil
end

--- Switches a session's taps on until trace.stop, or until the next call that runs it otherwise.
function trace.start(session, switches)
    local ptr = session:live()
    local traced = { switches = switches }
    session.traced = traced
    for _, switch in ipairs(switches) do
        if lib.mm2_session_tap(ptr, switch[1], switch[2], 1) < 0 then
            local message = native.message()
            trace.stop(session)
            raise(message)
        end
    end
    return traced
end

--- Back to the taps that the script itself has on.
function trace.stop(session)
    local traced = session.traced
    session.traced = nil
    if traced and not session.closed then
        local ptr = session:live()
        for _, switch in ipairs(traced.switches) do
            lib.mm2_session_tap(ptr, switch[1], switch[2], 0)
        end
        local layers = session.model.config.num_hidden_layers
        for key in pairs(session.taps) do
            lib.mm2_session_tap(ptr, math.floor(key / layers), key % layers, 1)
        end
    end
end

--- An iterator over the taps met while what was fed to `session` is evaluated. `finish` is called
--- when all is done.
function trace.iterate(session, switches, finish)
    local traced = trace.start(session, switches)
    return function()
        if traced.done then
            return nil
        end
        session:live() -- it may have been closed since
        if session.traced ~= traced then
            raise("this trace was ended by another call on its session")
        end
        local status, event
        repeat
            status, event = session:step(native.timer(trace.SLICE_US))
        until status ~= lib.MM2_MORE
        if status == lib.MM2_TAP then
            return trace.tap(event, session)
        end
        traced.done = true
        trace.stop(session)
        if finish then
            finish()
        end
        return nil
    end
end

return trace

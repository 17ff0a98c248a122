--- Edits: changes of activations as data, applied while they are computed, without a stop. A list of
--- tables, each { kind, what, ... }:
---
---   { "add", point, values = v, factor = 1 }            x + factor * v: steering
---   { "set", point, values = v }                        v, or a number: means, zeros
---   { "scale", point, values = v }                      x * v, or by a number
---   { "clamp", point, low = a, high = b }
---   { "cap", point, limit = c }                         c * tanh(x / c)
---   { "project_out", point, values = { v, w }, factor = 1 }   without its part in their space
---   { "ablate_heads", heads, mean = v }                 what attention heads give becomes 0, or v
---   { "mask_experts", experts }                         are not chosen
---   { "force_experts", experts }                        are chosen, with the weights of their scores
---   { "bias_experts", { [e] = bias } }                  is added to the scores that choose, only
---   { "weigh_experts", { [e] = factor } }
---   { "keep_experts", count }                           of each token's the heaviest; they share the weight
---
--- Further fields: layers (a number or a list; default: all; negative ones count from the end), positions
--- ({ first, stop }: first up to before stop; default: all), heads (a number or a list, from 0; at q, k, v
--- and z; values are then those of one head). Values: a table of numbers or an f32 tensor.

local ffi = require "ffi"
local native = require "minimax2.native"
local args = require "minimax2.args"
local trace = require "minimax2.trace"
local Tensor = require "minimax2.tensor"

local lib, raise = native.lib, native.raise

local edits = {}

local heads_of = { q = "num_attention_heads", z = "num_attention_heads", k = "num_key_value_heads",
    v = "num_key_value_heads" }
local common = { layers = true, positions = true }
local of_values = { heads = true, values = true, factor = true }

local function numbers(value, what, count)
    local list = {}
    for i, number in ipairs(type(value) == "table" and value or { value }) do
        if args.int(number, what) < -count or number >= count then
            raise(("%s must be %d..%d, not %d"):format(what, -count, count - 1, number))
        end
        list[i] = number % count
    end
    if #list == 0 then
        raise(what .. ": there is none")
    end
    return list
end

-- Layers as ranges { first, stop }.
local function runs(value, count, where)
    if value == nil then
        return { { 0, 0 } }
    end
    local listed, out = numbers(value, where .. ": a layer", count), {}
    table.sort(listed)
    for _, layer in ipairs(listed) do
        local last = out[#out]
        if last and layer <= last[2] then
            last[2] = math.max(last[2], layer + 1)
        else
            out[#out + 1] = { layer, layer + 1 }
        end
    end
    return out
end

-- Floats of a table or tensor: pointer, count; and what keeps them.
local function floats(value, where)
    if Tensor.is(value) then
        value = value:f32()
        return value:ptr(), value.nbytes / 4, value
    elseif type(value) ~= "table" then
        raise(("%s: values must be a table of numbers or an f32 tensor, not %s"):format(where,
            args.show(value)))
    end
    local flat = {}
    for _, row in ipairs(value) do
        for _, x in ipairs(type(row) == "table" and row or { row }) do
            flat[#flat + 1] = args.number(x, where .. ": a value")
        end
    end
    local memory = ffi.new("float[?]", #flat, flat)
    return memory, #flat, memory
end

-- A value for each expert: `rest` for those that are not named.
local function of_experts(model, values, rest, where)
    local count = model.config.num_local_experts
    local memory = ffi.new("float[?]", count)
    for i = 0, count - 1 do
        memory[i] = rest
    end
    if type(values) ~= "table" then
        raise(("%s: there must be a table of experts, not %s"):format(where, args.show(values)))
    end
    for expert, value in pairs(values) do
        numbers(expert, where .. ": an expert", count)
        memory[expert % count] = args.number(value, where .. ": a value")
    end
    return memory, count, memory
end

local function all(experts, model, value, where)
    local values = {}
    for _, expert in ipairs(numbers(experts, where .. ": an expert", model.config.num_local_experts)) do
        values[expert] = value
    end
    return of_experts(model, values, 0, where)
end

local function plain(number)
    return function(to, entry, _, where)
        to.point, to.kind = trace.point(entry[2]), number
        to.factor = entry.factor == nil and 1 or args.number(entry.factor, where .. ": factor")
        if type(entry.values) == "number" and number ~= lib.MM2_EDIT_ADD then
            to.factor = entry.values
            return nil
        end
        return floats(entry.values, where)
    end
end

local function choosing(value)
    return function(to, entry, model, where)
        to.kind, to.point = lib.MM2_EDIT_CHOOSE, lib.MM2_POINT_EXPERT_INDICES
        return all(entry[2], model, value, where)
    end
end

-- Each fills in an mm2_edit and returns its values as floats() does; then the fields that it knows.
local kinds = {
    add = { plain(lib.MM2_EDIT_ADD), of_values },
    set = { plain(lib.MM2_EDIT_SET), of_values },
    scale = { plain(lib.MM2_EDIT_SCALE), of_values },
    clamp = { function(to, entry, _, where)
        to.kind, to.point = lib.MM2_EDIT_CLAMP, trace.point(entry[2])
        to.low = args.number(entry.low, where .. ": low")
        to.high = args.number(entry.high, where .. ": high")
    end, { heads = true, low = true, high = true } },
    cap = { function(to, entry, _, where)
        to.kind, to.point = lib.MM2_EDIT_CAP, trace.point(entry[2])
        to.factor = args.number(entry.limit, where .. ": limit")
    end, { heads = true, limit = true } },
    project_out = { function(to, entry, _, where)
        local pointer, count, kept = plain(lib.MM2_EDIT_PROJECT)(to, entry, nil, where)
        to.rows = type(entry.values) == "table" and type(entry.values[1]) == "table" and #entry.values or 1
        return pointer, count, kept
    end, of_values },
    ablate_heads = { function(to, entry, _, where)
        to.kind, to.point = lib.MM2_EDIT_SET, trace.point "z"
        if type(entry.mean) == "number" or entry.mean == nil then
            to.factor = entry.mean or 0
            return nil
        end
        return floats(entry.mean, where)
    end, { mean = true } },
    mask_experts = { choosing(-math.huge), {} },
    force_experts = { choosing(math.huge), {} },
    bias_experts = { function(to, entry, model, where)
        to.kind, to.point = lib.MM2_EDIT_CHOOSE, lib.MM2_POINT_EXPERT_INDICES
        return of_experts(model, entry[2], 0, where)
    end, {} },
    weigh_experts = { function(to, entry, model, where)
        to.kind, to.point = lib.MM2_EDIT_WEIGH, lib.MM2_POINT_EXPERT_WEIGHTS
        return of_experts(model, entry[2], 1, where)
    end, {} },
    keep_experts = { function(to, entry, _, where)
        to.kind, to.point = lib.MM2_EDIT_KEEP, lib.MM2_POINT_EXPERT_WEIGHTS
        to.rows = args.positive(entry[2], where .. ": count")
    end, {} },
}

-- The fields of an entry that have names.
local function named(entry)
    local out = {}
    for key, value in pairs(entry) do
        if key ~= 1 and key ~= 2 then
            out[key] = value
        end
    end
    return out
end

local function positions(to, value, where)
    if value == nil then
        return
    elseif type(value) ~= "table" then
        raise(("%s: positions must be { first, stop }, not %s"):format(where, args.show(value)))
    end
    to.first = args.int(value[1], where .. ": the first position")
    to["end"] = value[2] == nil and 0 or args.int(value[2], where .. ": the position to stop before")
end

--- Gives a session the edits of a list, in the place of those that it has; nil or {}: none.
function edits.set(session, list, where)
    local ptr, model = session:live(), session.model
    if list ~= nil and type(list) ~= "table" then
        raise(("%s: edits must be a list, not %s"):format(where, args.show(list)))
    end
    local made, kept = {}, {}
    for i, entry in ipairs(list or {}) do
        local at = ("%s: edit %d"):format(where, i)
        if type(entry) ~= "table" then
            raise(("%s must be a table { kind, ... }, not %s; edits are a list of such tables"):format(at,
                args.show(entry)))
        end
        local kind = kinds[entry[1]]
        if not kind then
            raise(("%s: there is no kind %s"):format(at, args.show(entry[1])))
        end
        args.known(named(entry), at, common, kind[2])
        local one = native.sized "mm2_edit"
        local pointer, count, keeper = kind[1](one, entry, model, at)
        kept[#kept + 1] = keeper
        if pointer then
            one.values, one.count = pointer, count
        end
        positions(one, entry.positions, at)
        local heads = entry[1] == "ablate_heads" and entry[2] or entry.heads
        local places, width = { 0 }, 0
        if heads ~= nil then
            local field = heads_of[trace.points[one.point + 1]]
            if not field then
                raise(("%s: %s has no heads"):format(at, entry[2]))
            end
            places, width = numbers(heads, at .. ": a head", model.config[field]), model.config.head_dim
        end
        for _, run in ipairs(runs(entry.layers, model.config.num_hidden_layers, at)) do
            for _, place in ipairs(places) do
                local copy = ffi.new("mm2_edit", one)
                copy.first_layer, copy.end_layer = run[1], run[2]
                copy.at, copy.n = place * width, width
                made[#made + 1] = copy
            end
        end
    end
    local array = ffi.new("mm2_edit[?]", math.max(#made, 1))
    for i, one in ipairs(made) do
        array[i - 1] = one
    end
    native.check(lib.mm2_session_set_edits(ptr, array, #made))
    return kept -- memory of the values, held until here
end

return edits

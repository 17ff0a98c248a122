--- Tools: functions that a model may call, as tables of
---   name, description, parameters   what the model is told; parameters is a JSON schema
---   call                            a function(arguments) that returns the result: a string, or what
---                                   JSON has; nil and a sentence if it fails
--- What the model gives as arguments is held against the schema. What is wrong with it, and the errors of
--- the function, are results that the model reads, "error: ...", so that it can try again.

local native = require "minimax2.native"
local args = require "minimax2.args"
local json = require "minimax2.json"

local raise = native.raise

local tools = {}

-- A tool's name, description and parameters, which may stand in a table "function".
local function declaration(tool)
    return type(tool["function"]) == "table" and tool["function"] or tool
end

local fields = { name = true, description = true, parameters = true, call = true, type = true,
    ["function"] = true }

-- Refuses a tool with a `call` that could not be called, or not as it is meant.
local function check_tool(tool, where)
    local name = tostring(declaration(tool).name)
    if type(tool.call) ~= "function" then
        raise(("%s: the call of %s must be a function, not %s"):format(where, name, args.show(tool.call)))
    end
    for field in pairs(tool) do
        if not fields[field] then
            raise(("%s: %s has the field %s; a tool has name, description, parameters and call"):format(
                where, name, tostring(field)))
        end
    end
end

--- A list of tools as the library takes it: without their functions.
function tools.declared(list, where)
    if #list == 0 and next(list) ~= nil then
        raise(where .. " must be a list of tools")
    end
    local out = setmetatable({}, json.array)
    for i, tool in ipairs(list) do
        if type(tool) == "table" and tool.call ~= nil then
            check_tool(tool, where)
            local own = declaration(tool)
            tool = { type = "function", ["function"] = {
                name = own.name, description = own.description, parameters = own.parameters or {} } }
        end
        out[i] = tool
    end
    return out
end

--- Those of a list that can be called, by name.
function tools.functions(list, where)
    local found = {}
    for _, tool in ipairs(type(list) == "table" and list or {}) do
        if type(tool) == "table" and type(tool.call) == "function" then
            local own = declaration(tool)
            local name = args.text(own.name, where .. ": tools: a name")
            if found[name] then
                raise(("%s: tools: two are called %s"):format(where, name))
            end
            found[name] = { call = tool.call, parameters = own.parameters or {} }
        end
    end
    return found
end

--- What the option tool_choice asks for: the tool that must be called, "" for any, or nil; and the bias
--- that forbids calls, or nil.
function tools.choice(model, options, answers, where)
    local choice = options.tool_choice
    if choice == nil or choice == "auto" then
        return nil
    elseif type(choice) ~= "string" or choice == "" then
        raise(("%s: tool_choice must be 'auto', 'none', 'required' or the name of a tool, not %s"):format(
            where, args.show(choice)))
    elseif not answers then
        raise(where .. ": tool_choice is for prompts of messages")
    elseif choice ~= "none" then
        return choice == "required" and "" or choice
    end
    local bias, id = {}, model.tokenizer:id "<minimax:tool_call>"
    for token, value in pairs(options.bias or {}) do
        bias[token] = value
    end
    if id then
        bias[id] = -math.huge
    end
    return nil, bias
end

-- ---- Holding values against schemas; python/minimax2/tools.py says the same ----

local function is_array(value)
    return type(value) == "table" and getmetatable(value) == json.array
end

local function is_object(value)
    return type(value) == "table" and value ~= json.null and not is_array(value)
end

local checks = {
    string = { "a string", function(value) return type(value) == "string" end },
    integer = { "an integer", function(value)
        return type(value) == "number" and value == math.floor(value) and value - value == 0
    end },
    number = { "a number", function(value) return type(value) == "number" end },
    boolean = { "true or false", function(value) return type(value) == "boolean" end },
    null = { "null", function(value) return value == json.null end },
    array = { "a list", is_array },
    object = { "an object", is_object },
}

local function shown(value)
    local text = json.encode(value)
    return #text <= 60 and text or text:sub(1, native.lib.mm2_text_complete(text, 60)) .. "..."
end

local function list_of(value)
    return type(value) == "table" and value or { value }
end

local function sorted(object)
    local keys = {}
    for key in pairs(object) do
        keys[#keys + 1] = key
    end
    table.sort(keys)
    return keys
end

local fault_of_object

-- What is wrong with a value, a sentence; nil: nothing.
local function fault_of(schema, value, name, root)
    for _ = 1, 16 do
        if type(schema) ~= "table" or not schema["$ref"] then
            break
        end
        schema = (root["$defs"] or {})[tostring(schema["$ref"]):match "[^/]*$"]
    end
    if type(schema) ~= "table" then
        return nil
    end
    local allowed = schema.enum or schema.const ~= nil and { schema.const } or nil
    if allowed then
        local words = {}
        for i, other in ipairs(allowed) do
            if other == value then
                words = nil
                break
            end
            words[i] = shown(other)
        end
        if words then
            return ("%s must be one of %s, not %s"):format(name, table.concat(words, ", "), shown(value))
        end
    end
    local others, first = schema.anyOf or schema.oneOf, nil
    for _, other in ipairs(others or {}) do
        local fault = fault_of(other, value, name, root)
        if not fault then
            return nil
        end
        first = first or fault
    end
    if first then
        return first
    end
    local words, fits = {}, false
    for _, kind in ipairs(list_of(schema.type)) do
        local check = checks[kind]
        if check then
            words[#words + 1] = check[1]
            fits = fits or check[2](value)
        end
    end
    if #words > 0 and not fits then
        return ("%s must be %s, not %s"):format(name, table.concat(words, " or "), shown(value))
    end
    for i, item in ipairs(is_array(value) and value or {}) do
        local fault = fault_of(schema.items, item, ("%s[%d]"):format(name, i), root)
        if fault then
            return fault
        end
    end
    return is_object(value) and fault_of_object(schema, value, name, root) or nil
end

function fault_of_object(schema, value, name, root)
    local properties, more = schema.properties or {}, schema.additionalProperties
    local before = name == "" and "" or name .. "."
    for _, key in ipairs(schema.required or {}) do
        if value[key] == nil then
            return ("%s%s is missing"):format(before, key)
        end
    end
    for _, key in ipairs(sorted(value)) do
        if properties[key] == nil and (more == false or more == nil and name == "") then
            local names = table.concat(sorted(properties), ", ")
            return ("%s%s is no argument; there are: %s"):format(before, key, names == "" and "none" or names)
        end
        local fault = fault_of(properties[key] or more, value[key], before .. key, root)
        if fault then
            return fault
        end
    end
end

--- Makes a call: its result, or "error: ..." for the model to read. functions: of tools.functions.
function tools.answer(functions, call)
    local tool = functions[call.name]
    if not tool then
        return ("error: there is no tool %s; there are: %s"):format(call.name,
            table.concat(sorted(functions), ", "))
    elseif call.state ~= "complete" then
        return "error: the call is not complete"
    end
    local fault = fault_of_object(tool.parameters, call.arguments, "", tool.parameters)
    if fault then
        return "error: " .. fault
    end
    local ok, result, message = pcall(tool.call, call.arguments)
    if ok and result == nil and message ~= nil then
        ok, result = false, message
    end
    if not ok then
        return "error: " .. tostring(result)
    end
    local encoded, text = true, result
    if type(result) ~= "string" then
        encoded, text = pcall(json.encode, result == nil and json.null or result)
    end
    if encoded and text:find("%z") then
        encoded, text = false, "the result holds a NUL character, which no message can have"
    end
    return encoded and text or "error: " .. text
end

return tools

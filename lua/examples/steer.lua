-- Steers a model: adds a direction to the residual stream while it writes.
--     luajit lua/examples/steer.lua [STRENGTH]
-- The direction is the difference that two prompts make in the middle of the model; a hook adds it at
-- every position. Strength 0 gives the model as it is.

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/../?.lua;" .. here .. "/../?/init.lua;" .. package.path

local mm = require "minimax2"

local model = assert(mm.load())
local strength = tonumber(arg[1] or "4")
local layer = math.floor(model.config.num_hidden_layers / 2)
local size = model.config.hidden_size

-- The residual stream at a prompt's last token.
local function residual(prompt)
    local last = {}
    for tap in model:trace(prompt, "resid_post", layer) do
        for i = 0, size - 1 do
            last[i] = tap.tensor:get(tap.count - 1, i)
        end
    end
    return last
end

local from, to = residual "It was a sad day", residual "It was a happy day"

local function steer(tensor, tap)
    for row = 0, tap.count - 1 do
        for i = 0, size - 1 do
            local at = row * size + i
            tensor[at] = tensor[at] + strength * (to[i] - from[i])
        end
    end
end

local options = { seed = 1, max_new_tokens = 40 }
print("plain:   " .. model:generate("The girl was", options))
options.hooks = { { "resid_post", layer, steer } }
print("steered: " .. model:generate("The girl was", options))
model:close()

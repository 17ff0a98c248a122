-- Streams text from the small model that comes with the library.
--     luajit lua/examples/demo.lua [PROMPT [SEED]]
-- The last line lists the tokens: with the same prompt and seed they are the same in every language.

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/../?.lua;" .. here .. "/../?/init.lua;" .. package.path

local mm = require "minimax2"

local prompt = arg[1] or "def read_lines(path):\n"
local seed = tonumber(arg[2] or "6")

local model = assert(mm.load())
local stream = model:stream(prompt, { seed = seed, temperature = 0.7, max_new_tokens = 64 })

io.write(prompt)
for piece in stream do
    io.write(piece)
    io.flush()
end
print()
print("tokens: " .. table.concat(stream:tokens(), " "))
model:close()

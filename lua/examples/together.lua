-- Goes on with one prompt in several ways at once. The prompt is evaluated once: forks share it; a batch
-- takes their next tokens through the weights together.
--     luajit lua/examples/together.lua [PROMPT [COUNT]]

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/../?.lua;" .. here .. "/../?/init.lua;" .. package.path

local mm = require "minimax2"

local prompt = arg[1] or "Once upon a time"
local count = tonumber(arg[2] or "4")

local model = assert(mm.load())
local trunk = assert(model:session())
trunk:feed(prompt):run()

local batch = assert(model:batch())
local streams = {}
for i = 1, count do
    local branch = assert(trunk:fork())
    batch:add(branch)
    streams[i] = branch:stream { seed = i, max_new_tokens = 24 }
end

while not batch:run(4) do
    -- About 4 ms of work for all of them: a game would draw its frame here.
end
for i, stream in ipairs(streams) do
    print(("%d: %s%s"):format(i, prompt, stream:text()))
end
model:close()

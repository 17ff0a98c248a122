-- Generates inside a game loop: a fake one that draws at 60 Hz and gives the model 4 ms of each frame.
--     luajit lua/examples/poll.lua [PROMPT]
-- In LÖVE the body of the loop is love.update; in Neovim, the callback of a vim.loop timer.

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/../?.lua;" .. here .. "/../?/init.lua;" .. package.path

local mm = require "minimax2"

local BUDGET_MS = 4

local model = assert(mm.load())
local stream = model:stream({
    { role = "user", content = arg[1] or "What is 2 plus 3?" },
}, { max_new_tokens = 64 })

local frames = 0
local done = false
while not done do
    frames = frames + 1
    -- The game's own work would be here: input, physics, drawing.
    local piece
    piece, done = stream:poll(BUDGET_MS)
    if piece then
        io.write(piece)
        io.flush()
    end
    -- And here it would wait for the display.
end

print(("\n%d tokens in %d frames, %s"):format(#stream:tokens(), frames, stream.finish_reason))
model:close()

std = "luajit"
max_line_length = 110
exclude_files = { "lua/minimax2/cdef.lua" }
files["tests/lua"] = { std = "+busted" }
files["**/*.rockspec"] = { std = "+rockspec" }

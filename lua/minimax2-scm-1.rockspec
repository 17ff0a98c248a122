rockspec_format = "3.0"
package = "minimax2"
version = "scm-1"
source = {
    url = "git+file://.", -- for `luarocks make lua/minimax2-scm-1.rockspec` in a clone
}
description = {
    summary = "Run MiniMax-M2 language models on CPUs from LuaJIT",
    detailed = [[
Opens MiniMax-M2 checkpoints as they were downloaded (FP8 safetensors, GGUF) and runs them: text
generation within a time budget, every activation to look at and to change, no compiled Lua glue.
Needs LuaJIT, a C compiler, and the development files of PCRE2 and utf8proc.]],
    license = "MIT",
}
dependencies = {
    "lua == 5.1", -- LuaJIT counts as 5.1; the modules need its FFI
}
build = {
    type = "make",
    makefile = "lua/Makefile",
    variables = {
        PREFIX = "$(PREFIX)",
        LUADIR = "$(LUADIR)",
    },
    install_variables = {
        PREFIX = "$(PREFIX)",
        LUADIR = "$(LUADIR)",
    },
}

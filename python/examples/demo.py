"""What `make demo` shows: the embedded model, streaming from Python and from LuaJIT, same tokens.

    .venv/bin/python python/examples/demo.py [PROMPT [SEED]]
"""

import subprocess
import sys
from pathlib import Path

import minimax2 as mm

ROOT = Path(__file__).resolve().parents[2]
LUA = ["luajit", str(ROOT / "lua" / "examples" / "demo.lua")]


def from_python(prompt, seed):
    """Stream a text; the token ids."""
    with mm.load() as model:
        stream = model.generate(prompt, seed=seed, temperature=0.7, max_new_tokens=64, stream=True)
        print(prompt, end="")
        for piece in stream:
            print(piece, end="", flush=True)
        print()
        return stream.tokens


def from_lua(prompt, seed):
    """The same by the Lua twin of this program; the token ids from its last line."""
    with subprocess.Popen([*LUA, prompt, str(seed)], stdout=subprocess.PIPE, text=True) as program:
        line = ""
        for line in program.stdout:
            if not line.startswith("tokens: "):
                print(line, end="", flush=True)
    if program.returncode:
        sys.exit(program.returncode)
    return [int(token) for token in line.removeprefix("tokens: ").split()]


def main(prompt="def read_lines(path):\n", seed="6"):
    """Both, compared."""
    with mm.load() as model:
        print(f"minimax2 {mm.__version__} on {mm.cpu()}\n{model!r}\n")
    print("--- From Python " + "-" * 60, flush=True)
    python = from_python(prompt, int(seed))
    print("\n--- From LuaJIT, with the same seed " + "-" * 40, flush=True)
    lua = from_lua(prompt, int(seed))
    print("\n" + "-" * 76)
    if python != lua:
        sys.exit(f"The tokens differ.\nPython: {python}\nLua:    {lua}")
    print(f"Python and Lua chose the same {len(python)} tokens, from the same bits.\n")
    print("Next, try:")
    print("  .venv/bin/minimax2 chat                      talk to the small model")
    print("  .venv/bin/minimax2 generate -m PATH \"...\"    use the MiniMax-M2 checkpoint you have")
    print("  .venv/bin/python -i -c 'import minimax2 as mm; model = mm.load()'")
    print("                                               then: model.generate(\"import os\")")


if __name__ == "__main__":
    main(*sys.argv[1:3])

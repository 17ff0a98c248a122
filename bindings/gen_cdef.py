"""csrc/minimax2.h, preprocessed: the cdef of both bindings.

    python bindings/gen_cdef.py            write lua/minimax2/cdef.lua
    python bindings/gen_cdef.py --check    exit 1 if that file is not what would be written
    python bindings/gen_cdef.py --print    the cdef on standard output

`python/` needs no copy: bindings/cffi_build.py calls `cdef()` while it builds.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "minimax2.h"
LUA = ROOT / "lua" / "minimax2" / "cdef.lua"


def cdef(header=HEADER):
    """The declarations as text, laid out the same whatever the compiler: one declaration, constant
    or field a line. The header nests no braces."""
    command = [*shlex.split(os.environ.get("CC") or "cc"), "-E", "-P", "-DMM2_CDEF", str(header)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"\s+", " ", text).replace("( ", "(")
    lines = []
    for head, body, tail in re.findall(r"([^{};]+)(?:\{([^}]*)\})?([^;{}]*);", text):
        if not body:
            lines.append(f"{head.strip()}{tail};")
            continue
        end = "," if head.strip().endswith("enum") else ";"
        fields = [field.strip() for field in body.split(end) if field.strip()]
        lines += [head.strip() + " {", *(f"    {field}{end}" for field in fields),
                  "}" + tail.rstrip() + ";"]
    return "\n".join(lines) + "\n"


def lua_text():
    """The file that lua/minimax2/native.lua loads."""
    return ("-- Generated from csrc/minimax2.h by bindings/gen_cdef.py. Do not edit.\n"
            f"return [[\n{cdef()}]]\n")


def main(arguments):
    if arguments == ["--print"]:
        print(cdef(), end="")
    elif arguments == ["--check"]:
        if not LUA.exists() or LUA.read_text() != lua_text():
            sys.exit(f"{LUA.relative_to(ROOT)} is not fresh: run python bindings/gen_cdef.py")
    elif not arguments:
        LUA.parent.mkdir(parents=True, exist_ok=True)
        LUA.write_text(lua_text())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs the same scenario in Python and in Lua, and compares what they say, byte by byte.

    python tests/parity/run.py      exit 1, with the difference, if they do not agree

Both load the model of the installed Python package, or MINIMAX2_TINY; Lua loads the package's
library, or MINIMAX2_LIBRARY.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import minimax2

HERE = Path(__file__).resolve().parent
PACKAGE = Path(minimax2.__file__).resolve().parent
MODEL = Path(os.environ.get("MINIMAX2_TINY", PACKAGE / "m2-tiny"))
FEWEST_LINES = 200


def make_damaged(folder):
    """Files that cannot be opened, each for another reason."""
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "short.gguf").write_bytes(b"GGUF\3\0\0\0\1\0\0\0")
    for name, config in (("no-config", None), ("bad-config", "{"),
                         ("no-weights", (MODEL / "config.json").read_text())):
        (folder / name).mkdir()
        if config is not None:
            (folder / name / "config.json").write_text(config)


def make_endings(folder):
    """Copies of the model whose files name other end tokens: several; one that ends no turn."""
    for name, eos in (("eos-list", [0, 2]), ("eos-wrong", 2)):
        shutil.copytree(MODEL, folder / name)
        path = folder / name / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))


def run(language, command, folder):
    """The lines that a scenario prints."""
    library = os.environ.get("MINIMAX2_LIBRARY") or str(next(PACKAGE.glob("libminimax2.so.*")))
    done = subprocess.run([*command, str(MODEL), str(folder)], capture_output=True,
                          env={**os.environ, "MINIMAX2_LIBRARY": library})
    if done.returncode:
        sys.exit(f"The {language} scenario failed:\n{done.stderr.decode('utf-8', 'replace')}")
    return done.stdout.decode("utf-8", "backslashreplace").splitlines()


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_damaged(folder)
        make_endings(folder)
        python = run("Python", [sys.executable, str(HERE / "scenario.py")], folder)
        lua = run("Lua", ["luajit", str(HERE / "scenario.lua")], folder)
    difference = list(difflib.unified_diff(python, lua, "Python", "Lua", n=1, lineterm=""))
    if difference:
        sys.exit("\n".join(difference[:60]))
    missing = [line for line in python if line == "error: missing"]
    if missing or len(python) < FEWEST_LINES:
        sys.exit(f"The scenario is incomplete: {len(python)} lines, {len(missing)} missing errors")
    print(f"parity: Python and Lua agree on {len(python)} lines")


if __name__ == "__main__":
    main()

"""The lines of README.md run as they stand, in this tree and where the package is installed; and so
do the assistants of CHAT.md."""

import os
import pathlib
import re
import subprocess
import sys

import minimax2 as mm

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CHAT = (ROOT / "CHAT.md").read_text()


def blocks(language, text=README):
    """What stands between ```language and ```."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run(command, cwd, **options):
    """What a program prints; it must say nothing on the side."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_lines_of_python(tmp_path, tiny):
    block, = blocks("python")
    for line in block.splitlines():
        assert len(line) <= 140
    output = run([sys.executable, "-c", block], tmp_path)
    written = tiny.generate("def read_lines(path):\n", max_new_tokens=40, temperature=0.7, seed=6)
    answer = tiny.generate([{"role": "user", "content": "What is 17 + 25?"}], seed=1)
    assert output.startswith(f"{written}\n") and output.endswith(f"\n{answer}\n(2, 4096)\n")


def test_the_lines_of_lua(tmp_path, tiny):
    block, = blocks("lua")
    line, = (line for shell in blocks("sh") for line in shell.splitlines() if "luajit" in line)
    program = tmp_path / "lines.lua"
    program.write_text(block)
    where = {name: value for name, value in os.environ.items() if not name.startswith("LUA")}
    output = run(line.replace("lines.lua", str(program)), ROOT, shell=True, env=where)
    written = tiny.generate("def read_lines(path):\n", max_new_tokens=40, temperature=0.7, seed=6)
    answer = tiny.generate([{"role": "user", "content": "What is 17 + 25?"}], seed=1)
    assert output == f"{written}\n{answer}\n"


def test_an_assistant_with_a_tool(tmp_path):
    """In 15 lines of Python and 20 of Lua."""
    block = blocks("python", CHAT)[0]
    assert len(block.split("\n")) <= 16
    assert run([sys.executable, "-c", block], tmp_path) == "The result is 462.\n"
    block = blocks("lua", CHAT)[0]
    assert len(block.split("\n")) <= 21
    program = tmp_path / "assistant.lua"
    program.write_text(block)
    path = {"LUA_PATH": f"{ROOT}/lua/?.lua;{ROOT}/lua/?/init.lua;;"}
    assert run(["luajit", str(program)], tmp_path, env={**os.environ, **path}) == (
        "The result is 462.\n")


def test_the_commands_are_there():
    """Every `make` target and every `minimax2` command that it names."""
    shells = "\n".join(blocks("sh"))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", shells, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    asked, = re.findall(r'`minimax2 (chat "[^`]*)`', README)
    command = f"{sys.executable} -m minimax2 {asked} --seed 1 -n 500"
    output = subprocess.run(command, cwd=ROOT, shell=True, check=True, text=True, timeout=120,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout  # thinking
    answer = mm.load().chat(seed=1, max_new_tokens=500).send("What is 17 + 25?")
    assert output == f"{answer}\n"


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target

"""What type checkers are told: the package is strictly typed, and so are its users' lines."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MYPY = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / "build" / "mypy")]


def mypy(*arguments):
    """What mypy says, line by line."""
    done = subprocess.run([*MYPY, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr
    return done.stdout.splitlines()


def test_the_package_is_strictly_typed():
    lines = mypy("--no-error-summary")
    assert not lines, "\n".join(lines)


USER = """
    import minimax2 as mm

    model = mm.load()
    made = model.generate("x", max_new_tokens=3, temperature=0, stop=["a"], bias={1: 2.0}, hooks=[
        ("resid_post", lambda tensor, tap: None), (("q", 1), lambda tensor, tap: None)])
    reveal_type(made)
    reveal_type(model.generate([1, 2], stream=True, kv_dtype="f32"))
    for piece in model.generate([{"role": "user", "content": "x"}], stream=True):
        reveal_type(piece)
    for tap in model.trace("x", ["q", "k"], layers=[-1]):
        reveal_type(tap.tensor)
        reveal_type(tap.positions)
    logits, cache = model.run_with_cache("x", "resid_post", positions=slice(2))
    reveal_type(cache["resid_post", -1])
    with model.session(context=8) as session, model.chat("Be brief.", seed=1) as chat:
        reveal_type(session.feed("x").logits)
        reveal_type(chat.send("x"))
    model.generate("x", temprature=0)
    model.generate("x", top_k="many")
    model.session(kv_dtype="f64")
    mm.load(isa="sse")
"""


def test_what_a_user_sees(tmp_path):
    program = tmp_path / "user.py"
    program.write_text(textwrap.dedent(USER))
    lines = mypy("--strict", "--no-error-summary", program)
    types = [line.rpartition('"')[0].rpartition('"')[2] for line in lines if "Revealed" in line]
    assert [name.rpartition(".")[2] for name in types] == [
        "Generation", "Stream", "str", "Tensor", "range", "Tensor", "Tensor", "Generation"]
    wrong = {int(line.split(":")[1]) for line in lines if ": error: " in line}
    last = len(program.read_text().splitlines())
    assert wrong == set(range(last - 3, last + 1))


@pytest.mark.parametrize("module", sorted((ROOT / "python" / "minimax2").glob("*.pyi")),
                         ids=lambda path: path.stem)
def test_stubs_say_what_there_is(module):
    """Every name in a stub is there, and every public name is in the stub."""
    import ast
    import importlib

    there = importlib.import_module(f"minimax2.{module.stem}")
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
            has = vars(getattr(there, node.name))
            assert names - {"__buffer__"} <= set(has)
            assert {name for name in has if not name.startswith("_")} <= names
        elif isinstance(node, ast.FunctionDef):
            assert callable(getattr(there, node.name))
        elif isinstance(node, ast.AnnAssign):
            assert hasattr(there, node.target.id)

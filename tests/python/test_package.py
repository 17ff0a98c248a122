"""The package as it is installed: contents, freshness, manners."""

import ctypes
import importlib.metadata
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import minimax2 as mm
import pytest
from minimax2 import _native

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = pathlib.Path(mm.__file__).parent


def test_one_version_everywhere():
    assert mm.__version__ == importlib.metadata.version("minimax2")


def test_the_cdef_of_lua_is_fresh():
    subprocess.run([sys.executable, ROOT / "bindings" / "gen_cdef.py", "--check"], check=True)


def test_the_tables_of_the_models_page_are_fresh():
    done = subprocess.run([sys.executable, ROOT / "docs" / "gen_models.py", "--check"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_cdef_holds_the_whole_header():
    sys.path.insert(0, str(ROOT / "bindings"))
    try:
        import gen_cdef
    finally:
        sys.path.pop(0)
    header = (ROOT / "csrc" / "minimax2.h").read_text()
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    cdef = gen_cdef.cdef()
    for name in set(re.findall(r"\b(?:mm2|MM2)_\w+", code)) - {"MM2_CDEF"}:
        assert re.search(rf"\b{name}\b", cdef), name
    assert cdef.count("{") == code.count("{") - code.count('extern "C" {')


def test_another_abi_is_refused(monkeypatch):
    class Wrong:
        def __getattr__(self, name):
            return (lambda: 999) if name == "mm2_abi" else getattr(_native.lib, name)

    import importlib.util

    import minimax2._cffi
    monkeypatch.setattr(minimax2._cffi, "lib", Wrong())
    spec = importlib.util.find_spec("minimax2._native")
    with pytest.raises(ImportError, match="ABI 999"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_importing_is_silent_and_light():
    code = ("import sys, minimax2; "
            "print(sorted({'numpy', 'tqdm', 'matplotlib', 'torch'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_everything_public_is_documented():
    for name in mm.__all__:
        thing = getattr(mm, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
        if not inspect.isclass(thing) or issubclass(thing, Exception):
            continue
        for attribute, value in vars(thing).items():
            if attribute.startswith("_") or isinstance(value, (str, tuple)):
                continue
            if callable(value) or isinstance(value, (property, classmethod)):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_errors_are_what_a_caller_expects():
    for error, builtin, code in (
            (mm.ArgumentError, ValueError, -1), (mm.OutOfMemory, MemoryError, -2),
            (mm.FileError, OSError, -3), (mm.FormatError, ValueError, -4),
            (mm.ContextFull, Exception, -5), (mm.BusyError, Exception, -6),
            (mm.UnsupportedError, Exception, -7), (mm.NumericError, ArithmeticError, -8)):
        assert issubclass(error, mm.Error) and issubclass(error, builtin) and error.code == code


def test_the_library_keeps_its_hosts_float_mode():
    """A library built with -ffast-math would flush the host's denormals from its load on."""
    mm.load(threads=2)("import os")
    assert float.fromhex("0x1p-1074") / 2 == 0 != float.fromhex("0x1p-1060") / 2
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fegetround() == 0


@pytest.mark.parametrize("lacks, packages", [
    (["libutf8proc"], "libutf8proc-dev"), (["libpcre2-8"], "libpcre2-dev"),
    (["libpcre2-8", "libutf8proc"], "libpcre2-dev libutf8proc-dev"), (None, "pkg-config"),
    ([], None)])
def test_a_build_that_lacks_something_says_what_to_install(tmp_path, lacks, packages):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("make", "cc", "sh"):
        (tools / tool).symlink_to(shutil.which(tool))
    if lacks is not None:
        real = shutil.which("pkg-config")
        (tools / "pkg-config").write_text(
            f'#!/bin/sh\ncase "$2" in {"|".join(lacks) or "-"}) exit 1;; esac\nexec {real} "$@"\n')
        (tools / "pkg-config").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PATH": str(tools), "CC": "cc -O2"})
    if packages is None:
        assert (done.returncode, done.stdout) == (0, f"{mm.__version__}\n")
        return
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"on Debian: apt-get install {packages}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, ROOT], check=True)
    made, = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "unpacked")
    return made, folder / "unpacked"


def test_the_wheel_is_complete(wheel):
    made, folder = wheel
    assert re.fullmatch(rf"minimax2-{mm.__version__}-cp311-abi3-linux_\w+\.whl", made.name)
    source = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*")
              if path.is_file() and "__pycache__" not in path.parts}
    packed = {path.relative_to(folder / "minimax2") for path in (folder / "minimax2").rglob("*")
              if path.is_file()}
    assert packed == source
    entry = next(folder.glob("*.dist-info")) / "entry_points.txt"
    assert "minimax2 = minimax2_command:main" in entry.read_text()


def test_the_wheel_works_elsewhere(wheel, tiny):
    code = ("import minimax2 as mm; print(mm.__file__); "
            "print(mm.load().generate('import os', max_new_tokens=9, seed=2).tokens)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=wheel[1], env={"PYTHONPATH": str(wheel[1])})
    where, tokens = done.stdout.splitlines()
    assert where.startswith(str(wheel[1]))
    assert tokens == str(tiny.generate("import os", max_new_tokens=9, seed=2).tokens)


def test_readmes_lines_run_where_it_is_installed(wheel):
    block, = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True,
                          cwd=wheel[1], env={"PYTHONPATH": str(wheel[1])})
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("(2, 4096)\n")

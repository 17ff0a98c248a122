"""The library as programs in C find it: installed, by pkg-config or CMake, shared or static."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import minimax2 as mm
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "c").glob("*.c"))
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(*variables):
    """Of what is built: with the OpenBLAS that it was built with."""
    blas = (ROOT / "build" / "release" / "openblas").read_text(encoding="utf-8").strip()
    run("make", "-s", "-C", ROOT / "csrc", "install", f"OPENBLAS={blas}", *variables)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An installed library."""
    place = tmp_path_factory.mktemp("installed")
    install(f"PREFIX={place}")
    return place


@pytest.fixture(scope="module")
def found(prefix):
    """The environment of somebody who has it there."""
    return {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig"),
            "LD_LIBRARY_PATH": str(prefix / "lib"), "CMAKE_PREFIX_PATH": str(prefix)}


def flags(found, *words):
    return run("pkg-config", *words, "minimax2", env=found).split()


def test_what_is_installed(prefix, found):
    library = prefix / "lib" / "libminimax2.so"
    abi = re.search(r"MM2_ABI = (\d+)", (ROOT / "csrc" / "minimax2.h").read_text())[1]
    assert library.is_symlink() and os.readlink(library) == f"libminimax2.so.{abi}"
    assert run("pkg-config", "--modversion", "minimax2", env=found).strip() == mm.__version__
    names = {path.relative_to(prefix).as_posix() for path in prefix.rglob("*") if path.is_file()}
    assert names == {"include/minimax2.h", "lib/libminimax2.so", f"lib/libminimax2.so.{abi}",
                     "lib/libminimax2.a", "lib/pkgconfig/minimax2.pc",
                     "lib/cmake/minimax2/minimax2-config.cmake"}


def test_it_is_staged_for_packages(tmp_path):
    """DESTDIR is a place to pack, and no file names it."""
    install(f"DESTDIR={tmp_path}", "PREFIX=/usr", "LIBDIR=/usr/lib/there")
    folder = tmp_path / "usr" / "lib" / "there"
    text = (folder / "pkgconfig" / "minimax2.pc").read_text()
    text += (folder / "cmake" / "minimax2" / "minimax2-config.cmake").read_text()
    assert "libdir=/usr/lib/there\n" in text and str(tmp_path) not in text
    assert not re.search("@[A-Z]+@", text)


@pytest.mark.parametrize("compiler, standard", [
    ("gcc", "c11"), ("gcc", "c17"), ("g++", "c++11"), ("g++", "c++17"), ("clang", "c11")])
def test_the_header_stands_alone(compiler, standard, found, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    source = tmp_path / ("a.cc" if "+" in standard else "a.c")
    source.write_text("#include <minimax2.h>\nint main(void) { return mm2_abi() != MM2_ABI; }\n")
    run(compiler, f"-std={standard}", *STRICT, source, *flags(found, "--cflags", "--libs"),
        "-o", tmp_path / "a")
    run(tmp_path / "a", env=found)


SAYS = {"generate": ("def read_lines(path):", r"[^\n]+\n"),
        "look": ("import os", r"as it is:  ( +[\d.]+){5}\nwithout attn 0:( +[\d.]+){5}\n"),
        "together": ("import ", r"--- import [^-]+"),
        "tokens": ("def f(x):", r"( *\d+  \".*\"\n)+")}


@pytest.mark.parametrize("linked", ["shared", "static"])
@pytest.mark.parametrize("source", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples(source, linked, found, prefix, tiny, tmp_path):
    program, text = tmp_path / source.stem, source.read_text()
    libraries = flags(found, "--libs", "--static") if linked == "static" else flags(found, "--libs")
    if linked == "static":
        libraries = [prefix / "lib" / "libminimax2.a" if word == "-lminimax2" else word
                     for word in libraries]
    run("gcc", "-std=c11", *STRICT, source, *flags(found, "--cflags"), *libraries, "-lm", "-o",
        program)
    assert f"cc {source.name} $(pkg-config --cflags --libs minimax2)" in text
    prompt, pattern = SAYS[source.stem]
    path = tiny.path / "tokenizer.json" if source.stem == "tokens" else tiny.path
    environment = found if linked == "shared" else {**os.environ, "LD_LIBRARY_PATH": ""}
    assert re.search(pattern, run(program, path, prompt, env=environment))
    done = subprocess.run([program, "/no/such/model", "x"], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 1 and "/no/such/model" in done.stderr
    assert subprocess.run([program], capture_output=True, env=environment).returncode == 2


def test_cmake_finds_it(found, prefix, tmp_path):
    if not shutil.which("cmake"):
        pytest.skip("there is no cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(x C)\nfind_package(minimax2 REQUIRED)\n"
        f"add_executable(x {EXAMPLES[0]})\ntarget_link_libraries(x minimax2::minimax2 m)\n")
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", env=found)
    run("cmake", "--build", tmp_path / "b", env=found)
    assert (tmp_path / "b" / "x").exists()

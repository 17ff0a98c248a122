"""bindings/check_sync.py: the tree is in step, and every check finds the violation it is for."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "release" / "libminimax2.so"

sys.path.insert(0, str(ROOT / "bindings"))
import check_sync  # noqa: E402
import gen_cdef  # noqa: E402


def run(root, library):
    done = subprocess.run([sys.executable, str(root / "bindings" / "check_sync.py"), str(library)],
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def build(folder, names, extra=""):
    """A library of empty functions, quicker to make than the real one."""
    source = folder / "library.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names) + extra)
    library = folder / "libminimax2.so"
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-shared", "-fPIC", "-w",
                    "-fno-builtin", str(source), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def names():
    return re.findall(r"\b(mm2_\w+)\(", gen_cdef.cdef())


@pytest.fixture
def tree(tmp_path, names):
    """A copy of the sources, with a library that exports what it should."""
    for folder in ("csrc", "bindings", "lua/minimax2", "python/minimax2"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(
            "m2-tiny", "*.so", "__pycache__", "_cffi.c"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    build(tmp_path, names)
    return tmp_path


def check(tree):
    return run(tree, tree / "libminimax2.so")


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new))


def test_this_tree_is_in_step():
    if not LIBRARY.exists():
        pytest.skip("build/release/libminimax2.so is not built: run make lib")
    code, output = run(ROOT, LIBRARY)
    assert code == 0, output


def test_a_copy_of_it_is_too(tree):
    code, output = check(tree)
    assert code == 0, output


def violation(tree, *sentences):
    code, output = check(tree)
    assert code == 1, output
    for sentence in sentences:
        assert sentence in output.splitlines(), output


def test_a_library_that_is_missing(tree):
    (tree / "libminimax2.so").unlink()
    violation(tree, f"{tree / 'libminimax2.so'} is not built: run make lib")


def test_exports(tree, names):
    build(tree, names[1:] + ["mm2_model_secret", "helper"])
    violation(tree,
              f"libminimax2.so does not export {names[0]}, which is in minimax2.h",
              "libminimax2.so exports mm2_model_secret, which is not in minimax2.h",
              "libminimax2.so exports helper, which is not in minimax2.h")


@pytest.mark.parametrize("name", [
    "abort", "exit", "_exit", "__assert_fail", "printf", "fprintf", "snprintf", "vsnprintf",
    "__snprintf_chk", "__vfprintf_chk", "puts", "fputs", "putchar", "fwrite", "perror", "signal",
    "sigaction", "raise", "setlocale", "setenv", "system", "longjmp", "__longjmp_chk"])
def test_imports(tree, names, name):
    build(tree, names, f"int {name}(); static int call(void) {{ return {name}(); }}\n"
                       "__attribute__((visibility(\"hidden\"), used)) int (*kept)(void) = call;")
    violation(tree, f"libminimax2.so calls {name}, which a library must leave to its host")


def test_imports_that_are_fine(names):
    for name in ("malloc", "pthread_sigmask", "__stack_chk_fail", "mmap", "sprintf_l", "exp",
                 "strerror_r", "atexit", "__cxa_finalize", "inputs"):
        assert not check_sync.BANNED.fullmatch(name), name


def test_a_function_that_only_the_header_has(tree, names):
    edit(tree / "csrc" / "minimax2.h", "uint32_t mm2_abi(void);",
         "uint32_t mm2_abi(void);\n\nint32_t mm2_thing_count(void);")
    violation(tree,
              "libminimax2.so does not export mm2_thing_count, which is in minimax2.h",
              "minimax2.h has no comment on mm2_thing_count",
              "lua/minimax2/cdef.lua is not what bindings/gen_cdef.py writes: run it",
              "the lua binding does not use mm2_thing_count",
              "the python binding does not use mm2_thing_count")


def test_comments_count_before_and_behind_a_function(tree, names):
    header = tree / "csrc" / "minimax2.h"
    edit(header, "uint32_t mm2_abi(void);",
         "uint32_t mm2_abi(void);\n\nint32_t mm2_one(void); /* one */\n\n/* two */\n"
         "int32_t mm2_two(void);\n\nint32_t mm2_three(void);\nint32_t mm2_four(void); /* four */\n")
    output = check(tree)[1]
    told = set(re.findall(r"no comment on (\w+)", output))
    assert told == {"mm2_three"}, output


def test_bindings_that_do_not_use_a_function(tree):
    edit(tree / "lua/minimax2/session.lua", "lib.mm2_session_interrupt(", "pcall(")
    edit(tree / "python/minimax2/_native.py", "lib.mm2_session_interrupt(", "print(")
    violation(tree,
              "the lua binding does not use mm2_session_interrupt",
              "the python binding does not use mm2_session_interrupt")


def test_uses_in_comments_do_not_count(tree):
    edit(tree / "lua/minimax2/session.lua", "    lib.mm2_session_interrupt(",
         "    -- mm2_session_interrupt(")
    violation(tree, "the lua binding does not use mm2_session_interrupt")


def test_excuses_without_need(tree):
    edit(tree / "bindings/check_sync.py", '"lua": {"mm2',
         '"lua": {"mm2_session_run": "x", "mm2_gone": "x", "mm2')
    violation(tree,
              "check_sync.py excuses lua from mm2_session_run without need",
              "check_sync.py excuses lua from mm2_gone without need")


def test_fields_that_a_binding_does_not_use(tree):
    edit(tree / "csrc/minimax2.h", "    int32_t threads;        /* that took part */",
         "    int32_t threads;        /* that took part */\n    double nodes[4], sockets;")
    edit(tree / "csrc/minimax2.h", "    int32_t context;  /* pos",
         "    int32_t pages;\n    int32_t context;  /* pos")
    violation(tree,
              "the lua binding does not use mm2_limits.nodes",
              "the lua binding does not use mm2_limits.sockets",
              "the lua binding does not use mm2_session_options.pages",
              "the python binding does not use mm2_session_options.pages")


def test_a_field_of_another_struct_is_not_enough(tree):
    edit(tree / "csrc/minimax2.h", "    double kv_bytes;",
         "    double kv_bytes;\n    int32_t max_thinking;")
    violation(tree, "the lua binding does not use mm2_cost.max_thinking")


def test_fields_in_comments_do_not_count(tree):
    edit(tree / "lua/minimax2/model.lua", '"threads", "plain_read",',
         '"threads", -- "plain_read"\n')
    violation(tree, "the lua binding does not use mm2_limits.plain_read")


def test_excuses_of_fields_without_need(tree):
    edit(tree / "bindings/check_sync.py", '"lua": {}', '"lua": {"mm2_event.layer": "x"}')
    violation(tree, "check_sync.py excuses lua from mm2_event.layer without need")


def test_versions(tree):
    edit(tree / "csrc/api.c", '"0.1.0"', '"0.2.0"')
    edit(tree / "pyproject.toml", 'dynamic = ["version"]', 'version = "0.1.0"')
    violation(tree, "minimax2.h speaks of version 0.1.0, csrc/api.c is 0.2.0",
              "pyproject.toml has a version of its own; setup.py takes that of csrc/api.c")


def test_one_module_alone_touches_the_library(tree):
    with (tree / "lua/minimax2/model.lua").open("a") as file:
        file.write("local libc = ffi.C\n")
    with (tree / "python/minimax2/model.py").open("a") as file:
        file.write("from minimax2._cffi import lib\n")
    violation(tree,
              "lua/minimax2/model.lua touches the library itself; native.lua alone may",
              "python/minimax2/model.py touches the library itself; _native.py and "
              "_native_text.py alone may")


def test_a_cdef_of_cffi_s_own(tree):
    edit(tree / "bindings/cffi_build.py", "gen_cdef.cdef()", "open('old.h').read()")
    violation(tree, "bindings/cffi_build.py does not take its cdef from bindings/gen_cdef.py")


def test_layers(tree, names):
    csrc = tree / "csrc"
    (csrc / "base" / "wrong.c").write_text('#include "base/status.h"\n#include "tensor/dtype.h"\n'
                                           '  #  include "status.h"\n#include "base/absent.h"\n'
                                           '#include <stdlib.h>\n#include "minimax2.h"\n')
    (csrc / "text" / "right.c").write_text('#include "kernels/kernels.h"\n'
                                           '#include "text/tokenizer.h"\n')
    (csrc / "text" / "left.h").write_text('#include "model/model.h"\n')
    (csrc / "odd").mkdir()
    (csrc / "odd" / "odd.c").write_text("")
    violation(tree,
              "csrc/base/wrong.c includes tensor/dtype.h: base may not use the layer tensor",
              "csrc/base/wrong.c includes status.h, which is no file of csrc",
              "csrc/base/wrong.c includes base/absent.h, which is no file of csrc",
              "csrc/text/left.h includes model/model.h: text may not use the layer model",
              "csrc/odd/odd.c is in no layer: base < tensor < kernels < text < model < run < api",
              f"check_sync: {len(names)} functions, 5 violations")


def test_file_names(tree):
    (tree / "csrc" / "run" / "status.c").write_text("")
    violation(tree, "csrc has two files called status.c: base/status.c and run/status.c")


def test_long_files_are_a_warning_only(tree):
    (tree / "csrc" / "run" / "long.c").write_text("\n" * 801)
    code, output = check(tree)
    assert code == 0
    assert "warning: csrc/run/long.c has 801 lines, more than 800" in output.splitlines()

"""The cffi module minimax2._cffi: every function of csrc/minimax2.h, compiled (API mode).

setup.py names `ffibuilder` in cffi_modules. The module and libminimax2.so lie in one folder, which
is all its run path says.
"""

import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bindings"))

import gen_cdef  # noqa: E402  (lies beside this file)

ffibuilder = cffi.FFI()
ffibuilder.cdef(gen_cdef.cdef())
ffibuilder.set_source(
    "minimax2._cffi",
    '#include "minimax2.h"',
    include_dirs=[str(ROOT / "csrc")],
    library_dirs=[str(ROOT / "build" / "release")],
    libraries=["minimax2"],
    extra_link_args=["-Wl,-rpath,$ORIGIN"],
    py_limited_api=True,
)

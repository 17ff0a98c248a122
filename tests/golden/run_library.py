"""Runs prompts through one build of libminimax2.so, without the Python package.

    python tests/golden/run_library.py LIBRARY CDEF JOBS OUT.npz

CDEF holds `make -C csrc cdef`. JOBS is JSON: {name: [checkpoint directory, [token ids], precision]}
with precision "exact" or "fast". OUT gets the logits of each, float32
[n, vocab_size], by the reference kernels with a float32 KV cache. test_sabotage.py gives it
libraries that are wrong on purpose, so it is a process of its own.
"""

import json
import pathlib
import sys

import cffi
import numpy as np


def checked(ffi, lib, status):
    if status < 0:
        sys.exit(ffi.string(lib.mm2_error()).decode())
    return status


def logits(ffi, lib, directory, ids, precision):
    options = ffi.new("mm2_model_options *", {"size": ffi.sizeof("mm2_model_options")})
    lib.mm2_model_options_init(options)
    options.isa, options.threads = lib.MM2_ISA_REF, 2
    options.precision = getattr(lib, f"MM2_PRECISION_{precision.upper()}")
    model, session = ffi.new("mm2_model **"), ffi.new("mm2_session **")
    checked(ffi, lib, lib.mm2_model_open(model, directory.encode(), options))
    options = ffi.new("mm2_session_options *", {"size": ffi.sizeof("mm2_session_options")})
    lib.mm2_session_options_init(options)
    options.context, options.kv_dtype, options.chunk = len(ids), lib.MM2_F32, 64
    checked(ffi, lib, lib.mm2_session_new(session, model[0], options))
    checked(ffi, lib, lib.mm2_session_tap(session[0], lib.MM2_POINT_LOGITS, -1, 1))
    checked(ffi, lib, lib.mm2_session_feed(session[0], ids, len(ids)))
    event, rows = ffi.new("mm2_event *", {"size": ffi.sizeof("mm2_event")}), []
    while checked(ffi, lib, lib.mm2_session_run(session[0], 0, event)) != lib.MM2_OK:
        view = event.tensor
        floats = np.frombuffer(ffi.buffer(view.data, view.nbytes), np.float32)
        rows.append(floats.reshape(view.shape[0], view.shape[1]).copy())
    lib.mm2_session_free(session[0])
    lib.mm2_model_release(model[0])
    return np.concatenate(rows)


def main():
    library, cdef, jobs, out = sys.argv[1:]
    ffi = cffi.FFI()
    ffi.cdef(pathlib.Path(cdef).read_text())
    lib = ffi.dlopen(library)
    jobs = json.loads(pathlib.Path(jobs).read_text())
    np.savez(out, **{name: logits(ffi, lib, *job) for name, job in jobs.items()})


if __name__ == "__main__":
    main()

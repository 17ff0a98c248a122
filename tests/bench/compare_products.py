"""The kernels' matrix products beside OpenBLAS's and torch's, in turns, on one thread.

    make lib && python tests/bench/compare_products.py --format bf16,q8_0,q4_k

Weights are 1536 x 3072. Ours unpack them from the file's layout in every call; OpenBLAS (numpy's)
and torch are given matrices in their own types. Activations are prepared before in all of them.
Every turn runs every contestant once; medians count, in units of 10^12 operations a second (a
multiplication and an addition are two). Torch is left out where it is not installed.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import argparse  # noqa: E402
import ctypes  # noqa: E402
import datetime  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import weakref  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import minimax2 as mm  # noqa: E402
import numpy  # noqa: E402
from compare import HERE, append_rows, commit, this_machine  # noqa: E402
from minimax2._native import DTYPES, ISAS  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

N_OUT, N_IN = 1536, 3072
ROWS = (1, 16, 64, 256, 512)
COLUMNS = ("date", "commit", "product", *(f"{rows} rows" if rows > 1 else "1 row" for rows in ROWS))
HEAD = f"""# Products on {{machine}}

Written by `tests/bench/compare_products.py`, which describes the method: {N_OUT} x {N_IN} weights,
one thread, 10^12 operations a second.

"""


def compile_products(folder):
    """product.c and the library's objects as a ctypes library."""
    root = HERE.parents[1]
    objects = [str(path) for layer in ("kernels", "tensor", "base")
               for path in sorted((root / "build" / "release" / layer).glob("*.o"))]
    if not objects:
        sys.exit(f"{root}/build/release holds no objects: run `make lib` first")
    path = Path(folder) / "product.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", f"-I{root / 'csrc'}", HERE / "product.c",
                    *objects, "-lm", "-lpthread", "-ldl", "-o", path], check=True)
    library = ctypes.CDLL(str(path))
    library.product_error.restype = ctypes.c_char_p
    library.product_new.restype = ctypes.c_void_p
    library.product_run.argtypes = library.product_free.argtypes = [ctypes.c_void_p]
    library.product_run.restype = ctypes.c_double
    return library


def ours(library, format, isa, rows):
    """A callable that runs our product once and returns its seconds."""
    handle = library.product_new(ISAS[isa], DTYPES[format], rows, N_OUT, N_IN)
    if not handle:
        sys.exit(f"{isa} {format}: {library.product_error().decode()}")

    def run():
        return library.product_run(handle)
    weakref.finalize(run, library.product_free, handle)
    return run


def timed(function, *operands, **options):
    """A callable that calls once and returns the seconds."""
    def run():
        start = time.perf_counter()
        function(*operands, **options)
        return time.perf_counter() - start
    return run


def openblas(rows):
    """x @ w.T in float32."""
    random = numpy.random.default_rng(0)
    w = random.standard_normal((N_OUT, N_IN), numpy.float32)
    x = random.standard_normal((rows, N_IN), numpy.float32)
    return timed(numpy.matmul, x, w.T, out=numpy.empty((rows, N_OUT), numpy.float32))


def torch_bf16(torch, rows):
    """addmm in bfloat16."""
    w, x = (torch.randn(n, N_IN).bfloat16() for n in (N_OUT, rows))
    return timed(torch.addmm, torch.zeros(N_OUT, dtype=torch.bfloat16), x, w.T)


def torch_int8(torch, rows):
    """int8 by int8 to int32."""
    w, x = (torch.randint(-127, 128, (n, N_IN), dtype=torch.int8) for n in (N_OUT, rows))
    return timed(torch._int_mm, x, w.T)


def contestants(library, arguments):
    """{name: callable(rows) that gives a callable}."""
    made = {f"minimax2 {isa} {name}": partial(ours, library, name, isa)
            for isa in arguments.isa.split(",") for name in arguments.format.split(",")}
    blas = numpy.show_config("dicts")["Build Dependencies"]["blas"]
    made[f"{blas['name']} {blas['version']} f32"] = openblas
    try:
        import torch
    except ImportError:
        print("torch is not installed: left out", file=sys.stderr)
        return made
    torch.set_num_threads(1)
    version = torch.__version__
    made[f"torch {version} bf16 addmm"] = partial(torch_bf16, torch)
    made[f"torch {version} int8 _int_mm"] = partial(torch_int8, torch)
    return made


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", default="f32,bf16,f8_e4m3,q8_0,q4_k,q6_k,iq4_xs,q2_k",
                        metavar="NAMES", help="of ours (%(default)s)")
    parser.add_argument("--isa", default=mm.cpu().split()[0], metavar="NAMES",
                        help="of ours: ref, avx2, avx512, amx, blas; default: best, %(default)s")
    parser.add_argument("--repeat", type=int, default=9, metavar="N", help="turns (9)")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="PATH",
                        help="folder of the tables")
    arguments = parser.parse_args(argv)
    for given, known in (arguments.format, DTYPES), (arguments.isa, ISAS):
        for name in given.split(","):
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        makers = contestants(compile_products(folder), arguments)
        for rows in ROWS:
            runs = {name: make(rows) for name, make in makers.items()}
            seconds = {name: [] for name in runs}
            for turn in tqdm(range(-1, arguments.repeat), desc=f"{rows} rows", leave=False,
                             disable=None):
                for name, run in runs.items():
                    seconds[name].append(run())
            for name, times in seconds.items():
                rate = 2e-12 * rows * N_OUT * N_IN / statistics.median(times[1:])  # first: warm-up
                speeds.setdefault(name, []).append(f"{rate:.3f}")
    print(f"{'10^12 operations/s, rows:':<36}" + "".join(f"{rows:>9}" for rows in ROWS))
    for name, figures in speeds.items():
        print(f"{name:<36}" + "".join(f"{figure:>9}" for figure in figures))
    machine, date, revision = this_machine(), datetime.date.today().isoformat(), commit()
    append_rows(arguments.results / f"{machine}-products.md", HEAD.format(machine=machine), COLUMNS,
                [(date, revision, name, *figures) for name, figures in speeds.items()])


if __name__ == "__main__":
    main()

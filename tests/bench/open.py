"""How long opening a large checkpoint takes, cold and warm.

    python tests/bench/open.py [GIGABYTES] [DIRECTORY]      default: 10, the temporary directory

Writes a sparse GGUF file and a sparse set of safetensors files: real headers of full width, no
weights, and the vendor's tokenizer if MINIMAX2_VENDOR_DATA names the folder that holds it. Cold:
the files' pages were dropped from the page cache (the directory entries were not). The bar is 0.2 s
for 10 GB.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import minimax2 as mm
from minimax2 import synth, writing

LAYER = {"q4_k": 2.04e9, "fp8": 3.63e9}  # bytes of a layer, 256 experts
ROUNDS = 7


def skip(file, piece, report):
    """In the place of what writes a tensor: a hole."""
    file.truncate(file.seek(piece.nbytes, os.SEEK_CUR))


def drop(path):
    """The files' pages leave the page cache."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def seconds(path, cold):
    """Median and longest of ROUNDS openings."""
    taken = []
    for _ in range(ROUNDS):
        if cold:
            drop(path)
        start = time.perf_counter()
        model = mm.load(path)
        taken.append(time.perf_counter() - start)
        model.close()
    return statistics.median(taken), max(taken)


def main(gigabytes=10.0, directory=None):
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for name, format in (("sparse.gguf", "q4_k"), ("sparse", "fp8")):
            path = Path(folder) / name
            layers = max(1, round(float(gigabytes) * 1e9 / LAYER[format]))
            with mock.patch.object(writing, "_write_piece", skip):
                size = synth.synth(path, layers=layers, format=format,
                                   tokenizer=os.environ.get("MINIMAX2_VENDOR_DATA"))
            for cold in (True, False):
                middle, most = seconds(path, cold)
                print(f"{name:12} {size / 1e9:5.1f} GB, {layers} layers, "
                      f"{'cold' if cold else 'warm'}: {middle:.3f} s (longest {most:.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Checkpoints written piece by piece: safetensors and GGUF files, whole or not at all.

A piece is a tensor whose bytes come in chunks, so memory stays bounded whatever its size. What is
written stands under a temporary name until it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from minimax2.errors import FileError

ALIGNMENT = 32  # of tensors in a GGUF file
SHARD = 5_000_000_000  # bytes of one safetensors file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Piece(NamedTuple):
    """A tensor to write."""

    name: str
    type: Any
    """Its dtype's name in safetensors, or number in GGUF."""
    shape: tuple[int, ...]
    """Outermost dimension first."""
    nbytes: int
    chunks: Callable[[], Iterable[Any]]
    """The bytes in order, as C-contiguous buffers."""


class Report:
    """Counts bytes and tells whoever wants to know."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress:
            self.progress(self.done, self.total)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A Progress where somebody looks; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(unit="B", unit_scale=True, leave=False) as bar:
        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.reset(total)  # draws; update() draws only now and then
            bar.update(done - bar.n)

        yield progress


@contextlib.contextmanager
def claimed(path: Path, total: int, is_directory: bool) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed at the end, removed on failure."""
    if path.is_dir() and (any(path.iterdir()) or not is_directory):
        raise FileError(f"{path}: exists; only an empty directory is replaced, by a directory")
    if path.is_file() and (path.stat().st_size or is_directory):
        raise FileError(f"{path}: exists; only an empty file is replaced, by a file")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise FileError(f"{parent}: no such directory")
    free = shutil.disk_usage(parent).free
    if total > free:
        raise FileError(f"{path}: needs {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    part = parent / (path.name + ".partial")
    try:
        if is_directory:
            part.mkdir()
        else:
            part.touch(exist_ok=False)
    except FileExistsError:
        raise FileError(f"{part}: exists: another run writes it, or one was killed; then remove "
                        "it") from None
    try:
        yield part
        part.replace(path)
    except BaseException as error:
        if is_directory:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise FileError(f"{path}: {error.strerror}, of {total / 1e9:.1f} GB; nothing is left "
                            "of it") from error
        raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def _write_piece(file: BinaryIO, piece: Piece, report: Report) -> None:
    for chunk in piece.chunks():
        view = memoryview(chunk).cast("B")
        file.write(view)
        report(view.nbytes)


def write_json(path: Path, value: Any) -> None:
    """A JSON document for people and programs."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ---- safetensors ----

def write_safetensors(folder: Path, pieces: Sequence[Piece], shard: int, report: Report) -> None:
    """One model.safetensors, or shards of about `shard` bytes and their index."""
    shards: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not shards or piece.nbytes > room:
            shards.append([])
            room = shard
        shards[-1].append(piece)
        room -= piece.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, members in zip(names, shards):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for piece in members:
            header[piece.name] = {"dtype": piece.type, "shape": piece.shape,
                                  "data_offsets": [at, at + piece.nbytes]}
            at += piece.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for piece in members:
                _write_piece(file, piece, report)
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {
            "metadata": {"total_size": sum(piece.nbytes for piece in pieces)},
            "weight_map": {piece.name: name for name, members in zip(names, shards)
                           for piece in members}})


# ---- GGUF ----

def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: Any) -> bytes:
    """One metadata pair. int: uint32; float: float32; bool; str; lists of str or int."""
    head = _string(key)
    if isinstance(value, bool):
        return head + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], int):
        return head + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))


def write_gguf(path: Path, metadata: Mapping[str, Any], pieces: Sequence[Piece],
               report: Report) -> None:
    """One file; metadata: values as _pair() takes them."""
    header = [b"GGUF", struct.pack("<IQQ", 3, len(pieces), len(metadata))]
    header += [_pair(key, value) for key, value in metadata.items()]
    offset = 0
    for piece in pieces:
        shape = piece.shape[::-1]
        header.append(_string(piece.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape,
                                                        piece.type, offset))
        offset += -(-piece.nbytes // ALIGNMENT) * ALIGNMENT
    with open(path, "wb") as file:
        file.write(b"".join(header))
        for piece in pieces:
            file.write(bytes(-file.tell() % ALIGNMENT))
            _write_piece(file, piece, report)

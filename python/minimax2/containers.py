"""The headers of checkpoints: which tensors there are, of which types, and where their bytes lie.

The library opens what it can run. This reads what is there: types that no kernel multiplies, or
that nobody knows, have a name and a size here too. No weights are read but those that somebody asks
for.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from minimax2 import _native
from minimax2.errors import FormatError, file_error
from minimax2.formats import GGML

# Bytes of an element, by the names that safetensors has.
SAFETENSORS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2,
               "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8,
               "F64": 8, "C64": 8}
SCALARS = "BbHhIif?sAQqd"  # of GGUF's metadata, as struct has them; s a string, A an array
ALIGNMENT = 32  # of tensors in GGUF, unless the file says another
KEPT = 16  # items of an array that are kept
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class Entry(NamedTuple):
    """A tensor in a file."""

    name: str
    dtype: str
    """The library's name, or for types that it does not know that of their makers."""
    shape: tuple[int, ...]
    """Outermost dimension first, in elements as they are stored."""
    file: Path
    offset: int
    nbytes: int
    """Of types without a known size: up to the next tensor."""


class Container:
    """A checkpoint's tensors and facts; a context manager that closes the files.

    format: "gguf" or "safetensors". entries: {name: Entry}, in the order of the files. facts: the
    metadata of GGUF (of arrays the first items), or config.json. Raises FileError, FormatError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.entries: dict[str, Entry] = {}
        self.facts: dict[str, Any] = {}
        self.files: list[Path] = []
        self._open: dict[Path, int] = {}
        try:
            gguf = _find_gguf(self.path)
            self.format = "gguf" if gguf else "safetensors"
            for file in gguf:
                facts = self._read_gguf(file)
                self.facts = self.facts or facts
            if not gguf:
                self._read_safetensors()
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise
            raise file_error(f"{error.filename}: cannot open it: {error.strerror}") from None

    def read(self, entry: Entry, first: int = 0, count: int | None = None) -> bytes:
        """Bytes [first, first + count) of a tensor; count None: to its end."""
        if entry.file not in self._open:
            self._open[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        wanted = entry.nbytes - first if count is None else count
        data = b""
        while len(data) < wanted:  # one call reads 2 GiB at most
            part = os.pread(self._open[entry.file], wanted - len(data),
                            entry.offset + first + len(data))
            if not part:
                raise FormatError(f"{entry.file}: ends within tensor {entry.name!r}: is it cut "
                                  "short?")
            data = data + part if data else part
        return data

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add(self, entry: Entry) -> None:
        if entry.name in self.entries:
            raise FormatError(f"{entry.file}: tensor {entry.name!r} appears twice")
        self.entries[entry.name] = entry

    # ---- safetensors ----

    def _read_safetensors(self) -> None:
        self.facts = _read_json(self.path / "config.json")
        index = self.path / "model.safetensors.index.json"
        if not index.exists():
            self._read_shard(self.path / "model.safetensors", None)
            return
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
            raise FormatError(f"{index}: weight_map is no object of file names")
        for name in dict.fromkeys(places.values()):
            if "/" in name:
                raise FormatError(f"{index}: {name!r} is no name of a file beside it")
            self._read_shard(self.path / name, places)

    def _read_shard(self, file: Path, places: dict[str, str] | None) -> None:
        """places: of tensors by the index; what it does not place here is left alone."""
        self.files.append(file)
        size = file.stat().st_size
        with open(file, "rb") as opened:
            head = opened.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > size - 8:
                raise FormatError(f"{file}: is no safetensors file: its header would be {length} "
                                  f"bytes long, the file is {size}")
            header = _parse_json(file, opened.read(length))
        for name, fields in header.items():
            if name == "__metadata__" or places is not None and places.get(name) != file.name:
                continue
            try:
                kind, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
                begin, end = (int(n) for n in fields["data_offsets"])
            except (KeyError, TypeError, ValueError):
                raise FormatError(f"{file}: tensor {name!r} has no dtype, shape and "
                                  "data_offsets") from None
            if not 0 <= begin <= end <= size - 8 - length:
                raise FormatError(f"{file}: tensor {name!r} claims bytes {begin} to {end} of "
                                  f"{size - 8 - length}: is the file cut short?")
            self._add(Entry(name, kind.lower(), shape, file, 8 + length + begin, end - begin))

    # ---- GGUF ----

    def _read_gguf(self, file: Path) -> dict[str, Any]:
        """Adds the tensors of one file; its metadata."""
        self.files.append(file)
        with open(file, "rb") as opened:
            try:
                data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise FormatError(f"{file}: the file is empty") from None
        with data:
            try:
                return self._parse_gguf(file, data)
            except (struct.error, IndexError, OverflowError, RecursionError, UnicodeDecodeError):
                raise FormatError(f"{file}: its header is damaged, or cut short") from None

    def _parse_gguf(self, file: Path, data: mmap.mmap) -> dict[str, Any]:
        at = 4

        def take(form: str) -> Any:
            nonlocal at
            value = struct.unpack_from("<" + form, data, at)[0]
            at += struct.calcsize("<" + form)
            return value

        def text() -> str:
            nonlocal at
            length = take("Q")
            if length > len(data) - at:
                raise IndexError
            at += length
            return data[at - length:at].decode()

        def value(kind: int) -> Any:
            nonlocal at
            form = SCALARS[kind]
            if form == "s":
                return text()
            if form != "A":
                return take(form)
            item, count = take("I"), take("Q")
            width = 8 if SCALARS[item] in "sA" else struct.calcsize("<" + SCALARS[item])
            if count > (len(data) - at) // width:
                raise IndexError
            kept = [value(item) for _ in range(min(count, KEPT))]
            if SCALARS[item] in "sA":
                for _ in range(count - len(kept)):
                    value(item)
            else:
                at += (count - len(kept)) * width
            return kept

        if data[:4] != b"GGUF":
            raise FormatError(f'{file}: does not begin with "GGUF": expected a GGUF file, or the '
                              "directory of a Hugging Face checkpoint")
        version, tensors, pairs = take("I"), take("Q"), take("Q")
        if version not in (2, 3):
            raise FormatError(f"{file}: is GGUF of version {version}, expected 2 or 3")
        facts = {text(): value(take("I")) for _ in range(pairs)}
        infos = []
        for _ in range(tensors):
            name, rank = text(), take("I")
            shape = tuple(take("Q") for _ in range(rank))[::-1]
            infos.append((name, shape, take("I"), take("Q")))
        alignment = facts.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise FormatError(f"{file}: general.alignment is {alignment!r}")
        start = -(-at // alignment) * alignment
        ends = sorted({offset for *_, offset in infos} | {len(data) - start})
        after = dict(zip(ends, ends[1:]))
        for name, shape, kind, offset in infos:
            room = after.get(offset)
            if room is None:
                raise FormatError(f"{file}: tensor {name!r} begins at byte {start + offset} of "
                                  f"{len(data)}: is the file cut short?")
            dtype = GGML.get(kind, f"type {kind}")
            nbytes = _nbytes(dtype, shape)
            if nbytes is not None and nbytes > room - offset:
                raise FormatError(f"{file}: tensor {name!r} needs {nbytes} bytes at byte "
                                  f"{start + offset}, {room - offset} are there")
            self._add(Entry(name, dtype, shape, file, start + offset,
                            room - offset if nbytes is None else nbytes))
        return facts


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, if the library knows its type."""
    if dtype not in _native.DTYPES:
        return None
    count = 1
    for size in shape:
        count *= size
    return count // _native.dtype_block(dtype) * _native.dtype_bytes(dtype)


def _parse_json(file: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}: holds no JSON object")
    return value


def _read_json(file: Path) -> dict[str, Any]:
    return _parse_json(file, file.read_bytes())


def _find_gguf(path: Path) -> list[Path]:
    """The GGUF files of a path; empty: a directory of safetensors."""
    if not path.is_dir():
        return list(_parts(path))
    if (path / "config.json").exists() and any(
            (path / name).exists() for name in ("model.safetensors.index.json",
                                                "model.safetensors")):
        return []
    found = sorted(path.glob("[!.]*.gguf"))
    sets = {_stem(file): file for file in reversed(found)}
    if not found:
        raise FormatError(f"{path}: holds no checkpoint: expected config.json with safetensors, or "
                          "a .gguf file")
    if len(sets) > 1:
        raise FormatError(f"{path}: holds more than one GGUF checkpoint "
                          f"({', '.join(file.name for file in sets.values())}): name the file")
    return list(_parts(found[0]))


def _stem(file: Path) -> str:
    match = SPLIT.fullmatch(file.name)
    return f"{match[1]} of {match[3]}" if match else file.name


def _parts(file: Path) -> Iterator[Path]:
    """All files of the set that this one belongs to."""
    match = SPLIT.fullmatch(file.name)
    if not match:
        yield file
        return
    for number in range(1, int(match[3]) + 1):
        yield file.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf")

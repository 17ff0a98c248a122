"""Containers taken apart and put together again, so that tests can change any byte on purpose."""

import json
import struct

SCALAR = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by type
STRING, ARRAY = 8, 9


class Info:
    """A tensor in a GGUF header: name (bytes), dims (innermost first), type, offset."""

    def __init__(self, name, dims, type, offset):
        self.name, self.dims, self.type, self.offset = name, dims, type, offset

    def build(self):
        return (struct.pack("<Q", len(self.name)) + self.name +
                struct.pack(f"<I{len(self.dims)}QIQ", len(self.dims), *self.dims, self.type,
                            self.offset))


class Gguf:
    """version, pairs [[key, type, payload]], infos [Info], data; build() gives a file's bytes.

    n_pairs and n_tensors override the counts that the header states.
    """

    def __init__(self, pairs, infos, data, alignment=32):
        self.version, self.pairs, self.infos, self.data = 3, pairs, infos, data
        self.n_pairs = self.n_tensors = None
        self.alignment = alignment

    @classmethod
    def parse(cls, file):
        at = 4

        def take(form):
            nonlocal at
            values = struct.unpack_from("<" + form, file, at)
            at += struct.calcsize("<" + form)
            return values[0] if len(values) == 1 else list(values)

        def take_bytes():
            nonlocal at
            length = take("Q")
            at += length
            return file[at - length:at]

        def skip(type):
            nonlocal at
            if type == STRING:
                take_bytes()
            elif type == ARRAY:
                item, count = take("I"), take("Q")
                for _ in range(count):
                    skip(item)
            else:
                at += SCALAR[type]

        _, n_tensors, n_pairs = take("I"), take("Q"), take("Q")
        pairs = []
        for _ in range(n_pairs):
            key, type = take_bytes(), take("I")
            first = at
            skip(type)
            pairs.append([key, type, file[first:at]])
        infos = []
        for _ in range(n_tensors):
            name, n = take_bytes(), take("I")
            dims = [take("Q") for _ in range(n)]
            infos.append(Info(name, dims, take("I"), take("Q")))
        return cls(pairs, infos, file[-(-at // 32) * 32:])

    def header(self):
        counts = [len(self.infos) if self.n_tensors is None else self.n_tensors,
                  len(self.pairs) if self.n_pairs is None else self.n_pairs]
        return b"".join([
            b"GGUF", struct.pack("<IQQ", self.version, *counts),
            *(struct.pack("<Q", len(key)) + key + struct.pack("<I", type) + payload
              for key, type, payload in self.pairs),
            *(info.build() for info in self.infos)])

    def build(self):
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data

    def info(self, name):
        return next(info for info in self.infos if info.name == name.encode())

    def sizes(self):
        """{name: bytes up to the next tensor}: those of the tensor, and padding."""
        starts = sorted(info.offset for info in self.infos) + [len(self.data)]
        return {info.name: starts[starts.index(info.offset) + 1] - info.offset
                for info in self.infos}

    def pair(self, key):
        return next(pair for pair in self.pairs if pair[0] == key.encode())

    def set(self, key, type, payload):
        """Replace a pair, or add it."""
        self.pairs = [pair for pair in self.pairs if pair[0] != key.encode()]
        self.pairs.append([key.encode(), type, payload])

    def drop(self, key):
        self.pairs = [pair for pair in self.pairs if pair[0] != key.encode()]


def u32(value):
    return struct.pack("<I", value)


def f32(value):
    return struct.pack("<f", value)


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def split_gguf(whole, count, stem):
    """{file name: bytes}: the parts of a set, as llama.cpp's gguf-split lays them out."""
    sizes, files = whole.sizes(), {}
    for number in range(count):
        chosen = whole.infos[number * len(whole.infos) // count:
                             (number + 1) * len(whole.infos) // count]
        infos, data = [], b""
        for info in chosen:
            infos.append(Info(info.name, info.dims, info.type, len(data)))
            data += whole.data[info.offset:info.offset + sizes[info.name]]
            data += bytes(-len(data) % 32)
        pairs = list(whole.pairs) if number == 0 else []
        part = Gguf(pairs, infos, data)
        part.set("split.no", 2, struct.pack("<H", number))
        part.set("split.count", 2, struct.pack("<H", count))
        part.set("split.tensors.count", 5, struct.pack("<i", len(whole.infos)))
        files[f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"] = part.build()
    return files


def read_safetensors(path):
    """(header as a dict, data as bytes)."""
    file = path.read_bytes()
    length = struct.unpack_from("<Q", file)[0]
    return json.loads(file[8:8 + length]), file[8 + length:]


def write_safetensors(path, header, data):
    """`header`: a dict, padded as the reference does; or its text as bytes."""
    text = header
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_json(path, **changes):
    """Set fields of a JSON object in a file; `...` removes one."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))

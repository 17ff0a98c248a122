"""Float matrices to the codebook types of GGUF, which the `gguf` package can only decode.

The plainest encoder that leaves a model in working order: a sub-block's scale follows from its
largest value, and each group of 4 or 8 elements takes the nearest row of the grid.
"""

import gguf
import numpy as np

EVEN = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")  # 7 of 8 signs are stored, their number is even
BY_16 = ("IQ2_XS", "IQ2_S", "IQ1_M")  # codes with a scale; the others have it for 32
FACTORS = {"IQ3_XXS": 0.25, "IQ3_S": 1, "IQ1_S": 1, "IQ1_M": 1}  # of d; IQ2: 1/8


def grid_of(kind):
    """float32 [rows, 4 or 8]: the values of a grid."""
    traits = gguf.quants._type_traits[kind]
    traits.init_grid()
    return traits.grid.reshape(-1, traits.grid.shape[-1])


def nearest(targets, grid):
    """int64 [n]: for each of float32 [n, width] the row of grid with the smallest distance."""
    halves = (grid * grid).sum(1) / 2
    return np.concatenate([(halves - part @ grid.T).argmin(1)
                           for part in np.array_split(targets, len(targets) // 50000 + 1)])


def fields(values, bits):
    """uint32 [..]: integers [.., n] side by side in `bits` bits each, the first one lowest."""
    places = np.arange(values.shape[-1], dtype=np.uint32) * bits
    return (values.astype(np.uint32) << places).sum(-1, dtype=np.uint32)


def encode(values, kind):
    """uint8 [.., bytes of a row] of float32 [.., n], n a multiple of 256."""
    name, grid = kind.name, grid_of(kind)
    ternary, width = name in ("IQ1_S", "IQ1_M"), grid.shape[1]
    most = 7 if ternary else 15  # the largest scale, of which 2 s + 1 is used
    x = values.reshape(-1, 256).astype(np.float32)
    n, span = len(x), 16 if name in BY_16 else 32
    wanted = 0.8 * np.abs(x.reshape(n, -1, span)).max(2) / grid.max() + 1e-12
    d = (wanted.max(1) / (2 * most + 1) / FACTORS.get(name, 0.125)).astype("<f2")
    step = d.astype(np.float32)[:, None] * FACTORS.get(name, 0.125) + 1e-12
    scale = np.clip(np.rint((wanted / step - 1) / 2), 0, most).astype(np.uint32)
    x = x / (step * (2 * scale + 1)).repeat(span, 1)
    minus = x.reshape(n, 32, 8) < 0
    if ternary:  # 1/8 is added to a group of 8 or, in IQ1_S, of 32, or subtracted
        less = x.reshape(n, -1, 8 if name == "IQ1_M" else 32).mean(2) < 0
        x = x - np.where(less, -0.125, 0.125).repeat(256 // less.shape[1], 1)
    else:
        x = np.abs(x)
    if name in EVEN:
        weakest = np.arange(8) == x.reshape(n, 32, 8).argmin(2)[..., None]
        weakest &= minus.sum(2, keepdims=True) % 2 == 1
        minus ^= weakest
        x = np.where(weakest, -x.reshape(n, 32, 8), x.reshape(n, 32, 8))
    row = nearest(x.reshape(-1, width), grid).reshape(n, -1).astype(np.uint32)
    signs = fields(minus, 1)
    seven = fields((signs & 127).reshape(n, 8, 4), 7) | scale[:, :8] << 28
    nibbles = fields(scale.reshape(n, -1, 2), 4)
    low = (row & 255, "u1")
    parts = {
        "IQ2_XXS": lambda: [(d, "<f2"), (np.stack([fields(row.reshape(n, 8, 4), 8), seven], 2),
                                         "<u4")],
        "IQ2_XS": lambda: [(d, "<f2"), (row | (signs & 127) << 9, "<u2"), (nibbles, "u1")],
        "IQ2_S": lambda: [(d, "<f2"), low, (signs, "u1"),
                          (fields((row >> 8).reshape(n, 8, 4), 2), "u1"), (nibbles, "u1")],
        "IQ3_XXS": lambda: [(d, "<f2"), low, (seven, "<u4")],
        "IQ3_S": lambda: [(d, "<f2"), low, (fields((row >> 8).reshape(n, 8, 8), 1), "u1"),
                          (signs, "u1"), (nibbles, "u1")],
        "IQ1_S": lambda: [(d, "<f2"), low, (fields((row >> 8).reshape(n, 8, 4), 3)
                                            | scale << 12 | less.astype(np.uint32) << 15, "<u2")],
        "IQ1_M": lambda: [low, (fields((row >> 8 | less.astype(np.uint32) << 3)
                                       .reshape(n, 16, 2), 4), "u1"),
                          (fields(scale.reshape(n, 4, 4), 3)
                           | (d.view("<u2").astype(np.uint32)[:, None]
                              >> np.arange(0, 16, 4, np.uint32) & 15) << 12, "<u2")],
    }[name]()
    blocks = [np.ascontiguousarray(part.reshape(n, -1).astype(type)).view(np.uint8)
              for part, type in parts]
    return np.concatenate(blocks, 1).reshape(*values.shape[:-1], -1)

"""The tables of MODELS.md that follow from the formats: which open, memory, speed ceilings.

    python docs/gen_models.py            write them into MODELS.md
    python docs/gen_models.py --check    exit 1 if that page is not what would be written

Sizes are those of the files that minimax2.synth would write at the widths of M2, from the block
sizes of the library; nothing is measured. Whether a layout opens is tried on a small file. A table
stands between two marks.
"""

import math
import re
import sys
import tempfile
from pathlib import Path

import minimax2 as mm
from minimax2 import _native
from minimax2.formats import FORMATS, LAYOUTS, MIXES
from minimax2.synth import plan, synth

PAGE = Path(__file__).resolve().parent.parent / "MODELS.md"
LAYERS, EXPERTS, CHOSEN = 62, 256, 8
KV = 2 * LAYERS * 1024 * 2  # bytes a position: keys and values of 8 heads of 128, in BF16
CONTEXTS = (8192, 32768, 196608)
MEMORIES = (48, 64, 96, 128, 192, 256, 512)  # GiB, as machines are sold
LEFT = 8e9  # bytes for the rest of the system
BANDWIDTHS = (89.6, 204.8, 460.8)  # GB/s

# Formats of synth by what people call the downloads.
DOWNLOADS = {
    "bf16": "BF16", "q8_0": "Q8_0", "fp8": "FP8 (the release)", "w8a16": "W8A16",
    "q6_k": "Q6_K", "q5_k": "Q5_K", "q4_k_m": "Q4_K_M", "q4_0_imatrix": "Q4_0", "iq4_nl": "IQ4_NL",
    "nvfp4-modelopt": "NVFP4 (modelopt)", "nvfp4-ct": "NVFP4 (compressed-tensors)",
    "w4a16": 'W4A16 ("AWQ-4bit")', "mxfp4-quark": "MXFP4 (Quark)", "mxfp4_moe": "MXFP4_MOE",
    "iq4_xs": "IQ4_XS", "iq3_m": "IQ3_M", "q3_k": "Q3_K", "iq3_xs": "IQ3_XS",
    "iq3_xxs_mix": "IQ3_XXS", "ud-iq3_s": "UD-IQ3_S", "q2_k": "Q2_K", "iq2_m": "IQ2_M",
    "iq2_xs_mix": "IQ2_XS", "ud-iq2_xxs": "UD-IQ2_XXS", "iq2_xxs_mix": "IQ2_XXS",
    "iq1_m_mix": "IQ1_M", "tq1_0_mix": "TQ1_0", "iq1_s_mix": "IQ1_S",
}
CEILINGS = ("bf16", "fp8", "q8_0", "q6_k", "q4_k_m", "nvfp4-modelopt", "mxfp4_moe", "w4a16",
            "iq4_xs", "q3_k", "iq3_xxs_mix", "ud-iq3_s", "iq2_m", "ud-iq2_xxs", "iq1_m_mix")


# Layouts of safetensors by what people call them.
SAFETENSORS = {
    "fp8": "FP8 in blocks of 128 x 128: the vendor's release",
    "fp8-channel": "FP8 with a scale a row (compressed-tensors)",
    "nvfp4-modelopt": "NVFP4 of modelopt: nvidia's and lukealonso's",
    "nvfp4-ct": "NVFP4 of compressed-tensors",
    "mxfp4-quark": "MXFP4 of Quark: amd's",
    "mxfp4-ct": "MXFP4 of compressed-tensors",
    "w4a16": 'W4A16 of compressed-tensors: most of what is called "AWQ-4bit"',
    "w4a16-asym": "the same with zero points",
    "w8a16": "W8A16 of compressed-tensors",
    "w8a16-asym": "the same with zero points",
}


def known(names):
    """Those of these formats that the library has, largest files first."""
    have = [name for name in names if name in FORMATS or name in MIXES or name in LAYOUTS]
    return sorted(have, key=lambda name: -sizes(name)[0])


def sizes(name, cache={}):
    """Bytes (of the file, read a token without keys and values) of a format at M2's size."""
    if name not in cache:
        total = read = 0
        for spec in plan(name, layers=LAYERS):
            share = CHOSEN / EXPERTS if re.search(r"experts\.|_exps", spec.name) else 1
            if "embed" in spec.name or "token_embd" in spec.name:
                share = 1 / spec.shape[0]  # a row
            total += spec.nbytes
            read += spec.nbytes * share
        cache[name] = total, read
    return cache[name]


def table(head, rows):
    """Lines of a Markdown table."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def bits(dtype):
    """Bits a weight of a dtype."""
    return f"{8 * _native.dtype_bytes(dtype) / _native.dtype_block(dtype):.5g}"


def types():
    """Types of GGUF by their bits."""
    rows = {}
    for name, kind in FORMATS.items():
        rows.setdefault(bits(kind.dtype), []).append(name.upper())
    return table(("bits a weight", "types of GGUF that open"),
                 [(width, ", ".join(rows[width])) for width in sorted(rows, key=float)])


def opens(name):
    """Does a small checkpoint of a format open?"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        synth(path, like="tiny", layers=1, format=name)
        try:
            mm.load(path, threads=1).close()
            return True
        except mm.UnsupportedError:
            return False


def layouts():
    """Layouts of safetensors, and whether they open."""
    rows = []
    for name, words in SAFETENSORS.items():
        experts = [spec for spec in plan(name, experts=1, experts_per_token=1, layers=1)
                   if "experts." in spec.name]
        width = 8 * sum(spec.nbytes for spec in experts) / (3 * 3072 * 1536)
        rows.append((words, f"{width:.2f}", "yes" if opens(name) else "no: refused by name"))
    return table(("safetensors", "bits a weight", "opens"), rows)


def memory():
    """Weights, and weights with keys and values."""
    rows = []
    for name in known(DOWNLOADS):
        total = sizes(name)[0]
        cells = [f"{(total + n * KV) / 1e9:.1f}" for n in (0, *CONTEXTS)]
        rows.append((DOWNLOADS[name], *cells))
    return table(("weights", "GB", *(f"with {n:,} positions" for n in CONTEXTS)), rows)


def machines():
    """The largest downloads that fit."""
    rows = []
    for gib in MEMORIES:
        cells = []
        for context in CONTEXTS[:2]:
            room = gib * 2**30 - LEFT - context * KV
            fit = [name for name in known(DOWNLOADS) if sizes(name)[0] <= room]
            cells.append(", ".join(DOWNLOADS[name] for name in fit[:3]) or "none")
        rows.append((f"{gib} GiB", *cells))
    return table(("memory", "largest that fit with 8,192 positions", "with 32,768"), rows)


def three(value):
    """Three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def ceilings():
    """Bytes read a token, and what bandwidths make of them."""
    rows = []
    for name in known(CEILINGS):
        short = sizes(name)[1]
        long = short + CONTEXTS[1] * KV
        rows.append((DOWNLOADS[name], f"{short / 1e9:.2f}", f"{long / 1e9:.2f}", *(
            f"{three(rate * 1e9 / short)} ({three(rate * 1e9 / long)})" for rate in BANDWIDTHS)))
    return table(("weights", "GB read a token", f"+ at {CONTEXTS[1]:,} positions",
                  *(f"{'tokens/s at ' * (i == 0)}{rate} GB/s"
                    for i, rate in enumerate(BANDWIDTHS))), rows)


TABLES = {"types": types, "layouts": layouts, "memory": memory, "machines": machines,
          "ceilings": ceilings}


def page(text):
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: made by docs/gen_models.py -->\n", "<!-- / -->\n"
        head, mark, rest = text.partition(begin)
        if not mark or end not in rest:
            raise ValueError(f"{PAGE.name} has no marks of the table {name}")
        text = head + begin + "\n".join(make()) + "\n" + end + rest.partition(end)[2]
    return text


def main(arguments):
    text = PAGE.read_text(encoding="utf-8")
    if arguments == ["--check"]:
        if page(text) != text:
            sys.exit(f"{PAGE.name} is not fresh: run python docs/gen_models.py")
    elif not arguments:
        PAGE.write_text(page(text), encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Builds what m2-tiny is trained on: corpus, tokenizer and token files, in the work directory.

    python data.py --work DIR

Corpus: the running interpreter's standard library (PSF licence) and two Debian documentation
packages, fetched by name with apt: the Python documentation (PSF licence) and SQLite's (public
domain). The dialogues come from `dialogues.py`. The tokenizer is a byte-level BPE trained on a
sample of all three, laid out as the vendor's: ids 0..255 are the bytes in order, then one id a
merge, then the added tokens. Digits are kept apart while training, so no merge joins two of them.
"""

import argparse
import html.parser
import json
import pathlib
import random
import subprocess
import sysconfig
import zlib

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm

import dialogues

SEED = 20261122
TOKENS = 4086  # the model's vocabulary is 4096: like the vendor's it ends in a few unused rows
DEBIAN_PACKAGES = ("python3.11-doc", "sqlite3-doc")
HELD_OUT_FILES = 16  # one source file in this many is held out
DIALOGUES = {"question": 60_000, "tool": 30_000}
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "_bundled",
    "__pycache__",
    "pydoc_data",
    "encodings",
}
SKIPPED_PREFIXES = ("_sysconfigdata",)

# The split pattern of the MiniMax-M2 family.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS,
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)
SPLIT = "|".join(PATTERNS)

# One a line: some names hold spaces.
SPECIAL = """\
]!p~[
<fim_prefix>
<fim_middle>
<fim_suffix>
<fim_pad>
<reponame>
<filename>
<gh_stars>
<issue_start>
<issue_comment>
<issue_closed>
<jupyter_start>
<jupyter_text>
<jupyter_code>
<jupyter_output>
<empty_output>
<commit_before>
<commit_msg>
<commit_after>
]~b]
[e~[
]!d~[
<function_call>
<code_interpreter>
]<]speech[>[
]<]image[>[
]<]video[>[
]<]start of speech[>[
]<]end of speech[>[
]<]start of image[>[
]<]end of image[>[
]<]start of video[>[
]<]end of video[>[
]<]vision pad[>[
]~!b[
<jupyter_error>
<add_file>
<delete_file>
<rename_file>
<edit_file>
<commit_message>
<empty_source_file>
<repo_struct>
<code_context>
<file_content>
<source_files>
<pr_start>
<review_comment>
<filepath>
<file_sep>""".splitlines()
PLAIN = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>")
BOS, EOS, UNK, PAD = "]~!b[", "[e~[", "]!d~[", "]!p~["


# ---- corpus --------------------------------------------------------------------------------------


def library_files():
    """(relative name, text) of the standard library's own source, tests and tables left out."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS & set(name.parts[:-1]) or name.name.startswith(SKIPPED_PREFIXES):
            continue
        try:
            yield name.as_posix(), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a few old sources declare another encoding


def is_held_out_file(name):
    return zlib.crc32(name.encode()) % HELD_OUT_FILES == 0


class TextOfPage(html.parser.HTMLParser):
    """Collects the visible text of an HTML page."""

    HIDDEN = ("script", "style", "head")
    BLOCKS = ("p", "div", "li", "tr", "h1", "h2", "h3", "h4", "pre", "br", "dt", "dd", "table")

    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in self.HIDDEN

    def handle_data(self, data):
        if self.hidden <= 0:
            self.parts.append(data)


def page_text(page):
    parser = TextOfPage()
    parser.feed(page)
    lines = [line.rstrip() for line in "".join(parser.parts).splitlines()]
    text, blank = [], True
    for line in lines:
        if line or not blank:
            text.append(line)
        blank = not line
    return "\n".join(text) + "\n"


def fetch_packages(work):
    """Unpacks the documentation packages below the work directory; returns name -> version."""
    target = work / "debian"
    record = target / "versions.json"
    if not record.exists():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *DEBIAN_PACKAGES], cwd=target, check=True)
        versions = {}
        for deb in sorted(target.glob("*.deb")):
            name, version, _ = deb.name.split("_")
            versions[name] = version.replace("%3a", ":")
            subprocess.run(["dpkg", "-x", deb, target / "root"], check=True)
        record.write_text(json.dumps(versions))
    return json.loads(record.read_text())


def documentation(work):
    """(name, text) of every page of the packages: reST sources where shipped, else HTML."""
    fetch_packages(work)
    root = work / "debian" / "root" / "usr" / "share" / "doc"
    for path in sorted(root.glob("python3.11/html/_sources/**/*.rst.txt")):
        yield path.relative_to(root).as_posix(), path.read_text("utf-8")
    for path in sorted(root.glob("sqlite3/**/*.html")):
        yield (path.relative_to(root).as_posix(), page_text(path.read_text("utf-8", "replace")))


def dialogue_texts(kind, count, seed):
    rng = random.Random(seed)
    make = getattr(dialogues, f"{kind}_dialogue")
    for _ in tqdm(range(count), desc=kind, disable=None):
        yield dialogues.render(*make(rng))


# ---- tokenizer -----------------------------------------------------------------------------------


def byte_alphabet():
    """The printable character that byte-level BPE writes for each byte value."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 256
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(extra)
            extra += 1
    return [table[b] for b in range(256)]


def vendor_split():
    return pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True)


def byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_merges(texts, count):
    trainee = Tokenizer(models.BPE())
    trainee.normalizer = normalizers.NFC()
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
    trainee.pre_tokenizer = pre_tokenizers.Sequence([vendor_split(), digits, byte_level()])
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=byte_alphabet(), show_progress=False
    )
    trainee.train_from_iterator(texts, trainer)
    return [tuple(m) for m in json.loads(trainee.to_str())["model"]["merges"]]


def build_tokenizer(texts, path):
    merges = train_merges(texts, TOKENS - 256 - len(SPECIAL) - len(PLAIN))
    tokens = byte_alphabet() + [a + b for a, b in merges]
    if len(set(tokens)) != len(tokens):
        raise SystemExit("two merges make the same token: ids would not be one a merge")
    added = [(n, True) for n in SPECIAL] + [(n, False) for n in PLAIN]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(tokens) + i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for i, (name, special) in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")
    check_tokenizer(Tokenizer.from_file(str(path)))


def check_tokenizer(tokenizer):
    """Round trip of random Unicode text, byte ids in byte order, added tokens found in text."""
    rng = random.Random(SEED)
    nfc = normalizers.NFC()
    ranges = (
        (32, 127),
        (160, 0x2FF),
        (0x370, 0x4FF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1F6FF),
        (9, 14),
    )
    for _ in range(2000):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.decode(ids, skip_special_tokens=False) != nfc.normalize_str(text):
            raise SystemExit(f"tokenizer does not round-trip {text!r}")
    for byte in range(128):
        if tokenizer.encode(chr(byte)).ids != [byte]:
            raise SystemExit(f"byte {byte} does not have its own value as id")
    if tokenizer.get_vocab_size() != TOKENS:
        raise SystemExit(f"vocabulary of {tokenizer.get_vocab_size()}, wanted {TOKENS}")


# ---- token files ---------------------------------------------------------------------------------


def encode_all(tokenizer, texts, batch=256):
    """List of uint16 arrays, one a text."""
    texts = list(texts)
    out = []
    for start in tqdm(range(0, len(texts), batch), desc="encode", disable=None):
        for item in tokenizer.encode_batch_fast(
            texts[start : start + batch], add_special_tokens=False
        ):
            out.append(np.array(item.ids, np.uint16))
    return out


def save_stream(path, arrays, end):
    """Documents one after the other, each closed by the end token."""
    np.save(path, np.concatenate([np.append(a, np.uint16(end)) for a in arrays]))


def save_ragged(path, arrays):
    offsets = np.cumsum([0] + [len(a) for a in arrays])
    np.savez(path, tokens=np.concatenate(arrays), offsets=offsets)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=pathlib.Path, required=True, help="folder for all that is made"
    )
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)

    library = list(library_files())
    code = [text for name, text in library if not is_held_out_file(name)]
    code_held_out = {name: text for name, text in library if is_held_out_file(name)}
    docs = [text for _, text in documentation(work)]
    talk = {
        kind: list(dialogue_texts(kind, count, SEED + i))
        for i, (kind, count) in enumerate(DIALOGUES.items())
    }

    rng = random.Random(SEED)
    sample = code + rng.sample(docs, len(docs) // 3) + talk["question"][:4000] + talk["tool"][:1500]
    build_tokenizer(sample, work / "tokenizer.json")

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    end = tokenizer.token_to_id(EOS)
    rng.shuffle(code)
    rng.shuffle(docs)
    tokens = {"code": encode_all(tokenizer, code), "docs": encode_all(tokenizer, docs)}
    for name, arrays in tokens.items():
        save_stream(work / f"{name}.npy", arrays, end)
    for kind, texts in talk.items():
        tokens[kind] = encode_all(tokenizer, texts)
        save_ragged(work / f"{kind}.npz", tokens[kind])
    (work / "code_held_out.json").write_text(json.dumps(code_held_out))
    facts = {
        "documents": {k: len(v) for k, v in tokens.items()},
        "tokens": {k: int(sum(map(len, v))) for k, v in tokens.items()},
        "bytes": {
            k: sum(len(t.encode()) for t in v)
            for k, v in {"code": code, "docs": docs, **talk}.items()
        },
        "held_out_code_files": len(code_held_out),
        "held_out_code_bytes": sum(len(t.encode()) for t in code_held_out.values()),
        "python": sysconfig.get_config_var("py_version"),
        "packages": fetch_packages(work),
        "seed": SEED,
    }
    (work / "data.json").write_text(json.dumps(facts, indent=2))
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()

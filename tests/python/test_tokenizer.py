"""Ids against Hugging Face's tokenizers, on golden cases and on random and adversarial strings."""

import json
import os
import random
import sys
import unicodedata
from pathlib import Path

import minimax2 as mm
import pytest

ROOT = Path(__file__).resolve().parents[2]
VENDOR = Path(os.environ.get("MINIMAX2_VENDOR_DATA", ROOT.parent / "shared/data/minimax-m2"))
SOURCES = {"vendor": VENDOR / "tokenizer.json",
           "tiny": ROOT / "python/minimax2/m2-tiny/tokenizer.json"}
STRINGS = 10_000  # of each source

ALL = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
          (0xE00, 0xF00), (0x1100, 0x1200), (0x1780, 0x1800), (0x1E00, 0x2000), (0x2000, 0x2070),
          (0x3040, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00), (0xFB00, 0xFB50),
          (0x10400, 0x10450), (0x1D400, 0x1D500), (0x1F300, 0x1F700), (0x20000, 0x20100)]
MARKS = [chr(c) for c in [*range(0x300, 0x370), 0x93C, 0x94D, 0x5B0, 0x5C1, 0x64B, 0x3099, 0x20D0]]
SPACES = list(" \t\n\r\v\f\x1c\x85\xa0") + ["\u1680", "\u180e", "\u2003", "\u200b", "\u2028",
                                            "\u2029", "\u202f", "\u3000", "\ufeff", "\r\n", "  "]
PIECES = ["'s", "'S", "'ll", "'RE", "'ſ", "Hello", "HTML", "camelCase", "ǅ", "ǈa", "İ", "ß", "ﬀ",
          "1234567", "٣٤", "½", "Ⅻ", "²", "//", ";\n/", "...", "!!!\n\n", "👩\u200d👩\u200d👧", "🇩🇪",
          "한국어", "각", "日本語", "नमस्ते", "ไทย", "العربية", "e\u0301", "q\u0323\u0307",
          "\u0344", "\u212b", "\u0958", "\ufb1d", "\U0001d15e", "\x00", "\x7f", "\ufffd"]


def fragment(rng):
    """One random piece of text."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(PIECES)
    if kind == 1:
        return "".join(rng.choices(SPACES, k=rng.randint(1, 4)))
    if kind == 2:
        return rng.choice("aZé1 \n'/!") * rng.randint(1, 40)
    if kind == 3:
        return rng.choice("aoenкあ") + "".join(rng.choices(MARKS, k=rng.randint(1, 6)))
    if kind == 4:
        return rng.choice(ALL)
    if kind == 5:
        return bytes(rng.randrange(256) for _ in range(rng.randint(1, 6))).decode(errors="replace")
    if kind == 6:
        return rng.choice(["]~!b[", "]~b]", "[e~[", "<think>", "</think>", "<think", "[e~", "]~b"])
    low, high = rng.choice(BLOCKS)
    return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 8)))


def strings(seed, count):
    """Random strings of 1 to 12 pieces, always the same for a seed."""
    rng = random.Random(seed)
    return ["".join(fragment(rng) for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    """The path of a tokenizer.json."""
    path = SOURCES[request.param]
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def ours(source):
    return mm.Tokenizer(source)


def reference(path, added):
    """Hugging Face's tokenizer; added=False: without added tokens, so that all text is plain."""
    tokenizers = pytest.importorskip("tokenizers")
    description = json.loads(path.read_text(encoding="utf-8"))
    if not added:
        description["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def agrees_on_nfc(texts):
    """The texts whose NFC is the same for Hugging Face, whose tables are older, and for Python."""
    from tokenizers import normalizers

    nfc = normalizers.NFC()
    return [t for t in texts if nfc.normalize_str(t) == unicodedata.normalize("NFC", t)]


def mismatches(tokenizer, other, texts, special):
    """The texts that get different ids."""
    found = []
    for first in range(0, len(texts), 100):  # an Encoding is large
        some = texts[first:first + 100]
        wanted = other.encode_batch(some, add_special_tokens=False)
        found += [text for text, encoding in zip(some, wanted)
                  if tokenizer.encode(text, special=special) != encoding.ids]
    return found


def test_golden_cases():
    """The 49 encodings that come with the vendor's vocabulary."""
    path = VENDOR / "tokenizer_goldens.json"
    if not path.exists():
        pytest.skip(f"no vendor data in {VENDOR} (set MINIMAX2_VENDOR_DATA)")
    cases = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = mm.Tokenizer(SOURCES["vendor"])
    assert len(cases) == 49
    for case in cases:
        assert tokenizer.encode(case["text"], special=True) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"], special=True) == unicodedata.normalize(
            "NFC", case["text"])


@pytest.mark.parametrize("special", [False, True])
def test_random_strings(source, ours, special):
    """Equal ids on random strings of all scripts, as text and with the added tokens read."""
    texts = strings(1 + special, STRINGS // 2)
    comparable = agrees_on_nfc(texts)
    assert len(comparable) > 0.97 * len(texts)
    assert mismatches(ours, reference(source, special), comparable, special) == []


def test_every_character(source, ours):
    """Each code point up to U+1FFFF, and every 64th of the uniform planes above, beside letters,
    digits, spaces and an apostrophe. 500 share a string: a call costs more than a character.
    """
    other = reference(source, False)
    characters = [c for c in ALL if ord(c) < 0x20000 or ord(c) % 64 == 0]
    for context in ["it{}'s", "A{}a 12{}3\n{}  x"]:
        joined = [" .\nz ".join(context.replace("{}", c) for c in characters[first:first + 500])
                  for first in range(0, len(characters), 500)]
        assert mismatches(ours, other, joined, False) == []


def test_long_runs(source, ours):
    """Long words and runs, where a merge order can go wrong late."""
    texts = [unit * (n // len(unit)) for n in (1000, 20000)
             for unit in ["a", "A", " ", "\n", "7", "!", "é", "的", "\u0301", "ab", "aA", " a",
                          "\n ", "=-", "lorem ipsum", "的是"]]
    assert mismatches(ours, reference(source, False), texts, False) == []


def test_round_trip(ours):
    """Decoding gives the text back, normalised; bytes that are no UTF-8 come back as U+FFFD."""
    for text in strings(9, 500):
        assert ours.decode(ours.encode(text), special=True) == unicodedata.normalize("NFC", text)
    rng = random.Random(10)
    for _ in range(500):
        raw = bytes(rng.choice(b"a\x80\xbf\xc2\xe2\x82\xac\xed\xa0\xf0\x9f\x98\xf4\xff")
                    for _ in range(rng.randint(1, 12)))
        text = unicodedata.normalize("NFC", raw.decode("utf-8", "replace"))
        assert ours.decode(ours.encode(raw), special=True) == text, raw


def test_tokens(source, ours):
    """The bytes of every token, and ids out of range."""
    description = json.loads(source.read_text(encoding="utf-8"))
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    spelling = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    added = {token["id"]: token["content"].encode() for token in description["added_tokens"]}
    vocab = description["model"]["vocab"]
    words = {i: bytes(spelling[c] for c in word) for word, i in vocab.items() if i not in added}
    expected = words | added
    assert ours.vocab_size == max(expected) + 1
    assert all(ours.token(i) == expected.get(i, b"") for i in range(ours.vocab_size))
    for bad in (-1, ours.vocab_size, 2**31 - 1):
        with pytest.raises(mm.Error):
            ours.token(bad)
        with pytest.raises(mm.Error):
            ours.decode([bad])


def test_special_tokens_are_left_out_on_request(source, ours):
    """decode(special=False) leaves out what the file calls special, and nothing else."""
    description = json.loads(source.read_text(encoding="utf-8"))
    for token in description["added_tokens"]:
        ids = ours.encode("a" + token["content"] + "b", special=True)
        assert token["id"] in ids
        kept = "" if token["special"] else token["content"]
        assert ours.decode(ids, special=False) == "a" + kept + "b"
        assert token["id"] not in ours.encode(token["content"], special=False)

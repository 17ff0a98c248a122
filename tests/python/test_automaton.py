"""The library's automaton against Python's re and jsonschema.

MINIMAX2_PATTERNS (600): random patterns, each on 20 texts. MINIMAX2_SCHEMAS (40): random schemas,
for each of which m2-tiny writes one text at a temperature of 1.5.
"""

import json
import os
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest

from minimax2 import Model, _native_text, errors
from minimax2._native import Owned

PATTERNS = int(os.environ.get("MINIMAX2_PATTERNS", "600"))
SCHEMAS = int(os.environ.get("MINIMAX2_SCHEMAS", "40"))

# ---- Patterns ----

ESCAPES = r"\d \w \s \D \W \S \n \x41 \u00e9".split()
CHARACTERS = "ab01é日😀 _\"-]{}"
ENDS = "abz019é日😀~ "
QUANTIFIERS = "* + ? {2} {1,3} {0,2} {2,} {,2} {0} {,}".split()


def random_class(r: random.Random) -> str:
    def member() -> str:
        kind = r.random()
        if kind < .3:
            return r.choice([*ESCAPES, r"\b"])
        if kind < .6:
            return "-".join(sorted(r.choices(ENDS, k=2)))
        return r.choice(["a", "b", "0", "é", "日", ".", "*", "(", r"\]", r"\-", r"\\", '"'])
    return f"[{r.choice(['', '^'])}{''.join(member() for _ in range(r.randint(1, 3)))}]"


def random_pattern(r: random.Random, depth: int) -> str:
    def atom() -> str:
        kind = r.random()
        if kind < .4:
            return r.choice([*CHARACTERS, r"\.", r"\\"])
        if kind < .5:
            return "."
        if kind < .7:
            return r.choice(ESCAPES) if kind < .6 else random_class(r)
        return r.choice(["(", "(?:"]) + random_pattern(r, depth - 1) + ")" if depth else "b"

    def branch() -> str:
        return "".join(atom() + (r.choice(QUANTIFIERS) if r.random() < .5 else "")
                       for _ in range(r.randint(0, 4)))
    return "|".join(branch() for _ in range(r.randint(1, 3)))


class Slow(Exception):
    pass


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Python's re may take ages for what an automaton does in no time."""
    def give_up(*_: object) -> None:
        raise Slow
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def tokenizer(tiny: Model) -> Owned:
    return tiny.tokenizer._c


def test_patterns_match_what_python_says(tokenizer: Owned) -> None:
    r = random.Random(12)
    compared = matched = 0
    for _ in range(PATTERNS):
        pattern = r.choice(["", "", "^"]) + random_pattern(r, 3) + r.choice(["", "", "$"])
        expected = re.compile(pattern, re.ASCII)
        try:
            grammar = _native_text.grammar_new(tokenizer, _native_text.GRAMMAR_REGEX, pattern)
        except errors.ArgumentError as error:
            assert "no character is in this class" in str(error), pattern
            continue
        for _ in range(20):
            text = "".join(r.choices("ab01 _-é日😀\n\"\\.", k=r.randint(0, 6)))
            try:
                with patience(.2):
                    want = expected.fullmatch(text) is not None
            except Slow:
                continue
            assert _native_text.grammar_matches(grammar, text.encode()) == want, (pattern, text)
            compared += 1
            matched += want
    assert compared > 15 * PATTERNS and matched > compared / 20


# ---- Schemas ----

VALUES = [1, -2.5, 'a"b\\n', "é\n\t\x01", True, [1, {"k": [], "z": {}}], {"a": 1, "b c": ["x"]},
          "[|(.*"]
STRINGS: list[dict[str, Any]] = [
    {"maxLength": 9}, {"minLength": 2, "maxLength": 6}, {"format": "date"}, {"format": "uuid"},
    *({"pattern": pattern} for pattern in (
        "^[a-z]{2,4}$", "^a$|^b.$", '^x"y{1,2}$', r"^\d{3}-\d{1,4}$", r"^[\\/]$",
        r"^(?:é|\n|\u0001){2}$", "^.{3,8}$", "^$", r"^(a\|b|[|]c)$"))]


def random_schema(r: random.Random, depth: int) -> dict[str, Any]:
    containers = ["object", "array", "tuple", "anyOf", "types", "ref"] * 2
    kind = r.choice(["string", "integer", "number", "boolean", "null", "enum", "const"]
                    + (containers if depth else []))
    if kind == "string":
        return {"type": kind, **r.choice(STRINGS)}
    if kind == "integer":
        low, high = sorted(r.randint(-5, 5) * 10 ** r.randint(0, 5) for _ in range(2))
        return {"type": kind, **r.choice([
            {}, {"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high},
            {"exclusiveMinimum": low, "exclusiveMaximum": high + 2}])}
    if kind == "number":
        return {"type": kind, **r.choice([{}, {"minimum": 0}])}
    if kind == "enum":
        return {"enum": [*r.sample(VALUES, r.randint(1, 4)), None]}
    if kind == "const":
        return {"const": r.choice(VALUES)}
    if kind == "object":
        names = r.sample(["a", "b", "c d", "é", '"q"', "x.y", "z\\"], r.randint(0, 4))
        share = r.choice([0, .5, 1])
        return {"type": kind, "properties": {name: random_schema(r, depth - 1) for name in names},
                "required": [name for name in names if r.random() < share],
                **r.choice([{}, {"additionalProperties": False}])}
    if kind == "array":
        least = r.randint(0, 2)
        return {"type": kind, "items": random_schema(r, depth - 1), "minItems": least,
                "maxItems": least + r.randint(0, 2)}
    if kind == "tuple":
        return {"type": "array", "prefixItems": [random_schema(r, depth - 1) for _ in range(2)],
                **r.choice([{}, {"items": False}, {"items": random_schema(r, 0), "maxItems": 4}])}
    if kind == "anyOf":
        return {kind: [random_schema(r, depth - 1) for _ in range(r.randint(1, 3))]}
    if kind == "types":
        return {"type": r.sample(["string", "integer", "null", "boolean"], 2), "maxLength": 5}
    return {"$ref": "#/$defs/T"} if kind == "ref" else {"type": kind}


def test_what_a_model_writes_fits_its_schema(tiny: Model, tokenizer: Owned) -> None:
    r = random.Random(5)
    size, ends = tiny.config.vocab_size, tiny.end_tokens
    for seed in range(SCHEMAS):
        schema = {**random_schema(r, 2), "title": "any", "$defs": {"T": {"enum": ["p", "q"]}}}
        grammar = _native_text.grammar_new(tokenizer, _native_text.GRAMMAR_JSON_SCHEMA,
                                           json.dumps(schema))
        constraint = _native_text.constraint_new(grammar, _native_text.START_TEXT, size, ends)
        pushed = 0

        def mask(ids: list[int]) -> memoryview:
            nonlocal pushed
            for token in ids[pushed:]:
                _native_text.constraint_push(constraint, token)
            pushed = len(ids)
            return _native_text.constraint_mask(constraint, size)

        result = tiny.generate("Here is some JSON:\n", mask=mask, temperature=1.5, seed=seed,
                               max_new_tokens=600)
        assert result.finish_reason == "stop", (schema, result.text)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(
            json.loads(result.text))
        assert _native_text.grammar_matches(grammar, result.text.encode())


def test_every_mask_is_what_can_be_pushed(tiny: Model, tokenizer: Owned) -> None:
    """With a real vocabulary, whose tokens begin alike in every way."""
    size, ends = tiny.config.vocab_size, tiny.end_tokens
    grammar = _native_text.grammar_new(tokenizer, _native_text.GRAMMAR_REGEX,
                                       r'(?:[A-Z]?[a-z]{2,7}|"\w+"|\d{1,4}|é.)(?: |, |\n)x?')
    tokens = [tiny.tokenizer.token(token) for token in range(size)]
    words = [text for text in tokens if text.isascii() and text.decode().isalpha()]
    for prefix in (b"", b"T", b'"', words[700][:2], "é".encode(), b"ab", b"12, "):
        constraint = _native_text.constraint_new(grammar, _native_text.START_TEXT, size, ends)
        for byte in prefix:
            _native_text.constraint_push(constraint, tokens.index(bytes([byte])))
        mask = _native_text.constraint_mask(constraint, size)
        for token in range(size):
            fork = _native_text.constraint_fork(constraint)
            try:
                _native_text.constraint_push(fork, token)
                allowed = 1
            except errors.ArgumentError:
                allowed = 0
            assert mask[token // 32] >> token % 32 & 1 == allowed, (prefix, tokens[token])

"""Structured output: texts of a form that the caller chooses, by masks of the tokens that may come.

The library's own automaton (mm2_grammar) makes the masks of choices, regular expressions and most
JSON schemas, the same as in Lua. Schemas beyond it, and grammars in Lark's notation, are
llguidance's, an extra of this package. Both are compiled once a model, and each reply has a state
of its own: a Constraint. It is a function of the reply's tokens, which only grow; where an
interrupt has cut it off, it begins anew.

The form begins with the answer: behind </think>, and the format's newlines there. Before it the end
of the turn and calls are masked, and the end also while the form is not complete. Where tools are
declared, the model may call one in place of the answer.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from minimax2 import _native, _native_text
from minimax2._native import Buffer, Owned
from minimax2.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    import llguidance

    from minimax2.model import Model

Words = NDArray[np.uint32]

_KEPT = 16  # compiled grammars of a model
_EXTRA = "pip install 'minimax2[grammar]'"

# ---- What is asked for ----


class Form(NamedTuple):
    """The form of a text, as an option names it."""

    kind: str
    text: str
    parser: Callable[[str], Any] | None
    """What makes a value of a text of that form; None: it is only a text."""


def form_of(kind: str, given: Any) -> Form:
    """The form that an option of this name says."""
    return _READERS[kind](given)


def _read_schema(given: Any) -> Form:
    parser: Callable[[str], Any] = json.loads
    if isinstance(given, type) and hasattr(given, "model_json_schema"):  # of pydantic
        given, parser = given.model_json_schema(), given.model_validate_json
    elif not isinstance(given, (str, Mapping)):
        raise TypeError("json_schema must be a dict, JSON in a str, or a class of pydantic's "
                        f"models, not {type(given).__name__}")
    text = _native_text.json_text(given, "json_schema").decode("utf-8", "surrogatepass")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"json_schema: {error}") from None
    if not isinstance(schema, dict):
        raise ArgumentError(f"json_schema must be an object, not {text:.40}")
    return Form("json_schema", text, parser)


def _read_text(kind: str) -> Callable[[Any], Form]:
    def read(given: Any) -> Form:
        if not isinstance(given, str):
            raise TypeError(f"{kind} must be a str, not {type(given).__name__}")
        return Form(kind, given, None)
    return read


def _read_choices(given: Any) -> Form:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"choices must be several str, not {type(given).__name__}")
    choices = list(given)
    if not choices:
        raise ArgumentError("choices are empty: there must be one at least")
    for choice in choices:
        if not isinstance(choice, str):
            raise TypeError(f"one of the choices is a {type(choice).__name__}, must be a str")
    return Form("choices", json.dumps(choices, ensure_ascii=False), None)


_READERS: dict[str, Callable[[Any], Form]] = {
    "json_schema": _read_schema, "regex": _read_text("regex"), "grammar": _read_text("grammar"),
    "choices": _read_choices}
_KINDS = {"regex": _native_text.GRAMMAR_REGEX, "choices": _native_text.GRAMMAR_CHOICES,
          "json_schema": _native_text.GRAMMAR_JSON_SCHEMA}

# ---- JSON schemas for llguidance ----

_SCHEMAS = {"items", "additionalItems", "additionalProperties", "contains", "not", "if", "then",
            "else", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_PLAIN = {"type", "enum", "const", "required", "minimum", "maximum", "exclusiveMinimum",
          "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "format",
          "minItems", "maxItems", "uniqueItems", "minContains", "maxContains", "minProperties",
          "maxProperties", "dependentRequired", "dependencies", "$ref", "$dynamicRef", "$anchor",
          "$dynamicAnchor", "$id", "id", "$schema", "$vocabulary", "$comment", "title",
          "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
          "contentEncoding", "contentMediaType", "contentSchema"}
_OPEN = _SCHEMAS - {"items", "contains", "additionalItems", "unevaluatedItems"} | {
    "patternProperties", "dependentSchemas", "$ref", "allOf"}


def _inner(path: str, schema: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """The schemas inside of one, with their paths."""
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            yield from ((f"{path}/{key}/{name}", inner) for name, inner in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from ((f"{path}/{key}/{i}", inner) for i, inner in enumerate(value))
        elif key in _SCHEMAS:
            yield f"{path}/{key}", value


def _strict_schema(text: str) -> dict[str, Any]:
    """A schema whose objects have no properties but the named ones, as the library's own have.

    Raises UnsupportedError for a word that no schema has: llguidance would pass over it, and so
    over every misspelt one. Where schemas are joined (allOf), objects stay open.
    """
    root: dict[str, Any] = json.loads(text)
    found, waiting = [], [("", root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        found.append(schema)
        for key in schema:
            if key not in _SCHEMAS | _LISTS | _NAMED | _PLAIN and not key.startswith("x-"):
                raise UnsupportedError(f"json_schema: {path}/{key} is no word of JSON schemas that "
                                       "is known here")
        waiting += _inner(path, schema)
    if not any("allOf" in schema for schema in found):
        for schema in found:
            if "properties" in schema and not _OPEN & schema.keys():
                schema["additionalProperties"] = False
    return root


# ---- States: which tokens may come next ----


class _State(Protocol):
    def mask(self, answer_at: int, tokens: list[int]) -> Words:
        """What may follow these tokens of a reply, until the next call."""


class _Following(ABC):
    """Follows tokens one by one; begins anew where it was interrupted between two lines."""

    def __init__(self) -> None:
        self._whole = False
        self._count = 0  # of the tokens, that were pushed or do not belong to the form

    def _follow(self, tokens: list[int], first: int) -> None:
        if not self._whole:
            self._begin()
            self._count = first
        self._whole = False
        self._count = max(self._count, first)
        while self._count < len(tokens):
            self._push(tokens[self._count])
            self._count += 1
        self._whole = True

    @abstractmethod
    def _begin(self) -> None:
        """Stand before the first token of the form."""

    @abstractmethod
    def _push(self, token: int) -> None:
        """Go on by a token."""


class _Automaton(_Following):
    """The library's own."""

    def __init__(self, compiled: Owned, vocabulary: Vocabulary, start: int) -> None:
        super().__init__()
        self._asked = compiled, start, vocabulary.size, vocabulary.ends
        self._begin()

    def _begin(self) -> None:
        self._c = _native_text.constraint_new(*self._asked)

    def _push(self, token: int) -> None:
        _native_text.constraint_push(self._c, token)

    def mask(self, answer_at: int, tokens: list[int]) -> Words:
        self._follow(tokens, 0)
        return np.frombuffer(_native_text.constraint_mask(self._c, self._asked[2]), np.uint32)


class _Guided(_Following):
    """llguidance's, which writes its masks into our words."""

    def __init__(self, compiled: llguidance.LLMatcher, vocabulary: Vocabulary, start: int) -> None:
        super().__init__()
        self._matcher = compiled.deep_copy()
        self._vocabulary = vocabulary
        self._words = np.zeros(vocabulary.words, np.uint32)
        self._place = self._words.ctypes.data, self._words.nbytes
        self._lead = lead_of(start)

    def _begin(self) -> None:
        self._matcher.reset()

    def _push(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UnsupportedError(_told(self._matcher))

    def mask(self, answer_at: int, tokens: list[int]) -> Words:
        if answer_at < 0:
            return self._vocabulary.thinking
        first, left = answer_at, self._lead
        while first < len(tokens) and 0 < self._vocabulary.newlines.get(tokens[first], 0) <= left:
            left -= self._vocabulary.newlines[tokens[first]]
            first += 1
        self._follow(tokens, first)
        self._matcher.unsafe_compute_mask_ptr(*self._place)
        self._check()
        if first == len(tokens):
            for token, length in self._vocabulary.newlines.items():
                if length <= left:
                    _allow(self._words, token)
        return self._words


def _told(matcher: llguidance.LLMatcher) -> str:
    """What llguidance complains of, without the state that it adds."""
    first = matcher.get_error().split("\n")[0]
    known = {"NoExtensionBias": "nothing can come next: the form leads only to itself"}
    return f"llguidance: {known.get(first, first)}"


def lead_of(start: int) -> int:
    """The format's newlines that may come before the answer."""
    return 2 if start == _native_text.START_THINKING else 0


def _allow(words: Words, token: int) -> None:
    words[token >> 5] |= np.uint32(1 << (token & 31))


class Constraint:
    """What may come in one reply."""

    def __init__(self, state: _State, vocabulary: Vocabulary, start: int, calls: bool) -> None:
        self._state = state
        self._vocabulary = vocabulary
        self._lead = lead_of(start)
        self._call = vocabulary.call if calls else None

    def mask(self, so_far: _native_text.Piece, tokens: list[int],
             own: Buffer | None) -> Buffer | None:
        """The tokens that may come next, of those in the caller's own mask."""
        words: Words | None
        if self._call is None:
            words = self._state.mask(so_far.answer_at, tokens)
        else:
            words = self._with_calls(so_far, tokens, self._call)
        if words is None or own is None:
            return own if words is None else words
        both = words & np.frombuffer(_native.mask_words(own, self._vocabulary.size), np.uint32)
        if not both.any():
            raise ArgumentError("mask forbids every token with which the text could go on in its "
                                "form")
        return both

    def _with_calls(self, so_far: _native_text.Piece, tokens: list[int],
                    call: int) -> Words | None:
        """Also a call in place of the answer, behind which everything may come: None."""
        at, newlines = so_far.answer_at, self._vocabulary.newlines
        began = [] if at < 0 else tokens[at:at + self._lead + 2]
        if so_far.calls or call in began:
            return None
        lead = sum(newlines.get(token, self._lead + 2) for token in began)
        if lead == self._lead + 1:  # these newlines are a call's
            words = np.zeros(self._vocabulary.words, np.uint32)
        else:
            words = self._state.mask(at, tokens)
            if lead > self._lead:
                return words
            words = words.copy()
            for token, length in newlines.items():
                if at >= 0 and not began and length == self._lead + 1:
                    _allow(words, token)
        _allow(words, call)
        return words


# ---- What is compiled ----


class Vocabulary:
    """A model's tokens, as masks see them."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer
        self.size = model.config.vocab_size
        self.words = (self.size + 31) // 32
        self.ends = model.end_tokens
        if not self.ends:
            raise UnsupportedError("the checkpoint names no token that ends a text: one that must "
                                   "have a form could not end")
        self.call = self.tokenizer.id("<minimax:tool_call>")
        found = {self.tokenizer.id("\n" * length): length for length in (1, 2, 3)}
        self.newlines = {token: length for token, length in found.items() if token is not None}
        self.thinking = np.full(self.words, 0xffffffff, np.uint32)
        turns = [self.tokenizer.id(tag) for tag in ("]~!b[", "]~b]", "[e~[")]
        for token in (*self.ends, *turns, self.call):
            if token is not None and token < self.size:
                self.thinking[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xffffffff)


class Grammars:
    """What a model has compiled, for any number of replies and threads."""

    def __init__(self, model: Model) -> None:
        self._vocabulary = Vocabulary(model)
        self._compiled = functools.lru_cache(_KEPT)(self._compile)

    def constraint(self, form: Form, start: int, calls: bool) -> Constraint:
        """The state of one reply. calls: it may be a call of a tool instead."""
        compiled, vocabulary = self._compiled(form.kind, form.text), self._vocabulary
        state: _State = (_Automaton(compiled, vocabulary, start) if isinstance(compiled, Owned)
                         else _Guided(compiled, vocabulary, start))
        return Constraint(state, vocabulary, start, calls)

    def _compile(self, kind: str, text: str) -> Owned | llguidance.LLMatcher:
        why = "a grammar needs llguidance"
        if kind in _KINDS:
            try:
                return _native_text.grammar_new(self._vocabulary.tokenizer._c, _KINDS[kind], text)
            except UnsupportedError as error:
                if kind != "json_schema":
                    raise
                why = f"{error}; llguidance may know it"
        try:
            import llguidance
        except ImportError:
            raise UnsupportedError(f"{why}: {_EXTRA}") from None
        matcher = llguidance.LLMatcher
        if kind == "json_schema":
            # A space or none behind colons and commas, and nowhere else.
            schema = _strict_schema(text)
            try:
                source = matcher.grammar_from_json_schema(schema, {
                    "whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"})
            except ValueError as error:  # a number that it cannot hold
                raise UnsupportedError(f"json_schema: llguidance: {error}") from None
        else:
            source = matcher.grammar_from_lark(text)
        made = matcher(self._llguidance, source, log_level=0)
        if made.is_error():
            raise (UnsupportedError if kind == "json_schema" else ArgumentError)(
                f"{kind}: {_told(made)}")
        return made

    @functools.cached_property
    def _llguidance(self) -> llguidance.LLTokenizer:
        """The vocabulary for llguidance: takes about a second of 200,000 tokens."""
        import llguidance

        vocabulary = self._vocabulary
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(vocabulary)),
                                      n_vocab=vocabulary.size, eos_token=vocabulary.ends)


class _Tokens:
    """What llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokenizer, size = vocabulary.tokenizer, vocabulary.size
        known = min(tokenizer.vocab_size, size)
        self.eos_token_id = vocabulary.ends[0]
        self.tokens = [tokenizer.token(id) for id in range(known)] + [b""] * (size - known)
        self.special_token_ids = [id for id in tokenizer.added if id < size]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text)

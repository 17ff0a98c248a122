"""The functions of csrc/minimax2.h for text: tokenizers, the chat format, replies, grammars."""

import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from minimax2 import errors, tools
from minimax2._cffi import ffi, lib
from minimax2._native import (SLICE, Owned, _chars, _fields, _filled, _interruptible, _owned,
                              _path, _sized, _string, check, flag, ids, integer)
from minimax2.errors import ArgumentError

LONG = 1 << 18  # bytes of a conversation that takes longer than Ctrl-C may wait

# ---- Tokenizer ----


def tokenizer_open(path: Any) -> Owned:
    """A tokenizer without a model."""
    out = ffi.new("mm2_tokenizer **")
    check(lib.mm2_tokenizer_open(out, _path(path)))
    return _owned("tokenizer", out)


def model_tokenizer(model: Owned) -> Owned:
    """The model's own tokenizer."""
    tokenizer = lib.mm2_model_tokenizer(model.pointer)
    if tokenizer == ffi.NULL:
        raise errors.UnsupportedError(_string(lib.mm2_error()))
    return Owned(tokenizer, model)


def tokenizer_facts(tokenizer: Owned) -> dict[str, int]:
    """The fields of mm2_tokenizer_info as a dict."""
    facts = _sized("mm2_tokenizer_info")
    check(lib.mm2_tokenizer_describe(tokenizer.pointer, facts))
    return _fields(facts)


def tokenizer_unknown_template(tokenizer: Owned) -> str | None:
    """The text of the chat template that was not recognised."""
    text = lib.mm2_tokenizer_unknown_template(tokenizer.pointer)
    return None if text == ffi.NULL else bytes(ffi.string(text)).decode("utf-8", "replace")


def tokenizer_encode(tokenizer: Owned, text: Any, special: bool) -> list[int]:
    """Text, str or bytes, to a list of ids."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    elif not isinstance(text, (bytes, bytearray)):
        raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
    if len(text) >= 2**31:
        raise ArgumentError("text must be shorter than 2 GiB")
    source = ffi.from_buffer("char[]", text)
    out = ffi.new("mm2_encoding **")
    check(lib.mm2_encoding_new(out, tokenizer.pointer, source, len(text),
                               lib.MM2_SPECIAL if special else 0))
    encoding = _owned("encoding", out)
    cap = min(len(text) + 1, 1 << 16)
    array, count = ffi.new("int32_t[]", cap), ffi.new("int32_t *")
    found: list[int] = []
    status = lib.MM2_MORE
    while status == lib.MM2_MORE:
        status = check(lib.mm2_encoding_run(encoding.pointer, SLICE, array, cap, count))
        found += ffi.unpack(array, count[0])
    return found


def tokenizer_decode(tokenizer: Owned, values: Any, special: bool) -> bytes:
    """Ids to bytes."""
    values = ids(values)
    flags = lib.MM2_SPECIAL if special else 0
    array = ffi.new("int32_t[]", values)
    out, n = _filled("char[]", 16 * len(values), lambda out, cap: lib.mm2_tokenizer_decode(
        tokenizer.pointer, array, len(values), flags, out, cap))
    return bytes(ffi.buffer(out, n))


def tokenizer_token(tokenizer: Owned, token: Any) -> bytes:
    """The bytes of one token."""
    length = ffi.new("int32_t *")
    chars = lib.mm2_tokenizer_token(tokenizer.pointer, integer(token, "a token id"), length)
    if chars == ffi.NULL:
        raise ArgumentError(_string(lib.mm2_error()))
    return bytes(ffi.buffer(chars, length[0]))


def tokenizer_added(tokenizer: Owned) -> list[int]:
    """The ids of added tokens, ascending."""
    count = check(lib.mm2_tokenizer_added(tokenizer.pointer, ffi.NULL, 0))
    array = ffi.new("int32_t[]", count)
    check(lib.mm2_tokenizer_added(tokenizer.pointer, array, count))
    return list(array)


def tokenizer_id(tokenizer: Owned, chars: bytes) -> int | None:
    """The id whose bytes are these, or None."""
    token = lib.mm2_tokenizer_id(tokenizer.pointer, chars, len(chars))
    return None if token < 0 else int(token)


def json_text(value: Any, name: str) -> bytes:
    """JSON of what a caller hands in, terminated; a str is JSON already. Keys keep their order.
    Functions among tools are declared, and tools are checked."""
    def plain(other: Any) -> Any:
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"{name} must be values that JSON has, not {type(other).__name__}")

    if name == "tools":
        value = _declared(value)
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False,
                                                               default=plain)
    except (ValueError, RecursionError) as error:  # a list that holds itself, or is too deep
        raise ArgumentError(f"{name}: {error}") from None
    if "\0" in text:  # in JSON that the caller wrote; json.dumps leaves none
        raise ArgumentError(f"{name}: JSON cannot hold a NUL character")
    encoded = text.encode("utf-8", "surrogatepass")
    if name == "tools":
        reply_new(None, START_ANSWER, 0, [], [], encoded)  # it reads them
    return encoded


def _declared(given: Any) -> Any:
    """Tools as JSON has them."""
    if isinstance(given, Mapping) or callable(given):
        raise TypeError("tools must be a list of functions and of JSON schemas, not one alone")
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    return [tools.tool(one).declaration() if callable(one) else one for one in given]


NO_BUDGET = 2**31 - 1


def thinks(thinking: Any, default: bool) -> tuple[bool, int]:
    """Whether a text begins inside <think>, and how many tokens it may think at most."""
    if thinking is None:
        return default, NO_BUDGET
    if isinstance(thinking, bool) or (hasattr(thinking, "__bool__")  # numpy's bool is no number
                                      and not isinstance(thinking, Real)):
        return bool(thinking), NO_BUDGET
    if not hasattr(thinking, "__index__"):
        raise TypeError("thinking must be True, False or a number of tokens, not "
                        f"{type(thinking).__name__}")
    budget = integer(thinking, "thinking", 0)
    return budget > 0, budget


def _conversation(messages: Any, declared: Any, identity: str | None, prompt: Any, thinking: Any,
                  keep_thinking: Any) -> tuple[Any, list[Any]]:
    """An mm2_conversation, and the strings it points to."""
    conversation = _sized("mm2_conversation")
    conversation.flags = (
        (lib.MM2_GENERATION_PROMPT if flag(prompt, "add_generation_prompt") else 0)
        | (0 if thinks(thinking, True)[0] else lib.MM2_NO_THINKING)
        | (lib.MM2_KEEP_THINKING if flag(keep_thinking, "keep_thinking") else 0))
    keep = [ffi.new("char[]", json_text(messages, "messages"))]
    conversation.messages = keep[0]
    if declared is not None:
        keep.append(ffi.new("char[]", json_text(declared, "tools")))
        conversation.tools = keep[-1]
    if identity is not None:
        keep.append(_chars(identity, "identity"))
        conversation.identity = keep[-1]
    return conversation, keep


def _laid_out(kind: str, keep: list[Any], call: Callable[[Any, int], int]) -> tuple[Any, int]:
    """As _filled(), of a conversation; where it is a long one, Ctrl-C comes through."""
    size = sum(map(len, keep))

    def fill() -> tuple[Any, int]:
        return _filled(kind, size + 1024, call)  # seldom too little, and then it is done again
    return fill() if size < LONG else _interruptible(fill)


def chat_render(tokenizer: Owned, messages: Any, tools: Any, identity: str | None, prompt: bool,
                thinking: bool | int | None, keep_thinking: bool) -> str:
    """Messages as text in the vendor's format."""
    c, keep = _conversation(messages, tools, identity, prompt, thinking, keep_thinking)
    out, n = _laid_out("char[]", keep, lambda out, cap: lib.mm2_chat_render(
        tokenizer.pointer, c, out, cap))
    return bytes(ffi.buffer(out, n)).decode("utf-8", "replace")


def chat_encode(tokenizer: Owned, messages: Any, tools: Any, identity: str | None, prompt: bool,
                thinking: bool | int | None, keep_thinking: bool) -> list[int]:
    """Messages as ids; only the format's own tags become control tokens."""
    c, keep = _conversation(messages, tools, identity, prompt, thinking, keep_thinking)
    out, n = _laid_out("int32_t[]", keep, lambda out, cap: lib.mm2_chat_encode(
        tokenizer.pointer, c, out, cap))
    return list(out[0:n])


def chat_continue(tokenizer: Owned, timeline: Sequence[int], messages: Any, prompt: bool = True,
                  thinking: bool = True, keep_thinking: bool = False) -> list[int]:
    """The ids that messages, and the opening of a reply, add to a conversation's timeline."""
    c, keep = _conversation(messages, None, None, prompt, thinking, keep_thinking)
    before = ffi.new("int32_t[]", timeline)
    out, n = _laid_out("int32_t[]", keep, lambda out, cap: lib.mm2_chat_continue(
        tokenizer.pointer, before, len(timeline), c, out, cap))
    return list(out[0:n])


_FORMS = {"openai": int(lib.MM2_FORM_OPENAI), "anthropic": int(lib.MM2_FORM_ANTHROPIC)}


def chat_export(messages: Any, form: str) -> list[dict[str, Any]]:
    """Messages in the form of somebody else's interface."""
    if form not in _FORMS:
        raise ArgumentError(f"the form of messages is {form!r}, must be 'openai' or 'anthropic'")
    given = ffi.new("char[]", json_text(messages, "messages"))
    out, n = _filled("char[]", len(given) + 256, lambda out, cap: lib.mm2_chat_export(
        given, _FORMS[form], out, cap))
    made: list[dict[str, Any]] = json.loads(bytes(ffi.buffer(out, n)))
    return made


# ---- Reply ----

START_TEXT, START_THINKING, START_ANSWER = (
    int(lib.MM2_START_TEXT), int(lib.MM2_START_THINKING), int(lib.MM2_START_ANSWER))
END_NONE, END_STOP, END_LENGTH, END_CONTEXT, END_CANCELLED, END_CALLS = (
    int(lib.MM2_END_NONE), int(lib.MM2_END_STOP), int(lib.MM2_END_LENGTH),
    int(lib.MM2_END_CONTEXT), int(lib.MM2_END_CANCELLED), int(lib.MM2_END_CALLS))


class Piece(NamedTuple):
    """What mm2_piece says."""

    end: int
    count: int  # type: ignore[assignment]  # a tuple's method, which nobody needs here
    text: str
    thinking: str
    calls: int  # that have begun so far, likewise:
    reason: str
    thought: int
    next: int
    answer_at: int


class Call(NamedTuple):
    """What mm2_call says."""

    name: str
    arguments: str
    state: int
    known: bool
    text_at: int  # bytes


CALL_OPEN, CALL_COMPLETE, CALL_CUT = (
    int(lib.MM2_CALL_OPEN), int(lib.MM2_CALL_COMPLETE), int(lib.MM2_CALL_CUT))


def reply_new(tokenizer: Owned | None, start: int, max_tokens: int, ends: Sequence[int],
              stop: Sequence[bytes], declared: bytes | None = None,
              max_thinking: int = NO_BUDGET, call: str | None = None) -> Owned:
    """A reply; keeps its tokenizer, None for ids without text. declared: tools, JSON. call: the
    tool that it must call, "" for any."""
    options = _sized("mm2_reply_options")
    lib.mm2_reply_options_init(options)
    options.start, options.max_tokens, options.max_thinking = start, max_tokens, max_thinking
    schemas = ffi.NULL if declared is None else ffi.new("char[]", declared)
    wanted = ffi.NULL if call is None else _chars(call, "tool_choice")
    options.tools, options.call = schemas, wanted
    end_tokens = ffi.new("int32_t[]", ends)
    options.end_tokens, options.end_count = end_tokens, len(ends)
    strings = [ffi.new("char[]", string) for string in stop]
    array, lengths = ffi.new("char *[]", strings), ffi.new("int32_t[]", [*map(len, stop)])
    options.stop, options.stop_len, options.stop_count = array, lengths, len(strings)
    out = ffi.new("mm2_reply **")
    check(lib.mm2_reply_new(out, ffi.NULL if tokenizer is None else tokenizer.pointer, options))
    reply = _owned("reply", out)
    return reply if tokenizer is None else Owned(reply.pointer, (reply, tokenizer))


def _decoded(at: Any, length: int) -> str:
    return bytes(ffi.buffer(at, length)).decode("utf-8", "replace")


def _piece(piece: Any) -> Piece:
    return Piece(piece.end, piece.count, _decoded(piece.text, piece.text_len),
                 _decoded(piece.thinking, piece.thinking_len), piece.calls,
                 _string(piece.reason), piece.thought, piece.next, piece.answer_at)


def reply_push(reply: Owned, token: int) -> Piece:
    """What the next id adds."""
    piece = _sized("mm2_piece")
    check(lib.mm2_reply_push(reply.pointer, token, piece))
    return _piece(piece)


def reply_end(reply: Owned, reason: int) -> Piece:
    """End it: what was held back."""
    piece = _sized("mm2_piece")
    check(lib.mm2_reply_end(reply.pointer, reason, piece))
    return _piece(piece)


def reply_stands(reply: Owned) -> tuple[int, int]:
    """(end, count) so far."""
    piece = _sized("mm2_piece")
    check(lib.mm2_reply_all(reply.pointer, piece))
    return piece.end, piece.count


def reply_all(reply: Owned) -> Piece:
    """Everything so far."""
    piece = _sized("mm2_piece")
    check(lib.mm2_reply_all(reply.pointer, piece))
    return _piece(piece)


def reply_call(reply: Owned, index: int) -> Call:
    """Call `index`, as far as it came."""
    call = _sized("mm2_call")
    check(lib.mm2_reply_call(reply.pointer, index, call))
    return Call(_decoded(call.name, call.name_len), _decoded(call.arguments, call.arguments_len),
                call.state, bool(call.known), call.text_at)


def reply_characters(reply: Owned, length: int) -> int:
    """How many characters the first bytes of the answer are."""
    piece = _sized("mm2_piece")
    check(lib.mm2_reply_all(reply.pointer, piece))
    return len(_decoded(piece.text, min(length, piece.text_len)))


# ---- Grammar ----

GRAMMAR_REGEX, GRAMMAR_CHOICES, GRAMMAR_JSON_SCHEMA = (
    int(lib.MM2_GRAMMAR_REGEX), int(lib.MM2_GRAMMAR_CHOICES), int(lib.MM2_GRAMMAR_JSON_SCHEMA))


def grammar_new(tokenizer: Owned, kind: int, text: str) -> Owned:
    """A grammar of GRAMMAR_REGEX, ..., for any number of constraints; keeps its tokenizer.
    UnsupportedError: the text is right, but has more than the library knows."""
    out = ffi.new("mm2_grammar **")
    check(lib.mm2_grammar_new(out, tokenizer.pointer, kind, _chars(text, "a grammar")))
    grammar = _owned("grammar", out)
    return Owned(grammar.pointer, (grammar, tokenizer))


def grammar_matches(grammar: Owned, text: bytes) -> bool:
    """Whether the whole text has the form."""
    return check(lib.mm2_grammar_matches(grammar.pointer, ffi.from_buffer("char[]", text),
                                         len(text))) == 1


def constraint_new(grammar: Owned, start: int, vocab_size: int, ends: Sequence[int]) -> Owned:
    """The state of one text; keeps the grammar. start: START_TEXT, ... vocab_size: of the model."""
    options = _sized("mm2_constraint_options")
    lib.mm2_constraint_options_init(options)
    options.start, options.vocab_size = start, vocab_size
    end_tokens = ffi.new("int32_t[]", ends)
    options.end_tokens, options.end_count = end_tokens, len(ends)
    out = ffi.new("mm2_constraint **")
    check(lib.mm2_constraint_new(out, grammar.pointer, options))
    constraint = _owned("constraint", out)
    return Owned(constraint.pointer, (constraint, grammar))


def constraint_fork(constraint: Owned) -> Owned:
    """A second one that stands where the first stands; keeps what the first keeps."""
    out = ffi.new("mm2_constraint **")
    check(lib.mm2_constraint_fork(out, constraint.pointer))
    fork = _owned("constraint", out)
    return Owned(fork.pointer, (fork, constraint))


def constraint_mask(constraint: Owned, vocab_size: int) -> memoryview:
    """The tokens that may come next, a copy: uint32 [(vocab_size + 31) / 32], one bit a token."""
    out = ffi.new("const uint32_t **")
    check(lib.mm2_constraint_mask(constraint.pointer, out))
    return memoryview(bytes(ffi.buffer(out[0], (vocab_size + 31) // 32 * 4))).cast("I")


def constraint_push(constraint: Owned, token: int) -> None:
    """The token that has come."""
    check(lib.mm2_constraint_push(constraint.pointer, token))


def constraint_accepts(constraint: Owned) -> bool:
    """Whether the text so far is complete, and may end."""
    return check(lib.mm2_constraint_accepts(constraint.pointer)) == 1


def constraint_forced(constraint: Owned, most: int) -> list[int]:
    """The tokens that must come next, each the only one that its mask allows; at most so many."""
    array = ffi.new("int32_t[]", most)
    count = check(lib.mm2_constraint_forced(constraint.pointer, array, most))
    return list(array[0:count])

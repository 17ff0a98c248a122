"""Tokenizer: text to ids and back, and the family's chat format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard, overload

from minimax2 import _native_text
from minimax2._native import Owned, flag
from minimax2.errors import ArgumentError
from minimax2.handle import Handle
from minimax2.jinja_template import JinjaTemplate
from minimax2.options import Ids, Item, Message, Tools


class Tokenizer(Handle):
    """Byte-level BPE. Immutable, shared by any number of threads.

    A model has its own, `model.tokenizer`. Without a model: `Tokenizer(path)` of a tokenizer.json,
    a directory that holds one, or a GGUF file; raises FileError, FormatError, UnsupportedError.
    template: as in load().

    Ids of special tokens, None where the files name none: `bos`, `eos`, `unk`, `pad`, `think_open`,
    `think_close`. `vocab_size` is the highest id + 1.
    """

    __slots__ = ("_control", "_facts", "_jinja")

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *,
                 template: Literal["jinja"] | None = None) -> None:
        self._adopt(_native_text.tokenizer_open(path), template)

    @classmethod
    def _of(cls, owned: Owned, template: str | None = None) -> Tokenizer:
        """The tokenizer inside an open model."""
        self = cls.__new__(cls)
        self._adopt(owned, template)
        return self

    def _adopt(self, owned: Owned, template: str | None) -> None:
        super().__init__(owned)
        self._facts = _native_text.tokenizer_facts(owned)
        self._jinja: JinjaTemplate | None = None
        self._control: set[int] = set()
        source = self.unknown_template
        if template not in (None, "jinja"):
            raise ArgumentError(f"template is {template!r}, must be 'jinja' or None")
        if template is not None and source is not None:
            self._control = self._control_tokens()
            names = {f"{name}_token": self._id(name) for name in ("bos", "eos", "unk", "pad")}
            self._jinja = JinjaTemplate(
                source, [self.token(id).decode() for id in self._control],
                {name: self.token(id).decode() for name, id in names.items() if id is not None})

    def _control_tokens(self) -> set[int]:
        """Ids that a text has only if it is read with its control tokens."""
        tokens = (self.token(id) for id in range(self.vocab_size))
        text = b"\n".join(token for token in tokens
                          if token.decode(errors="ignore").encode() == token)
        return set(self.encode(text, special=True)) - set(self.encode(text))

    @property
    def by_jinja(self) -> bool:
        """Whether conversations are rendered by the checkpoint's own template, in Jinja."""
        return self._jinja is not None

    @property
    def unknown_template(self) -> str | None:
        """The text of the checkpoint's chat template if it is not a known one, or None."""
        return _native_text.tokenizer_unknown_template(self._c)

    def _id(self, name: str) -> int | None:
        value = self._facts[name]
        return None if value < 0 else value

    @property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        return self._facts["vocab_size"]

    @property
    def bos(self) -> int | None:
        """Id of the beginning of a text, or None."""
        return self._id("bos")

    @property
    def eos(self) -> int | None:
        """Id that ends a turn, or None."""
        return self._id("eos")

    @property
    def unk(self) -> int | None:
        """Id of the unknown token, or None."""
        return self._id("unk")

    @property
    def pad(self) -> int | None:
        """Id that fills up batches, or None."""
        return self._id("pad")

    @property
    def think_open(self) -> int | None:
        """Id of <think>, or None."""
        return self._id("think_open")

    @property
    def think_close(self) -> int | None:
        """Id of </think>, or None."""
        return self._id("think_close")

    def encode(self, text: str | bytes | bytearray, special: bool = False) -> list[int]:
        """The ids of a text, str or UTF-8 bytes, as a list of ints.

        special: let strings such as "[e~[" or "<think>" become their control token. By default they
        are plain text, so that what a user types cannot steer the format.
        """
        return _native_text.tokenizer_encode(self._c, text, special)

    def decode(self, ids: Ids, special: bool = False) -> str:
        """The text of these ids. Bytes that are not UTF-8 become U+FFFD.

        special: write special tokens out instead of leaving them out. Raises ArgumentError for ids
        outside 0..vocab_size - 1.
        """
        return self.decode_bytes(ids, special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Ids, special: bool = False) -> bytes:
        """The same as bytes: a token may end in the middle of a character."""
        return _native_text.tokenizer_decode(self._c, ids, special)

    def token(self, id: int) -> bytes:
        """The bytes of one token. Raises ArgumentError for an id out of range."""
        return _native_text.tokenizer_token(self._c, id)

    @property
    def added(self) -> list[int]:
        """Ids of added tokens, ascending: control tokens and others such as <think>, that no text
        becomes unless encode() is told so."""
        return _native_text.tokenizer_added(self._c)

    def id(self, token: str | bytes | bytearray) -> int | None:
        """The id of the token with exactly these bytes (or str), or None."""
        return _native_text.tokenizer_id(
            self._c, token.encode() if isinstance(token, str) else bytes(token))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, *,
               tools: Tools | None = None, thinking: bool | int | None = True,
               keep_thinking: bool = False, identity: str | None = None) -> str:
        """Messages as text in the chat format; see apply_chat_template() for the arguments.

        For reading: to feed a model use apply_chat_template(), which keeps the format's tags and
        the same characters inside a message apart.
        """
        if self._jinja is not None:
            text, mark = self._by_jinja(messages, tools, identity, add_generation_prompt, thinking,
                                        keep_thinking)
            return text.replace(mark, "")
        return _native_text.chat_render(self._c, messages, tools, identity,
                                        add_generation_prompt, thinking, keep_thinking)

    @overload
    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True,
                            tokenize: Literal[True] = True, *, tools: Tools | None = None,
                            thinking: bool | int | None = True, keep_thinking: bool = False,
                            identity: str | None = None) -> list[int]: ...

    @overload
    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True,
                            *, tokenize: Literal[False], tools: Tools | None = None,
                            thinking: bool | int | None = True, keep_thinking: bool = False,
                            identity: str | None = None) -> str: ...

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True,
                            tokenize: bool = True, *, tools: Tools | None = None,
                            thinking: bool | int | None = True, keep_thinking: bool = False,
                            identity: str | None = None) -> list[int] | str:
        """Messages as a list of ids, or with tokenize=False as text.

        messages: dicts of role ("system", first only; "user", "assistant", "tool") and content, a
        str or a list of texts; of an assistant also thinking (or reasoning_content, reasoning,
        reasoning_details) and tool_calls, [{"function": {"name": ..., "arguments": {...}}}].
        tools: [{"type": "function", "function": {"name": ..., "parameters": JSON schema}}]; keys
        keep their order. Both may be JSON in a str.

        add_generation_prompt: end with the opening of an assistant turn, inside <think>, or with
        thinking=False behind an empty block of it; a number of tokens is what generate() takes, and
        0 is False. keep_thinking: of all assistant turns, not only
        of those behind the last user's. identity: the system text where no message gives one.
        Raises ArgumentError where a message holds what the format has no place for.
        """
        if not tokenize:
            return self.render(messages, add_generation_prompt, tools=tools, thinking=thinking,
                               keep_thinking=keep_thinking, identity=identity)
        if self._jinja is not None:
            return self._read(*self._by_jinja(messages, tools, identity, add_generation_prompt,
                                              thinking, keep_thinking))
        return _native_text.chat_encode(self._c, messages, tools, identity,
                                        add_generation_prompt, thinking, keep_thinking)

    def _by_jinja(self, messages: Any, tools: Any, identity: str | None, prompt: bool,
                  thinking: bool | int | None, keep_thinking: bool) -> tuple[str, str]:
        """Messages as the checkpoint's own template has them, with marks in what was said."""
        assert self._jinja is not None
        if flag(keep_thinking, "keep_thinking"):
            raise ArgumentError("keep_thinking is not for template=\"jinja\": the checkpoint's "
                                "template decides what it keeps")
        options: dict[str, Any] = {"add_generation_prompt": flag(prompt, "add_generation_prompt"),
                                   "enable_thinking": _native_text.thinks(thinking, True)[0]}
        if identity is not None:
            options["model_identity"] = identity
        declared = None if tools is None else json.loads(_native_text.json_text(tools, "tools"))
        return self._jinja.render(_normal(messages), declared, **options)

    def _read(self, text: str, mark: str) -> list[int]:
        """The ids of a text with marks: the control tokens in it, and what stands between."""
        ids: list[int] = []
        between: list[int] = []
        for id in [*self.encode(text, special=True), None]:
            if id is not None and id not in self._control:
                between.append(id)
                continue
            ids += self.encode(self.decode(between, special=True).replace(mark, ""))
            ids += [] if id is None else [id]
            between = []
        return ids

    def _begins_thinking(self, ids: Sequence[int], wanted: bool) -> bool:
        """Whether a prompt of messages leaves the model inside <think>."""
        if self._jinja is None:
            return wanted
        begins = self.decode(ids[-8:], special=True).rstrip().endswith("<think>")
        if begins and not wanted:
            raise ArgumentError("thinking=False: the checkpoint's chat template opens <think> all "
                                "the same")
        return begins

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"<Tokenizer {self.vocab_size} tokens>"


def is_prompts(prompt: Any) -> TypeGuard[Sequence[Item]]:
    """Whether it is several prompts: texts, lists of ids, conversations, or dicts of a prompt."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and all(
        isinstance(item, (str, list, tuple))
        or (isinstance(item, Mapping) and "prompt" in item)
        or (hasattr(item, "tolist") and hasattr(item, "__len__")) for item in prompt)


def is_messages(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is a conversation, a list of dicts, rather than text or ids."""
    return (isinstance(prompt, (list, tuple)) and bool(prompt)
            and all(isinstance(message, dict) for message in prompt))


def _normal(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates know them.

    What these cannot know, parts that are no text, errors, and results that do not follow the
    order of the calls, is checked, and put into OpenAI's plain form.
    """
    given: list[dict[str, Any]] = json.loads(_native_text.json_text(messages, "messages"))
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ArgumentError("messages must be a list of objects")
    if not any(_has_parts(message) for message in given) and _in_order(given):
        return given
    made = _native_text.chat_export(given, "openai")
    for message in made:
        message["content"] = message["content"] or ""  # a template may write None
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    made[0].update((key, given[0][key]) for key in ("current_date", "current_location")
                   if given[0].get(key) is not None)
    return made


def _has_parts(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return "is_error" in message or message.get("role") != "tool" and isinstance(
        content, list) and any(isinstance(part, dict) and part.get("type") != "text"
                               for part in content)


def _in_order(messages: list[dict[str, Any]]) -> bool:
    """Whether results that name their calls follow these in their order."""
    left: list[Any] = []
    for message in messages:
        if message.get("role") == "assistant":
            calls = message.get("tool_calls")
            left = [call.get("id") if isinstance(call, dict) else None for call in calls or ()]
        elif message.get("role") == "tool" and message.get("tool_call_id") is not None:
            if not left or left.pop(0) != message["tool_call_id"]:
                return False
    return True

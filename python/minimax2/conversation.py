"""Chat: a conversation on one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from minimax2 import _native, _native_text
from minimax2.errors import ArgumentError
from minimax2.generation import Generation
from minimax2.options import (GenerateOptions, KvDtype, Message, ModelGenerateOptions, check_names,
                              spelled_out)
from minimax2.request import Request
from minimax2.session import Session
from minimax2.stream import Stream

if TYPE_CHECKING:
    from minimax2.model import Model

Turns = str | Message | Sequence[Message]


def _messages(text: Turns) -> list[Message]:
    """What is said, as messages."""
    if isinstance(text, str):
        return [{"role": "user", "content": text}]
    if isinstance(text, Mapping):
        return [text]
    if isinstance(text, (list, tuple)) and text and all(isinstance(turn, Mapping) for turn in text):
        return list(text)
    raise TypeError("the content of a turn must be a str, a message (dict) or a list of messages, "
                    f"not {text!r:.40}")


class Chat:
    """`model.chat(system=...)`, then send() turn after turn.

    The tokens that were sampled stay in the timeline as they are, thinking included; only what is
    new is rendered and fed. Options are the defaults of its generations, as in Model.generate():
    thinking=False closes the block in the prompt, so that the model answers at once; tools are
    declared once, at the beginning. A reply that calls some has `calls`: send() their results as
    messages of the role "tool".
    """

    @spelled_out(GenerateOptions)
    def __init__(self, model: Model, system: str | None = None, *, context: int | None = None,
                 kv_dtype: KvDtype | None = None, chunk: int | None = None,
                 **options: Unpack[GenerateOptions]) -> None:
        check_names(options, ModelGenerateOptions)
        Request(model, None, **options)  # refuse now what a turn would refuse
        self._messages: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}])
        if system is not None:
            model.tokenizer.render(self._messages, False)
        self.session = Session(model, context, kv_dtype, chunk)
        self.model = model
        self._options = options
        self._stream: Stream | None = None  # of the last turn, which is not yet in _messages

    @property
    def messages(self) -> list[Message]:
        """The turns so far, for reading: dicts of role, content, thinking and tool_calls."""
        if self._stream is None:
            return list(self._messages)
        return [*self._messages, self._stream.message()]

    @overload
    def send(self, text: Turns, *, stream: Literal[False] = False,
             **options: Unpack[GenerateOptions]) -> Generation: ...

    @overload
    def send(self, text: Turns, *, stream: Literal[True],
             **options: Unpack[GenerateOptions]) -> Stream: ...

    @overload
    def send(self, text: Turns, *, stream: bool,
             **options: Unpack[GenerateOptions]) -> Generation | Stream: ...

    @spelled_out(GenerateOptions)
    def send(self, text: Turns, *, stream: bool = False,
             **options: Unpack[GenerateOptions]) -> Generation | Stream:
        """Say something: the answer as a Generation, or with stream=True a Stream of it.

        text: what the user says; or a message, or several, such as the results of tools:
        [{"role": "tool", "content": ...}], one for each call. A turn that was cut short by an
        interrupt, a cancelled stream or max_new_tokens is closed where it stopped. Raises
        ContextFull if there is no room left. Whatever is refused leaves the conversation as it was.
        """
        stream = _native.flag(stream, "stream")
        new = _messages(text)
        wanted: GenerateOptions = {**self._options, **options}
        if self.session.length and wanted.get("tools") != self._options.get("tools"):
            raise ArgumentError("tools stand at the beginning of a conversation; give them to the "
                                "chat, or to its first turn")

        def turn(thinking: bool) -> list[int]:
            return self._continuation(new, wanted, thinking)

        made = Stream(self.session, Request(self.model, None, turn, **wanted))
        self._options = {**self._options, "tools": wanted.get("tools")}
        self._messages, self._stream = [*self.messages, *new], made
        return made if stream else made.result()

    def _continuation(self, new: list[Message], options: GenerateOptions,
                      thinking: bool) -> list[int]:
        """The ids that new messages add to the timeline."""
        tokenizer, session = self.model.tokenizer, self.session
        if not session.length:
            return tokenizer.apply_chat_template([*self._messages, *new],
                                                 tools=options.get("tools"), thinking=thinking)
        return _native_text.chat_continue(tokenizer._c, session.tokens, new, thinking)

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Chat {len(self.messages)} messages, {self.session!r}>"

"""Chat: a conversation on one session."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from minimax2 import _native, _native_text
from minimax2.edits import Edits
from minimax2.errors import ArgumentError, Error
from minimax2.generation import Generation, Piece, ToolCall
from minimax2.options import (GenerateOptions, KvDtype, Message, ModelGenerateOptions,
                              check_names, spelled_out)
from minimax2.request import Request
from minimax2.session import Session
from minimax2.stream import Stream
from minimax2.tools import Tool, answer, answer_async, functions

if TYPE_CHECKING:
    from minimax2.model import Model

Turns = str | Message | Sequence[Message]
MOST_ROUNDS = 10


def _messages(text: Turns) -> list[Message]:
    """What is said, as messages of our own."""
    if isinstance(text, str):
        return [{"role": "user", "content": text}]
    if isinstance(text, Mapping):
        return [copy.deepcopy(text)]
    if isinstance(text, (list, tuple)) and text and all(isinstance(turn, Mapping) for turn in text):
        return copy.deepcopy(list(text))
    raise TypeError("the content of a turn must be a str, a message (dict) or a list of messages, "
                    f"not {text!r:.40}")


def _listed(messages: Sequence[Message]) -> list[Message]:
    """A whole conversation, which may be empty, as messages of our own."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError("the messages of a conversation must be a list of dicts, not "
                        f"{messages!r:.40}")
    return _messages(messages) if messages else []


class Chat:
    """`model.chat(system=...)`, then send() turn after turn.

    The tokens that were sampled stay in the timeline as they are, thinking included; only what is
    new is rendered and fed. Options are the defaults of its generations, as in Model.generate():
    thinking=False closes the block in the prompt, so that the model answers at once; tools are
    declared once, at the beginning. Those that are functions are called by send() and pieces(). A
    reply that calls others has `calls`: send() their results as messages of the role "tool".
    """

    @spelled_out(GenerateOptions)
    def __init__(self, model: Model, system: str | None = None, *,
                 messages: Sequence[Message] | None = None, context: int | None = None,
                 kv_dtype: KvDtype | None = None, chunk: int | None = None,
                 edits: Edits | None = None, **options: Unpack[GenerateOptions]) -> None:
        check_names(options, ModelGenerateOptions)
        Request(model, None, **options)  # refuse now what a turn would refuse
        functions(options.get("tools"))
        begin: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        begin += [] if messages is None else _listed(messages)
        if begin:
            model.tokenizer.render(begin, False)
        self.model = model
        self._options = options
        self.session = Session(model, context, kv_dtype, chunk, edits)
        self.messages = begin

    # ---- What was said ----

    @property
    def session(self) -> Session:
        """Its session. Give it a restored one, and what is said from here on goes on with that."""
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        if not isinstance(session, Session):
            raise TypeError(f"chat.session must be a Session, not {type(session).__name__}")
        if session.model is not self.model:
            raise ArgumentError("chat.session must be a session of the chat's own model")
        session._check_alone()
        self._session = session
        self._messages: list[Message] = []
        self._ends = [(0, session.length)]  # how many messages the first so many tokens are
        self._stream: Stream | None = None  # of the last turn, which is not yet in _messages

    @property
    def messages(self) -> list[Message]:
        """The turns so far, a copy: dicts of role, content, thinking and tool_calls.

        Assign a list, and the conversation is that one, in any form that generate() takes. Of the
        messages that it begins with as the old one did, the tokens stay as they were sampled; from
        there on it is rendered anew. Raises ArgumentError, ContextFull, and nothing changes.
        """
        return [*copy.deepcopy(self._messages), *self._said()]

    @messages.setter
    def messages(self, messages: Sequence[Message]) -> None:
        new = _listed(messages)
        old, ends = [*self._messages, *self._said()], self._all_ends()
        common = 0
        while common < min(len(old), len(new)) and old[common] == new[common]:
            common += 1
        ends = [(count, length) for count, length in ends if count <= common]
        ids = self._ids(new, ends, False, True, self._options)
        if ids:
            self.session.sync(ids)
        elif self.session.length:
            self.session.rewind(0)
        if self._stream is not None:
            self._stream.cancel()
        self._messages, self._ends, self._stream = new, ends, None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as JSON schemas."""
        tools = self._options.get("tools")
        found = [] if tools is None else json.loads(_native_text.json_text(tools, "tools"))
        return found or []

    def _said(self) -> list[Message]:
        """The answer that is not yet in the messages."""
        return [] if self._stream is None else [self._stream.message()]

    def _all_ends(self) -> list[tuple[int, int]]:
        """Where the tokens of an answer end, with that of the last one."""
        if self._stream is None:
            return self._ends
        return [*self._ends, (len(self._messages) + 1, self.session.length)]

    def _ids(self, messages: list[Message], ends: list[tuple[int, int]], prompt: bool,
             thinking: bool, options: GenerateOptions) -> list[int]:
        """The whole timeline of messages of which ends[-1] stand in it, by their tokens."""
        count, length = ends[-1]
        new, keep = messages[count:], bool(options.get("keep_thinking"))
        by_jinja = self.model.tokenizer.by_jinja
        if by_jinja and ends[0][1]:
            raise ArgumentError("a restored session cannot be gone on with by template=\"jinja\": "
                                "give the chat all messages")
        if length and by_jinja:
            new = messages
        elif length:
            kept = self.session.tokens[:length]
            return kept + (_native_text.chat_continue(self.model.tokenizer._c, kept, new, prompt,
                                                      thinking, keep) if new else [])
        if not prompt and all(message.get("role") in ("system", "developer") for message in new):
            return []  # tools may still be declared
        return self.model.tokenizer.apply_chat_template(new, prompt, tools=options.get("tools"),
                                                        thinking=thinking, keep_thinking=keep)

    def undo(self) -> list[Message]:
        """Take back what the user said last, and all behind it: these messages."""
        messages = self.messages
        users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
        if not users:
            raise ArgumentError("there is nothing to take back: the user has said nothing")
        self.messages = messages[:users[-1]]
        return messages[users[-1]:]

    def fork(self) -> Chat:
        """A second conversation that stands where this one stands, an answer under way included.

        Its session is a fork(): what was said is shared, what comes is not.
        """
        made = copy.copy(self)
        made._session = self.session.fork()
        made._messages, made._ends, made._stream = self.messages, list(self._all_ends()), None
        return made

    # ---- Saying something ----

    @overload
    def send(self, text: Turns | None = None, *, stream: Literal[False] = False,
             max_rounds: int = MOST_ROUNDS, **options: Unpack[GenerateOptions]) -> Generation: ...

    @overload
    def send(self, text: Turns | None = None, *, stream: Literal[True],
             max_rounds: int = MOST_ROUNDS, **options: Unpack[GenerateOptions]) -> Stream: ...

    @overload
    def send(self, text: Turns | None = None, *, stream: bool, max_rounds: int = MOST_ROUNDS,
             **options: Unpack[GenerateOptions]) -> Generation | Stream: ...

    @spelled_out(GenerateOptions)
    def send(self, text: Turns | None = None, *, stream: bool = False,
             max_rounds: int = MOST_ROUNDS,
             **options: Unpack[GenerateOptions]) -> Generation | Stream:
        """Say something: the answer as a Generation.

        text: what the user says; or a message, or several, such as the results of tools:
        [{"role": "tool", "content": ...}], one for each call; None: the last message is still to be
        answered. A turn that was cut short by an interrupt, a cancelled stream or max_new_tokens is
        closed where it stopped. Raises ContextFull if there is no room left. Whatever is refused
        leaves the conversation as it was.

        Calls of functions among the tools are made, and the model goes on with their results, at
        most max_rounds times. Arguments that do not fit, and what a function raises, are results
        too: "error: ...". If the results themselves are refused, for want of room, the calls stand
        unanswered: send() shorter ones. A reply that calls a tool which is no function comes back
        as it is, and so does one behind the last round. stream=True: a Stream of one reply, whose
        calls are not made; see pieces().
        """
        if _native.flag(stream, "stream"):
            return self._begin(text, options)
        turn = self._turn(text, max_rounds, options)
        for reply in turn:
            reply.result()
            for call in turn.due():
                turn.add(answer(turn.tools, call))
        return turn.stream.result()

    @spelled_out(GenerateOptions)
    def pieces(self, text: Turns | None = None, *, max_rounds: int = MOST_ROUNDS,
               **options: Unpack[GenerateOptions]) -> Iterator[Piece]:
        """As send(), told while it comes: Pieces of thinking, text, calls and their results."""
        return self._pieces(self._turn(text, max_rounds, options))

    def _pieces(self, turn: _Turn) -> Iterator[Piece]:
        for reply in turn:
            yield from reply.pieces()
            for i, call in enumerate(turn.due()):
                yield Piece("result", turn.add(answer(turn.tools, call)), i)

    @spelled_out(GenerateOptions)
    async def asend(self, text: Turns | None = None, *, max_rounds: int = MOST_ROUNDS,
                    **options: Unpack[GenerateOptions]) -> Generation:
        """As send(), for asyncio: the calls of one reply are made together."""
        turn = self._turn(text, max_rounds, options)
        for reply in turn:
            async for _ in reply:
                pass
            for result in await asyncio.gather(*(answer_async(turn.tools, call)
                                                 for call in turn.due())):
                turn.add(result)
        return turn.stream.result()

    def _turn(self, text: Turns | None, max_rounds: int,
              options: GenerateOptions) -> _Turn:
        return _Turn(self, text, _native.integer(max_rounds, "max_rounds", 0), options)

    def _begin(self, text: Turns | None, options: GenerateOptions) -> Stream:
        """One reply, under way."""
        wanted: GenerateOptions = {**self._options, **options}
        if self.session.length and wanted.get("tools") != self._options.get("tools"):
            raise ArgumentError("tools stand at the beginning of a conversation; give them to the "
                                "chat, or to its first turn")
        functions(wanted.get("tools"))
        messages, ends = [*self._messages, *self._said()], self._all_ends()
        new = messages[ends[-1][0]:] if text is None else _messages(text)
        if not new or new[-1].get("role") not in ("user", "tool") and text is None:
            raise ArgumentError("there is nothing to answer: the last message is not the user's")
        messages = messages if text is None else [*messages, *new]

        def turn(thinking: bool) -> list[int]:
            before = self.session.tokens
            if self.model.tokenizer.by_jinja:
                return self._rendered(self._ids(messages, ends, True, thinking, wanted), before)
            if before and text is not None:
                return _native_text.chat_continue(self.model.tokenizer._c, before, new, True,
                                                  thinking, bool(wanted.get("keep_thinking")))
            return self._ids(messages, ends, True, thinking, wanted)[len(before):]

        made = Stream(self.session, Request(self.model, None, turn, **wanted))
        self._options = {**self._options, "tools": wanted.get("tools")}
        self._messages, self._ends, self._stream = messages, ends, made
        return made

    def _rendered(self, ids: list[int], before: list[int]) -> list[int]:
        """What a conversation that was rendered anew adds behind the beginning that stays."""
        common = 0
        while common < min(len(before), len(ids) - 1) and before[common] == ids[common]:
            common += 1
        if common < len(before):
            self.session.rewind(common)
        return ids[common:]

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Chat {len(self._messages) + len(self._said())} messages, {self.session!r}>"


class _Turn(Iterator[Stream]):
    """The replies of one turn: each goes on behind the results of the one before it."""

    def __init__(self, chat: Chat, text: Turns | None, rounds: int,
                 options: GenerateOptions) -> None:
        self._chat = chat
        self._rounds = rounds
        choice = options.get("tool_choice", chat._options.get("tool_choice"))
        self._none = choice == "none"
        self._later: GenerateOptions = {**options, "tool_choice": "none" if self._none else None}
        self._results: list[Message] | None = None
        self.stream = chat._begin(text, options)
        self.tools: dict[str, Tool] = functions(chat._options.get("tools"))

    def __next__(self) -> Stream:
        if self._results is None:  # the first
            self._results = []
        elif self._results:
            results, self._results = self._results, []
            try:
                self.stream = self._chat._begin(results, self._later)
            except Error as error:
                error.add_note("The calls stand unanswered: send() their results, shorter, as "
                               "messages of the role \"tool\".")
                raise
        else:
            raise StopIteration
        return self.stream

    def due(self) -> list[ToolCall]:
        """The calls of a reply that has come to its end, if they are to be made."""
        calls = self.stream.calls
        others = any(call.known and call.name not in self.tools for call in calls)
        if (self.stream.finish_reason != "tool_calls" or not self.tools or others or self._none
                or not self._rounds):
            return []
        self._rounds -= 1
        return calls

    def add(self, result: str) -> str:
        """A result; those of all calls make the next message."""
        assert self._results is not None
        self._results.append({"role": "tool", "content": result})
        return result

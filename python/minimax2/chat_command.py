"""What `minimax2 chat` shows and understands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import minimax2 as mm


def read_text(argument: str) -> str:
    """An argument, or for "-" what stands on the standard input."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise mm.ArgumentError("the standard input is closed")
    return sys.stdin.read()


def is_terminal(stream: Any) -> bool:
    """Whether people see it."""
    return stream is not None and bool(stream.isatty())


def run(chat: mm.Chat, message: str | None) -> None:
    """Answer one message, or talk until there is nothing more to read.

    What is wrong with a line is told, and the next one read. Without somebody who types, what is
    wrong with the conversation, such as one without room, ends it.
    """
    talk = _Talk(chat)
    if message is not None:
        talk.answer(message)
        return
    asks = is_terminal(sys.stdin)
    for text in _lines():
        try:
            talk.take(text)
        except mm.Error as error:
            if not asks and not isinstance(error, mm.ArgumentError):
                raise
            _note(f"error: {error}")


def _lines() -> Iterator[str]:
    """What is typed, or stands on the standard input, up to an empty line."""
    if sys.stdin is None:
        raise mm.ArgumentError("the standard input is closed: give the message as an argument")
    prompt = "> " if is_terminal(sys.stdin) else ""
    if prompt:
        try:
            import readline  # noqa: F401  (gives input() its editing and history)
        except ImportError:
            pass  # a Python without it
    while True:
        try:
            text = input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            print()
            _note("an empty line or Ctrl-D ends the chat")
            continue
        if not text:
            return
        yield text


class _Talk:
    """A conversation with somebody who types."""

    def __init__(self, chat: mm.Chat) -> None:
        self._chat = chat
        self._shows_thinking = True
        self._commands: dict[str, Callable[[str], None]] = {
            "/edit": self._edit, "/help": self._help, "/load": self._load, "/save": self._save,
            "/system": self._system, "/think": self._think, "/tools": self._tools,
            "/undo": self._undo}

    def take(self, text: str) -> None:
        """A line: a command, or something to answer. Two slashes begin a line with one."""
        name, _, rest = text.partition(" ")
        if text.startswith("//"):
            self.answer(text[1:])
        elif not text.startswith("/"):
            self.answer(text)
        elif name not in self._commands:
            _note(f"there is no command {name}; /help lists them, // begins a line with a slash")
        else:
            try:
                self._commands[name](rest.strip())
            except (mm.Error, OSError) as error:
                _note(f"error: {error}")

    def answer(self, text: str | None) -> None:
        """Say it (None: what was said last), and show the answer; what was cut says so."""
        context = self._chat.session.context
        try:
            stream = self._chat.send(text, stream=True)
        except mm.ContextFull:
            raise mm.ContextFull(f"the conversation is full: its context has {context} positions; "
                                 "--context N makes a larger one") from None
        try:
            _show(stream, self._shows_thinking)
        except KeyboardInterrupt:
            stream.cancel()
        note = {"length": f"cut off after {len(stream.tokens)} tokens; -n N allows more",
                "context": f"cut off: the context of {context} positions is full; --context N "
                           "makes a larger one",
                "cancelled": "cut short"}.get(stream.finish_reason or "")
        if note:
            _note(note)

    def _help(self, _: str) -> None:
        """/help: this list"""
        for command in self._commands.values():
            print(command.__doc__)

    def _undo(self, _: str) -> None:
        """/undo: take back your last message and its answer"""
        _note(f"taken back: {_shown(self._chat.undo()[0])}")

    def _edit(self, text: str) -> None:
        """/edit TEXT: say this in place of your last message"""
        if not text:
            raise mm.ArgumentError("/edit needs the new text")
        self._chat.undo()
        self.answer(text)

    def _system(self, text: str) -> None:
        """/system TEXT: another system prompt, for the whole conversation; /system: show it"""
        messages = self._chat.messages
        first = messages[:1] if messages and messages[0]["role"] == "system" else []
        if text:
            self._chat.messages = [{"role": "system", "content": text}, *messages[len(first):]]
        else:
            _note(_shown(first[0]) if first else "the model's own system prompt")

    def _tools(self, _: str) -> None:
        """/tools: those that the model may call"""
        declared = self._chat.tools
        for tool in declared:
            function = tool.get("function", tool)
            print(f"{function['name']}: {function.get('description', '')}")
        if not declared:
            _note("none; --tools FILE declares some")

    def _think(self, wanted: str) -> None:
        """/think on, /think off: show the thinking, or hide it; /think: the other of the two"""
        if wanted not in ("", "on", "off"):
            raise mm.ArgumentError(f"/think is on or off, not {wanted}")
        self._shows_thinking = wanted == "on" if wanted else not self._shows_thinking
        _note("thinking is shown" if self._shows_thinking else "thinking is hidden")

    def _save(self, path: str) -> None:
        """/save PATH: write the conversation to a file"""
        self._chat.session.save(path)
        _note(f"saved: {self._chat.session.length} positions")

    def _load(self, path: str) -> None:
        """/load PATH: go on with one that was saved, with this model"""
        old = self._chat.session
        self._chat.session = self._chat.model.restore(path)
        old.close()
        _note(f"loaded: {self._chat.session.length} positions")


def _shown(message: Any) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _note(text: str) -> None:
    print(f"[{text}]", file=sys.stdout if is_terminal(sys.stdout) else sys.stderr, flush=True)


def _show(stream: mm.Stream, shows_thinking: bool) -> None:
    """Print an answer while it is made: the thinking dim on a terminal, else apart from it."""
    thinks = sys.stdout if is_terminal(sys.stdout) else sys.stderr
    dim, plain = ("\033[2m", "\033[0m") if is_terminal(thinks) else ("", "")
    thought = thinking = line = said = False  # the two in the middle: such a line is not ended

    def end_thinking(gap: str) -> None:
        nonlocal thinking
        if thinking and thinks is not None:
            print(plain, end=gap, file=thinks, flush=True)
        thinking = False

    print(end="", flush=True)  # an output that takes nothing says so now
    try:
        for piece in stream.pieces():
            if piece.kind == "thinking":
                text = piece.text if shows_thinking else "" if thought else "[it thinks]"
                text = dim * (not thinking) + text
                thought = thinking = True  # first: Ctrl-C may come behind any line
                if thinks is not None:
                    print(text, end="", file=thinks, flush=True)
                continue
            end_thinking("\n\n" if thinks is sys.stdout and piece.kind == "text" else "\n")
            newline = "\n" * line
            line, said = piece.kind != "call_end", True
            if piece.kind == "call":
                print(f"{newline}{piece.text}(", end="", flush=True)
            elif piece.kind == "call_end":
                cut = stream.calls[piece.call or 0].state == "cut"
                print(")" + " [cut off]" * cut, flush=True)
            else:
                print(piece.text, end="", flush=True)
    finally:
        end_thinking("\n")
        if line or not (thought or said):
            print(flush=True)

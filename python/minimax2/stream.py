"""Stream: a generation while it is being made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, Unpack

from minimax2 import _native, trace
from minimax2._native import Buffer
from minimax2.errors import ArgumentError
from minimax2.generation import Generation, Timing, TokenLogprob
from minimax2.options import DEFAULTS, GenerateOptions, Prompt, check_names
from minimax2.sampling import Sampler
from minimax2.tensor import Tensor
from minimax2.text import Tokenizer, is_messages

if TYPE_CHECKING:
    from minimax2.model import Model
    from minimax2.session import Session

_SLICE = 0.05  # seconds between two looks at cancel()


class Request:
    """The options of one generation, all of them checked, and the ids of its prompt.

    Made before anything is fed: what it refuses has changed nothing.
    """

    def __init__(self, model: Model, prompt: Prompt | None,
                 **options: Unpack[GenerateOptions]) -> None:
        check_names(options, GenerateOptions)
        given: dict[str, Any] = {**DEFAULTS, **options}
        self.max_new_tokens = _native.integer(given.pop("max_new_tokens"), "max_new_tokens", 0)
        self.top_logprobs = _native.integer(given.pop("top_logprobs"), "top_logprobs", 0,
                                            model.config.vocab_size)
        self.stop = _stop_strings(given.pop("stop", None))
        self.mask = given.pop("mask", None)
        if self.mask is not None and not callable(self.mask):
            _native.mask_words(self.mask, model.config.vocab_size)
        self.logits_processor = given.pop("logits_processor", None)
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise TypeError("logits_processor must be a callable(ids, logits), not "
                            f"{type(self.logits_processor).__name__}")
        hooks, thinking = given.pop("hooks", None), given.pop("thinking", None)
        self.hooks = None if hooks is None else trace.Hooks(model, hooks)
        self.ids = None if prompt is None else model.ids(prompt)
        self.thinking = is_messages(prompt) if thinking is None else bool(thinking)
        if self.ids is not None and is_messages(prompt) and not self.thinking:
            self.ids = without_thinking(model.tokenizer, self.ids)
        self.sampler = Sampler(model, **given)


def without_thinking(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A chat prompt, which ends inside <think>, with that block closed and empty."""
    if tokenizer.think_open is None or tokenizer.think_close is None:
        raise ArgumentError("thinking=False needs a tokenizer with <think> and </think>")
    opened = len(ids) - 1 - ids[::-1].index(tokenizer.think_open)
    blank = tokenizer.encode("\n\n")
    return [*ids[:opened + 1], *blank, tokenizer.think_close, *blank]


class Stream(Iterator[str], AsyncIterator[str]):
    """Iterate over it for pieces of text; poll(seconds) in a game loop; `async for` under asyncio.

    Pieces are whole characters and hold back what may become a stop string, so that joined they
    are the final text. In a chat turn they are the answer; `thinking` grows before it. Nothing runs
    between two calls. Used by one thread at a time, except cancel(). What Ctrl-C interrupts goes on
    with the next call; so does what a callback of yours refused by raising an exception.

    Attributes: `session`, `seed`, `tokens` (ids so far), `text` (all pieces so far), `thinking`,
    `done`, `finish_reason` (None until done).
    """

    def __init__(self, session: Session, request: Request) -> None:
        session._check_free()
        if request.ids is not None:
            session.feed(request.ids)
        self.session = session
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.seed = request.sampler.seed
        self._request = request
        self._tokenizer = session.model.tokenizer_or_none
        self._logprobs: list[TokenLogprob] | None = [] if request.top_logprobs else None
        self._cancelled = False
        self._bytes = b""  # of a character that is not complete yet
        self._thinking = "" if request.thinking else None
        self._in_thinking = request.thinking
        self._answer = ""  # decoded so far; _shown of its characters may be seen, _taken were
        self._shown = self._taken = 0
        self._start = session.length
        self._prompt_tokens = self._start - session.pos
        self._prompt_seconds = self._seconds = 0.0
        if request.max_new_tokens == 0:
            self._finish("length")

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._answer[:self._shown]

    @property
    def thinking(self) -> str | None:
        """What was written before </think> in a chat turn, so far; None outside chats."""
        return None if self._thinking is None else self._thinking.strip("\n")

    @property
    def done(self) -> bool:
        """Whether the generation has ended."""
        return self.finish_reason is not None

    def cancel(self) -> None:
        """End the generation; may be called from any thread."""
        self._cancelled = True
        if not self.session.closed:
            self.session.interrupt()

    def poll(self, seconds: float = 0.0) -> str:
        """Work for about `seconds`; the text that came, "" if none yet. See `done` for the end."""
        deadline = time.monotonic() + (_native.duration(seconds) or 0.0)
        while not self.done:
            self._step(max(0.0, min(_SLICE, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                break
        return self._take()

    def result(self) -> Generation:
        """Run to the end: the Generation."""
        while self.finish_reason is None:
            self._step(_SLICE)
        return Generation(
            text=self.text, thinking=self.thinking, tokens=list(self.tokens),
            finish_reason=self.finish_reason, seed=self.seed, logprobs=self._logprobs,
            timing=Timing(self._prompt_tokens, self._prompt_seconds, len(self.tokens),
                          self._seconds))

    def _take(self) -> str:
        """What may be seen and was not given out yet: an interrupted call loses nothing."""
        start, self._taken = self._taken, self._shown
        return self._answer[start:self._taken]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while not self.done and self._shown == self._taken:
            self._step(_SLICE)
        piece = self._take()
        if not piece:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            while not self.done:
                piece = await asyncio.to_thread(self.poll, _SLICE)
                if piece:
                    return piece
        except asyncio.CancelledError:
            self.cancel()
            raise
        raise StopAsyncIteration

    # ---- One step: run what is pending, then choose a token ----

    def _step(self, seconds: float) -> None:
        self._catch_up()
        if self._cancelled:
            self._finish("cancelled")
        if self.done:
            return
        first, start = not self.tokens, time.perf_counter()
        try:
            if self._run(seconds):
                self._sample()
        finally:
            spent = time.perf_counter() - start
            if first:
                self._prompt_seconds += spent
            else:
                self._seconds += spent

    def _run(self, seconds: float) -> bool:
        if self._request.hooks is None:
            return self.session.run(seconds)
        return self.session._run_hooks(self._request.hooks, seconds)

    def _sample(self) -> None:
        session = self.session
        if session.length >= session.context:
            self._finish("context")
            return
        mask = self._request.mask
        if callable(mask):
            mask = mask(list(self.tokens))
        token = self._choose(mask)
        if self._logprobs is not None:
            self._logprobs[len(self.tokens):] = [TokenLogprob(
                token, session.logprobs([token])[0], session.top(self._request.top_logprobs))]
        session.feed([token])
        self._catch_up()

    def _choose(self, mask: Buffer | None) -> int:
        sampler = self._request.sampler
        if self._request.logits_processor is None:
            return sampler.next(self.session, mask)
        logits = self.session.logits
        own = logits.copy()
        try:
            self._edit(logits)
            return sampler.next(self.session, mask)
        finally:  # log-probabilities are the model's own, and what was interrupted edits again
            memoryview(logits).cast("B")[:] = memoryview(own).cast("B")

    def _catch_up(self) -> None:
        """Read what the timeline has more than we: an interrupt may have come between."""
        timeline = memoryview(_native.session_tokens(self.session._c))
        for token in timeline[self._start + len(self.tokens):].tolist():
            before = (self._bytes, self._thinking, self._in_thinking, self._answer, self._shown,
                      self.finish_reason)
            try:
                self._read(token)
                if not self.done and len(self.tokens) + 1 >= self._request.max_new_tokens:
                    self._finish("length")
            except BaseException:  # half-read is not read: the token comes again
                (self._bytes, self._thinking, self._in_thinking, self._answer, self._shown,
                 self.finish_reason) = before
                raise
            self.tokens.append(token)

    def _edit(self, logits: Tensor) -> None:
        if self._request.logits_processor(self.session.tokens, logits.numpy()) is not None:
            raise TypeError("a logits_processor edits the logits in place and returns None")

    def _read(self, token: int) -> None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return
        if token == tokenizer.eos:
            self._finish("stop")
        elif self._in_thinking and token == tokenizer.think_close:
            self._write(self._rest())
            self._in_thinking = False
        else:
            self._bytes += tokenizer.decode_bytes([token])
            complete = _native.text_complete(self._bytes)
            text, self._bytes = self._bytes[:complete], self._bytes[complete:]
            self._write(text.decode("utf-8", "replace"))

    def _rest(self) -> str:
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text

    def _write(self, text: str, last: bool = False) -> None:
        """Take decoded text, look for stop strings, and show what can no longer become one."""
        if self._in_thinking:
            self._thinking = (self._thinking or "") + text
            return
        if self._thinking is not None and not self._answer:
            text = text.lstrip("\n")  # the format's blank lines between thinking and answer
        self._answer += text
        found = [self._answer.find(stop, self._shown) for stop in self._request.stop]
        if max(found, default=-1) >= 0:
            self._answer = self._answer[:min(at for at in found if at >= 0)]
            self._shown = len(self._answer)
            self.finish_reason = "stop"
            return
        held = 0
        for stop in () if last else self._request.stop:
            for n in range(min(len(stop) - 1, len(self._answer) - self._shown), held, -1):
                if self._answer.endswith(stop[:n]):
                    held = n
                    break
        self._shown = len(self._answer) - held

    def _finish(self, reason: str) -> None:
        self._write(self._rest(), last=True)
        self.finish_reason = self.finish_reason or reason

    def __repr__(self) -> str:
        state = self.finish_reason or "under way"
        return f"<Stream {len(self.tokens)} tokens, {state}>"


def _stop_strings(stop: str | Iterable[str] | None) -> list[str]:
    if stop is None:
        return []
    if not isinstance(stop, str) and not hasattr(stop, "__iter__"):
        raise TypeError(f"stop must be a str, several, or None, not {type(stop).__name__}")
    strings = [stop] if isinstance(stop, str) else list(stop)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"a string of stop must be a str, not {type(string).__name__}")
        if not string:
            raise ArgumentError("a string of stop is empty")
    return strings

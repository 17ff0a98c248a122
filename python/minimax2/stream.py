"""Stream: a generation while it is being made."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from minimax2 import _native, _native_text
from minimax2._native import Buffer
from minimax2.errors import ArgumentError, BusyError
from minimax2.generation import (Generation, Piece, Timing, TokenLogprob, ToolCall,
                                 assistant_message)
from minimax2.tensor import Tensor

if TYPE_CHECKING:
    from minimax2.batching import Batch
    from minimax2.request import Request
    from minimax2.session import Session

_SLICE = 0.05  # seconds between two looks at cancel()
_REASONS = {_native_text.END_NONE: None, _native_text.END_STOP: "stop",
            _native_text.END_LENGTH: "length", _native_text.END_CONTEXT: "context",
            _native_text.END_CANCELLED: "cancelled", _native_text.END_CALLS: "tool_calls"}
_STATES = {_native_text.CALL_OPEN: "open", _native_text.CALL_COMPLETE: "complete",
           _native_text.CALL_CUT: "cut"}


async def in_turn(home: Stream | Batch, step: Callable[[], None],
                  cancel: Callable[[], None]) -> None:
    """Take a step in another thread; or if one is under way at this home, wait for that one.

    So the streams of one batch, read by many tasks, bring each other on and never meet in it. A
    task that is cancelled meanwhile cancels what it reads, and waits until the step is over.
    """
    under_way, mine = home._under_way, None
    if under_way is None or under_way.done() or (
            under_way.get_loop() is not asyncio.get_running_loop()):
        mine = under_way = home._under_way = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        await asyncio.wait([under_way])
    except asyncio.CancelledError:
        cancel()
        await asyncio.wait([under_way])
        raise
    finally:
        if mine is not None and mine.done() and not mine.cancelled():
            mine.exception()  # raised below, or nobody is left to hear of it
    if mine is not None:
        mine.result()


class Stream(Iterator[str], AsyncIterator[str]):
    """Iterate over it for pieces of text; poll(seconds) in a game loop; `async for` under asyncio.

    Pieces are whole characters and hold back what may become a stop string, so that joined they
    are the final text. In a chat turn they are the answer; `thinking` grows before it. Nothing runs
    between two calls. Used by one thread at a time, except cancel(). What Ctrl-C interrupts goes on
    with the next call; so does what a callback of yours refused by raising an exception.

    Attributes: `session`, `seed`, `tokens` (ids so far), `text` (all pieces so far), `thinking`,
    `calls`, `reason`, `done`, `finish_reason` (None until done). pieces() also tells of the others
    while they come.
    """

    def __init__(self, session: Session, request: Request) -> None:
        session._check_alone()
        tokenizer = session.model.tokenizer_or_none
        self._reply = _native_text.reply_new(
            None if tokenizer is None else tokenizer._c, request.start,
            request.max_new_tokens, session.model.end_tokens,
            [stop.encode("utf-8", "surrogatepass") for stop in request.stop], request.tools,
            request.budget, request.call)
        self._so_far = _native_text.reply_all(self._reply)
        if request.ids is not None:
            session.feed(request.ids)
        self.session = session
        self.tokens: list[int] = []
        self.seed = request.sampler.seed
        self._request = request
        self._logprobs: list[TokenLogprob] | None = [] if request.top_logprobs else None
        self._lock = threading.RLock()  # of the reply, which cancel() ends from any thread
        self._batch: Batch | None = None  # that runs the session
        self._under_way: asyncio.Future[None] | None = None  # a step of in_turn()
        self._clock = 0.0  # of that batch, when it last chose a token here
        self._chosen = -1  # the token that is fed next, noted before it is
        self._taken = 0  # characters of the text that were given out
        self._places: list[int] = []  # characters of the text before each call
        _native.session_speculate(session._c, request.speculate)
        self._proposals: dict[str, Any] = {}  # what came of them, known at the end
        self._start = session.length
        self._prompt_tokens = self._start - session.pos
        self._prompt_seconds = self._seconds = 0.0

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self._so_far.text

    @property
    def thinking(self) -> str | None:
        """What was written before </think> in a chat turn, so far; None outside chats."""
        return self._so_far.thinking if self._request.start == _native_text.START_THINKING else None

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools so far; the last one may be open."""
        return self._calls(0)

    def _calls(self, first: int) -> list[ToolCall]:
        """Those from the first on."""
        with self._lock:
            found = [_native_text.reply_call(self._reply, i)
                     for i in range(first, self._so_far.calls)]
            for call in found[max(0, len(self._places) - first):]:
                self._places.append(_native_text.reply_characters(self._reply, call.text_at))
        return [ToolCall(call.name, call.arguments, _STATES[call.state], call.known, at)
                for call, at in zip(found, self._places[first:])]

    @property
    def reason(self) -> str:
        """Why the last text that looks like a call is none; "" where there is no such text."""
        return self._so_far.reason

    def message(self) -> dict[str, Any]:
        """The assistant's message so far, for a conversation."""
        return assistant_message(self.text, self.thinking, self.calls)

    @property
    def finish_reason(self) -> str | None:
        """"stop", "tool_calls", "length", "context" or "cancelled"; None until then."""
        return _REASONS[self._so_far.end]

    @property
    def done(self) -> bool:
        """Whether the generation has ended."""
        return self._so_far.end != _native_text.END_NONE

    def cancel(self) -> None:
        """End the generation; may be called from any thread. `done` is true at once."""
        with self._lock:
            if not self.done:
                self._end(_native_text.END_CANCELLED)
        with contextlib.suppress(ArgumentError):  # it is closed
            self.session.interrupt()
        batch = self._batch
        if batch is not None:
            batch._leaving.append(self.session)

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
        while not self.done:
            self._step(_SLICE)
        with self._lock:  # another thread may be about to write down the last token
            return Generation(
                text=self.text, thinking=self.thinking, tokens=list(self.tokens),
                finish_reason=self.finish_reason or "", seed=self.seed, logprobs=self._logprobs,
                timing=self._timing(),
                calls=self.calls, thinking_tokens=self._so_far.thought, reason=self.reason,
                _parser=self._request.parser)

    def _timing(self) -> Timing:
        if not self._proposals:
            with contextlib.suppress(ArgumentError, BusyError):  # it is closed, or on its way out
                self._proposals = _native.session_speculation(self.session._c)
        told = self._proposals
        return Timing(self._prompt_tokens, self._prompt_seconds, len(self.tokens), self._seconds,
                      told.get("proposed", 0), told.get("accepted", 0),
                      bool(told.get("most")) and not told["closed"])

    def pieces(self) -> Iterator[Piece]:
        """Pieces of thinking, text and calls, in the order in which the model writes them."""
        for piece in self._all_pieces():
            if piece is None:
                self._step(_SLICE)
            else:
                yield piece

    def _all_pieces(self) -> Iterator[Piece | None]:
        """Those pieces; None where a step must come first."""
        thought = told = ended = given = 0  # characters, calls, characters of the open one's JSON
        begun = False  # it was named
        while True:
            with self._lock:
                finished, calls, text = self.done, self._calls(ended), self.text
                thinking = self.thinking or ""
            if len(thinking) > thought:
                piece = Piece("thinking", thinking[thought:], None)
                thought = len(thinking)
                yield piece
            for call in calls:
                if call.at > told:
                    piece = Piece("text", text[told:call.at], None)
                    told = call.at
                    yield piece
                if not begun:
                    begun = True
                    yield Piece("call", call.name, ended)
                if len(call.json) > given:
                    piece = Piece("arguments", call.json[given:], ended)
                    given = len(call.json)
                    yield piece
                if call.state == "open":
                    break
                yield Piece("call_end", "", ended)
                ended, begun, given = ended + 1, False, 0
            if not begun and len(text) > told:
                piece = Piece("text", text[told:], None)
                told = len(text)
                yield piece
            if finished:
                return
            yield None

    @property
    def _waits(self) -> bool:
        """Whether there is text that was not given out yet."""
        return self._taken < len(self.text)

    def _take(self) -> str:
        """What may be seen and was not given out yet: an interrupted call loses nothing."""
        text, start = self.text, self._taken
        self._taken = len(text)
        return text[start:]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while not self.done and not self._waits:
            self._step(_SLICE)
        piece = self._take()
        if not piece:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self.done and not self._waits:
            await in_turn(self if self._batch is None else self._batch, self._slice, self.cancel)
        piece = self._take()
        if not piece:
            raise StopAsyncIteration
        return piece

    def _slice(self) -> None:
        self._step(_SLICE)

    # ---- One step: run what is pending, then choose a token ----

    def _step(self, seconds: float) -> None:
        if self._batch is not None:
            self._batch._go_on(time.monotonic() + seconds)
            return
        self._catch_up()
        if self.done:
            return
        first, start = not self.tokens, time.perf_counter()
        try:
            if self._run(seconds) and not self.done:
                self._sample()
        finally:
            self._spend(time.perf_counter() - start, first)

    def _spend(self, seconds: float, first: bool) -> None:
        if first:
            self._prompt_seconds += seconds
        else:
            self._seconds += seconds

    def _bring_on(self, clock: float) -> None:
        """In a batch that has brought the logits: choose the next token."""
        self._catch_up()
        if not self.done:
            self._spend(clock - self._clock, not self.tokens)
            self._clock = clock
            self._sample()

    def _run(self, seconds: float) -> bool:
        if self._request.hooks is None:
            return self.session.run(seconds)
        return self.session._run_hooks(self._request.hooks, seconds)

    def _sample(self) -> None:
        session = self.session
        if session.length >= session.context:
            self._end(_native_text.END_CONTEXT)
            return
        mask = self._request.mask
        if callable(mask):
            mask = mask(list(self.tokens))
        if self._request.constraint is not None and self._so_far.next < 0:
            mask = self._request.constraint.mask(self._so_far, self.tokens, mask)
        token = self._choose(mask)
        with self._lock:
            if self.done:  # cancelled
                return
            if self._logprobs is not None:
                self._logprobs[len(self.tokens):] = [TokenLogprob(
                    token, session.logprobs([token])[0], session.top(self._request.top_logprobs))]
            self._chosen = token
            _native.session_feed(session._c, [token])
            self._catch_up()
            if self.done:
                self._proposals = _native.session_speculation(session._c)

    def _choose(self, mask: Buffer | None) -> int:
        sampler = self._request.sampler
        if self._so_far.next >= 0:  # the budget of thinking is spent
            return self._so_far.next
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
        """Read what the timeline has more than we: an interrupt may have come between any two
        lines of this, so nothing is believed that the reply and the timeline do not say."""
        with self._lock:
            if (self._so_far.end, self._so_far.count) != _native_text.reply_stands(self._reply):
                self._so_far = _native_text.reply_all(self._reply)
            timeline = memoryview(_native.session_tokens(self.session._c))[self._start:]
            self._check_timeline(timeline)
            while not self.done and self._so_far.count < len(timeline):
                self._add(_native_text.reply_push(self._reply, timeline[self._so_far.count]))
            self.tokens += timeline[len(self.tokens):self._so_far.count].tolist()

    def _check_timeline(self, timeline: memoryview[int]) -> None:
        """That nobody else has fed or cut it: it has our tokens, or one more that we chose."""
        count = self._so_far.count
        last = self.tokens[-1:] if count == len(self.tokens) else []
        if self.done or (count <= len(timeline) <= count + 1
                         and last == timeline[count - len(last):count].tolist()
                         and timeline[count:].tolist() in ([], [self._chosen])):
            return
        raise ArgumentError("another call has fed or cut this stream's session: it cannot go on; "
                            "cancel() it, or let a stream end before its session is used")

    def _add(self, piece: _native_text.Piece) -> None:
        before = self._so_far
        self._so_far = piece._replace(text=before.text + piece.text,
                                      thinking=before.thinking + piece.thinking)

    def _end(self, reason: int) -> None:
        self._add(_native_text.reply_end(self._reply, reason))

    def _edit(self, logits: Tensor) -> None:
        if self._request.logits_processor(self.session.tokens, logits.numpy()) is not None:
            raise TypeError("a logits_processor edits the logits in place and returns None")

    def __repr__(self) -> str:
        state = self.finish_reason or "under way"
        return f"<Stream {len(self.tokens)} tokens, {state}>"

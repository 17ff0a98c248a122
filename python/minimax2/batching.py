"""Batch: sessions advanced together, and the streams of many prompts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from minimax2 import _native
from minimax2.errors import ArgumentError, BusyError, Error
from minimax2.generation import Generation
from minimax2.handle import Handle
from minimax2.options import Item, ModelGenerateOptions, check_names, spelled_out
from minimax2.session import Session
from minimax2.stream import Stream, in_turn
from minimax2.trace import Hook, Hooks, Tap, Taps, Where, select, tap_of

if TYPE_CHECKING:
    from minimax2.model import Model

_SLICE = 0.05  # seconds between two looks at cancel()


class Batch(Handle):
    """Several sessions of one model that go through the weights together; the same bits as alone.

    A member is run by its batch only (running it alone raises BusyError); feed, rewind and sample
    it as ever. rows: tokens of all members that go through the layers together, None: 256; so long
    does a member that decodes wait for another's prompt. Used by one thread at a time. Closing lets
    the members go on alone.

    generate() has members of its own, one a prompt; whatever runs the batch brings them on.
    """

    __slots__ = ("_at_tap", "_event", "_leaving", "_members", "_ready", "_ref", "_runner", "_spent",
                 "_streams", "_tracer", "_under_way", "_unsure", "model")

    def __init__(self, model: Model, sessions: Iterable[Session] = (), *,
                 rows: int | None = None) -> None:
        super().__init__(_native.batch_new(model._c, rows))
        self._event = _native.new_event()
        self._members: list[tuple[Session, Hooks | None]] = []  # in the library's order
        self._streams: dict[Session, Stream] = {}  # those of generate()
        self._ready: deque[Session] = deque()  # that next() has not named yet
        self._leaving: list[Session] = []  # or joining: the library's list and ours may differ
        self._runner: int | None = None  # the thread that runs or changes it
        self._at_tap = False
        self._ref = weakref.ref(self)  # for the members
        self._tracer: weakref.ref[BatchTaps] | None = None
        self._under_way: asyncio.Future[None] | None = None  # a step of in_turn()
        self._unsure = False  # whether a stream may have logits that it was not told of
        self._spent = 0.0  # seconds in which this batch ran
        self.model = model
        for session in sessions:
            self.add(session)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The members, a tuple."""
        if self.closed:
            return ()
        return tuple(session for session, _ in self._members if session not in self._leaving)

    def add(self, session: Session, hooks: Iterable[tuple[Where, Hook]] = ()) -> None:
        """Make a session of the same model a member.

        hooks: as in Session.run_with_hooks(), called when the batch runs this member. Raises
        BusyError while a trace or hooks run the session.
        """
        if not isinstance(session, Session):
            raise TypeError(f"a batch is of sessions, not of {type(session).__name__}")
        made = Hooks(self.model, hooks)
        session._check_free()
        self._add(session, made if made.selected else None)

    def _add(self, session: Session, hooks: Hooks | None) -> None:
        outer = self._enter_changes()
        try:
            self._settle()
            before = session._batch
            self._leaving.append(session)
            if session._home() is None:  # else the library refuses it
                session._batch = self._ref
            try:
                _native.batch_add(self._c, session._c)
            except Error:  # refused; an interrupt leaves it to _settle()
                self._leaving.remove(session)
                session._batch = before
                raise
            self._members.append((session, hooks))
            session._stopped = None
            self._leaving.remove(session)
        finally:
            self._runner = outer

    def remove(self, session: Session) -> None:
        """Let a member go on alone, with its stream if it has one."""
        if not any(member is session for member in self.sessions):
            raise ArgumentError("the session is not a member of this batch")
        self._drop(session)

    def _drop(self, session: Session) -> None:
        """End a membership, if there is one."""
        outer = self._enter_changes()
        try:
            self._settle()
            self._leaving.append(session)
            try:
                self._settle()
            except Error:  # refused
                self._leaving.remove(session)
                raise
        finally:
            self._runner = outer

    def _drop_soon(self, session: Session) -> None:
        """End a membership now, or if the batch is in use, with its next step. From any thread."""
        self._leaving.append(session)
        with contextlib.suppress(BusyError):
            outer = self._enter_changes()
            try:
                self._settle()
            finally:
                self._runner = outer

    def _settle(self) -> None:
        """End the memberships of sessions that leave, or whose joining was interrupted.

        Ctrl-C may come between any two lines: the library's list of members and ours agree again
        before anything else is done with them.
        """
        for session in list(self._leaving):
            with contextlib.suppress(ArgumentError):  # it was not, or is no longer a member
                _native.batch_remove(self._c, session._c)
            self._members = [member for member in self._members if member[0] is not session]
            with contextlib.suppress(ValueError):
                self._ready.remove(session)
            stream = self._streams.pop(session, None)
            if stream is not None:
                stream._batch = None
            if session._batch is self._ref:
                session._batch = None
            self._leaving.remove(session)

    # ---- Running ----

    def run(self, seconds: float | None = None) -> bool:
        """Work until every member has caught up, or for about `seconds`. True if all have.

        Streams of generate() run to their ends. Ctrl-C interrupts between two slices; nothing is
        lost, run() goes on.
        """
        self._ready.clear()
        return self._until(seconds, ready=False)[0]

    def next(self, seconds: float | None = None) -> Session | None:
        """Work until a member has its logits, or for about `seconds`: that member.

        Sample and feed it, or leave it, and call again; each is named once after what was fed to
        it, and never those that generate() samples. None: all have caught up, or the time is over.
        """
        self._check_free()
        while self._ready:
            member = self._ready.popleft()
            if member.pos == member.length:
                return member
        return self._until(seconds, ready=True)[1]

    def trace(self, points: str | Iterable[str] | None = None,
              layers: int | Iterable[int] | None = None) -> BatchTaps:
        """Run, and stop at activations of all members: an iterator of (session, Tap).

        points and layers as in Session.trace(); members' own hooks are not called. Until its end
        the batch belongs to it (BusyError). Leaving the loop early switches the taps off; run()
        finishes the rest.
        """
        return BatchTaps(self, select(self.model, points, layers))

    def _until(self, seconds: float | None, ready: bool) -> tuple[bool, Session | None]:
        """Run until all have caught up (True), or a member that waits for it has its logits."""
        limit = _native.duration(seconds)
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            status, session = self._turn(deadline)
            if status == _native.OK or (ready and session is not None):
                return status == _native.OK, session
            if deadline is not None and time.monotonic() >= deadline:
                return False, None

    def _turn(self, deadline: float | None) -> tuple[int, Session | None]:
        """Run with hooks until something has happened, for one slice at most.

        Returns (status, a member that has its logits and is not brought on by its stream).
        """
        me, begin = threading.get_ident(), time.perf_counter() - self._spent
        self._check_free()
        self._runner = me
        try:
            with contextlib.ExitStack() as stack:
                for session, hooks in self._members:
                    if hooks is None:
                        session._check_free()
                        continue
                    again = session._stopped is hooks
                    stack.enter_context(Taps(session, hooks.selected))
                    if again:
                        self._call_hooks(session, None)
                while True:
                    status, member, tap = self._step(deadline, begin)
                    if member is None or tap is None:
                        return status, member
                    self._call_hooks(member, tap)
        finally:
            self._runner = None  # first: Ctrl-C may come at any call
            self._spent = time.perf_counter() - begin
            if self.closed:
                self._forget()

    def _go_on(self, deadline: float) -> None:
        """A turn for a stream: other members that have their logits are left to next()."""
        member = self._turn(deadline)[1]
        if member is not None and member not in self._ready:
            self._ready.append(member)

    def _traced_step(self) -> tuple[int, Session | None, Tap | None]:
        me, begin = threading.get_ident(), time.perf_counter() - self._spent
        if self._runner is not None:
            raise self._busy()
        self._runner = me
        try:
            return self._step(None, begin)
        finally:
            self._runner = None  # first: Ctrl-C may come at any call
            self._spent = time.perf_counter() - begin
            if self.closed:
                self._forget()

    def _step(self, deadline: float | None,
              begin: float) -> tuple[int, Session | None, Tap | None]:
        """One slice: (status, the member that waits, the tap that it waits at)."""
        self._settle()
        # An interrupt, or an error in a callback, may have come before some were brought on.
        self._bring_on(begin, self._unsure)
        self._unsure = True
        status = _native.batch_run(self._c, self._event, deadline)
        self._c  # another thread may have closed it
        member, tap = None, None
        if status in (_native.TAP, _native.READY):
            member = self._members[_native.event_member(self._event)][0]
        if member is not None and status == _native.TAP:
            tap = tap_of(self._event, member)
        elif member in self._streams:  # and others with it: what is fed is not reported any more
            self._bring_on(begin, True)
            member = None
        self._unsure = False
        return status, member, tap

    def _bring_on(self, begin: float, ready: bool) -> None:
        """Streams that were cancelled end; if `ready`, those that have logits choose a token."""
        for session, stream in list(self._streams.items()):
            if stream._batch is self and (
                    stream.done or (ready and session.pos == session.length)):
                stream._bring_on(time.perf_counter() - begin)
                if stream.done and stream._batch is self:
                    self._drop(session)

    def _call_hooks(self, session: Session, tap: Tap | None) -> None:
        self._at_tap = True
        try:
            for member, hooks in self._members:
                if member is session and hooks is not None:
                    session._call_hooks(hooks, tap)
        finally:
            self._at_tap = False

    def _check_free(self) -> None:
        self._check_trace()
        if self._runner is not None:  # last: no thread comes between this and taking it
            raise self._busy()

    def _check_trace(self) -> None:
        if self._tracer is not None and self._tracer() is not None:
            raise BusyError("a trace of this batch is under way: finish its loop or close() it "
                            "first")
        self._tracer = None

    def _busy(self) -> BusyError:
        if self._runner == threading.get_ident():
            return BusyError("this batch is being run: a callback cannot run it")
        return BusyError("this batch is in use by another thread")

    def _check_changeable(self) -> None:
        me = threading.get_ident()
        if self._at_tap and self._runner == me:
            raise BusyError("this batch is at an activation: a hook cannot change its members")
        self._check_trace()
        if self._runner is not None and self._runner != me:
            raise self._busy()

    def _enter_changes(self) -> int | None:
        """Take the batch for this thread, or for a callback: whom to leave it to afterwards."""
        me = threading.get_ident()
        self._check_changeable()
        outer, self._runner = self._runner, me
        return outer

    # ---- Many prompts ----

    @overload
    def generate(self, prompts: Iterable[Item], *, stream: Literal[False] = False,
                 **options: Unpack[ModelGenerateOptions]) -> list[Generation]: ...

    @overload
    def generate(self, prompts: Iterable[Item], *, stream: Literal[True],
                 **options: Unpack[ModelGenerateOptions]) -> Streams: ...

    @overload
    def generate(self, prompts: Iterable[Item], *, stream: bool,
                 **options: Unpack[ModelGenerateOptions]) -> list[Generation] | Streams: ...

    @spelled_out(ModelGenerateOptions)
    def generate(self, prompts: Iterable[Item], *, stream: bool = False,
                 **options: Unpack[ModelGenerateOptions]) -> list[Generation] | Streams:
        """Go on from several prompts together: a list of Generation, or with stream=True Streams.

        Each gives what Model.generate() gives for it alone: the same tokens by the same seed.
        prompts: prompts as there, or dicts of `prompt` and options of their own, which come before
        the common ones. All are checked before anything is fed. May be called while others are
        under way: they go on together.
        """
        if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__iter__"):
            raise TypeError("prompts must be several, not one "
                            f"{type(prompts).__name__}")
        check_names(options, ModelGenerateOptions)
        stream, wanted = _native.flag(stream, "stream"), []
        for index, item in enumerate(prompts):
            own = dict(item) if isinstance(item, Mapping) else {"prompt": item}
            if own.get("prompt") is None:
                raise ArgumentError(f"one of the prompts is a dict without `prompt`: {sorted(own)}")
            try:
                wanted.append(self.model._request(own.pop("prompt"), {**options, **own}))
            except (ArgumentError, TypeError) as error:
                raise type(error)(f"prompts[{index}]: {error}") from None
        self._check_changeable()
        sessions = [self.model._session_for(request.ids or [], request.max_new_tokens, kept)
                    for request, kept in wanted]
        made = [Stream(session, request) for session, (request, _) in zip(sessions, wanted)]
        return self._together(made, stream)

    def _together(self, made: list[Stream], stream: bool) -> list[Generation] | Streams:
        """Take streams on, whose sessions are theirs alone."""
        streams = Streams(self, made)
        try:
            for one in made:
                if not one.done:
                    self._join(one)
            return streams if stream else streams.result()
        except BaseException:
            for one in made:
                one.cancel()
                self._drop_soon(one.session)
                with contextlib.suppress(BusyError):  # then it ends with the next step
                    one.session.close()
            raise

    def _join(self, stream: Stream) -> None:
        """From now on whatever runs the batch brings this stream on."""
        self._add(stream.session, stream._request.hooks)
        self._streams[stream.session] = stream
        stream._batch, stream._clock = self, self._spent

    def close(self) -> None:
        """Let all members go on alone. A run in another thread ends: this Batch is closed."""
        super().close()
        if self._runner is None or self._runner == threading.get_ident():
            self._forget()  # else that thread does

    def _forget(self) -> None:
        """Of a batch that is closed: what the library has let go."""
        for stream in list(self._streams.values()):
            stream._batch = None
        for session, _ in self._members:
            if session._batch is self._ref:
                session._batch = None
        self._streams, self._members, self._leaving = {}, [], []
        self._ready.clear()

    def __len__(self) -> int:
        return len(self.sessions)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} sessions"
        return f"<Batch {state}>"


class BatchTaps(Iterator[tuple[Session, Tap]]):
    """What `batch.trace()` gives: iterate over it, or close() it. See trace.Taps."""

    def __init__(self, batch: Batch, selected: Sequence[tuple[int, int]]) -> None:
        batch._check_free()
        self._batch = batch
        self._open = True
        self._taps = [Taps(session, selected) for session in batch.sessions]
        batch._tracer = weakref.ref(self)

    def __next__(self) -> tuple[Session, Tap]:
        try:
            while self._open:
                status, member, tap = self._batch._traced_step()
                if member is not None and tap is not None:
                    return member, tap
                if status == _native.OK:
                    self.close()
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Switch the taps off and give the batch back; its run() finishes the rest."""
        if self._open:
            self._batch._tracer = None
            for taps in self._taps:
                taps.close()
            self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Streams(Iterator[tuple[int, str]], AsyncIterator[tuple[int, str]]):
    """Several generations while they are made: iterate over it for (index, piece of text).

    `async for` works under asyncio.

    `streams` are the Stream of each prompt, in their order: each can be read, cancelled, iterated
    over or polled apart, which brings the others on as well.
    """

    def __init__(self, batch: Batch, streams: Sequence[Stream]) -> None:
        self.streams = tuple(streams)
        self._batch = batch
        self._pieces: deque[tuple[int, str]] = deque()

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return all(stream.done for stream in self.streams)

    def cancel(self) -> None:
        """End all; may be called from any thread. `done` is true at once."""
        for stream in self.streams:
            stream.cancel()

    def poll(self, seconds: float = 0.0) -> list[tuple[int, str]]:
        """Work for about `seconds`; what came of it: a list of (index, piece)."""
        deadline = time.monotonic() + (_native.duration(seconds) or 0.0)
        while True:
            self._step(deadline)
            if self.done or time.monotonic() >= deadline:
                break
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    def result(self) -> list[Generation]:
        """Run to the end: a list of Generation."""
        return [stream.result() for stream in self.streams]

    def __next__(self) -> tuple[int, str]:
        while not self._pieces and not self._over:
            self._slice()
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, str]:
        while not self._pieces and not self._over:
            await in_turn(self._batch, self._slice, self.cancel)
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.popleft()

    @property
    def _over(self) -> bool:
        """Whether all have ended and nothing waits to be given out."""
        return self.done and not any(stream._waits for stream in self.streams)

    def _slice(self) -> None:
        self._step(time.monotonic() + _SLICE)

    def _step(self, deadline: float) -> None:
        under_way = next((stream for stream in self.streams if not stream.done), None)
        if under_way is not None:
            under_way._step(max(0.0, deadline - time.monotonic()))
        for index, stream in enumerate(self.streams):
            if stream._waits:
                self._pieces.append((index, stream._take()))

    def __repr__(self) -> str:
        done = sum(stream.done for stream in self.streams)
        return f"<Streams {done} of {len(self.streams)} done>"

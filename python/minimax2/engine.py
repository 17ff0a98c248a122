"""Engine: generations from many tasks and threads, brought on together by a thread of its own.

A Job is what a caller holds. It waits in a queue until there is room in the engine's batch; then
its stream is a member, and every pass brings all members on by one token. The thread lives while
there are jobs. It holds them weakly: a job that nobody holds any more is cancelled.

Callers and the thread share little: the queue, under a lock that is held for moments; what a stream
has written, which only grows; and the lists of those who wait for it. Who waits is put into such a
list first and looks again then, so that no news is missed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import heapq
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import (AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator,
                             Mapping)
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from minimax2 import _native
from minimax2.batching import Batch
from minimax2.errors import ArgumentError, BusyError, Error
from minimax2.generation import Generation, Piece, Timing, ToolCall
from minimax2.options import (ModelGenerateOptions, Prompt, SessionOptions, check_names,
                              spelled_out)
from minimax2.scoring import Score, Scoring
from minimax2.stream import Stream

if TYPE_CHECKING:
    from minimax2.model import Model
    from minimax2.request import Request
    from minimax2.session import Session

_SLICE = 0.05  # seconds between two looks at the queue
_PATIENCE = 5.0  # seconds that close() waits for a callback of the caller's to return
_TIDY = 1000  # jobs between two looks at all that is kept
_Place = tuple[int, int]  # in the queue: (-priority, number)


class Job(Iterator[str], AsyncIterator[str], Awaitable[Generation]):
    """A generation of an Engine: `async for` or `for` over pieces of text; `await` the Generation.

    It goes on whether anybody reads or not. Pieces are as those of a Stream; what came since the
    last one is one piece. cancel(), a cancelled task that waits for it, or dropping it ends it. An
    exception in a callback of its own ends it too, and is raised to whoever reads it. Read by one
    task or thread at a time; cancel() from any.
    """

    def __init__(self, engine: Engine, prompt: Prompt, options: Mapping[str, Any], priority: int,
                 deadline: float | None) -> None:
        self._engine = engine
        self._asked: tuple[Prompt, Mapping[str, Any]] | None = prompt, options  # until it begins
        self._priority = _native.integer(priority, "priority")
        seconds = _native.duration(deadline, "deadline")
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._run: _Run | None = None  # once it has begun
        self._end: str | None = None  # before it has, or that it was its deadline
        self._error: BaseException | None = None
        self._readers: deque[_Waiter] = deque()  # who wait for the next token
        self._enders: deque[_Waiter] = deque()  # or for the end

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        if self._error is not None:
            return True
        return self._end is not None if self._run is None else self._run.done

    @property
    def begun(self) -> bool:
        """Whether it has left the queue."""
        return self._run is not None

    @property
    def finish_reason(self) -> str | None:
        """As of a Generation, or "deadline"; None until the end, and after an exception."""
        if self._error is not None:
            return None
        reason = None if self._run is None else self._run.finish_reason
        return self._end if reason in (None, "cancelled") and self._end else reason

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "" if self._run is None else self._run.text

    @property
    def thinking(self) -> str | None:
        """What was written before </think> in a chat turn, so far; None outside chats."""
        return None if self._run is None else self._run.thinking

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools so far; the last one may be open."""
        return [] if self._run is None else self._run.calls

    @property
    def tokens(self) -> list[int]:
        """The ids so far, a list."""
        return [] if self._run is None else list(self._run.tokens)

    def cancel(self) -> None:
        """End it; from any thread. `done` is true at once; the batch lets it go within a pass."""
        self._stop("cancelled")
        _wake([self])

    def _stop(self, end: str) -> None:
        with self._engine._lock:
            if self.done:
                return
            if self._run is None or end == "deadline":
                self._end = end
        if self._run is not None:
            self._run.cancel()

    def result(self) -> Generation:
        """Wait for the end: the Generation. Raises what a callback has raised."""
        self._wait(lambda: self.done, self._enders)
        return self._made()

    def pieces(self) -> Iterator[Piece]:
        """Wait for pieces of thinking, text and calls, in the order in which the model writes."""
        self._wait(self._moved(-1), self._readers)
        count, run = self._count(), self._run
        for piece in () if run is None else run._all_pieces():
            if piece is not None:
                yield piece
                continue
            self._wait(self._moved(count), self._readers)
            count = self._count()
        self._raise()

    async def apieces(self) -> AsyncIterator[Piece]:
        """The same under asyncio."""
        await self._await(self._moved(-1), self._readers)
        count, run = self._count(), self._run
        for piece in () if run is None else run._all_pieces():
            if piece is not None:
                yield piece
                continue
            await self._await(self._moved(count), self._readers)
            count = self._count()
        self._raise()

    def _count(self) -> int:
        """Tokens so far, -1 before it has begun."""
        return -1 if self._run is None else self._run._so_far.count

    def _moved(self, count: int) -> Callable[[], bool]:
        return lambda: self._count() > count or self.done

    def _readable(self) -> bool:
        return (self._run is not None and self._run._waits) or self.done

    def _take(self) -> str:
        piece = "" if self._run is None else self._run._take()
        if not piece:
            self._raise()
        return piece

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _made(self) -> Generation:
        self._raise()
        reason = self.finish_reason or ""
        if self._run is None:
            return Generation("", None, [], reason, 0, None, Timing(0, 0.0, 0, 0.0))
        return dataclasses.replace(self._run.result(), finish_reason=reason)

    # ---- Waiting ----

    def _wait(self, ready: Callable[[], bool], waiters: deque[_Waiter]) -> None:
        if not ready() and self._engine._thread is threading.current_thread():
            raise BusyError("a callback runs in the engine's thread: it cannot wait for a job")
        while not ready():
            event = threading.Event()
            waiters.append(event)
            if ready():
                return
            event.wait()

    async def _await(self, ready: Callable[[], bool], waiters: deque[_Waiter]) -> None:
        while not ready():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters.append(future)
            if ready():
                return
            try:
                await future
            except BaseException:  # the task is cancelled, or never goes on
                self.cancel()
                raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self._wait(self._readable, self._readers)
        piece = self._take()
        if not piece:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        await self._await(self._readable, self._readers)
        piece = self._take()
        if not piece:
            raise StopAsyncIteration
        return piece

    def __await__(self) -> Generator[Any, None, Generation]:
        yield from self._await(lambda: self.done, self._enders).__await__()
        return self._made()

    def __repr__(self) -> str:
        if self._error is not None:
            state = type(self._error).__name__
        else:
            state = self.finish_reason or ("under way" if self.begun else "waiting")
        return f"<Job {max(0, self._count())} tokens, {state}>"


_Waiter = threading.Event | asyncio.Future[None]


def _wake(jobs: Iterable[Job]) -> None:
    """Tell who waits for these: all of an event loop's by one call."""
    futures: dict[asyncio.AbstractEventLoop, list[tuple[Job, asyncio.Future[None]]]] = {}
    for job in jobs:
        for waiters in (job._readers, job._enders) if job.done else (job._readers,):
            while waiters:
                with contextlib.suppress(IndexError):  # another thread took the last one
                    waiter = waiters.popleft()
                    if isinstance(waiter, threading.Event):
                        waiter.set()
                    else:
                        futures.setdefault(waiter.get_loop(), []).append((job, waiter))
    for loop, told in futures.items():
        try:
            loop.call_soon_threadsafe(_resolve, [future for _, future in told])
        except RuntimeError:  # it is closed: nobody waits there any more
            for job, _ in told:
                job._stop("cancelled")


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class _Run(Stream):
    """The stream of a job. What its callbacks raise reaches the job, and nobody else."""

    def __init__(self, session: Session, request: Request, job: Job) -> None:
        super().__init__(session, request)
        self.job = weakref.ref(job)
        self.place: _Place = (0, 0)

    def _bring_on(self, clock: float) -> None:
        try:
            super()._bring_on(clock)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End it with an exception."""
        job = self.job()
        if job is not None:
            job._error = error
        self.cancel()


class Engine:
    """Many generations of one model at once, for asyncio and for threads.

    Up to `max_sessions` are members of one batch, which goes through the weights in a thread of the
    engine's, without the interpreter lock; the others wait in a queue. The same tokens as
    Model.generate() gives alone, by the same seed. rows: as in Model.batch().

    Of each job: `priority`, a higher one begins earlier, and if there is no room takes the place of
    a lower one, which goes on afterwards where it stood; `deadline`, seconds from now after which
    it ends with what it has and the finish_reason "deadline". Callbacks (mask, logits_processor,
    hooks) are called in the engine's thread: while one works, all jobs wait.

    Used from any number of threads and event loops. close(), or the end of a `with` block, cancels
    what is left. After fork() the child's jobs begin anew; those of the parent raise Error there.
    """

    def __init__(self, model: Model, *, max_sessions: int = 64, rows: int | None = None) -> None:
        self.model = model
        self.max_sessions = _native.integer(max_sessions, "max_sessions", 1, 4096)
        self._rows = rows
        self._batch: Batch | None = Batch(model, rows=rows)  # None: after fork
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._queue: list[tuple[_Place, weakref.ref[Job]]] = []  # a heap
        self._deadlines: list[tuple[float, int, weakref.ref[Job]]] = []  # likewise
        self._runs: list[_Run] = []  # members of the batch, in the order in which they came
        self._thread: threading.Thread | None = None  # while there are jobs
        self._closed = False
        _engines.add(self)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        with self._lock:
            return sum(_of(job) is not None for _, job in self._queue)

    # ---- What callers ask for ----

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, priority: int = 0,
                 deadline: float | None = None,
                 **options: Unpack[ModelGenerateOptions]) -> Generation: ...

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], priority: int = 0,
                 deadline: float | None = None,
                 **options: Unpack[ModelGenerateOptions]) -> Job: ...

    @overload
    def generate(self, prompt: Prompt, *, stream: bool, priority: int = 0,
                 deadline: float | None = None,
                 **options: Unpack[ModelGenerateOptions]) -> Generation | Job: ...

    @spelled_out(ModelGenerateOptions)
    def generate(self, prompt: Prompt, *, stream: bool = False, priority: int = 0,
                 deadline: float | None = None,
                 **options: Unpack[ModelGenerateOptions]) -> Generation | Job:
        """Go on from a prompt, from any thread: a Generation, or with stream=True a Job.

        Options as in Model.generate(). Those who wait in other threads share the passes.
        """
        stream = _native.flag(stream, "stream")
        job = self.agenerate(prompt, priority=priority, deadline=deadline, **options)
        return job if stream else job.result()

    @spelled_out(ModelGenerateOptions)
    def agenerate(self, prompt: Prompt, *, priority: int = 0, deadline: float | None = None,
                  **options: Unpack[ModelGenerateOptions]) -> Job:
        """The Job of a generation, at once: `async for piece in job`, `await job`.

        Options as in Model.generate(). They are checked, and the prompt encoded, in the engine's
        thread: what is wrong with them is raised to whoever reads the job.
        """
        check_names(options, ModelGenerateOptions)
        job = Job(self, prompt, options, priority, deadline)
        self._submit(job)
        return job

    @spelled_out(SessionOptions)
    async def ascore(self, prompt: Prompt, *, priority: int = 0, deadline: float | None = None,
                     **options: Unpack[SessionOptions]) -> Score:
        """The Score of a prompt: as Model.score(), together with all other jobs.

        Raises TimeoutError if the deadline comes first.
        """
        check_names(options, SessionOptions)
        ids = await asyncio.to_thread(self.model.ids, prompt)
        scoring = Scoring(ids)
        made = await self.agenerate(ids, priority=priority, deadline=deadline, max_new_tokens=1,
                                    temperature=0, hooks=[("logits", scoring)], **options)
        if made.finish_reason == "deadline":
            raise TimeoutError("the deadline came before the text was scored")
        if made.finish_reason == "cancelled":
            raise ArgumentError("the engine was closed before the text was scored")
        return scoring.score()

    def close(self) -> None:
        """Cancel all jobs, and wait until the engine's thread has let them go."""
        with self._lock:
            self._closed = True
            thread = self._thread
        for run in tuple(self._runs):
            run.cancel()  # sooner than the thread would
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.running} running, {self.waiting} waiting"
        return f"<Engine {state}>"

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise ArgumentError("this Engine is closed")
            self.model._c  # a closed model begins nothing
            thread = self._thread
            if thread is None:
                if self._batch is None:
                    self._batch = Batch(self.model, rows=self._rows)
                thread = threading.Thread(target=self._work, args=(self._batch,), daemon=True,
                                          name="minimax2 engine")
                thread.start()
                self._thread = thread
            place = -job._priority, next(self._numbers)
            if place[1] % _TIDY == 0:  # what ended before its turn, or before its deadline
                self._queue = [entry for entry in self._queue if _of(entry[1])]
                self._deadlines = [entry for entry in self._deadlines if _of(entry[2])]
                heapq.heapify(self._queue)
                heapq.heapify(self._deadlines)
            heapq.heappush(self._queue, (place, weakref.ref(job)))
            if job._deadline is not None:
                heapq.heappush(self._deadlines, (job._deadline, place[1], weakref.ref(job)))

    # ---- The engine's thread ----

    def _work(self, batch: Batch) -> None:
        try:
            while self._turn(batch):
                pass
        except BaseException as error:  # nobody shall wait for a thread that is gone
            with self._lock:
                jobs = self._forget(error)
            batch.close()
            _wake(jobs)

    def _turn(self, batch: Batch) -> bool:
        """A pass, or a slice of one, and what goes with it; False when there is nothing left."""
        self._end_some()
        self._admit(batch)
        if self._runs:
            try:
                batch._go_on(min([time.monotonic() + _SLICE, *self._next_deadline()]))
            except BaseException as error:
                self._blame(error)
        for run in [run for run in self._runs if run.done]:
            self._let_go(batch, run)
            run.session.close()
            _wake(filter(None, [run.job()]))
        _wake(filter(None, [run.job() for run in self._runs]))
        with self._lock:
            if self._runs or self._queue:
                return True
            self._thread = None
            return False

    def _end_some(self) -> None:
        """Jobs whose deadline has come, that nobody holds any more, or all when it is closed."""
        with self._lock:
            late = []
            while self._deadlines and self._deadlines[0][0] <= time.monotonic():
                late.append(heapq.heappop(self._deadlines)[2]())
            waiting = [job() for _, job in self._queue] if self._closed else []
        for job in filter(None, late):
            job._stop("deadline")
        for job in filter(None, waiting):
            job._stop("cancelled")
        for run in self._runs:
            if self._closed or run.job() is None:
                run.cancel()
        _wake(filter(None, late + waiting))

    def _next_deadline(self) -> list[float]:
        with self._lock:
            return [self._deadlines[0][0]] if self._deadlines else []

    def _admit(self, batch: Batch) -> None:
        """Begin jobs, or go on with them, while there is room, and in place of lesser ones."""
        while True:
            with self._lock:
                job = None
                while self._queue and (job := _of(self._queue[0][1])) is None:
                    gone = heapq.heappop(self._queue)[1]()
                    if gone is not None and gone._run is not None:  # others took its place
                        gone._run.session.close()
                if job is None:
                    return
                place = self._queue[0][0]
                last = max(self._runs, key=lambda run: run.place, default=None)
                if last is not None and len(self._runs) >= self.max_sessions:
                    if last.place[0] <= place[0]:
                        return
                    self._let_go(batch, last)
                    heapq.heappush(self._queue, (last.place, last.job))
                heapq.heappop(self._queue)
            self._begin(batch, job, place)

    def _begin(self, batch: Batch, job: Job, place: _Place) -> None:
        try:
            run = job._run or self._start(job)
            if run is None:
                return
            if not run.done:
                batch._join(run)
            run.place = place
            self._runs.append(run)
        except BaseException as error:
            job._error = error
            _wake([job])

    def _start(self, job: Job) -> _Run | None:
        """The stream of a job; None if it was cancelled meanwhile."""
        if job._asked is None:
            return None
        prompt, options = job._asked
        request, kept = self.model._request(prompt, options)
        session = self.model._session_for(request.ids or [], request.max_new_tokens, kept)
        run = _Run(session, request, job)
        with self._lock:
            if job._end is not None:
                return None
            job._run, job._asked = run, None
        return run

    def _let_go(self, batch: Batch, run: _Run) -> None:
        self._runs.remove(run)
        if run._batch is not None:
            batch._drop(run.session)

    def _blame(self, error: BaseException) -> None:
        """An exception out of the batch ends the job whose hook raised it; else the newest one,
        which frees memory where that is what was missing. The others go on."""
        stopped = [run for run in self._runs if run.session._stopped is not None]
        (stopped or self._runs)[-1].fail(error)

    def _forked(self) -> None:
        """In the child of a fork: the thread is not there, nor what it held."""
        self._lock = threading.RLock()
        for run in self._runs:
            run._lock = threading.RLock()
        self._forget(Error("the process was forked: this job goes on in the parent only"))

    def _forget(self, error: BaseException) -> list[Job]:
        """All jobs end with an error; the next ones have a thread and a batch of their own."""
        found = [_of(job) for job in (*(job for _, job in self._queue),
                                      *(run.job for run in self._runs))]
        jobs = [job for job in found if job is not None]
        for job in jobs:
            job._error = error
        self._queue, self._deadlines, self._runs = [], [], []
        self._batch = self._thread = None
        return jobs


def _of(reference: weakref.ref[Job]) -> Job | None:
    """The job, if somebody holds it and it has not ended."""
    job = reference()
    return None if job is None or job.done else job


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    """Before the interpreter ends: no thread of ours is in the library then."""
    for engine in list(_engines):
        engine.close()


def _forget_all() -> None:
    for engine in list(_engines):
        engine._forked()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)

"""Session: one timeline of tokens."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from minimax2 import _native
from minimax2._native import Buffer, Owned
from minimax2.edits import Edit, Edits
from minimax2.errors import ArgumentError, BusyError
from minimax2.generation import Generation
from minimax2.handle import Handle
from minimax2.options import AnyPath, GenerateOptions, Ids, KvDtype, Prompt, spelled_out
from minimax2.request import Request
from minimax2.sampling import Sampler
from minimax2.stream import Stream
from minimax2.tensor import Tensor
from minimax2.trace import Cache, Hook, Hooks, Switches, Tap, Taps, Where, pick_positions, select

if TYPE_CHECKING:
    from minimax2.batching import Batch
    from minimax2.model import Model


class Session(Handle):
    """One timeline: feed it tokens, run it, look at the logits, sample, go on.

    Made by `model.session()`, `fork()` or `model.restore()`. Used by one thread at a time; a second
    one gets BusyError. Views such as `logits` stay valid memory for as long as they are held, after
    close() too; their contents change with the next run.
    """

    __slots__ = ("_batch", "_edits", "_event", "_sampler", "_stopped", "_switches", "model")

    def __init__(self, model: Model, context: int | None = None, kv_dtype: KvDtype | None = None,
                 chunk: int | None = None, edits: Edits | None = None) -> None:
        self._adopt(_native.session_new(model._c, context, kv_dtype, chunk), model)
        if edits is not None:
            self.edits = edits

    def _adopt(self, owned: Owned, model: Model) -> None:
        super().__init__(owned)
        self._batch: weakref.ref[Batch] | None = None  # that it is a member of
        self._edits: Edits | None = None  # its own list, once somebody has looked
        self._event = _native.new_event()
        self._sampler: Sampler | None = None
        self._switches = Switches()
        self._stopped: Hooks | None = None  # whose tap it stands at, because a hook raised there
        self.model = model

    @classmethod
    def _of(cls, owned: Owned, model: Model) -> Session:
        made = cls.__new__(cls)
        made._adopt(owned, model)
        return made

    @property
    def context(self) -> int:
        """Positions there is room for."""
        return _native.session_context(self._c)

    @property
    def kv_dtype(self) -> str:
        """What keys and values are kept in: "bf16", "f32" or "int8"."""
        return _native.session_kv_dtype(self._c)

    @property
    def pos(self) -> int:
        """Tokens evaluated."""
        return _native.session_position(self._c)

    @property
    def length(self) -> int:
        """Tokens fed, evaluated or not."""
        return _native.session_length(self._c)

    @property
    def reused(self) -> int:
        """Positions that it took from the model's cache of prefixes instead of evaluating them."""
        return _native.session_reused(self._c)

    @property
    def tokens(self) -> list[int]:
        """The ids of all tokens fed, a list."""
        return list(_native.session_tokens(self._c).tolist()) if self.length else []

    @property
    def progress(self) -> tuple[int, int]:
        """How far the last run came: (done, total), in token-layers of what was fed."""
        self._c
        return _native.event_progress(self._event)

    @property
    def logits(self) -> Tensor:
        """Logits of the last token evaluated: a live f32 Tensor [vocab_size], writable.

        Raises ArgumentError while fed tokens wait for run().
        """
        return _native.session_logits(self._c)

    def feed(self, prompt: Prompt) -> Self:
        """Append a str, ids or messages to the timeline; returns the session. Evaluates nothing.

        Raises ContextFull if there is no room, ArgumentError for an empty prompt or bad ids.
        """
        self._check_free()
        _native.session_feed(self._c, self.model.ids(prompt))
        return self

    def draft(self, ids: Ids) -> None:
        """Say which tokens are likely to come behind the last one fed, as in an older text.

        The next run evaluates them too, up to 15, and keeps their logits aside; they are no part of
        the timeline. Choose and feed a token at a time, as ever, with the same results: those that
        come as foretold take no time. Nothing happens while taps are on, or in a batch of several.
        """
        _native.session_draft(self._c, ids)

    def run(self, seconds: float | None = None) -> bool:
        """Evaluate what was fed, for about `seconds` at most. True when all is done.

        Ctrl-C interrupts between two slices of 50 ms; nothing is lost, run() goes on.
        """
        seconds = _native.duration(seconds)
        self._check_free()
        self._stopped = None
        return _native.session_run(self._c, self._event, seconds)

    def interrupt(self) -> None:
        """From any thread: a run in progress ends its slice at once and looks around.

        It sees Ctrl-C or a cancelled stream sooner than after 50 ms. Nothing is returned early and
        nothing is lost: run() goes on with its next slice.
        """
        _native.session_interrupt(self._c)

    def sample(self, sampler: Sampler | None = None, mask: Buffer | None = None) -> int:
        """The id that follows the last token; does not feed it.

        sampler: None means one with the model's defaults and a fresh seed, kept for this session.
        """
        if sampler is None:
            if self._sampler is None:
                self._sampler = Sampler(self.model)
            sampler = self._sampler
        return sampler.next(self, mask)

    def logprobs(self, ids: Ids) -> list[float]:
        """Natural-log probabilities of these ids as the next token: a list of floats."""
        return _native.session_logprobs(self._c, ids)

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """The n likeliest next tokens: a list of (id, log probability), best first."""
        return _native.session_top(self._c, n, self.model.config.vocab_size)

    def rewind(self, length: int) -> None:
        """Cut the timeline back to its first `length` tokens.

        The logits are gone until the next run. Going on gives the same bits as a session that never
        went further.
        """
        self._check_free()
        self._stopped = None
        _native.session_rewind(self._c, length)

    def sync(self, prompt: Prompt) -> int:
        """Make the timeline equal to `prompt`: keep the common beginning, feed the rest.

        Returns the number of tokens reused. If anything was cut, at least the last token is fed
        again, so that run() brings its logits. What cannot be fed is refused before anything is
        cut.
        """
        ids, old = self.model.ids(prompt), self.tokens
        _native.check_feed(ids, self.model.config.vocab_size, self.context)
        common = 0
        for new, known in zip(ids, old):
            if new != known:
                break
            common += 1
        if common < len(old):
            common = min(common, len(ids) - 1)
            self.rewind(common)
        if common < len(ids):
            self.feed(ids[common:])
        return common

    def fork(self) -> Session:
        """A second session that stands where this one stands, tokens and logits included.

        It shares the evaluated positions, so that it takes microseconds, and memory only as one of
        the two goes on. Both go on with the bits of sessions that were never forked, and with the
        same edits. A membership in a batch and a trace stay with this one.
        """
        made = Session._of(_native.session_fork(self._c), self.model)
        if self._edits:
            made._edits = Edits._of(made, self._edits)
        return made

    @property
    def edits(self) -> Edits:
        """Changes of its activations, applied while they are computed; its own list of them.

        What is evaluated from now on has them, in batches and generate() too, and nobody else's
        session has. Assigning a list takes a copy of it. Cached positions stay as they are.
        """
        if self._edits is None:
            self._edits = Edits._of(self)
        return self._edits

    @edits.setter
    def edits(self, edits: Iterable[Edit]) -> None:
        self.edits._change(list(Edits(edits)))

    @contextlib.contextmanager
    def edited(self, edits: Iterable[Edit]) -> Iterator[Edits]:
        """`with session.edited(edits):` has these too until the block ends."""
        before = list(self.edits)
        self.edits.extend(edits)
        try:
            yield self.edits
        finally:
            self.edits._change(before)

    def save(self, path: AnyPath) -> None:
        """Write the session to a file, from which `model.restore(path)` makes one that goes on.

        Saved are the tokens, fed and evaluated, the keys and values, the context and the logits. A
        Sampler with the same options and seed goes on with the same draws. Rows of a prompt in its
        middle do not count. Whatever happens meanwhile, Ctrl-C, a full disk or the end of the
        process, `path` names the old file or the new one, each whole. It takes as many bytes as the
        cache. To go on while it is written, save a fork in another thread.

        Raises FileError, OutOfMemory, BusyError (somebody else writes this file), FormatError (the
        session was restored from a damaged file).
        """
        _native.session_save(self._c, path)

    # ---- Looking inside ----

    def trace(self, prompt: Prompt | None = None, points: str | Iterable[str] | None = None,
              layers: int | Iterable[int] | None = None) -> Taps:
        """Evaluate a prompt (or what is pending) and stop at activations: an iterator of Tap.

        points: a name or several of `model.points`; None: all. layers: a number or several,
        negative ones from the end; None: all. What you write into `tap.tensor` is what the run goes
        on with. A long prompt comes in chunks: see Tap. Until its end the session belongs to the
        trace (BusyError). Leaving the loop early switches the taps off; run() finishes the rest.
        """
        selected = select(self.model, points, layers)
        self._check_alone()
        if prompt is not None:
            self.feed(prompt)
        return Taps(self, selected)

    def run_with_hooks(self, prompt: Prompt | None = None,
                       hooks: Iterable[tuple[Where, Hook]] = ()) -> Tensor:
        """Evaluate a prompt (or what is pending) with hooks: the logits, a Tensor f32 [vocab_size].

        hooks: pairs of a point, or (point, layer), and a callable(tensor, tap), which may write
        into the tensor. One point may have several hooks; they are called in order. A prompt of
        more than `chunk` positions comes in parts, and a hook is called for each: row i of the
        tensor is position `tap.first + i` of the timeline.
        """
        made = Hooks(self.model, hooks)
        self._feed_some(prompt)
        self._run_hooks(made, None)
        return self.logits.copy()

    def run_with_cache(self, prompt: Prompt | None = None,
                       points: str | Iterable[str] | None = None,
                       layers: int | Iterable[int] | None = None,
                       positions: int | slice | Iterable[int] | None = None,
                       hooks: Iterable[tuple[Where, Hook]] = ()) -> tuple[Tensor, Cache]:
        """Evaluate a prompt (or what is pending) and keep activations: (the logits, a Cache).

        points and layers as in trace(). positions: of the timeline, None (all that this run goes
        over), an int, a slice or several ints; negative ones from the end. hooks: as in
        run_with_hooks(); the cache keeps what they leave.
        """
        selected = select(self.model, points, layers)
        ids = None if prompt is None else self.model.ids(prompt)
        first, length = self.pos, self.length + len(ids or ())
        cache = Cache(pick_positions(positions, first, length),
                      self.model.config.num_hidden_layers)
        made = Hooks(self.model, hooks, cache, selected)
        self._feed_some(ids)
        self._run_hooks(made, None)
        return self.logits.copy(), cache

    def _feed_some(self, prompt: Prompt | None) -> None:
        self._check_alone()
        if prompt is not None:
            self.feed(prompt)
        elif self.length == self.pos:
            raise ArgumentError("there is nothing to evaluate: give a prompt, or feed() one")

    def _run_hooks(self, hooks: Hooks, seconds: float | None) -> bool:
        """As run(), with Hooks called on the way."""
        deadline = None if seconds is None else time.monotonic() + seconds
        again = self._stopped is hooks
        with Taps(self, hooks.selected) as taps:
            if again:
                self._call_hooks(hooks, None)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                arrived, tap = taps.step(left)
                if tap is None:
                    return arrived
                self._call_hooks(hooks, tap)

    def _call_hooks(self, hooks: Hooks, tap: Tap | None) -> None:
        """Those of a tap; None: what is left of the one at which a hook raised."""
        self._stopped = hooks
        if tap is None:
            hooks.go_on()
        else:
            hooks.call(tap)
        self._stopped = None

    def _begin_taps(self, by: Taps, selected: Sequence[tuple[int, int]]) -> None:
        """These taps on; nothing else may run the session until they are off."""
        self._stopped = None
        self._switches.on(self._c, by, selected)

    def _end_taps(self, by: Taps) -> None:
        if not self.closed:
            self._switches.off(self._c, by)

    def _check_free(self) -> None:
        """BusyError while a trace or hooks run the session."""
        self._switches.check(self._c)

    def _home(self) -> Batch | None:
        """The batch that it is a member of."""
        batch = None if self._batch is None else self._batch()
        return None if batch is None or batch.closed else batch

    def _check_alone(self) -> None:
        """BusyError while this session cannot be run: before anything is fed."""
        self._check_free()
        if self._home() is not None:
            raise BusyError("the session is a member of a batch; run the batch, or remove the "
                            "session from it")

    # ---- Text ----

    @overload
    def generate(self, prompt: Prompt | None = None, *, stream: Literal[False] = False,
                 **options: Unpack[GenerateOptions]) -> Generation: ...

    @overload
    def generate(self, prompt: Prompt | None = None, *, stream: Literal[True],
                 **options: Unpack[GenerateOptions]) -> Stream: ...

    @overload
    def generate(self, prompt: Prompt | None = None, *, stream: bool,
                 **options: Unpack[GenerateOptions]) -> Generation | Stream: ...

    @spelled_out(GenerateOptions)
    def generate(self, prompt: Prompt | None = None, *, stream: bool = False,
                 **options: Unpack[GenerateOptions]) -> Generation | Stream:
        """Go on from `prompt`, or from where the timeline ends. See Model.generate().

        The tokens generated stay in the timeline. Every option is checked before anything is fed.
        """
        stream = _native.flag(stream, "stream")
        made = Stream(self, Request(self.model, prompt, **options))
        return made if stream else made.result()

    def close(self) -> None:
        """Give the session up; a batch that it is a member of goes on without it.

        Raises BusyError, and nothing changes, while another thread or a trace runs that batch.
        """
        batch = self._home()
        if batch is not None:
            batch._drop(self)
        super().close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Session closed>"
        return f"<Session {self.pos} of {self.context} positions, {self.length - self.pos} pending>"

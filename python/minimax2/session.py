"""Session: one timeline of tokens."""

import contextlib
import time

from minimax2 import _native, trace
from minimax2.errors import BusyError
from minimax2.handle import Handle
from minimax2.sampling import Sampler
from minimax2.stream import Stream
from minimax2.tokenizer import is_messages


class Session(Handle):
    """One timeline: feed it tokens, run it, look at the logits, sample, go on.

    Made by `model.session()`. Used by one thread at a time; a second one gets BusyError. Views such
    as `logits` stay valid memory for as long as they are held, after close() too; their contents
    change with the next run.
    """

    __slots__ = ("_event", "_sampler", "_tracing", "model")

    def __init__(self, model, context=None, kv_dtype="bf16", chunk=None):
        super().__init__(_native.session_new(model._c, context, kv_dtype, chunk))
        self._event = _native.new_event()
        self._sampler = None
        self._tracing = False
        self.model = model

    @property
    def context(self):
        """Positions there is room for."""
        return _native.session_context(self._c)

    @property
    def pos(self):
        """Tokens evaluated."""
        return _native.session_position(self._c)

    @property
    def length(self):
        """Tokens fed, evaluated or not."""
        return _native.session_length(self._c)

    @property
    def tokens(self):
        """The ids of all tokens fed, a list."""
        return _native.session_tokens(self._c).tolist() if self.length else []

    @property
    def progress(self):
        """How far the last run came: (done, total), in token-layers of what was fed."""
        self._c
        return _native.event_progress(self._event)

    @property
    def logits(self):
        """Logits of the last token evaluated: a live f32 Tensor [vocab_size], writable.

        Raises ArgumentError while fed tokens wait for run().
        """
        return _native.session_logits(self._c)

    def feed(self, prompt):
        """Append a str, ids or messages to the timeline; returns the session. Evaluates nothing.

        Raises ContextFull if there is no room, ArgumentError for an empty prompt or bad ids.
        """
        self._check_not_tracing()
        _native.session_feed(self._c, self.model.ids(prompt))
        return self

    def run(self, seconds=None):
        """Evaluate what was fed, for about `seconds` at most. True when all is done.

        Ctrl-C interrupts between two slices of 50 ms; nothing is lost, run() goes on.
        """
        self._check_not_tracing()
        return _native.session_run(self._c, self._event, seconds)

    def interrupt(self):
        """From any thread: let a run in progress come to its next slice now."""
        _native.session_interrupt(self._c)

    def sample(self, sampler=None, mask=None):
        """The id that follows the last token; does not feed it.

        sampler: None means one with the model's defaults and a fresh seed, kept for this session.
        """
        if sampler is None:
            if self._sampler is None:
                self._sampler = Sampler(self.model)
            sampler = self._sampler
        return sampler.next(self, mask)

    def logprobs(self, ids):
        """Natural-log probabilities of these ids as the next token: a list of floats."""
        return _native.session_logprobs(self._c, ids)

    def top(self, n=10):
        """The n likeliest next tokens: a list of (id, log probability), best first."""
        return _native.session_top(self._c, n, self.model.config.vocab_size)

    def rewind(self, length):
        """Cut the timeline back to its first `length` tokens.

        The logits are gone until the next run. Going on gives the same bits as a session that never
        went further.
        """
        self._check_not_tracing()
        _native.session_rewind(self._c, length)

    def sync(self, prompt):
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

    def trace(self, prompt=None, points=None, layers=None):
        """Evaluate a prompt (or what is pending) and stop at activations: an iterator of Tap.

        points: a name or several of `model.points`; None: all. layers: a number or several,
        negative ones from the end; None: all. What you write into `tap.tensor` is what the run goes
        on with. Leaving the loop early switches the taps off; run() finishes the rest.
        """
        selected = trace.select(self.model, points, layers)
        if prompt is not None:
            self.feed(prompt)
        self._check_not_tracing()
        return self._taps(selected)

    def _taps(self, selected):
        with self._tapped(selected) as cdata:
            while True:
                _native.session_run(self._c, self._event, None)
                tap = _native.event_tap(self._event, cdata)
                if tap is None:
                    return
                yield trace.Tap(*tap)

    def _run_hooks(self, hooks, seconds):
        """As run(), with trace.Hooks called on the way."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._tapped(hooks.selected) as cdata:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not _native.session_run(self._c, self._event, left):
                    return False
                tap = _native.event_tap(self._event, cdata)
                if tap is None:
                    return True
                hooks.call(trace.Tap(*tap))

    @contextlib.contextmanager
    def _tapped(self, selected):
        """These taps on; nothing else may run the session meanwhile."""
        cdata = self._c
        self._check_not_tracing()
        self._tracing = True
        try:
            for point, layer in selected:
                _native.session_tap(cdata, point, layer, True)
            yield cdata
        finally:
            for point, layer in selected:
                _native.session_tap(cdata, point, layer, False)
            self._tracing = False

    def _check_not_tracing(self):
        if self._tracing:
            raise BusyError("a trace of this session is under way: finish its loop or close() it "
                            "first")

    def generate(self, prompt=None, *, stream=False, **options):
        """Go on from `prompt`, or from where the timeline ends. See Model.generate().

        The tokens generated stay in the timeline. thinking: whether the text begins inside <think>;
        by default when the prompt is messages.
        """
        if prompt is not None:
            self.feed(prompt)
        options.setdefault("thinking", is_messages(prompt))
        made = Stream(self, **options)
        return made if stream else made.result()

    def __repr__(self):
        if self.closed:
            return "<Session closed>"
        return f"<Session {self.pos} of {self.context} positions, {self.length - self.pos} pending>"

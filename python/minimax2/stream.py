"""Stream: a generation while it is being made."""

import asyncio
import time

from minimax2 import _native, trace
from minimax2.errors import ArgumentError
from minimax2.generation import Generation, Timing, TokenLogprob
from minimax2.sampling import Sampler

_SLICE = 0.05  # seconds between two looks at cancel()


class Stream:
    """Iterate over it for pieces of text; poll(seconds) in a game loop; `async for` under asyncio.

    Pieces are whole characters and hold back what may become a stop string, so that joined they
    are the final text. In a chat turn they are the answer; `thinking` grows before it. Nothing runs
    between two calls. Used by one thread at a time, except cancel(). What Ctrl-C interrupts goes on
    with the next call.

    Attributes: `session`, `seed`, `tokens` (ids so far), `text` (all pieces so far), `thinking`,
    `done`, `finish_reason` (None until done).
    """

    def __init__(self, session, *, max_new_tokens=1024, stop=(), mask=None, logits_processor=None,
                 top_logprobs=0, hooks=(), thinking=False, seed=None, **sampling):
        model = session.model
        self.session = session
        self.tokens = []
        self.finish_reason = None
        self._sampler = Sampler(model, seed=seed, **sampling)
        self.seed = self._sampler.options["seed"]
        self._tokenizer = model.tokenizer_or_none
        self._hooks = trace.Hooks(model, hooks) if hooks else None
        self._max = _native.integer(max_new_tokens, "max_new_tokens", 0)
        self._stop = _stop_strings(stop)
        self._mask = mask
        self._processor = logits_processor
        self._top = _native.integer(top_logprobs, "top_logprobs", 0, model.config.vocab_size)
        self._logprobs = [] if self._top else None
        self._cancelled = False
        self._bytes = b""  # of a character that is not complete yet
        self._thinking = "" if thinking else None
        self._in_thinking = thinking
        self._answer = ""  # decoded so far; _shown of its characters may be seen, _taken were
        self._shown = self._taken = 0
        self._start = session.length
        self._prompt_tokens = self._start - session.pos
        self._prompt_seconds = self._seconds = 0.0
        if self._max == 0:
            self._finish("length")

    @property
    def text(self):
        """All pieces so far."""
        return self._answer[:self._shown]

    @property
    def thinking(self):
        """What was written before </think> in a chat turn, so far; None outside chats."""
        return None if self._thinking is None else self._thinking.strip("\n")

    @property
    def done(self):
        """Whether the generation has ended."""
        return self.finish_reason is not None

    def cancel(self):
        """End the generation; may be called from any thread."""
        self._cancelled = True
        if not self.session.closed:
            self.session.interrupt()

    def poll(self, seconds=0.0):
        """Work for about `seconds`; the text that came, "" if none yet. See `done` for the end."""
        deadline = time.monotonic() + seconds
        while not self.done:
            self._step(max(0.0, min(_SLICE, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                break
        return self._take()

    def result(self):
        """Run to the end: the Generation."""
        while not self.done:
            self._step(_SLICE)
        return Generation(
            text=self.text, thinking=self.thinking, tokens=list(self.tokens),
            finish_reason=self.finish_reason, seed=self.seed, logprobs=self._logprobs,
            timing=Timing(self._prompt_tokens, self._prompt_seconds, len(self.tokens),
                          self._seconds))

    def _take(self):
        """What may be seen and was not given out yet: an interrupted call loses nothing."""
        start, self._taken = self._taken, self._shown
        return self._answer[start:self._taken]

    def __iter__(self):
        return self

    def __next__(self):
        while not self.done and self._shown == self._taken:
            self._step(_SLICE)
        piece = self._take()
        if not piece:
            raise StopIteration
        return piece

    def __aiter__(self):
        return self

    async def __anext__(self):
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

    def _step(self, seconds):
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

    def _run(self, seconds):
        if self._hooks is None:
            return self.session.run(seconds)
        return self.session._run_hooks(self._hooks, seconds)

    def _sample(self):
        session = self.session
        if session.length >= session.context:
            return self._finish("context")
        mask = self._mask(self.tokens) if callable(self._mask) else self._mask
        token = self._choose(mask)
        if self._logprobs is not None:
            self._logprobs[len(self.tokens):] = [
                TokenLogprob(token, session.logprobs([token])[0], session.top(self._top))]
        session.feed([token])
        self._catch_up()

    def _choose(self, mask):
        if self._processor is None:
            return self._sampler.next(self.session, mask)
        logits = self.session.logits
        own = logits.copy()
        try:
            self._edit(logits)
            return self._sampler.next(self.session, mask)
        finally:  # log-probabilities are the model's own, and what was interrupted edits again
            memoryview(logits).cast("B")[:] = memoryview(own).cast("B")

    def _catch_up(self):
        """Read what the timeline has more than we: an interrupt may have come between."""
        timeline = memoryview(_native.session_tokens(self.session._c))
        for token in timeline[self._start + len(self.tokens):].tolist():
            before = (self._bytes, self._thinking, self._in_thinking, self._answer, self._shown,
                      self.finish_reason)
            try:
                self._read(token)
                if not self.done and len(self.tokens) + 1 >= self._max:
                    self._finish("length")
            except BaseException:  # half-read is not read: the token comes again
                (self._bytes, self._thinking, self._in_thinking, self._answer, self._shown,
                 self.finish_reason) = before
                raise
            self.tokens.append(token)

    def _edit(self, logits):
        try:
            logits = logits.numpy()
        except ImportError:
            pass  # without numpy the processor gets the Tensor itself
        ids = self.session.tokens
        if self._processor(ids, logits) is not None:
            raise TypeError("a logits_processor edits the logits in place and returns None")

    def _read(self, token):
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

    def _rest(self):
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text

    def _write(self, text, last=False):
        """Take decoded text, look for stop strings, and show what can no longer become one."""
        if self._in_thinking:
            self._thinking += text
            return
        if self._thinking is not None and not self._answer:
            text = text.lstrip("\n")  # the format's blank lines between thinking and answer
        self._answer += text
        found = [self._answer.find(stop, self._shown) for stop in self._stop]
        if max(found, default=-1) >= 0:
            self._answer = self._answer[:min(at for at in found if at >= 0)]
            self._shown = len(self._answer)
            self.finish_reason = "stop"
            return
        held = 0
        for stop in () if last else self._stop:
            for n in range(min(len(stop) - 1, len(self._answer) - self._shown), held, -1):
                if self._answer.endswith(stop[:n]):
                    held = n
                    break
        self._shown = len(self._answer) - held

    def _finish(self, reason):
        self._write(self._rest(), last=True)
        self.finish_reason = self.finish_reason or reason

    def __repr__(self):
        state = self.finish_reason or "under way"
        return f"<Stream {len(self.tokens)} tokens, {state}>"


def _stop_strings(stop):
    stop = [stop] if isinstance(stop, str) else list(stop)
    for string in stop:
        if not isinstance(string, str):
            raise TypeError(f"a stop string must be a str, not {type(string).__name__}")
        if not string:
            raise ArgumentError("a stop string is empty")
    return stop

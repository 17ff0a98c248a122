"""Model: an opened checkpoint, and load()."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack, overload

from minimax2 import _native, _native_text, show
from minimax2.batching import Batch, Streams
from minimax2.conversation import Chat
from minimax2.edits import Edits
from minimax2.engine import Engine, Job
from minimax2.errors import ArgumentError, ContextFull, UnsupportedError
from minimax2.generation import Generation
from minimax2.handle import Handle
from minimax2.options import (AnyPath, GenerateOptions, Item, KvDtype, Message,
                              ModelGenerateOptions, Prompt, SessionOptions, check_names,
                              spelled_out)
from minimax2.plan import Plan, plan
from minimax2.request import Request
from minimax2.scoring import CHUNK, Score, Scoring
from minimax2.session import Session
from minimax2.stream import Stream
from minimax2.tensor import Tensor
from minimax2.text import Tokenizer, is_messages, is_prompts
from minimax2.trace import Cache, Hook, Taps, Where, select

if TYPE_CHECKING:
    from minimax2.grammar import Grammars

Isa = Literal["auto", "ref", "avx2", "avx512", "amx", "blas"]
Precision = Literal["fast", "exact"]

EMBEDDED = Path(__file__).parent / "m2-tiny"
MOST_ANSWERS = 4096  # members that a batch can have


class Config(NamedTuple):
    """The shape of a model; names as in the family's config.json."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    """Leading dimensions of a head that are rotated."""
    num_local_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    """Of one expert."""
    vocab_size: int
    """Rows of the embedding, padding included."""
    max_position_embeddings: int
    """Positions."""
    use_qk_norm: bool
    use_routing_bias: bool
    rope_theta: float
    rms_norm_eps: float
    routed_scaling_factor: float


class WeightInfo(NamedTuple):
    """A weight, of all the tensors that it lies in."""

    shape: tuple[int, ...]
    """Decoded."""
    dtype: str
    """Of its codes: "f8_e4m3", "f4_16", "i4", "q4_k", ..."""
    nbytes: int
    """Of codes, scales and zero points."""
    is_part: bool
    """Is the tensor part of another weight, its scales for instance? It is described alone then."""


class Limits(NamedTuple):
    """What a machine gives a model's threads and kernels, all threads together."""

    threads: int
    """That took part."""
    plain_read: float
    """Bytes per second of memory, by the widest loads alone."""
    best_read: float
    """The same with the best of several software prefetches."""
    int8_ops: float
    """Operations per second on int8 codes, 2 a multiply-add; random data in the first-level
    cache."""
    bf16_ops: float
    """Likewise on weights of bf16."""
    f32_ops: float
    """Likewise on weights of f32."""


class AttentionLimits(NamedTuple):
    """What a machine gives a model's attention, all threads together."""

    threads: int
    """That took part."""
    read: float
    """Bytes per second of keys and values in memory that one token attends to."""
    ops: float
    """Operations per second, 2 a multiply-add, of rows of a prompt."""


class Cost(NamedTuple):
    """What must be read and computed at least."""

    weight_bytes: float
    """Block scales included."""
    kv_bytes: float
    """Keys and values of earlier tokens."""
    int8_ops: float
    """Operations with integer weights, 2 a multiply-add."""
    bf16_ops: float
    """With BF16 and FP8 weights and a BF16 cache."""
    f32_ops: float
    """With F16 and F32 weights and an F32 cache."""

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weight_bytes + self.kv_bytes

    @property
    def ops(self) -> float:
        """All operations."""
        return self.int8_ops + self.bf16_ops + self.f32_ops


class PrefixStats(NamedTuple):
    """What a model's cache of prefixes has and did."""

    pages: int
    """In memory, of 256 positions each."""
    bytes: int
    """Of those that no session holds."""
    limit: int
    """Of these: prefix_cache; 0: there is no cache."""
    reused: int
    """Positions that sessions took, ever; likewise:"""
    added: int
    """Pages that sessions put in."""
    evicted: int
    """Pages that went for want of memory."""
    read: int
    """Pages that came from the folder."""
    written: int
    """Pages that went there."""
    removed: int
    """Files that went for want of room there."""
    damaged: int
    """Files that were not what was written."""
    failed: int
    """Pages that could not be written."""
    unwritten: int
    """Pages that wait for it now."""
    problem: str | None
    """Why the last page could not be written; None if it was."""


def load(path: AnyPath | None = None, *, threads: int | None = None, writable: bool = False,
         mapped: bool = True, isa: Isa | None = None, precision: Precision = "fast",
         prefix_cache: int | None = None, prefix_folder: AnyPath | None = None,
         prefix_disk: int | None = None, template: Literal["jinja"] | None = None) -> Model:
    """Open a checkpoint: a Model. Quick: weights are mapped, not read.

    path: a Hugging Face directory, a .gguf file (of a split set: any part), or a directory that
    holds one; None: m2-tiny, the small model that comes with the package. threads: None means all
    physical cores that the process may use. writable: map copy-on-write, so that weights can be
    edited in this process; files are never touched. mapped: False reads the weights into memory
    instead, for network file systems and wherever a file may shrink while the model is open: then a
    map ends the process (SIGBUS). isa: "ref", "avx2", "avx512", "amx" or
    "blas"; None means the best, or what the MM2_ISA environment variable says. precision: "fast"
    multiplies with 8-bit or bf16 activations where the weights' type allows it, "exact" always
    float32 values with float32 activations, for measurements (decoding takes up to five times as
    long in the smallest formats, a prompt two to four times); its sessions then keep keys and
    values in f32 unless they are told otherwise. prefix_cache: bytes of memory for what sessions
    have evaluated, so that others whose tokens begin alike start behind it, with the same bits, in
    pages of 256 positions; None: no such cache. prefix_folder: a folder that exists, where the
    pages are kept too, for other processes and later ones; prefix_disk: bytes of files there at
    most, None: 10 times prefix_cache. See "Shared prefixes" in minimax2.h, and
    Model.prefix_stats. template: "jinja" renders messages by the checkpoint's own chat template if
    it is not a known one, in Jinja's sandbox (pip install "minimax2[jinja]"): a program out of the
    file, whose time and memory nothing limits; see CHAT.md.

    Raises FileError, FormatError, UnsupportedError, OutOfMemory, ArgumentError.
    """
    return Model(EMBEDDED if path is None else path, threads=threads, writable=writable,
                 mapped=mapped, isa=isa, precision=precision, prefix_cache=prefix_cache,
                 prefix_folder=prefix_folder, prefix_disk=prefix_disk, template=template)


class Model(Handle, Mapping[str, Tensor]):
    """An opened checkpoint: immutable, shared by any number of threads and sessions.

    A mapping of tensor names to views on the weights as they lie in the files. `model(prompt)`
    gives logits, generate() text, session() a timeline to work with, trace() and run_with_*() what
    goes on inside. close() gives the model up; sessions and tensors taken from it keep the weights
    that they need.
    """

    __slots__ = ("_config", "_engine", "_made_grammars", "_sizes", "_template", "_tokenizer")

    points = _native.POINTS
    """The names of the activations that a run can stop at, in the order of the data flow."""

    def __init__(self, path: AnyPath, *, threads: int | None = None, writable: bool = False,
                 mapped: bool = True, isa: Isa | None = None,
                 precision: Precision = "fast", prefix_cache: int | None = None,
                 prefix_folder: AnyPath | None = None, prefix_disk: int | None = None,
                 template: Literal["jinja"] | None = None) -> None:
        super().__init__(_native.model_open(path, threads, writable, mapped, isa, precision,
                                            prefix_cache, prefix_folder, prefix_disk))
        facts = _native.model_config(self._c)
        for flag in ("use_qk_norm", "use_routing_bias"):
            facts[flag] = bool(facts[flag])
        self._config = Config(**facts)
        self._sizes = _native.model_sizes(self._c)
        self._tokenizer: Tokenizer | None = None
        self._made_grammars: Grammars | None = None
        self._template = template
        if template is not None:
            self.tokenizer  # refuse now what a prompt of messages would refuse
        self._engine: weakref.ref[Engine] | None = None  # of agenerate(), kept by its jobs

    # ---- Facts ----

    @property
    def config(self) -> Config:
        """The shape of the model, a Config."""
        return self._config

    @property
    def path(self) -> Path:
        """Where it was opened, a Path."""
        return Path(_native.model_path(self._c))

    @property
    def threads(self) -> int:
        """Threads that work for it, the calling one included."""
        return self._sizes[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._sizes[1]

    @property
    def parameters(self) -> int:
        """Elements of all weights, without scales and zero points."""
        return self._sizes[2]

    @overload
    def info(self, key: str) -> str | None: ...

    @overload
    def info(self) -> dict[str, str | None]: ...

    def info(self, key: str | None = None) -> str | None | dict[str, str | None]:
        """A fact as a str, or None where the files do not tell; without a key, a dict of all.

        Keys: "path", "format", "architecture", "name", "license", "quantization", "isa",
        "precision", "chat_template".
        """
        if key is None:
            return {key: _native.model_info(self._c, key) for key in _native.model_info_keys()}
        return _native.model_info(self._c, key)

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end a generation, ascending: what the files name, and the end of a turn."""
        return _native.model_end_tokens(self._c)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's Tokenizer. Raises UnsupportedError if the checkpoint has none."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer._of(_native_text.model_tokenizer(self._c),
                                            self._template)
        return self._tokenizer

    @property
    def tokenizer_or_none(self) -> Tokenizer | None:
        """The same, or None: token ids work without a tokenizer."""
        try:
            return self.tokenizer
        except UnsupportedError:
            return None

    @property
    def _grammars(self) -> Grammars:
        """What forms of texts it has compiled. Two threads that race make two, which is no harm."""
        if self._made_grammars is None:
            from minimax2.grammar import Grammars  # not sooner: it needs numpy

            self._made_grammars = Grammars(self)
        return self._made_grammars

    # ---- Weights ----

    def __getitem__(self, name: str) -> Tensor:
        """A view on a tensor as it lies in the file; read-only unless opened with writable=True."""
        try:
            return _native.model_tensor(self._c, name)
        except ArgumentError as error:
            self._c  # a closed model is no missing key
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(_native.model_names(self._c))

    def __len__(self) -> int:
        return len(_native.model_names(self._c))

    def __bool__(self) -> bool:
        return True

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def weight(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows [first, first + count) of a weight, decoded: a Tensor f32 [count, columns].

        A weight counts as a matrix of its last dimension. Its scales and zero points, in whatever
        tensors they lie, are applied; `name` is that of its codes, or "X.weight" for
        "X.weight_packed". count None: to the last row. Raises KeyError, ArgumentError, OutOfMemory;
        FormatError or UnsupportedError if what stands beside it does not fit.
        """
        self.weight_info(name)  # KeyError
        return _native.model_weight(self._c, name, first, count)

    def weight_info(self, name: str) -> WeightInfo:
        """What `weight` decodes under a name: a WeightInfo. Raises as `weight` does."""
        try:
            return WeightInfo(*_native.model_weight_info(self._c, name))
        except ArgumentError as error:
            self._c  # a closed model is no missing key
            raise KeyError(str(error)) from None

    # ---- Running ----

    def ids(self, prompt: Prompt) -> list[int]:
        """What a prompt is in token ids, a list: a str, ids, or messages (list of dicts)."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif is_messages(prompt):
            ids = self.tokenizer.apply_chat_template(prompt)
        else:
            try:
                ids = _native.ids(prompt)
            except TypeError as error:
                raise TypeError(f"{error}; a prompt is a str, token ids or messages (dicts of role "
                                "and content), and several prompts are a list or tuple of "
                                "these") from None
        if not ids:
            raise ArgumentError("the prompt is empty")
        return ids

    @spelled_out(SessionOptions)
    def __call__(self, prompt: Prompt, *, logits: Literal["last", "all"] = "last",
                 **options: Unpack[SessionOptions]) -> Tensor:
        """Logits after a prompt, a Tensor f32: [vocab_size], or all: [tokens, vocab_size].

        logits: "last" or "all". context, kv_dtype and chunk as in session().
        """
        if logits not in ("last", "all"):
            raise ArgumentError(f"logits is {logits!r}, must be 'last' or 'all'")
        if logits == "last":
            return self.run_with_hooks(prompt, (), **options)
        rows: Tensor = self.run_with_cache(prompt, "logits", **options)[1]["logits"]
        return rows

    @overload  # a str is also a sequence of str: type checkers take the first that fits
    def generate(  # type: ignore[overload-overlap]
            self, prompt: Prompt, *, stream: Literal[False] = False,
            **options: Unpack[ModelGenerateOptions]) -> Generation: ...

    @overload
    def generate(  # type: ignore[overload-overlap]
            self, prompt: Prompt, *, stream: Literal[True],
            **options: Unpack[ModelGenerateOptions]) -> Stream: ...

    @overload
    def generate(  # type: ignore[overload-overlap]
            self, prompt: Prompt, *, stream: bool,
            **options: Unpack[ModelGenerateOptions]) -> Generation | Stream: ...

    @overload
    def generate(
            self, prompt: Prompt, *, n: int, stream: Literal[False] = False,
            **options: Unpack[ModelGenerateOptions]) -> list[Generation]: ...

    @overload
    def generate(
            self, prompt: Prompt, *, n: int, stream: Literal[True],
            **options: Unpack[ModelGenerateOptions]) -> Streams: ...

    @overload
    def generate(self, prompt: Sequence[Item], *, stream: Literal[False] = False,
                 **options: Unpack[ModelGenerateOptions]) -> list[Generation]: ...

    @overload
    def generate(self, prompt: Sequence[Item], *, stream: Literal[True],
                 **options: Unpack[ModelGenerateOptions]) -> Streams: ...

    @spelled_out(ModelGenerateOptions)
    def generate(self, prompt: Prompt | Sequence[Item], *, n: int | None = None,
                 stream: bool = False, **options: Unpack[ModelGenerateOptions]
                 ) -> Generation | Stream | list[Generation] | Streams:
        """Go on from a prompt: a Generation, or with stream=True a Stream of text pieces.

        A list of prompts is answered together, each as it would be alone: a list of Generation, or
        with stream=True an iterator of (index, piece). See Batch.generate(). With n, one prompt is
        evaluated once and answered n times, likewise: answer i is that of seed + i.

        prompt: a str, token ids, or messages (dicts of role and content), which are answered in
        the chat format. Ends at the end token, a stop string, max_new_tokens or the model's
        positions. Raises ContextFull if the prompt alone is longer than these.

        Options: temperature, top_k, top_p, min_p and the others of Sampler, defaults from the
        checkpoint; seed (None: a fresh one, reported in the result); bias {id: value}; stop, a str
        or several, not shown, None for none; thinking (None: as the prompt has it), whether the
        text begins inside <think>, False to close that block in the prompt of messages, and a
        number of tokens after which it is closed and the answer begins; tools, which a prompt of
        messages declares and whose calls the result has; tool_choice, "auto", "none" (the token
        that begins calls is forbidden), "required" (behind the thinking a call is opened) or the
        name of a tool; keep_thinking, of all turns in it; one of json_schema (a
        dict, JSON in a str, a pydantic model), regex, choices and grammar (Lark's notation), the
        form that the answer must have, see CHAT.md; mask, a
        buffer as in Sampler.next, or a callable(tokens so far) that returns one; logits_processor,
        a callable(ids, logits) that edits the logits, a numpy array [vocab_size], in place;
        top_logprobs, to report the n likeliest tokens at each place; hooks, as in run_with_hooks(),
        called for the prompt and for every token generated; speculate, True or at most so many
        tokens, up to 15: those that followed an earlier occurrence of the last ones are evaluated
        together with them, where that is expected to win, and the result is the same, False (the
        default) never; Generation.timing tells; context, kv_dtype and chunk as in
        session(), context None: as much as the prompt and max_new_tokens need.
        """
        stream = _native.flag(stream, "stream")
        if n is not None:
            return self._answers(prompt, _native.integer(n, "n", 1, MOST_ANSWERS), stream, options)
        if is_prompts(prompt):
            return self.batch().generate(prompt, stream=stream, **options)
        request, kept = self._request(prompt, options)
        session = self._session_for(request.ids or [], request.max_new_tokens, kept)
        made = Stream(session, request)
        return made if stream else made.result()

    def engine(self, *, max_sessions: int = 64, rows: int | None = None) -> Engine:
        """An Engine: many generations at once, asked for by asyncio tasks and by threads.

        max_sessions: how many have keys and values in memory together; the others wait. rows: as in
        batch().
        """
        return Engine(self, max_sessions=max_sessions, rows=rows)

    def _shared_engine(self) -> Engine:
        """That of agenerate() and ascore(). Two threads that race make two, which is no harm."""
        engine = None if self._engine is None else self._engine()
        if engine is None or engine.closed:
            engine = Engine(self)
            self._engine = weakref.ref(engine)
        return engine

    @spelled_out(ModelGenerateOptions)
    def agenerate(self, prompt: Prompt, *, priority: int = 0, deadline: float | None = None,
                  **options: Unpack[ModelGenerateOptions]) -> Job:
        """The Job of a generation: `async for piece in model.agenerate(...)`, or `await` it.

        All jobs of a model share its passes, 64 at a time, in a thread of their own; the event loop
        stays free. priority, deadline: see Engine. Options as in generate().
        """
        return self._shared_engine().agenerate(prompt, priority=priority, deadline=deadline,
                                               **options)

    @spelled_out(SessionOptions)
    def score(self, prompt: Prompt, **options: Unpack[SessionOptions]) -> Score:
        """How likely a text is: a Score, the log-probability of each token but the first.

        However long it is, the logits of `chunk` tokens are in memory at a time; chunk None: 64.
        Raises ContextFull, NumericError.
        """
        ids = self.ids(prompt)
        scoring = Scoring(ids)
        chunk = options.get("chunk")
        with self._measuring(ids, {**options, "chunk": CHUNK if chunk is None else chunk}) as one:
            one.run_with_hooks(ids, [("logits", scoring)])
        return scoring.score()

    @spelled_out(SessionOptions)
    async def ascore(self, prompt: Prompt, *, priority: int = 0, deadline: float | None = None,
                     **options: Unpack[SessionOptions]) -> Score:
        """The same under asyncio, in the passes of agenerate(). See Engine.ascore()."""
        return await self._shared_engine().ascore(prompt, priority=priority, deadline=deadline,
                                                  **options)

    def _answers(self, prompt: Any, n: int, stream: bool,
                 options: Mapping[str, Any]) -> list[Generation] | Streams:
        """Answers of one prompt, made together behind forks of it."""
        if is_prompts(prompt):
            raise ArgumentError("n is for one prompt; of several, give each as often as you want")
        if prompt is not None and not is_messages(prompt):
            prompt = self.ids(prompt)  # once
        first, kept = self._request(prompt, options)
        seeds = [(first.sampler.seed + i) % 2**64 for i in range(n)]
        requests = [first, *(self._request(prompt, {**options, "seed": seed})[0]
                             for seed in seeds[1:])]
        ids = first.ids or []
        sessions = [self._session_for(ids, first.max_new_tokens, kept)]
        if first.hooks is None and len(ids) > 1:  # else each evaluates all of it
            sessions[0].feed(ids[:-1]).run()
            for request in requests:
                request.ids = ids[-1:]
        sessions += [sessions[0].fork() for _ in requests[1:]]
        return self.batch()._together(
            [Stream(session, request) for session, request in zip(sessions, requests)], stream)

    def _request(self, prompt: Any,
                 options: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
        """What to generate, and what the session for it is made with; all of it checked."""
        check_names(options, ModelGenerateOptions)
        if prompt is None:
            raise TypeError("the prompt must be a str, ids or messages, not None")
        given = {**options}
        kept = {name: given.pop(name, None) for name in ("context", "kv_dtype", "chunk", "edits")}
        return Request(self, prompt, **given), kept

    def _session_for(self, ids: list[int], room: int, options: Mapping[str, Any]) -> Session:
        """A session for a prompt and `room` tokens more, or for as many as the model has."""
        positions = self.config.max_position_embeddings
        if len(ids) > positions:
            raise ContextFull(f"the prompt is {len(ids)} tokens long, the model has {positions} "
                              "positions: shorten it")
        context = options.get("context")
        return self.session(min(positions, len(ids) + room) if context is None else context,
                            options.get("kv_dtype"), options.get("chunk"),
                            options.get("edits"))

    def session(self, context: int | None = None, kv_dtype: KvDtype | None = None,
                chunk: int | None = None, edits: Edits | None = None) -> Session:
        """A Session: one timeline.

        context: positions there is room for; None: the smaller of the model's and 8192. kv_dtype:
        of keys and values, "bf16" (queries and attention weights are then rounded to it too),
        "f32", or "int8" (codes with a scale for each head and position; half the memory of bf16,
        see minimax2.h and MODELS.md for what it costs); None: "f32" if the model was loaded with
        precision="exact", else "bf16". chunk: prompt tokens that go through the layers together,
        None: 1024; does not change the bits. edits: changes of its activations. Raises OutOfMemory
        if the whole context would not fit, ArgumentError for "int8" and heads of more than 512
        elements, or edits that do not fit the model.
        """
        return Session(self, context, kv_dtype, chunk, edits)

    def restore(self, path: AnyPath, *, context: int | None = None, kv_dtype: KvDtype | None = None,
                chunk: int | None = None, mapped: bool = True) -> Session:
        """The Session that `session.save(path)` wrote: it goes on with the same bits.

        Takes milliseconds, whatever its length: the file is mapped, and what the session writes
        stays in this process. mapped=False reads it into memory instead, for network file systems
        and files that others may write to. context: positions, None: as many as it had. kv_dtype:
        refuse a file with another; None: as it was. chunk as in session().

        Keys and values are held against their checksums when a run first needs them: run() then
        raises FormatError and says what rewind() can keep. All else is checked at once. Raises
        FileError, FormatError (damaged, or no session), ArgumentError (another model, kv_dtype, or
        a context that is too small), UnsupportedError (saved by a version that computed other
        bits), OutOfMemory; each says what differs.
        """
        return Session._of(_native.session_restore(self._c, path, context, kv_dtype, chunk, mapped),
                           self)

    def batch(self, sessions: Iterable[Session] = (), *, rows: int | None = None) -> Batch:
        """A Batch of sessions that are advanced together.

        rows: tokens that go through the layers together, None: 256. Fewer let members that decode
        wait less for others' prompts, more let prompts use the machine better.
        """
        return Batch(self, sessions, rows=rows)

    @spelled_out(GenerateOptions)
    def chat(self, system: str | None = None, *, messages: Sequence[Message] | None = None,
             context: int | None = None, kv_dtype: KvDtype | None = None,
             chunk: int | None = None, edits: Edits | None = None,
             **options: Unpack[GenerateOptions]) -> Chat:
        """A Chat; options are the defaults of its generations. Refuses wrong ones at once.

        messages: what has been said so far, in any form that generate() takes.
        """
        return Chat(self, system, messages=messages, context=context, kv_dtype=kv_dtype,
                    chunk=chunk, edits=edits, **options)

    @property
    def prefix_stats(self) -> PrefixStats:
        """What the cache of prefixes has and did: PrefixStats; all 0 if there is none."""
        return PrefixStats(**_native.model_prefix_stats(self._c))

    # ---- Measuring ----

    def limits(self) -> Limits:
        """Measure what this machine gives: Limits. Takes about half a second.

        Meaningless while the model runs in other threads. Machines drift: measure again between the
        runs that are compared with it. Raises OutOfMemory.
        """
        return Limits(**_native.model_limits(self._c))

    def attention_limits(self, kv_dtype: KvDtype | None = None) -> AttentionLimits:
        """Measure attention to a cache of kv_dtype (None as in session()): AttentionLimits.

        Takes a third of a second; the rest as limits(). Nothing is evaluated.
        """
        return AttentionLimits(**_native.model_attention(self._c, kv_dtype))

    def plan(self, context: int | None = None, sessions: int = 1, kv_dtype: KvDtype | None = None,
             chunk: int | None = None, *, depths: Iterable[int] | None = None,
             machine: str | None = None, predict: bool = True) -> Plan:
        """What so many sessions would take, before anything is allocated: a Plan, which prints.

        Bytes beside what the machine and its control group have, what would fit instead, and
        predictions of speed at `depths` (None: some up to the context). context, kv_dtype and chunk
        as in session(). machine: None for this one, which is measured for two or three seconds with
        the model's first layers; else a report's .json, or text such as "cores=16,read=200,ram=128"
        (see `minimax2 plan --help`). predict: False counts bytes only, at once. Raises
        ArgumentError, OutOfMemory, and FormatError or OSError for a report that cannot be read.
        """
        return plan(self, context, sessions, kv_dtype, chunk, depths=depths, on=machine,
                    predict=predict)

    def cost(self, tokens: int = 1, depth: int = 0,
             kv_dtype: KvDtype | None = None) -> tuple[Cost, Cost]:
        """What it takes to evaluate `tokens` tokens together behind `depth` earlier ones.

        Returns two Cost: of all layers, and of the rest (embedding rows, final norm, output head
        for the last token). More than one token reads as many experts as evenly spread choices hit
        on average. kv_dtype: of the cache, None as in session(). Raises ArgumentError beyond the
        model's positions.
        """
        layers, rest = _native.model_cost(self._c, tokens, depth, kv_dtype)
        return Cost(**layers), Cost(**rest)

    # ---- Looking inside ----

    @spelled_out(SessionOptions)
    def trace(self, prompt: Prompt, points: str | Iterable[str] | None = None,
              layers: int | Iterable[int] | None = None,
              **options: Unpack[SessionOptions]) -> Taps:
        """Evaluate a prompt and stop at activations: an iterator of Tap. See Session.trace()."""
        select(self, points, layers)
        ids = self.ids(prompt)
        return self._measuring(ids, options).trace(ids, points, layers)

    @spelled_out(SessionOptions)
    def run_with_hooks(self, prompt: Prompt,
                       hooks: Iterable[tuple[Where, Hook]] = (),
                       **options: Unpack[SessionOptions]) -> Tensor:
        """Evaluate a prompt with hooks: the logits after it, a Tensor f32 [vocab_size].

        See Session.run_with_hooks(); context, kv_dtype and chunk as in session().
        """
        ids = self.ids(prompt)
        with self._measuring(ids, options) as session:
            return session.run_with_hooks(ids, hooks)

    @spelled_out(SessionOptions)
    def run_with_cache(self, prompt: Prompt, points: str | Iterable[str] | None = None,
                       layers: int | Iterable[int] | None = None,
                       positions: int | slice | Iterable[int] | None = None,
                       hooks: Iterable[tuple[Where, Hook]] = (),
                       **options: Unpack[SessionOptions]) -> tuple[Tensor, Cache]:
        """Evaluate a prompt and keep activations: (logits as in run_with_hooks, Cache).

        positions: None (all), an int, a slice or several ints; negative ones from the end. See
        Session.run_with_cache(); context, kv_dtype and chunk as in session().
        """
        ids = self.ids(prompt)
        with self._measuring(ids, options) as session:
            return session.run_with_cache(ids, points, layers, positions, hooks)

    def _measuring(self, ids: list[int], options: SessionOptions) -> Session:
        check_names(options, SessionOptions)
        return self._session_for(ids, 0, options)

    def close(self) -> None:
        """Give the model up; its tensors, tokenizer and sessions stay valid.

        A session still runs, is fed ids, traced and forked, and samples with a Sampler made before.
        What asks the model itself raises ArgumentError: feed() of a str or messages, generate(),
        sample() without a Sampler.
        """
        super().close()
        self._tokenizer = self._made_grammars = None

    def __repr__(self) -> str:
        if self.closed:
            return "<Model closed>"
        config = self.config
        return (f"<Model {self.info('name') or self.path.name}: {show.si(self.parameters)} "
                f"parameters, {self.info('quantization')}, {config.num_hidden_layers} layers, "
                f"{config.num_experts_per_tok} of {config.num_local_experts} experts, "
                f"{self.info('isa')}, {self.threads} threads>")

    def _repr_html_(self) -> str:
        return "<p>closed</p>" if self.closed else show.table(show.facts(self))

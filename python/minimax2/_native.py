"""What touches ffi and lib, with _native_text.py: a plain function for each of csrc/minimax2.h.

Objects of the library are held by an Owned, and released when nothing refers to that any more. A
call holds its Owned, so an object that another thread closes lives until the call is over. cffi
releases the interpreter lock around every call; runs come back every SLICE so that Ctrl-C lands
between two slices.
"""

import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from minimax2 import errors
from minimax2._cffi import ffi, lib
from minimax2._tensor import hold
from minimax2.errors import ArgumentError
from minimax2.tensor import Tensor

Buffer = Any  # what memoryview() takes; type checkers know no name for it before Python 3.12
SLICE = 50_000  # microseconds

if lib.mm2_abi() != lib.MM2_ABI:
    raise ImportError(f"libminimax2.so has ABI {lib.mm2_abi()}, this Python package needs "
                      f"{lib.MM2_ABI}: install them together")

_ERRORS = {
    lib.MM2_E_ARG: errors.ArgumentError,
    lib.MM2_E_NOMEM: errors.OutOfMemory,
    lib.MM2_E_IO: errors.FileError,
    lib.MM2_E_FORMAT: errors.FormatError,
    lib.MM2_E_FULL: errors.ContextFull,
    lib.MM2_E_BUSY: errors.BusyError,
    lib.MM2_E_UNSUPPORTED: errors.UnsupportedError,
    lib.MM2_E_NUMERIC: errors.NumericError,
}
for _code, _class in _ERRORS.items():
    _class.code = _code


def _string(chars: Any) -> str:
    return str(ffi.string(chars).decode("utf-8", "replace"))


def _text(chars: Any) -> str | None:
    return None if chars == ffi.NULL else _string(chars)


def _sized(name: str) -> Any:
    """A struct that begins with its size, zero but for that."""
    return ffi.new(f"{name} *", {"size": ffi.sizeof(name)})


def check(status: int) -> int:
    """A status or count of the library; a negative one is raised with its sentence."""
    if status < 0:
        sentence = _string(lib.mm2_error())
        if status == lib.MM2_E_IO:
            raise errors.file_error(sentence)
        raise _ERRORS.get(status, errors.Error)(sentence)
    return status


class Owned:
    """An object of the library: `pointer` is good for as long as somebody refers to this."""

    __slots__ = ("pointer", "_keep")

    def __init__(self, pointer: Any, keep: object) -> None:
        self.pointer = pointer
        self._keep = keep  # a capsule that releases it, or the Owned that it needs


def _owned(kind: str, out: Any) -> Owned:
    """The owner of what a function has put into `out`."""
    return Owned(out[0], hold(kind, int(ffi.cast("uintptr_t", out[0]))))


VERSION = _string(lib.mm2_version())
EDITS = tuple(name.removeprefix("MM2_EDIT_").lower() for name in sorted(
    (name for name in dir(lib) if name.startswith("MM2_EDIT_") and name != "MM2_EDIT_COUNT"),
    key=lambda name: getattr(lib, name)))
POINTS = tuple(_string(lib.mm2_point_name(i)) for i in range(lib.MM2_POINT_COUNT))
DTYPES = {_string(lib.mm2_dtype_name(i)): i for i in range(1, lib.MM2_DTYPE_COUNT)}
ISAS = {name.removeprefix("MM2_ISA_").lower(): getattr(lib, name)
        for name in sorted((name for name in dir(lib) if name.startswith("MM2_ISA_")),
                           key=lambda name: getattr(lib, name))}
PRECISIONS = {"fast": lib.MM2_PRECISION_FAST, "exact": lib.MM2_PRECISION_EXACT}


def memory() -> tuple[int, int]:
    """Bytes of memory that there are, control groups counted, and that can be had now."""
    return lib.mm2_memory_present(), lib.mm2_memory_available()


def cpu() -> str:
    """Processor and best instruction-set level, such as "avx512 (AMD EPYC), 2 cores"."""
    return _string(lib.mm2_cpu())


# ---- What Python hands in ----


def integer(value: Any, name: str, low: int = -2**31, high: int = 2**31 - 1) -> int:
    """A whole number in range; TypeError for floats, booleans and strings."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ArgumentError(f"{name} is {number}, must be {low}..{high}")
    return number


def positive(value: Any, name: str) -> int:
    """A whole number of at least 1: 0 means a default to the library, which knows the limit."""
    number = integer(value, name)
    if number < 1:
        raise ArgumentError(f"{name} is {number}, must be 1 or more")
    return number


def number(value: Any, name: str) -> float:
    """A number as a float; TypeError for booleans, strings and the like."""
    if isinstance(value, bool) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{name} is {value}, which is out of range") from None


def size(value: Any, name: str) -> int:
    """A number of bytes, at least 1; None: 0, which means a default to the library."""
    return 0 if value is None else integer(value, name, 1, 2**63 - 1)


def flag(value: Any, name: str) -> bool:
    """True or False; TypeError for strings, lists and None."""
    if value is None or not hasattr(value, "__bool__"):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return bool(value)


def choice(value: Any, name: str, known: Mapping[str, int]) -> int:
    """The number behind one of several words."""
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(f"{name} is {value!r}, must be one of {', '.join(known)}")
    return known[value]


def duration(seconds: Any, name: str = "seconds") -> float | None:
    """A time budget in seconds, None for no limit."""
    if seconds is None:
        return None
    value = number(seconds, name)
    if not value >= 0:
        raise ArgumentError(f"{name} is {seconds}, must be a number that is not negative")
    return value


def ids(values: Any) -> list[int]:
    """Token ids from any iterable of ints (list, array, numpy, tensor): a list.

    TypeError for anything else, ArgumentError for numbers that are no 32-bit integers; the library
    checks the vocabulary.
    """
    if isinstance(values, (str, bytes, bytearray, dict)):
        raise TypeError(f"token ids must be ints, not {type(values).__name__}")
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not hasattr(values, "__iter__"):
        raise TypeError(f"token ids must be a sequence of ints, not {type(values).__name__}")
    return [integer(value, "a token id") for value in values]


def check_feed(values: Sequence[int], vocab_size: int, room: int) -> None:
    """What session_feed would refuse, for callers that must know it beforehand."""
    for value in values:
        integer(value, "a token id", 0, vocab_size - 1)
    if len(values) > room:
        raise errors.ContextFull(f"{len(values)} tokens do not fit into {room} positions")


def _path(path: Any) -> bytes:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a str, bytes or os.PathLike, not {type(path).__name__}")
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ArgumentError("a path cannot hold a NUL character")
    return encoded


def _chars(text: Any, name: str) -> Any:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    encoded = text.encode("utf-8", "surrogatepass")
    if b"\0" in encoded:
        raise ArgumentError(f"{name} cannot hold a NUL character")
    return ffi.new("char[]", encoded)


def _filled(kind: str, cap: int, call: Callable[[Any, int], int]) -> tuple[Any, int]:
    """Calls a function of the header's rule for cap, again with more room if it needs it."""
    while True:
        out = ffi.new(kind, cap)
        n = check(call(out, cap))
        if n <= cap:
            return out, n
        cap = n


def _tensor(view: Any, owner: Owned) -> Tensor:
    return Tensor._wrap(int(ffi.cast("uintptr_t", view)), owner)


def empty(dtype: str, shape: Iterable[int]) -> Tensor:
    """A tensor of zeros with memory of its own."""
    return Tensor._empty(DTYPES[dtype], tuple(shape))


def dtype_block(dtype: str) -> int:
    """Elements in a block."""
    return int(lib.mm2_dtype_block(DTYPES[dtype]))


def dtype_bytes(dtype: str) -> int:
    """Bytes of a block."""
    return int(lib.mm2_dtype_bytes(DTYPES[dtype]))


def _floats(tensor: Tensor) -> Any:
    return ffi.cast("float *", tensor.address)


def _kv_dtype(name: Any, model: Owned) -> int:
    """None: what goes with the model's precision."""
    if name is None:
        name = "f32" if model_info(model, "precision") == "exact" else "bf16"
    return choice(name, "kv_dtype", {word: DTYPES[word] for word in ("bf16", "f32", "int8")})


def _fields(struct: Any) -> dict[str, Any]:
    """The fields of a C struct as a dict, its size left out."""
    return {name: getattr(struct, name) for name, _ in ffi.typeof(struct).item.fields
            if name not in ("size", "reserved")}


# ---- Long calls ----

_T = TypeVar("_T")


def _interruptible(call: Callable[[], _T], stop: Callable[[], None] | None = None) -> _T:
    """Makes a long call in a thread of its own: Ctrl-C comes through at once. Then `stop` makes the
    call end, and is waited for; without it the thread ends by itself, for calls that change
    nothing."""
    done: list[_T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)
        finally:
            finished.set()

    finished = threading.Event()  # an interrupted join() takes the thread for finished
    threading.Thread(target=work, daemon=True).start()
    try:
        finished.wait()
    except BaseException:
        while stop is not None and not finished.is_set():
            stop()
            finished.wait(0.01)
        raise
    if failed:
        raise failed[0]
    return done[0]


# ---- Model ----


def model_open(path: Any, threads: Any, writable: Any, mapped: Any, isa: Any, precision: Any,
               prefix_cache: Any, prefix_folder: Any, prefix_disk: Any) -> Owned:
    """An opened checkpoint. threads None: all cores; isa None: the best; prefix_* None: none."""
    options = _sized("mm2_model_options")
    lib.mm2_model_options_init(options)
    options.flags = ((lib.MM2_WRITABLE if flag(writable, "writable") else 0)
                     | (0 if flag(mapped, "mapped") else lib.MM2_IN_MEMORY))
    options.threads = 0 if threads is None else positive(threads, "threads")
    options.isa = choice("auto" if isa is None else isa, "isa", ISAS)
    options.precision = choice(precision, "precision", PRECISIONS)
    options.prefix_cache = size(prefix_cache, "prefix_cache")
    options.prefix_disk = size(prefix_disk, "prefix_disk")
    folder = None if prefix_folder is None else ffi.new("char[]", _path(prefix_folder))
    if folder is not None:
        options.prefix_folder = folder
    out = ffi.new("mm2_model **")
    check(lib.mm2_model_open(out, _path(path), options))
    return _owned("model", out)


def model_config(model: Owned) -> dict[str, Any]:
    """The fields of mm2_config as a dict."""
    config = _sized("mm2_config")
    check(lib.mm2_model_config(model.pointer, config))
    return _fields(config)


def model_info(model: Owned, key: str) -> str | None:
    """A fact as text, or None."""
    return _text(lib.mm2_model_info(model.pointer, _chars(key, "key")))


def model_info_keys() -> list[str]:
    """The keys of model_info."""
    keys: list[str] = []
    while (key := lib.mm2_model_info_key(len(keys))) != ffi.NULL:
        keys.append(_string(key))
    return keys


def model_end_tokens(model: Owned) -> list[int]:
    """Ids that end a generation, ascending."""
    count = check(lib.mm2_model_end_tokens(model.pointer, ffi.NULL, 0))
    ids = ffi.new("int32_t[]", count)
    check(lib.mm2_model_end_tokens(model.pointer, ids, count))
    return list(ids)


def model_path(model: Owned) -> str:
    """Where it was opened, a str as the os module has it."""
    return os.fsdecode(ffi.string(lib.mm2_model_info(model.pointer, b"path")))


def model_sizes(model: Owned) -> tuple[int, int, int]:
    """(threads, bytes, parameters)."""
    return (lib.mm2_model_threads(model.pointer), lib.mm2_model_bytes(model.pointer),
            lib.mm2_model_parameters(model.pointer))


def model_names(model: Owned) -> list[str]:
    """Names of all tensors, in file order."""
    return [_string(lib.mm2_model_tensor_name(model.pointer, i))
            for i in range(lib.mm2_model_tensor_count(model.pointer))]


def model_tensor(model: Owned, name: Any) -> Tensor:
    """A view on a tensor as it lies in the file."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_model_tensor(model.pointer, _chars(name, "a tensor's name"), out))
    return _tensor(out, model)


def model_weight_info(model: Owned, name: Any) -> tuple[tuple[int, ...], str, int, bool]:
    """Decoded shape, dtype of the codes, bytes, and whether it is part of another weight."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_model_weight_info(model.pointer, _chars(name, "a tensor's name"), out))
    return (tuple(out.shape[0:out.ndim]), _string(lib.mm2_dtype_name(out.dtype)), out.nbytes,
            bool(out.flags & lib.MM2_PART))


def model_weight(model: Owned, name: Any, first: Any, count: Any) -> Tensor:
    """Rows [first, first + count) decoded to float32; count None: to the last row."""
    shape = model_weight_info(model, name)[0]
    columns = shape[-1] if shape else 1
    rows = 1
    for dimension in shape[:-1]:
        rows *= dimension
    first = integer(first, "first", 0, rows)
    count = integer(rows - first if count is None else count, "count", 1)
    if count > rows - first:
        raise ArgumentError(f"{name} has {rows} rows: [{first}, {first + count}) is beyond")
    out = empty("f32", (count, columns))
    check(lib.mm2_model_weight(model.pointer, _chars(name, "a tensor's name"), first, count,
                               _floats(out), count * columns))
    return out


def model_prefix_stats(model: Owned) -> dict[str, Any]:
    """The fields of mm2_prefix_stats as a dict."""
    stats = _sized("mm2_prefix_stats")
    check(lib.mm2_model_prefix_stats(model.pointer, stats))
    return {**_fields(stats), "problem": _string(stats.problem) or None}


def model_limits(model: Owned) -> dict[str, Any]:
    """The fields of mm2_limits as a dict, measured now."""
    limits = _sized("mm2_limits")
    check(lib.mm2_model_limits(model.pointer, limits))
    return _fields(limits)


def model_attention(model: Owned, kv_dtype: Any) -> dict[str, Any]:
    """The fields of mm2_attention as a dict, measured now."""
    found = _sized("mm2_attention")
    check(lib.mm2_model_attention(model.pointer, _kv_dtype(kv_dtype, model), found))
    return _fields(found)


def model_plan(model: Owned, context: Any, kv_dtype: Any, chunk: Any) -> dict[str, Any]:
    """The fields of mm2_plan as a dict, kv_dtype by name."""
    found = _sized("mm2_plan")
    options = _session_options(model, context, kv_dtype, chunk)
    check(lib.mm2_model_plan(model.pointer, options, found))
    return _fields(found) | {"kv_dtype": _string(lib.mm2_dtype_name(found.kv_dtype))}


def model_cost(model: Owned, tokens: Any, depth: Any,
               kv_dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of mm2_cost as dicts, of all layers and of the rest."""
    layers, rest = _sized("mm2_cost"), _sized("mm2_cost")
    check(lib.mm2_model_cost(model.pointer, integer(tokens, "tokens"), integer(depth, "depth"),
                             _kv_dtype(kv_dtype, model), layers, rest))
    return _fields(layers), _fields(rest)


# ---- Session ----


def _session_options(model: Owned, context: Any, kv_dtype: Any, chunk: Any) -> Any:
    """mm2_session_options; None: the library's default."""
    options = _sized("mm2_session_options")
    lib.mm2_session_options_init(options)
    if context is not None:
        options.context = positive(context, "context")
    if chunk is not None:
        options.chunk = positive(chunk, "chunk")
    options.kv_dtype = _kv_dtype(kv_dtype, model)
    return options


def session_new(model: Owned, context: Any, kv_dtype: Any, chunk: Any) -> Owned:
    """A timeline."""
    options = _session_options(model, context, kv_dtype, chunk)
    out = ffi.new("mm2_session **")
    check(lib.mm2_session_new(out, model.pointer, options))
    return _owned("session", out)


def session_fork(session: Owned) -> Owned:
    """A second timeline that shares what the first has evaluated."""
    out = ffi.new("mm2_session **")
    check(lib.mm2_session_fork(out, session.pointer))
    return _owned("session", out)


def session_save(session: Owned, path: Any) -> None:
    """Write it to a file; Ctrl-C leaves the file as it was."""
    name = _path(path)
    while _interruptible(lambda: check(lib.mm2_session_save(session.pointer, name)),
                         lambda: session_interrupt(session)) == MORE:
        pass  # an interrupt that was meant for a run


def session_restore(model: Owned, path: Any, context: Any, kv_dtype: Any, chunk: Any,
                    mapped: Any) -> Owned:
    """The session that a file holds; None: as it was."""
    options = _sized("mm2_restore_options")
    lib.mm2_restore_options_init(options)
    options.flags = 0 if flag(mapped, "mapped") else lib.MM2_IN_MEMORY
    if context is not None:
        options.context = positive(context, "context")
    if kv_dtype is not None:
        options.kv_dtype = _kv_dtype(kv_dtype, model)
    if chunk is not None:
        options.chunk = positive(chunk, "chunk")
    name, out = _path(path), ffi.new("mm2_session **")

    def restore() -> Owned:
        check(lib.mm2_session_restore(out, model.pointer, name, options))
        return _owned("session", out)

    return _interruptible(restore) if options.flags else restore()


def session_feed(session: Owned, values: Sequence[int]) -> None:
    """Append ids, a list of ints."""
    check(lib.mm2_session_feed(session.pointer, ffi.new("int32_t[]", values), len(values)))


def session_draft(session: Owned, values: Any) -> None:
    """Say which ids are likely to come next."""
    values = ids(values)
    check(lib.mm2_session_draft(session.pointer, ffi.new("int32_t[]", values), len(values)))


def session_speculate(session: Owned, most: int) -> None:
    """Propose up to so many tokens from now on; 0: none."""
    check(lib.mm2_session_speculate(session.pointer, most))


def session_speculation(session: Owned) -> dict[str, Any]:
    """The fields of mm2_speculation as a dict."""
    told = _sized("mm2_speculation")
    check(lib.mm2_session_speculation(session.pointer, told))
    return _fields(told)


def proposals(value: Any) -> int:
    """How many tokens the option speculate allows to be proposed."""
    if isinstance(value, bool):
        return int(lib.MM2_DRAFT_MOST) if value else 0
    return integer(value, "speculate", 0, lib.MM2_DRAFT_MOST)


def session_tap(session: Owned, point: int, layer: int, on: bool) -> None:
    """Switch a tap; layer -1: all."""
    check(lib.mm2_session_tap(session.pointer, point, layer, on))


def session_set_edits(session: Owned, edits: Sequence[tuple[Any, int, int, int, int, Any]]) -> None:
    """Replace the edits: (Edit, first layer, end of layers, first element, elements, values)."""
    made = ffi.new("mm2_edit[]", len(edits))
    kept = []
    for to, (edit, first_layer, end_layer, at, n, values) in zip(made, edits):
        to.size = ffi.sizeof("mm2_edit")
        to.kind, to.point = EDITS.index(edit.kind), POINTS.index(edit.point)
        to.first_layer, to.end_layer = first_layer, end_layer
        to.first, to.end = edit.first, edit.end or 0
        to.at, to.n, to.rows = at, n, edit.rows
        to.factor, to.low, to.high = edit.factor, edit.low, edit.high
        if values is not None:
            kept.append(ffi.from_buffer("float[]", values))
            to.values, to.count = kept[-1], len(kept[-1])
    check(lib.mm2_session_set_edits(session.pointer, made, len(edits)))


def new_event() -> Any:
    """Room for what a run ends with."""
    return _sized("mm2_event")


OK, MORE, TAP, READY = (int(lib.MM2_OK), int(lib.MM2_MORE), int(lib.MM2_TAP), int(lib.MM2_READY))


def session_run(session: Owned, event: Any, seconds: float | None) -> bool:
    """Runs in slices: True when caught up or at a tap, False when `seconds` are over."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        budget = _budget(deadline)
        if check(lib.mm2_session_run(session.pointer, budget, event)) != MORE:
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False


def batch_run(batch: Owned, event: Any, deadline: float | None) -> int:
    """One slice: OK, MORE, TAP or READY."""
    return check(lib.mm2_batch_run(batch.pointer, _budget(deadline), event))


def _budget(deadline: float | None) -> int:
    """Microseconds of a slice that ends at a time.monotonic()."""
    if deadline is None:
        return SLICE
    return int(max(1, min(SLICE, (deadline - time.monotonic()) * 1e6)))


def session_interrupt(session: Owned) -> None:
    """Let a run in another thread come back at its next unit of work."""
    lib.mm2_session_interrupt(session.pointer)


def event_tap(event: Any, owner: Owned) -> tuple[str, int, int, int, Tensor] | None:
    """(point, layer, first, count, tensor) of a tap; None if the run has caught up."""
    if event.point < 0:
        return None
    tensor = _tensor(ffi.addressof(event, "tensor"), owner)
    return POINTS[event.point], event.layer, event.first, event.count, tensor


def event_member(event: Any) -> int:
    """Index of the member that a TAP or READY of a batch is about."""
    return int(event.session)


def event_progress(event: Any) -> tuple[int, int]:
    """(done, total) in token-layers."""
    return event.done, event.total


def session_context(session: Owned) -> int:
    """Positions there is room for."""
    return int(lib.mm2_session_context(session.pointer))


def session_position(session: Owned) -> int:
    """Tokens evaluated."""
    return int(lib.mm2_session_position(session.pointer))


def session_length(session: Owned) -> int:
    """Tokens fed."""
    return int(lib.mm2_session_length(session.pointer))


def session_kv_dtype(session: Owned) -> str:
    """Of keys and values: "bf16", "f32" or "int8"."""
    return _string(lib.mm2_dtype_name(lib.mm2_session_kv_dtype(session.pointer)))


def session_reused(session: Owned) -> int:
    """Positions taken from the cache of prefixes."""
    return int(lib.mm2_session_reused(session.pointer))


def session_tokens(session: Owned) -> Tensor:
    """i32 [length], live."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_session_tokens(session.pointer, out))
    return _tensor(out, session)


def session_rewind(session: Owned, length: Any) -> None:
    """Cut back to `length` tokens."""
    check(lib.mm2_session_rewind(session.pointer, integer(length, "length")))


def session_logits(session: Owned) -> Tensor:
    """f32 [vocab_size], live and writable."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_session_logits(session.pointer, out))
    return _tensor(out, session)


def session_logprobs(session: Owned, values: Any) -> list[float]:
    """Log probabilities of these ids, a list."""
    values = ids(values)
    out = ffi.new("float[]", max(1, len(values)))
    check(lib.mm2_session_logprobs(session.pointer, ffi.new("int32_t[]", values), len(values), out))
    return list(out[0:len(values)])


def session_top(session: Owned, n: Any, vocab_size: int) -> list[tuple[int, float]]:
    """The n best, [(id, log probability)], best first."""
    n = integer(n, "n", 1, vocab_size)
    best, logprobs = ffi.new("int32_t[]", n), ffi.new("float[]", n)
    check(lib.mm2_session_top(session.pointer, n, best, logprobs))
    return list(zip(best, logprobs))


# ---- Batch ----


def batch_new(model: Owned, rows: Any = None) -> Owned:
    """An empty batch; rows: tokens of all members that go through the layers together."""
    options = _sized("mm2_batch_options")
    lib.mm2_batch_options_init(options)
    if rows is not None:
        options.rows = positive(rows, "rows")
    out = ffi.new("mm2_batch **")
    check(lib.mm2_batch_new(out, model.pointer, options))
    return _owned("batch", out)


def batch_add(batch: Owned, session: Owned) -> None:
    """Make a session a member."""
    check(lib.mm2_batch_add(batch.pointer, session.pointer))


def batch_remove(batch: Owned, session: Owned) -> None:
    """Let a member go on alone."""
    check(lib.mm2_batch_remove(batch.pointer, session.pointer))


# ---- Sampler ----

_SAMPLING = {name: field.type.cname for name, field in ffi.typeof("mm2_sampling").fields
             if name != "size"}
_RANGES = {"int32_t": (-2**31, 2**31 - 1), "uint64_t": (0, 2**64 - 1)}
_WHOLE = {name: _RANGES[cname] for name, cname in _SAMPLING.items() if cname in _RANGES}


def sampling(model: Owned, changes: Mapping[str, Any]) -> Any:
    """The model's sampling defaults with changes, as an mm2_sampling."""
    out = _sized("mm2_sampling")
    lib.mm2_sampling_init(out, model.pointer)
    for name, value in changes.items():
        if name in _WHOLE:
            setattr(out, name, integer(value, name, *_WHOLE[name]))
        else:
            setattr(out, name, number(value, name))
    return out


def sampling_values(options: Any) -> dict[str, float]:
    """An mm2_sampling as a dict."""
    return {name: getattr(options, name) for name in _SAMPLING}


def sampler_new(model: Owned, options: Any) -> Owned:
    """A sampler of these options."""
    out = ffi.new("mm2_sampler **")
    check(lib.mm2_sampler_new(out, model.pointer, options))
    return _owned("sampler", out)


def sampler_bias(sampler: Owned, biases: Any) -> None:
    """Replace the biases by {id: value}."""
    if not isinstance(biases, Mapping):
        raise TypeError(f"bias must be a dict of token ids and numbers, not "
                        f"{type(biases).__name__}")
    keys = [integer(key, "a token id in bias") for key in biases]
    values = ffi.new("float[]", [number(value, f"the bias of token {key}")
                                 for key, value in biases.items()])
    check(lib.mm2_sampler_bias(sampler.pointer, ffi.new("int32_t[]", keys), values, len(keys)))


def sampler_breakers(sampler: Owned, values: Any) -> None:
    """Replace the tokens that end a DRY repetition."""
    values = ids(values)
    check(lib.mm2_sampler_breakers(sampler.pointer, ffi.new("int32_t[]", values), len(values)))


def mask_words(mask: Buffer, vocab_size: int) -> memoryview:
    """A mask, checked, as a view of its bytes."""
    try:
        view = memoryview(mask)
    except TypeError:
        raise TypeError(f"mask must be a buffer of 32-bit words, not "
                        f"{type(mask).__name__}") from None
    words = (vocab_size + 31) // 32
    if view.format not in ("I", "i", "L", "l") or view.itemsize != 4 or not view.c_contiguous \
            or view.nbytes != 4 * words:
        raise ArgumentError(
            f"a mask is a contiguous buffer of {words} 32-bit words, one bit a token; got format "
            f"{view.format!r}, shape {list(view.shape or ())}")
    return view.cast("B")


def _mask(mask: Buffer | None, vocab_size: int) -> Any:
    """A pointer to the words of a mask, which may be None; the buffer stays exported meanwhile."""
    if mask is None:
        return ffi.NULL
    return ffi.from_buffer("uint32_t[]", mask_words(mask, vocab_size))


def sampler_next(sampler: Owned, session: Owned, mask: Buffer | None, vocab_size: int) -> int:
    """The token that follows the session's last one."""
    return check(lib.mm2_sampler_next(sampler.pointer, session.pointer, _mask(mask, vocab_size)))


def sampler_pick(sampler: Owned, logits: Buffer, history: Any, mask: Buffer | None,
                 vocab_size: int) -> int:
    """A token from any f32 [vocab_size] logits."""
    try:
        view = memoryview(logits)
    except TypeError:
        raise TypeError(f"logits must be a buffer of float32, not "
                        f"{type(logits).__name__}") from None
    if view.format != "f" or view.shape != (vocab_size,) or not view.c_contiguous:
        raise ArgumentError(f"logits are contiguous float32 [{vocab_size}]; got format "
                            f"{view.format!r}, shape {list(view.shape or ())}")
    history = ids(history)
    return check(lib.mm2_sampler_pick(sampler.pointer, ffi.from_buffer("float[]", view.cast("B")),
                                      ffi.new("int32_t[]", history), len(history),
                                      _mask(mask, vocab_size)))

"""The only module that touches ffi and lib: one plain function for each of csrc/minimax2.h.

Handles are cdata that release their object when they are collected. A call holds its handle, so an
object that another thread closes lives until the call is over. cffi releases the interpreter lock
around every call; runs come back every SLICE so that Ctrl-C lands between two slices.
"""

import operator
import os
import time

from minimax2 import errors
from minimax2._cffi import ffi, lib
from minimax2.errors import ArgumentError
from minimax2.tensor import Tensor

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


def _text(chars):
    return None if chars == ffi.NULL else ffi.string(chars).decode("utf-8", "replace")


def _sized(name):
    """A struct that begins with its size, zero but for that."""
    return ffi.new(f"{name} *", {"size": ffi.sizeof(name)})


def check(status):
    """A status or count of the library; a negative one is raised with its sentence."""
    if status < 0:
        raise _ERRORS.get(status, errors.Error)(_text(lib.mm2_error()))
    return status


VERSION = _text(lib.mm2_version())
POINTS = tuple(_text(lib.mm2_point_name(i)) for i in range(lib.MM2_POINT_COUNT))
DTYPES = {_text(lib.mm2_dtype_name(i)): i for i in range(1, lib.MM2_DTYPE_COUNT)}
ISAS = {name.removeprefix("MM2_ISA_").lower(): getattr(lib, name)
        for name in sorted((name for name in dir(lib) if name.startswith("MM2_ISA_")),
                           key=lambda name: getattr(lib, name))}
PRECISIONS = {"fast": lib.MM2_PRECISION_FAST, "exact": lib.MM2_PRECISION_EXACT}


def cpu():
    """Processor and best instruction-set level, such as "avx512 (AMD EPYC), 2 cores"."""
    return _text(lib.mm2_cpu())


# ---- What Python hands in ----


def integer(value, name, low=-2**31, high=2**31 - 1):
    """A whole number in range; TypeError for floats, booleans and strings."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    value = operator.index(value)
    if not low <= value <= high:
        raise ArgumentError(f"{name} is {value}, must be {low}..{high}")
    return value


def ids(values):
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


def check_feed(values, vocab_size, room):
    """What session_feed would refuse, for callers that must know it beforehand."""
    for value in values:
        integer(value, "a token id", 0, vocab_size - 1)
    if len(values) > room:
        raise errors.ContextFull(f"{len(values)} tokens do not fit into {room} positions")


def _path(path):
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ArgumentError("a path cannot hold a NUL character")
    return encoded


def _chars(text, name):
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    encoded = text.encode("utf-8", "surrogatepass")
    if b"\0" in encoded:
        raise ArgumentError(f"{name} cannot hold a NUL character")
    return ffi.new("char[]", encoded)


def _filled(kind, cap, call):
    """Calls a function of the header's rule for cap, again with more room if it needs it."""
    while True:
        out = ffi.new(kind, cap)
        n = check(call(out, cap))
        if n <= cap:
            return out, n
        cap = n


def _tensor(view, owner):
    return Tensor._wrap(int(ffi.cast("uintptr_t", view)), owner)


def empty(dtype, shape):
    """A tensor of zeros with memory of its own."""
    return Tensor._empty(DTYPES[dtype], tuple(shape))


def _floats(tensor):
    return ffi.cast("float *", tensor.address)


def _kv_dtype(name):
    if name not in ("bf16", "f32"):
        raise ArgumentError(f"kv_dtype is {name!r}, must be 'bf16' or 'f32'")
    return DTYPES[name]


def _fields(struct):
    """The fields of a C struct as a dict, its size left out."""
    return {name: getattr(struct, name) for name, _ in ffi.typeof(struct).item.fields
            if name not in ("size", "reserved")}


# ---- Model ----


def model_open(path, threads, writable, isa, precision):
    """An opened checkpoint. threads None: all cores; isa None: the best."""
    if isa is not None and isa not in ISAS:
        raise ArgumentError(f"isa is {isa!r}, must be one of {', '.join(ISAS)}")
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    options = _sized("mm2_model_options")
    lib.mm2_model_options_init(options)
    options.flags = lib.MM2_WRITABLE if writable else 0
    options.threads = 0 if threads is None else integer(threads, "threads", 1)
    options.isa = ISAS[isa or "auto"]
    options.precision = PRECISIONS[precision]
    out = ffi.new("mm2_model **")
    check(lib.mm2_model_open(out, _path(path), options))
    return ffi.gc(out[0], lib.mm2_model_release)


def model_config(model):
    """The fields of mm2_config as a dict."""
    config = _sized("mm2_config")
    check(lib.mm2_model_config(model, config))
    return _fields(config)


def model_info(model, key):
    """A fact as text, or None."""
    return _text(lib.mm2_model_info(model, _chars(key, "key")))


def model_path(model):
    """Where it was opened, a str as the os module has it."""
    return os.fsdecode(ffi.string(lib.mm2_model_info(model, b"path")))


def model_sizes(model):
    """(threads, bytes, parameters)."""
    return (lib.mm2_model_threads(model), lib.mm2_model_bytes(model),
            lib.mm2_model_parameters(model))


def model_names(model):
    """Names of all tensors, in file order."""
    return [_text(lib.mm2_model_tensor_name(model, i))
            for i in range(lib.mm2_model_tensor_count(model))]


def model_tensor(model, name):
    """A view on a tensor as it lies in the file."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_model_tensor(model, _chars(name, "a tensor's name"), out))
    return _tensor(out, model)


def model_weight(model, name, first, count):
    """Rows [first, first + count) decoded to float32; count None: to the last row."""
    view = model_tensor(model, name)
    columns = view.shape[-1] if view.shape else 1
    rows = 1
    for dimension in view.shape[:-1]:
        rows *= dimension
    first = integer(first, "first", 0, rows)
    count = integer(rows - first if count is None else count, "count", 1)
    if count > rows - first:
        raise ArgumentError(f"{name} has {rows} rows: [{first}, {first + count}) is beyond")
    out = empty("f32", (count, columns))
    check(lib.mm2_model_weight(model, _chars(name, "a tensor's name"), first, count, _floats(out),
                               count * columns))
    return out


def model_limits(model):
    """The fields of mm2_limits as a dict, measured now."""
    limits = _sized("mm2_limits")
    check(lib.mm2_model_limits(model, limits))
    return _fields(limits)


def model_cost(model, tokens, depth, kv_dtype):
    """The fields of mm2_cost as dicts, of all layers and of the rest."""
    layers, rest = _sized("mm2_cost"), _sized("mm2_cost")
    check(lib.mm2_model_cost(model, integer(tokens, "tokens"), integer(depth, "depth"),
                             _kv_dtype(kv_dtype), layers, rest))
    return _fields(layers), _fields(rest)


# ---- Text ----


def tokenizer_open(path):
    """A tokenizer without a model."""
    out = ffi.new("mm2_tokenizer **")
    check(lib.mm2_tokenizer_open(out, _path(path)))
    return ffi.gc(out[0], lib.mm2_tokenizer_release)


def model_tokenizer(model):
    """The model's own tokenizer; keep the model while it is in use."""
    tokenizer = lib.mm2_model_tokenizer(model)
    if tokenizer == ffi.NULL:
        raise errors.UnsupportedError(_text(lib.mm2_error()))
    return tokenizer


def tokenizer_facts(tokenizer):
    """The fields of mm2_tokenizer_info as a dict."""
    facts = _sized("mm2_tokenizer_info")
    check(lib.mm2_tokenizer_describe(tokenizer, facts))
    return _fields(facts)


def tokenizer_encode(tokenizer, text, special):
    """Text, str or bytes, to a list of ids."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    elif not isinstance(text, (bytes, bytearray)):
        raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
    if len(text) >= 2**31:
        raise ArgumentError("text must be shorter than 2 GiB")
    flags = lib.MM2_SPECIAL if special else 0
    source = ffi.from_buffer("char[]", text)
    out, n = _filled("int32_t[]", len(text) + 1, lambda out, cap: lib.mm2_tokenizer_encode(
        tokenizer, source, len(text), flags, out, cap))
    return list(out[0:n])


def tokenizer_decode(tokenizer, values, special):
    """Ids to bytes."""
    values = ids(values)
    flags = lib.MM2_SPECIAL if special else 0
    array = ffi.new("int32_t[]", values)
    out, n = _filled("char[]", 16 * len(values), lambda out, cap: lib.mm2_tokenizer_decode(
        tokenizer, array, len(values), flags, out, cap))
    return ffi.buffer(out, n)[:]


def tokenizer_token(tokenizer, token):
    """The bytes of one token."""
    length = ffi.new("int32_t *")
    chars = lib.mm2_tokenizer_token(tokenizer, integer(token, "a token id"), length)
    if chars == ffi.NULL:
        raise ArgumentError(_text(lib.mm2_error()))
    return ffi.buffer(chars, length[0])[:]


def tokenizer_id(tokenizer, chars):
    """The id whose bytes are these, or None."""
    token = lib.mm2_tokenizer_id(tokenizer, chars, len(chars))
    return None if token < 0 else token


def text_complete(chars):
    """How many of these bytes can be shown without splitting a character."""
    return lib.mm2_text_complete(chars, len(chars))


def _messages(messages):
    """An mm2_message array, its length, and the strings it points to."""
    keep, array = [], ffi.new("mm2_message[]", len(messages))
    for turn, message in zip(array, messages):
        turn.size = ffi.sizeof(turn)
        unknown = set(message) - {"role", "content", "thinking"}
        if unknown or "role" not in message:
            raise ArgumentError("a message is a dict of role, content and, for the assistant, "
                                f"thinking; got {sorted(map(str, message))}")
        for field in ("role", "content", "thinking"):
            value = message.get(field)
            if value is not None:
                keep.append(_chars(value, field))
                setattr(turn, field, keep[-1])
    return array, len(messages), keep


def chat_render(tokenizer, messages, generation_prompt):
    """Messages as text in the vendor's format."""
    array, count, _keep = _messages(messages)
    flags = lib.MM2_GENERATION_PROMPT if generation_prompt else 0
    out, n = _filled("char[]", 4096, lambda out, cap: lib.mm2_chat_render(
        tokenizer, array, count, flags, out, cap))
    return ffi.buffer(out, n)[:].decode("utf-8", "replace")


def chat_encode(tokenizer, messages, generation_prompt):
    """Messages as ids; only the format's own tags become control tokens."""
    array, count, _keep = _messages(messages)
    flags = lib.MM2_GENERATION_PROMPT if generation_prompt else 0
    out, n = _filled("int32_t[]", 1024, lambda out, cap: lib.mm2_chat_encode(
        tokenizer, array, count, flags, out, cap))
    return list(out[0:n])


# ---- Session ----


def session_new(model, context, kv_dtype, chunk):
    """A timeline; zeros mean the library's defaults."""
    options = _sized("mm2_session_options")
    lib.mm2_session_options_init(options)
    options.context = 0 if context is None else integer(context, "context", 1)
    options.chunk = 0 if chunk is None else integer(chunk, "chunk", 1)
    options.kv_dtype = _kv_dtype(kv_dtype)
    out = ffi.new("mm2_session **")
    check(lib.mm2_session_new(out, model, options))
    return ffi.gc(out[0], lib.mm2_session_free)


def session_fork(session):
    """A second timeline that shares what the first has evaluated."""
    out = ffi.new("mm2_session **")
    check(lib.mm2_session_fork(out, session))
    return ffi.gc(out[0], lib.mm2_session_free)


def session_feed(session, values):
    """Append ids, a list of ints."""
    check(lib.mm2_session_feed(session, ffi.new("int32_t[]", values), len(values)))


def session_tap(session, point, layer, on):
    """Switch a tap; layer -1: all."""
    check(lib.mm2_session_tap(session, point, layer, on))


def new_event():
    """Room for what a run ends with."""
    return _sized("mm2_event")


def _run(step, handle, event, seconds):
    """Runs in slices: True when caught up or at a tap, False when `seconds` are over."""
    unfinished = (lib.MM2_MORE, lib.MM2_READY)
    if seconds is None:
        while check(step(handle, SLICE, event)) in unfinished:
            pass
        return True
    if not seconds >= 0:
        raise ArgumentError(f"seconds is {seconds}, must not be negative")
    deadline = time.monotonic() + seconds
    while True:
        left = (deadline - time.monotonic()) * 1e6
        if check(step(handle, int(max(1, min(SLICE, left))), event)) not in unfinished:
            return True
        if time.monotonic() >= deadline:
            return False


def session_run(session, event, seconds):
    """True when caught up or at a tap; False when the time is over."""
    return _run(lib.mm2_session_run, session, event, seconds)


def batch_run(batch, event, seconds):
    """The same for a batch."""
    return _run(lib.mm2_batch_run, batch, event, seconds)


def session_interrupt(session):
    """Let a run in another thread come back at its next unit of work."""
    lib.mm2_session_interrupt(session)


def event_tap(event, owner):
    """(point, layer, first, count, tensor) of a tap; None if the run has caught up."""
    if event.point < 0:
        return None
    tensor = _tensor(ffi.addressof(event, "tensor"), owner)
    return POINTS[event.point], event.layer, event.first, event.count, tensor


def event_progress(event):
    """(done, total) in token-layers."""
    return event.done, event.total


def session_context(session):
    """Positions there is room for."""
    return lib.mm2_session_context(session)


def session_position(session):
    """Tokens evaluated."""
    return lib.mm2_session_position(session)


def session_length(session):
    """Tokens fed."""
    return lib.mm2_session_length(session)


def session_tokens(session):
    """i32 [length], live."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_session_tokens(session, out))
    return _tensor(out, session)


def session_rewind(session, length):
    """Cut back to `length` tokens."""
    check(lib.mm2_session_rewind(session, integer(length, "length")))


def session_logits(session):
    """f32 [vocab_size], live and writable."""
    out = ffi.new("mm2_tensor *")
    check(lib.mm2_session_logits(session, out))
    return _tensor(out, session)


def session_logprobs(session, values):
    """Log probabilities of these ids, a list."""
    values = ids(values)
    out = ffi.new("float[]", max(1, len(values)))
    check(lib.mm2_session_logprobs(session, ffi.new("int32_t[]", values), len(values), out))
    return list(out[0:len(values)])


def session_top(session, n, vocab_size):
    """The n best, [(id, log probability)], best first."""
    n = integer(n, "n", 1, vocab_size)
    best, logprobs = ffi.new("int32_t[]", n), ffi.new("float[]", n)
    check(lib.mm2_session_top(session, n, best, logprobs))
    return list(zip(best, logprobs))


# ---- Batch ----


def batch_new(model, rows=None):
    """An empty batch; rows: tokens of all members that go through the layers together."""
    options = _sized("mm2_batch_options")
    lib.mm2_batch_options_init(options)
    if rows is not None:
        options.rows = integer(rows, "rows", 1)
    out = ffi.new("mm2_batch **")
    check(lib.mm2_batch_new(out, model, options))
    return ffi.gc(out[0], lib.mm2_batch_free)


def batch_add(batch, session):
    """Make a session a member."""
    check(lib.mm2_batch_add(batch, session))


def batch_remove(batch, session):
    """Let a member go on alone."""
    check(lib.mm2_batch_remove(batch, session))


# ---- Sampler ----

SAMPLING_FIELDS = tuple(name for name, _ in ffi.typeof("mm2_sampling").fields if name != "size")


def sampling(model, changes):
    """The model's sampling defaults with changes, as an mm2_sampling."""
    out = _sized("mm2_sampling")
    lib.mm2_sampling_init(out, model)
    for name, value in changes.items():
        if name not in SAMPLING_FIELDS:
            raise TypeError(f"no sampling option is called {name!r}; there are "
                            f"{', '.join(SAMPLING_FIELDS)}")
        if isinstance(value, bool):
            raise TypeError(f"{name} must be a number, not a bool")
        try:
            setattr(out, name, value)
        except OverflowError:
            raise ArgumentError(f"{name} is {value}, which is out of range") from None
    return out


def sampling_values(options):
    """An mm2_sampling as a dict."""
    return {name: getattr(options, name) for name in SAMPLING_FIELDS}


def sampler_new(model, options):
    """A sampler of these options."""
    out = ffi.new("mm2_sampler **")
    check(lib.mm2_sampler_new(out, model, options))
    return ffi.gc(out[0], lib.mm2_sampler_free)


def sampler_bias(sampler, biases):
    """Replace the biases by {id: value}."""
    keys = ids(list(biases))
    values = ffi.new("float[]", [float(value) for value in biases.values()])
    check(lib.mm2_sampler_bias(sampler, ffi.new("int32_t[]", keys), values, len(keys)))


def sampler_breakers(sampler, values):
    """Replace the tokens that end a DRY repetition."""
    values = ids(values)
    check(lib.mm2_sampler_breakers(sampler, ffi.new("int32_t[]", values), len(values)))


def _mask(mask, vocab_size):
    """A pointer to the words of a mask, which may be None; the buffer stays exported meanwhile."""
    if mask is None:
        return ffi.NULL
    view = memoryview(mask)
    words = (vocab_size + 31) // 32
    if view.format not in ("I", "i", "L", "l") or view.itemsize != 4 or not view.c_contiguous \
            or view.nbytes != 4 * words:
        raise ArgumentError(
            f"a mask is a contiguous buffer of {words} 32-bit words, one bit a token; got format "
            f"{view.format!r}, shape {list(view.shape)}")
    return ffi.from_buffer("uint32_t[]", view.cast("B"))


def sampler_next(sampler, session, mask, vocab_size):
    """The token that follows the session's last one."""
    return check(lib.mm2_sampler_next(sampler, session, _mask(mask, vocab_size)))


def sampler_pick(sampler, logits, history, mask, vocab_size):
    """A token from any f32 [vocab_size] logits."""
    view = memoryview(logits)
    if view.format != "f" or view.shape != (vocab_size,) or not view.c_contiguous:
        raise ArgumentError(f"logits are contiguous float32 [{vocab_size}]; got format "
                            f"{view.format!r}, shape {list(view.shape)}")
    history = ids(history)
    return check(lib.mm2_sampler_pick(sampler, ffi.from_buffer("float[]", view.cast("B")),
                                      ffi.new("int32_t[]", history), len(history),
                                      _mask(mask, vocab_size)))

"""Edits: changes of activations as data, applied while they are computed, without a stop."""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, SupportsFloat, overload

from minimax2 import _native
from minimax2.errors import ArgumentError, FileError, FormatError

if TYPE_CHECKING:
    import numpy as np

    from minimax2.options import AnyPath
    from minimax2.session import Session

HEADS = {"q": "num_attention_heads", "z": "num_attention_heads", "k": "num_key_value_heads",
         "v": "num_key_value_heads"}
FORMAT = "minimax2-edits-1"
MOST_HEADER = 1 << 24  # bytes of a file's header

Layers = int | Sequence[int] | None
Positions = int | slice | None


class Edit(NamedTuple):
    """One change. Layers are numbers, or None for all; positions [first, end), end None: all."""

    kind: str
    point: str
    layers: tuple[int, ...] | None
    first: int
    end: int | None
    heads: tuple[int, ...] | None
    values: np.ndarray[Any, np.dtype[np.float32]] | None
    rows: int = 0
    factor: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def __repr__(self) -> str:
        where = "" if self.layers is None else f" at layers {', '.join(map(str, self.layers))}"
        heads = "" if self.heads is None else f", heads {', '.join(map(str, self.heads))}"
        if self.first or self.end is not None:
            heads += f", positions {self.first}:{'' if self.end is None else self.end}"
        what = self.point
        if self.kind in ("choose", "weigh") and self.values is not None:
            neutral = float(self.kind == "weigh")
            named = {e: float(x) for e, x in enumerate(self.values.ravel()) if x != neutral}
            what = f"experts {named}"
        return f"<{self.kind} {what}{where}{heads}>"


class Edits(Sequence[Edit]):
    """A list of changes of activations, in the order in which they are made.

        edits = mm.Edits().add("resid_post", direction, layers=20, factor=4)
        edits.mask_experts([3, 17], layers=range(30, 40))
        session.edits = edits                     # a copy; from the next token evaluated on
        session.edits.scale("z", 0, heads=5)      # a session's own list acts at once
        with session.edited(edits): ...

    Each method adds one change and returns the list. Points are those of `model.points`; layers an
    int, several or None for all, negative ones from the end; positions of the timeline an int, a
    slice (without a step) or None for all. heads (points q, k, v and z): an int or several; values
    are then those of one head, [head_dim]. Taps see what edits leave. Forks have the same edits,
    files of sessions none. What cannot be is refused when a session gets it, and changes nothing.
    """

    def __init__(self, edits: Iterable[Edit] = ()) -> None:
        self._list = _edits_of(edits)
        self._session: weakref.ref[Session] | None = None  # whose own list it is

    @classmethod
    def _of(cls, session: Session, edits: Iterable[Edit] = ()) -> Edits:
        """The own list of a session that has these in the library."""
        made = cls(edits)
        made._session = weakref.ref(session)
        return made

    # ---- Activations ----

    def add(self, point: str, values: Any, *, factor: SupportsFloat = 1.0, layers: Layers = None,
            positions: Positions = None, heads: Layers = None) -> Self:
        """Add factor * values, f32 [the point's width]: steering."""
        return self._push("add", point, layers, positions, heads, values, factor=float(factor))

    def set(self, point: str, values: Any, *, layers: Layers = None, positions: Positions = None,
            heads: Layers = None) -> Self:
        """Replace the activation by values, or by one number: means, zeros."""
        return self._either("set", point, values, layers, positions, heads)

    def scale(self, point: str, factors: Any, *, layers: Layers = None,
              positions: Positions = None, heads: Layers = None) -> Self:
        """Multiply the activation by values, or by one number."""
        return self._either("scale", point, factors, layers, positions, heads)

    def clamp(self, point: str, low: SupportsFloat, high: SupportsFloat, *, layers: Layers = None,
              positions: Positions = None, heads: Layers = None) -> Self:
        """Keep elements within low and high."""
        return self._push("clamp", point, layers, positions, heads, None, low=float(low),
                          high=float(high))

    def cap(self, point: str, limit: SupportsFloat, *, layers: Layers = None,
            positions: Positions = None, heads: Layers = None) -> Self:
        """A soft cap: limit * tanh(x / limit)."""
        return self._push("cap", point, layers, positions, heads, None, factor=float(limit))

    def project_out(self, point: str, directions: Any, *, factor: SupportsFloat = 1.0,
                    layers: Layers = None, positions: Positions = None,
                    heads: Layers = None) -> Self:
        """Subtract factor times what lies in the space of directions, f32 [n, width] or [width].

        They need not be orthogonal; factor 1 takes that part out, 2 reflects it.
        """
        rows = _floats(directions, "directions")
        return self._push("project", point, layers, positions, heads, rows, factor=float(factor),
                          rows=len(rows) if rows.ndim > 1 else 1)

    def ablate_heads(self, heads: Layers, *, mean: Any = 0.0, layers: Layers = None,
                     positions: Positions = None) -> Self:
        """Replace what attention heads give (at z) by zeros, or by a mean, f32 [head_dim]."""
        return self.set("z", mean, layers=layers, positions=positions, heads=heads)

    # ---- Experts ----

    def mask_experts(self, experts: Layers, *, layers: Layers = None,
                     positions: Positions = None) -> Self:
        """Choose none of these experts: others take their places."""
        return self.bias_experts({expert: -math.inf for expert in _numbers(experts, "experts")},
                                 layers=layers, positions=positions)

    def force_experts(self, experts: Layers, *, layers: Layers = None,
                      positions: Positions = None) -> Self:
        """Choose these experts; their weights stay those of their scores."""
        return self.bias_experts({expert: math.inf for expert in _numbers(experts, "experts")},
                                 layers=layers, positions=positions)

    def bias_experts(self, biases: Mapping[int, SupportsFloat] | Any, *, layers: Layers = None,
                     positions: Positions = None) -> Self:
        """Add to the scores by which experts are chosen, not to their weights.

        biases: a dict of experts, or f32 [num_local_experts].
        """
        return self._experts("choose", "expert_indices", biases, layers, positions)

    def weigh_experts(self, factors: Mapping[int, SupportsFloat] | Any, *, layers: Layers = None,
                      positions: Positions = None) -> Self:
        """Multiply the weights of experts: a dict of experts, or f32 [num_local_experts]."""
        return self._experts("weigh", "expert_weights", factors, layers, positions)

    def keep_experts(self, count: int, *, layers: Layers = None,
                     positions: Positions = None) -> Self:
        """Of each token's experts the `count` heaviest stay; they share the others' weights."""
        return self._push("keep", "expert_weights", layers, positions, None, None,
                          rows=_native.integer(count, "count", 1))

    def _experts(self, kind: str, point: str, values: Any, layers: Layers,
                 positions: Positions) -> Self:
        if isinstance(values, Mapping):
            most = max((_native.integer(e, "an expert", 0) for e in values), default=0)
            listed = [0.0 if kind == "choose" else 1.0] * (most + 1)
            for expert, value in values.items():
                listed[expert] = float(value)
            values = listed
        return self._push(kind, point, layers, positions, None, values)

    # ---- The list ----

    def _either(self, kind: str, point: str, values: Any, layers: Layers, positions: Positions,
                heads: Layers) -> Self:
        if isinstance(values, SupportsFloat) and not getattr(values, "ndim", 0):
            return self._push(kind, point, layers, positions, heads, None, factor=float(values))
        return self._push(kind, point, layers, positions, heads, values)

    def _push(self, kind: str, point: str, layers: Layers, positions: Positions, heads: Layers,
              values: Any, **more: Any) -> Self:
        if point not in _native.POINTS:
            raise ArgumentError(f"no point is called {point!r}; there are "
                                f"{', '.join(_native.POINTS)}")
        if heads is not None and point not in HEADS:
            raise ArgumentError(f"{point} has no heads; {', '.join(HEADS)} have")
        first, end = _range(positions)
        made = Edit(kind, point, None if layers is None else tuple(_numbers(layers, "layers")),
                    first, end, None if heads is None else tuple(_numbers(heads, "heads")),
                    None if values is None else _floats(values, "values"), **more)
        self._change([*self._list, made])
        return self

    def _change(self, edits: list[Edit]) -> None:
        session = None if self._session is None else self._session()
        if session is not None:
            _apply(session, edits)
        self._list = edits

    def extend(self, edits: Iterable[Edit]) -> Self:
        """Add those of another list."""
        self._change([*self._list, *_edits_of(edits)])
        return self

    def clear(self) -> None:
        """Take all away."""
        self._change([])

    def __delitem__(self, index: int | slice) -> None:
        left = list(self._list)
        del left[index]
        self._change(left)

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> Edits: ...

    def __getitem__(self, index: int | slice) -> Edit | Edits:
        if isinstance(index, slice):
            return Edits(self._list[index])
        return self._list[index]

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Edit]:
        return iter(list(self._list))

    def __add__(self, other: Iterable[Edit]) -> Edits:
        return Edits([*self._list, *other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edits):
            return NotImplemented
        return [_comparable(edit) for edit in self] == [_comparable(edit) for edit in other]

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"<Edits: {', '.join(map(repr, self._list)) or 'none'}>"

    # ---- Files ----

    def save(self, path: AnyPath) -> None:
        """Write them to a .safetensors file: values as tensors, the rest in its metadata."""
        header: dict[str, Any] = {}
        listed, data, at = [], [], 0
        for number, edit in enumerate(self._list):
            fields = edit._asdict()
            values = fields.pop("values")
            if values is not None:
                fields["values"] = str(number)
                header[str(number)] = {"dtype": "F32", "shape": values.shape,
                                       "data_offsets": [at, at + values.nbytes]}
                data.append(values.tobytes())
                at += values.nbytes
            listed.append(fields)
        header["__metadata__"] = {"format": FORMAT, "edits": json.dumps(listed)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = Path(os.fsdecode(path))
        try:
            path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: AnyPath) -> Edits:
        """Those that save() wrote. Raises FileError, FormatError."""
        path = Path(os.fsdecode(path))
        try:
            whole = path.read_bytes()
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from error
        try:
            length = int.from_bytes(whole[:8], "little")
            if length > min(MOST_HEADER, len(whole) - 8):
                raise ValueError("the header is cut off")
            header = json.loads(whole[8:8 + length])
            metadata = header["__metadata__"]
            if metadata["format"] != FORMAT:
                raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
            made = cls()
            for fields in json.loads(metadata["edits"]):
                values = fields.pop("values", None)
                made._list.append(_checked(fields, None if values is None else _tensor(
                    whole[8 + length:], header[values])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path} holds no edits: {error}") from None
        return made


def _tensor(data: bytes, entry: Mapping[str, Any]) -> Any:
    if entry["dtype"] != "F32":
        raise ValueError(f"values are {entry['dtype']}, not F32")
    first, end = entry["data_offsets"]
    if not 0 <= first <= end <= len(data):
        raise ValueError("values are cut off")
    import numpy

    return _floats(numpy.frombuffer(data[first:end], numpy.float32).reshape(entry["shape"]),
                   "values")


def _checked(fields: dict[str, Any], values: Any) -> Edit:
    """An Edit of a file's fields."""
    edit = Edit(**fields, values=values)
    if edit.kind not in _native.EDITS or edit.point not in _native.POINTS:
        raise ValueError(f"there is no {edit.kind!r} at {edit.point!r}")
    numbers = [edit.first, edit.rows, *(edit.layers or ()), *(edit.heads or ())]
    numbers += [] if edit.end is None else [edit.end]
    if not all(type(number) is int for number in numbers) or not all(
            isinstance(x, (int, float)) for x in (edit.factor, edit.low, edit.high)):
        raise ValueError("a number is none")
    return edit._replace(layers=None if edit.layers is None else tuple(edit.layers),
                         heads=None if edit.heads is None else tuple(edit.heads))


def _edits_of(given: Any) -> list[Edit]:
    """Edits in a list."""
    made = given if isinstance(given, Edits) else list(given) if isinstance(
        given, (list, tuple)) else None
    if made is None or not all(isinstance(edit, Edit) for edit in made):
        raise TypeError(f"edits must be mm.Edits(), not {type(given).__name__}" if made is None
                        else "edits must be those of an mm.Edits(), nothing else")
    return list(made)


def _comparable(edit: Edit) -> tuple[Any, ...]:
    values = edit.values
    return (edit._replace(values=None),
            None if values is None else (values.shape, values.tobytes()))


def _floats(values: Any, name: str) -> Any:
    """A copy, f32."""
    import numpy

    try:
        with numpy.errstate(over="ignore"):
            made = numpy.array(values, numpy.float32, copy=True)
            finite = numpy.isfinite(numpy.array(values, numpy.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers: {error}") from None
    if made.size == 0:
        raise ArgumentError(f"{name} are empty")
    if not numpy.isfinite(made[finite]).all():
        raise ArgumentError(f"{name} are too large for float32")
    made.flags.writeable = False
    return made


def _numbers(value: Any, name: str) -> list[int]:
    if isinstance(value, Integral):
        value = [value]
    elif isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be an int or several, not {type(value).__name__}")
    return [_native.integer(number, f"one of the {name}") for number in value]


def _range(positions: Positions) -> tuple[int, int | None]:
    """[first, end) of positions; end None: all that follow."""
    if positions is None:
        return 0, None
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise ArgumentError("positions have no step")
        first = 0 if positions.start is None else positions.start
        end = positions.stop
    else:
        first = _native.integer(positions, "positions (an int or a slice)", 0)
        end = first + 1
    first = _native.integer(first, "the first position", 0)
    return first, None if end is None else _native.integer(end, "the end of positions", first + 1)


def _runs(layers: tuple[int, ...] | None, count: int) -> list[tuple[int, int]]:
    """Layers as ranges [first, end)."""
    if layers is None:
        return [(0, count)]
    runs: list[tuple[int, int]] = []
    for layer in sorted({_native.integer(layer, "a layer", -count, count - 1) % count
                         for layer in layers}):
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs


def _apply(session: Session, edits: Sequence[Edit]) -> None:
    """Give them to the library."""
    import numpy

    config = session.model.config
    made = []
    for edit in edits:
        values = edit.values
        if edit.kind in ("choose", "weigh") and values is not None:
            if values.size > config.num_local_experts:
                raise ArgumentError(f"{edit!r}: the model has {config.num_local_experts} experts, "
                                    f"not {values.size}")
            rest = [float(edit.kind == "weigh")] * (config.num_local_experts - values.size)
            values = numpy.array([*values.ravel(), *rest], numpy.float32)
        count = getattr(config, HEADS[edit.point]) if edit.heads is not None else 0
        places = [(0, 0)] if edit.heads is None else [
            (_native.integer(head, "a head", -count, count - 1) % count * config.head_dim,
             config.head_dim) for head in edit.heads]
        made += [(edit, first, end, at, n, values)
                 for first, end in _runs(edit.layers, config.num_hidden_layers)
                 for at, n in places]
    _native.session_set_edits(session._c, made)

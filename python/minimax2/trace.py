"""Looking inside: taps, their selection, and caches of what they showed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from minimax2 import _native
from minimax2.errors import ArgumentError, BusyError
from minimax2.tensor import Tensor

if TYPE_CHECKING:
    from minimax2.model import Model
    from minimax2.session import Session

_ONCE = ("embed", "final_norm", "logits")  # not at every layer

Where = str | tuple[str, int | Sequence[int] | None]
"""A point, at all layers; or a point and a layer, several, or None for all."""


class Tap(NamedTuple):
    """A stop at an activation.

    A prompt comes in chunks of up to `chunk` positions (an option of the session, 1024 by default),
    and of each chunk every layer is seen before the next chunk begins. So a tap may show only a
    part of a prompt: its row i is position `first + i` of the timeline. A generated token is a
    chunk of one.
    """

    point: str
    """One of `model.points`, such as "resid_post"."""
    layer: int
    """From 0."""
    first: int
    """Position in the timeline of the tensor's first row."""
    count: int  # type: ignore[assignment]  # a tuple's method, which nobody needs here
    """Rows: the positions first .. first + count - 1."""
    tensor: Tensor
    """Live: write into it to intervene. Its contents change when the loop goes on; copy() keeps."""

    @property
    def positions(self) -> range:
        """The rows' positions in the timeline, a range."""
        return range(self.first, self.first + self.count)


Hook = Callable[[Tensor, Tap], None]


def _listed(value: Any, single: type, name: str) -> list[Any]:
    if isinstance(value, single):
        return [value]
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} of the type {type(value).__name__} are not understood")
    return list(value)


def select(model: Model, points: Any, layers: Any) -> list[tuple[int, int]]:
    """Pairs (point number, layer or -1) for names and layers as scripts give them; None: all."""
    count = model.config.num_hidden_layers
    chosen = []
    for layer in [] if layers is None else _listed(layers, Integral, "layers"):
        layer = _native.integer(layer, "a layer", -count, count - 1)
        chosen.append(layer % count)
    selected = []
    for name in _native.POINTS if points is None else _listed(points, str, "points"):
        if name not in _native.POINTS:
            raise ArgumentError(f"no point is called {name!r}; there are "
                                f"{', '.join(_native.POINTS)}")
        point = _native.POINTS.index(name)
        if layers is None or name in _ONCE:
            selected.append((point, -1))
        else:
            selected += [(point, layer) for layer in chosen]
    return selected


def tap_of(event: Any, session: Session) -> Tap | None:
    """What a run of a session stopped at."""
    tap = _native.event_tap(event, session._c)
    return None if tap is None else Tap(*tap)


class Taps(Iterator[Tap]):
    """A run that stops at activations: what `trace()` gives. Iterate over it, or close() it.

    While it is under way the session belongs to it. It needs no finaliser: of one that was dropped
    half-way, the session switches the taps off when it is used next.
    """

    def __init__(self, session: Session, selected: Sequence[tuple[int, int]]) -> None:
        self._session = session
        self._open = True
        session._begin_taps(self, selected)

    def step(self, seconds: float | None) -> tuple[bool, Tap | None]:
        """Run for about `seconds`: (whether there is nothing more to wait for, a Tap if at one)."""
        session = self._session
        arrived = _native.session_run(session._c, session._event, seconds)
        return arrived, tap_of(session._event, session) if arrived else None

    def __next__(self) -> Tap:
        if not self._open:
            raise StopIteration
        try:
            _, tap = self.step(None)
        except BaseException:
            self.close()
            raise
        if tap is None:
            self.close()
            raise StopIteration
        return tap

    def close(self) -> None:
        """Switch the taps off and give the session back; its run() finishes the rest."""
        if self._open:
            self._session._end_taps(self)
            self._open = False  # last: what Ctrl-C interrupts here can be closed again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Switches:
    """Which taps of a session are on, and for whom."""

    __slots__ = ("_by", "_on")

    def __init__(self) -> None:
        self._by: weakref.ref[Taps] | None = None
        self._on: Sequence[tuple[int, int]] = ()

    def on(self, cdata: _native.Owned, by: Taps, selected: Sequence[tuple[int, int]]) -> None:
        """Switch these on."""
        self.check(cdata)
        self._by, self._on = weakref.ref(by), selected
        for point, layer in selected:
            _native.session_tap(cdata, point, layer, True)

    def off(self, cdata: _native.Owned, by: Taps) -> None:
        """Switch all off that are on for these Taps."""
        if self._by is not None and self._by() is by:
            self._clear(cdata)

    def _clear(self, cdata: _native.Owned) -> None:
        for point, layer in self._on:
            _native.session_tap(cdata, point, layer, False)
        self._by, self._on = None, ()

    def check(self, cdata: _native.Owned) -> None:
        """BusyError while a trace or hooks are under way. What was dropped half-way ends here."""
        if self._by is None:
            return
        if self._by() is not None:
            raise BusyError("a trace of this session is under way: finish its loop or close() it "
                            "first")
        self._clear(cdata)


class Hooks:
    """Callables by activation: what run_with_hooks() and generate() take as `hooks`.

    hooks: pairs of a point, or (point, layer), and a callable(tensor, tap), which may write into
    the tensor. One point may have several hooks; they are called in order. cache: a Cache of
    `cached` pairs, which sees what the hooks leave.
    """

    def __init__(self, model: Model, hooks: Iterable[tuple[Where, Hook]],
                 cache: Cache | None = None, cached: Sequence[tuple[int, int]] = ()) -> None:
        self._wanted: dict[tuple[int, int], list[Hook]] = {}
        self._tap: Tap | None = None  # whose hooks are being called, or were when one raised
        self._left: list[Hook] = []  # those of them that did not return yet
        self._cache, self._cached = cache, frozenset(cached)
        if isinstance(hooks, (str, bytes)) or not hasattr(hooks, "__iter__"):
            raise TypeError(f"hooks must be pairs of a point and a callable, not "
                            f"{type(hooks).__name__}")
        for pair in hooks:
            try:
                where, hook = pair
                point, layer = (where, None) if isinstance(where, str) else where
            except (TypeError, ValueError):
                raise TypeError("hooks must be pairs of a point, or (point, layer), and a "
                                f"callable; got {pair!r}") from None
            if not callable(hook):
                raise TypeError(f"a hook must be a callable(tensor, tap), not "
                                f"{type(hook).__name__}")
            for chosen in select(model, point, layer):
                self._wanted.setdefault(chosen, []).append(hook)

    @property
    def selected(self) -> list[tuple[int, int]]:
        """Pairs (point number, layer or -1) to stop at."""
        return sorted(self._cached.union(self._wanted))

    def call(self, tap: Tap) -> None:
        """Call the hooks of a tap."""
        self._left = [hook for pair in self._pairs(tap) for hook in self._wanted.get(pair, ())]
        self._tap = tap
        self.go_on()

    def go_on(self) -> None:
        """Call those that are left of a tap at which a hook raised, that one first."""
        tap = self._tap
        if tap is None:
            return
        while self._left:
            result: Any = self._left[0](tap.tensor, tap)
            if result is not None:
                raise TypeError("a hook edits the tensor in place and returns None")
            del self._left[0]
        if self._cache is not None and not self._cached.isdisjoint(self._pairs(tap)):
            self._cache.add(tap)
        self._tap = None

    @staticmethod
    def _pairs(tap: Tap) -> tuple[tuple[int, int], tuple[int, int]]:
        point = _native.POINTS.index(tap.point)
        return (point, -1), (point, tap.layer)


Key = str | tuple[str, int | slice]


class Cache(Mapping[tuple[str, int], Tensor]):
    """Copies of activations by (point, layer): `cache["resid_post", 5]`, a Tensor [positions, ...].

    Negative layers count from the model's last; a slice of layers, `cache["resid_post", 1:3]`, is
    one Tensor [layers, positions, ...], as stack() makes it. `cache["logits"]` and other points of
    which there is one layer need no layer. `positions` are the timeline's positions of the rows.
    """

    def __init__(self, positions: Sequence[int], layers: int) -> None:
        self.positions = positions
        self._layers = layers  # of the model
        self._row = {position: row for row, position in enumerate(positions)}
        self._tensors: dict[tuple[str, int], Tensor] = {}

    def add(self, tap: Tap) -> None:
        """Copy those rows of a tap that this cache is for."""
        rows = [position for position in tap.positions if position in self._row]
        if not rows:
            return
        key = tap.point, tap.layer
        if key not in self._tensors:
            shape = (len(self.positions), *tap.tensor.shape[1:])
            self._tensors[key] = _native.empty(tap.tensor.dtype, shape)
        target = memoryview(self._tensors[key]).cast("B")
        source = memoryview(tap.tensor.copy()).cast("B")
        size = len(source) // tap.count
        for position in rows:
            to, at = self._row[position] * size, (position - tap.first) * size
            target[to:to + size] = source[at:at + size]

    def _of(self, point: str) -> list[int]:
        return sorted(layer for name, layer in self._tensors if name == point)

    def _missing(self, key: object) -> KeyError:
        points = dict.fromkeys(point for point, _ in self._tensors)
        held = [f"{point} at {_spans(self._of(point))}" for point in points]
        return KeyError(f"the cache has no {key!r}; it has {', '.join(held) or 'nothing'}")

    def __getitem__(self, key: Key) -> Tensor:
        if isinstance(key, str):
            layers = self._of(key)
            if len(layers) == 1:
                return self._tensors[key, layers[0]]
        elif isinstance(key, tuple) and len(key) == 2:
            point, layer = key
            if isinstance(layer, slice) and point in _ONCE and self._of(point):
                held = f'cache["{point}"]'
                raise KeyError(f"{point} exists once, not at every layer: {held} is all of it, "
                               f"{held}.numpy()[{_slice(layer)}] some of its positions")
            if isinstance(layer, slice):
                wanted = range(self._layers)[layer]
                if wanted and set(wanted) <= set(self._of(point)):
                    return self._stacked(point, wanted)
            elif isinstance(layer, Integral):
                at = int(layer) + (self._layers if layer < 0 else 0)
                if (point, at) in self._tensors:
                    return self._tensors[point, at]
        raise self._missing(key)

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def stack(self, point: str) -> Tensor:
        """All layers of a point as one Tensor [layers, positions, ...], lowest layer first."""
        layers = self._of(point)
        if not layers:
            raise self._missing(point)
        return self._stacked(point, layers)

    def _stacked(self, point: str, layers: Sequence[int]) -> Tensor:
        first = self._tensors[point, layers[0]]
        if first.ndim == 4:
            raise ArgumentError(f"{point} has too many dimensions to stack")
        out = _native.empty(first.dtype, (len(layers), *first.shape))
        target = memoryview(out).cast("B")
        for i, layer in enumerate(layers):
            target[i * first.nbytes:(i + 1) * first.nbytes] = memoryview(
                self._tensors[point, layer]).cast("B")
        return out

    def __repr__(self) -> str:
        points = dict.fromkeys(point for point, _ in self._tensors)
        return (f"<Cache of {len(self)} tensors, {len(self.positions)} positions: "
                f"{', '.join(points)}>")


def _slice(span: slice) -> str:
    """As it is written: "0:2"."""
    parts = [span.start, span.stop] + [span.step] * (span.step is not None)
    return ":".join("" if part is None else str(part) for part in parts)


def _spans(layers: Sequence[int]) -> str:
    """Ascending layers in words: "layers 0..4", "layer 2", "layers 0, 2, 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers[-1] - layers[0] + 1 == len(layers):
        return f"layers {layers[0]}..{layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def pick_positions(positions: Any, first: int, length: int) -> Sequence[int]:
    """Positions of the timeline from `first` on, below `length`.

    For None (all), an int, a slice or several ints; negative ones count from the end.
    """
    pending = range(first, length)
    if positions is None:
        return pending
    if isinstance(positions, slice):
        return [position for position in range(length)[positions] if position in pending]
    chosen = []
    for position in _listed(positions, Integral, "positions"):
        position = _native.integer(position, "a position", -length, length - 1) % length
        if position not in pending:
            raise ArgumentError(f"position {position} was evaluated before; this run goes over "
                                f"{first}..{length - 1}")
        chosen.append(position)
    return list(dict.fromkeys(chosen))

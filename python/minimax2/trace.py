"""Looking inside: taps, their selection, and caches of what they showed."""

from collections.abc import Mapping
from numbers import Integral
from typing import NamedTuple

from minimax2 import _native
from minimax2.errors import ArgumentError

_ONCE = ("embed", "final_norm", "logits")  # not at every layer


class Tap(NamedTuple):
    """A stop at an activation."""

    point: str
    """One of `model.points`, such as "resid_post"."""
    layer: int
    """From 0."""
    first: int
    """Position in the timeline of the tensor's first row."""
    count: int
    """Rows: the positions first .. first + count - 1."""
    tensor: object
    """Live: write into it to intervene. Its contents change when the loop goes on; copy() keeps."""

    @property
    def positions(self):
        """The rows' positions in the timeline, a range."""
        return range(self.first, self.first + self.count)


def _listed(value, single):
    return [value] if isinstance(value, single) else list(value)


def select(model, points, layers):
    """Pairs (point number, layer or -1) for names and layers as scripts give them; None: all."""
    count = model.config.num_hidden_layers
    chosen = []
    for layer in [] if layers is None else _listed(layers, Integral):
        layer = _native.integer(layer, "a layer", -count, count - 1)
        chosen.append(layer % count)
    selected = []
    for name in _native.POINTS if points is None else _listed(points, str):
        if name not in _native.POINTS:
            raise ArgumentError(f"no point is called {name!r}; there are "
                                f"{', '.join(_native.POINTS)}")
        point = _native.POINTS.index(name)
        if layers is None or name in _ONCE:
            selected.append((point, -1))
        else:
            selected += [(point, layer) for layer in chosen]
    return selected


class Hooks:
    """Callables by activation: what run_with_hooks() and generate() take as `hooks`.

    hooks: pairs of a point, or (point, layer), and a callable(tensor, tap), which may write into
    the tensor. One point may have several hooks; they are called in order.
    """

    def __init__(self, model, hooks):
        self._wanted = {}
        for where, hook in hooks:
            point, layer = (where, None) if isinstance(where, str) else where
            for pair in select(model, point, layer):
                self._wanted.setdefault(pair, []).append(hook)

    @property
    def selected(self):
        """Pairs (point number, layer or -1) to stop at."""
        return sorted(self._wanted)

    def call(self, tap):
        """Call the hooks of a tap."""
        point = _native.POINTS.index(tap.point)
        for pair in ((point, -1), (point, tap.layer)):
            for hook in self._wanted.get(pair, ()):
                if hook(tap.tensor, tap) is not None:
                    raise TypeError("a hook edits the tensor in place and returns None")


class Cache(Mapping):
    """Copies of activations by (point, layer): `cache["resid_post", 5]`, a Tensor [positions, ...].

    `cache["logits"]` and other points that exist once need no layer. `positions` are the timeline's
    positions of the rows.
    """

    def __init__(self, positions):
        self.positions = positions
        self._row = {position: row for row, position in enumerate(positions)}
        self._tensors = {}

    def add(self, tap):
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

    def _key(self, key):
        if isinstance(key, str):
            layers = [layer for point, layer in self._tensors if point == key]
            return (key, layers[0]) if len(layers) == 1 else (key, None)
        return key

    def __getitem__(self, key):
        return self._tensors[self._key(key)]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def stack(self, point):
        """All layers of a point as one Tensor [layers, positions, ...], lowest layer first."""
        layers = sorted(layer for name, layer in self._tensors if name == point)
        if not layers:
            raise KeyError(point)
        first = self._tensors[point, layers[0]]
        if first.ndim == 4:
            raise ArgumentError(f"{point} has too many dimensions to stack")
        out = _native.empty(first.dtype, (len(layers), *first.shape))
        target = memoryview(out).cast("B")
        for i, layer in enumerate(layers):
            target[i * first.nbytes:(i + 1) * first.nbytes] = memoryview(
                self._tensors[point, layer]).cast("B")
        return out

    def __repr__(self):
        points = dict.fromkeys(point for point, _ in self._tensors)
        return (f"<Cache of {len(self)} tensors, {len(self.positions)} positions: "
                f"{', '.join(points)}>")


def pick_positions(positions, length):
    """Absolute positions for None (all), an int, a slice or several; negative: from the end."""
    if positions is None:
        return range(length)
    if isinstance(positions, slice):
        return range(length)[positions]
    chosen = [_native.integer(position, "a position", -length, length - 1) % length
              for position in _listed(positions, Integral)]
    return list(dict.fromkeys(chosen))

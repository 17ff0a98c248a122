"""The base of every class that holds an object of the C library."""

from typing import Any, NoReturn, Self

from minimax2._native import Owned
from minimax2.errors import ArgumentError


class Handle:
    """Holds a C object until close(), the end of a `with` block, or its own end.

    Closing marks this object closed: using it raises ArgumentError. The memory goes when nothing
    looks at it any more: tensors keep what they look at alive, sessions keep their model's weights.
    """

    __slots__ = ("_owned", "__weakref__")

    def __init__(self, owned: Owned) -> None:
        self._owned: Owned | None = owned

    @property
    def _c(self) -> Owned:
        if self._owned is None:
            raise ArgumentError(f"this {type(self).__name__} is closed")
        return self._owned

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._owned is None

    def close(self) -> None:
        """Give the object up. Calling it twice is fine."""
        self._owned = None

    def __enter__(self) -> Self:
        self._c
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} lives in this process: it cannot be copied or "
                        "pickled")

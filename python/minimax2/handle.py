"""The base of every class that holds an object of the C library."""

from minimax2.errors import ArgumentError


class Handle:
    """Holds a C object until close(), the end of a `with` block, or its own end.

    Closing marks this object closed: using it raises ArgumentError. The memory goes when nothing
    looks at it any more: tensors keep what they look at alive, sessions keep their model's weights.
    """

    __slots__ = ("_cdata", "__weakref__")

    def __init__(self, cdata):
        self._cdata = cdata

    @property
    def _c(self):
        if self._cdata is None:
            raise ArgumentError(f"this {type(self).__name__} is closed")
        return self._cdata

    @property
    def closed(self):
        """Whether close() was called."""
        return self._cdata is None

    def close(self):
        """Give the object up. Calling it twice is fine."""
        self._cdata = None

    def __enter__(self):
        self._c
        return self

    def __exit__(self, *exception):
        self.close()

    def __reduce_ex__(self, protocol):
        raise TypeError(f"a {type(self).__name__} lives in this process: it cannot be copied or "
                        "pickled")

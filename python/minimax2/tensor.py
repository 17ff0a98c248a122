"""Tensor: a view on memory of a model or session, without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from minimax2 import _tensor

if TYPE_CHECKING:
    import numpy as np

# numpy knows these three; ml_dtypes, where it is installed, adds two more.
_INDEXABLE = ("f32", "f16", "i32")
_EXTENDED = {"bf16": "bfloat16", "f8_e4m3": "float8_e4m3fn"}


class Tensor(_tensor.Tensor):
    """A view on memory that a model, a session or the tensor itself keeps alive.

    `memoryview(t)`, `numpy.asarray(t)`, `numpy.from_dlpack(t)` and `torch.from_dlpack(t)` share its
    memory. Formats that these do not know show up as raw words (bf16) or bytes (FP8, and block
    formats with the last dimension being a row's bytes); `float()` decodes any of them. Weights are
    read-only: writing through torch, which does not know of that, would crash; take a copy() or
    load the model with writable=True.

    Attributes: `shape` and `strides` in elements, `dtype` ("f32", "bf16", "q4_k", ...), `nbytes`,
    `readonly`, `address`.
    """

    __slots__ = ()

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numpy(self) -> np.ndarray[Any, Any]:
        """A numpy array on the same memory; writable if the tensor is.

        f32, f16, i32 as such. bf16 and f8_e4m3 as `ml_dtypes` types if that package is installed,
        else as uint16 and uint8 codes. Block formats as uint8, [..., bytes of a row].
        """
        import numpy as np

        array: np.ndarray[Any, Any] = np.asarray(memoryview(self))
        extended = _EXTENDED.get(self.dtype)
        if extended:
            try:
                import ml_dtypes
            except ImportError:
                return array
            array = array.view(getattr(ml_dtypes, extended))
        return array

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers; block formats and floats decoded."""
        source = self if self.dtype in ("f32", "i32") else self.float()
        return memoryview(source).tolist()

    def _indexable(self) -> np.ndarray[Any, Any]:
        if self.dtype not in _INDEXABLE:
            raise TypeError(f"a {self.dtype} tensor has no elements to index; decode it with "
                            "float(), or rows of a weight with model.weight()")
        return self.numpy()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of no dimensions has no length")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """As numpy does it: a number, or an array on the same memory. For f32, f16 and i32."""
        return self._indexable()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """As numpy does it; ValueError if the tensor is read-only."""
        self._indexable()[key] = value

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Tensor is a view on this process's memory: pickle numpy() or tolist()")

    def __copy__(self) -> Tensor:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Tensor:
        return self.copy()

    def __repr__(self) -> str:
        access = ", read-only" if self.readonly else ""
        return f"<Tensor {self.dtype} {list(self.shape)}{access}>"

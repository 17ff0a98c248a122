"""Tensor: one memory under every protocol, lifetimes, and what is refused."""

import copy
import ctypes
import gc
import pickle
import sys

import minimax2 as mm
import numpy as np
import pytest
from minimax2 import _native, _tensor

WEIGHT = "model.layers.0.self_attn.q_proj.weight"  # f8_e4m3
NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"  # bf16


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def made():
    """f32 [3, 4] of 0..11."""
    tensor = _native.empty("f32", (3, 4))
    tensor.numpy()[:] = np.arange(12, dtype=np.float32).reshape(3, 4)
    return tensor


def strided(owner_tensor, shape, strides, offset=0, dtype="f32", readonly=False):
    """A view into another tensor's memory with any strides (in elements)."""
    view = _native.ffi.new("mm2_tensor *")
    view.data = _native.ffi.cast("char *", owner_tensor.address) + offset
    view.ndim, view.dtype = len(shape), _native.DTYPES[dtype]
    for i, (n, step) in enumerate(zip(shape, strides)):
        view.shape[i], view.strides[i] = n, step
    view.flags = _native.lib.MM2_READ_ONLY if readonly else 0
    return _native._tensor(view, owner_tensor)


def test_attributes(made):
    assert (made.shape, made.strides, made.ndim, made.dtype) == ((3, 4), (4, 1), 2, "f32")
    assert made.nbytes == 48 and not made.readonly and made.address % 64 == 0
    assert len(made) == 3 and repr(made) == "<Tensor f32 [3, 4]>"


def test_every_protocol_shares_the_memory(made):
    arrays = [np.asarray(made), made.numpy(), np.from_dlpack(made), np.asarray(memoryview(made))]
    assert {address(array) for array in arrays} == {made.address}
    arrays[2].flags.writeable or pytest.fail("a versioned DLPack tensor is writable in numpy")
    arrays[0][1, 2] = 100
    assert all(array[1, 2] == 100 for array in arrays)
    assert memoryview(made)[1, 2] == 100 and made[1, 2] == 100


def test_session_logits_share_the_memory(session):
    session.feed([1, 2, 3]).run()
    logits = session.logits
    assert address(np.from_dlpack(logits)) == address(logits.numpy()) == logits.address
    logits.numpy()[:] = 0
    logits[7] = 5.0
    assert session.top(1)[0][0] == 7


def test_two_views_of_a_weight_are_one_memory(tiny):
    assert tiny[EMBED].address == tiny[EMBED].address
    assert address(tiny[EMBED].numpy()) == tiny[EMBED].address


def test_torch_style_consumer_reads_the_dlpack_structs(made):
    """What a consumer finds at fixed offsets of DLManagedTensor(Versioned)."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    view = strided(made, (2, 2), (4, 2))
    legacy = view.__dlpack__()
    base = get(legacy, b"dltensor")
    versioned = view.__dlpack__(max_version=(1, 0))
    start = get(versioned, b"dltensor_versioned")
    assert list((ctypes.c_uint32 * 2).from_address(start)) == [1, 0]
    assert ctypes.c_uint64.from_address(start + 24).value == 0  # flags
    for at in (base, start + 32):
        assert ctypes.c_void_p.from_address(at).value == made.address
        assert list((ctypes.c_int32 * 3).from_address(at + 8)) == [1, 0, 2]  # cpu, 0, ndim
        assert bytes((ctypes.c_uint8 * 4).from_address(at + 20)) == b"\x02\x20\x01\x00"  # f32 x 1
        shape = ctypes.c_void_p.from_address(at + 24).value
        strides = ctypes.c_void_p.from_address(at + 32).value
        assert list((ctypes.c_int64 * 2).from_address(shape)) == [2, 2]
        assert list((ctypes.c_int64 * 2).from_address(strides)) == [4, 2]
        assert ctypes.c_uint64.from_address(at + 40).value == 0  # byte_offset


def dl_dtype(capsule):
    """(code, bits) in a versioned capsule."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    start = get(capsule, b"dltensor_versioned")
    return tuple((ctypes.c_uint8 * 2).from_address(start + 32 + 20))


@pytest.mark.parametrize("dtype, version, expected", [
    ("f32", (1, 0), (2, 32)), ("f16", (1, 0), (2, 16)), ("bf16", (1, 0), (4, 16)),
    ("i32", (1, 0), (0, 32)), ("f8_e4m3", (1, 0), (1, 8)), ("f8_e4m3", (1, 1), (10, 8)),
    ("f8_e4m3", (2, 0), (10, 8)), ("q4_k", (1, 1), (1, 8)),
])
def test_dlpack_type_codes(dtype, version, expected):
    assert dl_dtype(_native.empty(dtype, (2, 256)).__dlpack__(max_version=version)) == expected


@pytest.mark.parametrize("dtype, format, itemsize", [
    ("f32", "f", 4), ("f16", "e", 2), ("bf16", "H", 2), ("i32", "i", 4), ("f8_e4m3", "B", 1)])
def test_buffer_formats(dtype, format, itemsize):
    view = memoryview(_native.empty(dtype, (2, 3)))
    assert (view.format, view.itemsize, view.shape, view.nbytes) == (
        format, itemsize, (2, 3), 6 * itemsize)


@pytest.mark.parametrize("dtype, block, size", [
    ("q8_0", 32, 34), ("q4_0", 32, 18), ("q4_k", 256, 144), ("q6_k", 256, 210)])
def test_block_formats_are_bytes_with_the_row_size_last(dtype, block, size):
    tensor = _native.empty(dtype, (5, 3, 2 * block))
    assert tensor.shape == (5, 3, 2 * block) and tensor.nbytes == 15 * 2 * size
    view = memoryview(tensor)
    assert (view.format, view.shape, view.strides) == (
        "B", (5, 3, 2 * size), (6 * size, 2 * size, 1))
    assert np.from_dlpack(tensor).shape == (5, 3, 2 * size)


def test_bf16_is_an_ml_dtype_in_numpy(tiny):
    import ml_dtypes

    array = tiny[EMBED].numpy()
    assert array.dtype == ml_dtypes.bfloat16
    rows = np.asarray(tiny.weight(EMBED, 5, 3))
    assert (array[5:8].astype(np.float32) == rows).all()


def test_bf16_is_words_without_ml_dtypes(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert tiny[EMBED].numpy().dtype == np.uint16


def test_float_decodes(tiny):
    import ml_dtypes

    codes = tiny[WEIGHT]
    assert codes.dtype == "f8_e4m3"
    expected = np.asarray(codes).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    decoded = codes.float()
    assert decoded.dtype == "f32" and not decoded.readonly
    assert (decoded.numpy() == expected).all()


def test_float_of_a_strided_view(made):
    assert strided(made, (3, 2), (4, 2)).float().tolist() == [[0, 2], [4, 6], [8, 10]]


def test_strided_views(made):
    column = strided(made, (3,), (4,), offset=8)
    assert column.tolist() == [2, 6, 10] and column.numpy().tolist() == [2, 6, 10]
    assert np.from_dlpack(column).tolist() == [2, 6, 10]
    assert column.copy().strides == (1,) and column.copy().tolist() == [2, 6, 10]
    assert strided(made, (4, 3), (1, 4)).copy().tolist() == made.numpy().T.tolist()
    for flags in (SIMPLE, ND, C_CONTIGUOUS, F_CONTIGUOUS, ANY_CONTIGUOUS):
        with pytest.raises(BufferError):
            request(column, flags)


SIMPLE, WRITABLE, ND, STRIDES = 0, 1, 8, 0x18  # PyBUF_*
C_CONTIGUOUS, F_CONTIGUOUS, ANY_CONTIGUOUS = 0x38, 0x58, 0x98


def request(tensor, flags):
    """Ask for a buffer with these flags, as C code does."""
    buffer = (ctypes.c_byte * 256)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(tensor), buffer, flags)
    ctypes.pythonapi.PyBuffer_Release(buffer)


def test_contiguous_consumers(made):
    for flags in (SIMPLE, WRITABLE, ND, STRIDES, C_CONTIGUOUS, ANY_CONTIGUOUS):
        request(made, flags)
    with pytest.raises(BufferError, match="row-major"):
        request(made, F_CONTIGUOUS)
    assert bytes(made) == made.numpy().tobytes()


def test_read_only_is_respected(tiny):
    tensor = tiny[NORM]
    assert tensor.readonly and repr(tensor).endswith("read-only>")
    assert memoryview(tensor).readonly and not tensor.numpy().flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        request(tensor, WRITABLE)
    with pytest.raises(BufferError, match="copy=True"):
        tensor.__dlpack__()
    assert not np.from_dlpack(strided(tiny[EMBED], (4,), (1,), dtype="i32", readonly=True)
                              ).flags.writeable
    copied = tensor.__dlpack__(copy=True)
    assert "dltensor" in repr(copied)


def test_numpy_can_write_an_explicit_copy(made):
    array = np.from_dlpack(made, copy=True)
    array[:] = 0
    assert address(array) != made.address and made[1, 1] == 5


@pytest.mark.parametrize("arguments", [
    {"stream": 1}, {"dl_device": (2, 0)}, {"dl_device": (1, 1)}])
def test_dlpack_refuses_other_devices(made, arguments):
    with pytest.raises(BufferError):
        made.__dlpack__(**arguments)
    assert made.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("arguments", [
    {"max_version": 1}, {"max_version": (1,)}, {"max_version": ("a", 0)}, {"dl_device": "cpu"}])
def test_dlpack_refuses_nonsense(made, arguments):
    with pytest.raises(TypeError):
        made.__dlpack__(**arguments)
    with pytest.raises(TypeError):
        made.__dlpack__(None)


def test_copies_own_their_memory(session):
    session.feed([1, 2]).run()
    kept, live = session.logits.copy(), session.logits
    before = kept.tolist()
    session.feed([3]).run()
    assert kept.tolist() == before != live.tolist()
    assert copy.copy(kept).address != kept.address != copy.deepcopy(kept).address


@pytest.mark.parametrize("hold", [np.asarray, np.from_dlpack, memoryview, lambda tensor: tensor])
def test_views_outlive_session_and_model(hold):
    model = mm.load(threads=1)
    session = model.session(context=64)
    session.feed([1, 2, 3]).run()
    view = hold(session.logits)
    expected = bytes(view)
    session.close()
    model.close()
    del session, model
    gc.collect()
    reused = [b"\xab" * (n << 10) for n in range(8, 64) for _ in range(20)]  # if it were free
    assert bytes(view) == expected and len(reused) == 1120


def test_a_capsule_that_nobody_took_lets_go(made):
    before = sys.getrefcount(made)
    for version in (None, (1, 0)):
        capsule = made.__dlpack__(max_version=version)
        assert sys.getrefcount(made) == before + 1
        del capsule
        assert sys.getrefcount(made) == before


def test_a_taken_capsule_lets_go(made):
    before = sys.getrefcount(made)
    array = np.from_dlpack(made)
    assert sys.getrefcount(made) == before + 1
    del array
    assert sys.getrefcount(made) == before


def test_only_the_library_makes_tensors():
    for class_ in (mm.Tensor, _tensor.Tensor):
        with pytest.raises(TypeError, match="cannot be made"):
            class_()
    with pytest.raises(TypeError, match="immutable"):
        _tensor.Tensor.shape = ()


def test_tensors_are_not_pickled(made):
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(made)


@pytest.mark.parametrize("dtype, shape", [
    (1, (-1,)), (1, (2**62, 2**62)), (99, (1,)), (0, (1,)), (1, (1,) * 5), (6, (33,))])
def test_impossible_allocations(dtype, shape):
    with pytest.raises(ValueError):
        mm.Tensor._empty(dtype, shape)


def test_too_large_an_allocation():
    with pytest.raises(MemoryError):
        mm.Tensor._empty(1, (2**55,))


def test_scalars_and_empty_tensors():
    scalar, none = _native.empty("f32", ()), _native.empty("f32", (0, 4))
    assert scalar.tolist() == 0.0 and scalar.numpy().shape == () and scalar.nbytes == 4
    assert none.nbytes == 0 and none.numpy().shape == (0, 4) and none.copy().shape == (0, 4)
    with pytest.raises(TypeError, match="no length"):
        len(scalar)


def test_indexing(made, tiny):
    made[0] = 7
    made[1, 1:3] += 1
    assert made.tolist() == [[7, 7, 7, 7], [4, 6, 7, 7], [8, 9, 10, 11]]
    assert [float(row.sum()) for row in made] == [28, 24, 38]
    with pytest.raises(IndexError):
        made[3]
    with pytest.raises(TypeError, match="float()"):
        tiny[EMBED][0]
    with pytest.raises(ValueError):
        strided(made, (3, 4), (4, 1), readonly=True)[0] = 1

/* minimax2._tensor: the Python type behind every tensor, because cffi can export neither shaped
 * buffers nor DLPack.
 *
 * A Tensor is an mm2_tensor (pointer, shape, strides, dtype) and a strong reference to the object
 * that owns the memory: the owner of a model, session or batch, or a capsule around an
 * allocation. The library promises that such memory stays where it is while its owner lives, so a
 * Tensor, a buffer or a DLPack capsule taken from it may outlive close(): nothing dangles and
 * nothing is copied. A Tensor is immutable, like a tuple; what it looks at is not.
 *
 * Consumers see f32, f16 and i32 as such, bf16 as 16-bit words (DLPack: bfloat), FP8 as bytes
 * (DLPack 1.1: float8_e4m3fn) and block formats as bytes, the last dimension being a row's bytes.
 *
 * Limited API of Python 3.11. Methods that need no C are in python/minimax2/tensor.py. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "dlpack_abi.h"
#include "minimax2.h"

#define ALIGNMENT 64             /* what jax and the library's kernels like */
#define MEMORY "minimax2.memory" /* name of the capsules that own an allocation */

typedef struct {        /* how consumers see an item of a dtype */
    const char *format; /* of the buffer protocol */
    Py_ssize_t size;
    dl_dtype dl;
} item_type;

static const item_type item_f32 = {"f", 4, {DL_FLOAT, 32, 1}};
static const item_type item_f16 = {"e", 2, {DL_FLOAT, 16, 1}};
static const item_type item_bf16 = {"H", 2, {DL_BFLOAT, 16, 1}};
static const item_type item_f8 = {"B", 1, {DL_FLOAT8_E4M3FN, 8, 1}};
static const item_type item_i32 = {"i", 4, {DL_INT, 32, 1}};
static const item_type item_bytes = {"B", 1, {DL_UINT, 8, 1}};

static const item_type *item_of(int32_t dtype)
{
    switch (dtype) {
    case MM2_F32:
        return &item_f32;
    case MM2_F16:
        return &item_f16;
    case MM2_BF16:
        return &item_bf16;
    case MM2_F8_E4M3:
        return &item_f8;
    case MM2_I32:
        return &item_i32;
    default:
        return &item_bytes;
    }
}

typedef struct {
    PyObject ob_base;
    PyObject *owner;
    mm2_tensor view;
    const item_type *item;
    Py_ssize_t nbytes;
    Py_ssize_t shape[MM2_MAX_DIMS], strides[MM2_MAX_DIMS];    /* as exported; strides in bytes */
    int64_t dl_shape[MM2_MAX_DIMS], dl_strides[MM2_MAX_DIMS]; /* the same; strides in items */
} tensor;

/* ---- Making one ---- */

/* A new Tensor of class `type` on `view`; keeps a reference to `owner`. */
static PyObject *tensor_make(PyTypeObject *type, const mm2_tensor *view, PyObject *owner)
{
    int32_t block = mm2_dtype_block(view->dtype);
    if (block <= 0 || view->ndim < 0 || view->ndim > MM2_MAX_DIMS) {
        PyErr_SetString(PyExc_ValueError, "not a tensor: unknown dtype or number of dimensions");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    tensor *t = (tensor *)alloc(type, 0);
    if (!t)
        return NULL;
    t->owner = Py_NewRef(owner);
    t->view = *view;
    t->item = item_of(view->dtype);
    /* A block is a run of exported bytes: everything counted in elements shrinks to blocks and
     * grows to bytes; the last dimension is contiguous. */
    int64_t scale = block > 1 ? mm2_dtype_bytes(view->dtype) : 1;
    t->nbytes = t->item->size;
    for (int i = 0; i < view->ndim; i++) {
        int last = i == view->ndim - 1;
        t->dl_shape[i] = last ? view->shape[i] / block * scale : view->shape[i];
        t->dl_strides[i] = last && block > 1 ? 1 : view->strides[i] / block * scale;
        t->shape[i] = (Py_ssize_t)t->dl_shape[i];
        t->strides[i] = (Py_ssize_t)t->dl_strides[i] * t->item->size;
        t->nbytes *= t->shape[i];
    }
    return (PyObject *)t;
}

static PyObject *tensor_wrap(PyTypeObject *type, PyObject *args)
{
    unsigned long long address;
    PyObject *owner;
    if (!PyArg_ParseTuple(args, "KO:_wrap", &address, &owner))
        return NULL;
    return tensor_make(type, (const mm2_tensor *)(uintptr_t)address, owner);
}

static void memory_free(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, MEMORY));
}

/* A contiguous tensor of zeros that owns its memory; dtype and shape from `like`. */
static PyObject *tensor_allocate(PyTypeObject *type, const mm2_tensor *like)
{
    mm2_tensor view = *like;
    int32_t block = mm2_dtype_block(view.dtype);
    int64_t elements = 1, bytes = 0;
    if (block <= 0 || (view.ndim > 0 && view.shape[view.ndim - 1] % block)) {
        PyErr_SetString(PyExc_ValueError, "unknown dtype, or a row that is not whole blocks");
        return NULL;
    }
    for (int i = view.ndim - 1; i >= 0; i--) {
        view.strides[i] = elements;
        if (view.shape[i] < 0 || __builtin_mul_overflow(elements, view.shape[i], &elements)) {
            PyErr_SetString(PyExc_ValueError, "a shape that is negative or too large");
            return NULL;
        }
    }
    if (__builtin_mul_overflow(elements / block, mm2_dtype_bytes(view.dtype), &bytes) ||
        bytes > PY_SSIZE_T_MAX - ALIGNMENT)
        return PyErr_NoMemory();
    size_t room = ((size_t)bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, room);
    if (!memory)
        return PyErr_NoMemory();
    memset(memory, 0, room);
    PyObject *owner = PyCapsule_New(memory, MEMORY, memory_free);
    if (!owner) {
        free(memory);
        return NULL;
    }
    view.data = memory;
    view.nbytes = bytes;
    view.flags = 0;
    PyObject *result = tensor_make(type, &view, owner);
    Py_DECREF(owner);
    return result;
}

static PyObject *tensor_empty(PyTypeObject *type, PyObject *args)
{
    mm2_tensor like = {0};
    PyObject *shape;
    if (!PyArg_ParseTuple(args, "iO!:_empty", &like.dtype, &PyTuple_Type, &shape))
        return NULL;
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (ndim > MM2_MAX_DIMS)
        return PyErr_Format(PyExc_ValueError, "a tensor has at most %d dimensions", MM2_MAX_DIMS);
    like.ndim = (int32_t)ndim;
    for (Py_ssize_t i = 0; i < ndim; i++) {
        like.shape[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
        if (like.shape[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    return tensor_allocate(type, &like);
}

static int is_contiguous(const tensor *t)
{
    Py_ssize_t step = t->item->size;
    for (int i = t->view.ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->strides[i] != step && t->nbytes > 0)
            return 0;
        step *= t->shape[i];
    }
    return 1;
}

static PyObject *tensor_copy(PyObject *self, PyObject *unused)
{
    (void)unused;
    const tensor *from = (const tensor *)self;
    tensor *to = (tensor *)tensor_allocate(Py_TYPE(self), &from->view);
    if (!to)
        return NULL;
    Py_ssize_t n[MM2_MAX_DIMS] = {1, 1, 1, 1}, step[MM2_MAX_DIMS] = {0};
    int pad = MM2_MAX_DIMS - from->view.ndim;
    for (int i = 0; i < from->view.ndim; i++) {
        n[pad + i] = from->shape[i];
        step[pad + i] = from->strides[i];
    }
    size_t size = (size_t)from->item->size;
    char *out = to->view.data;
    for (Py_ssize_t a = 0; a < n[0]; a++) {
        for (Py_ssize_t b = 0; b < n[1]; b++) {
            for (Py_ssize_t c = 0; c < n[2]; c++) {
                const char *row =
                    (const char *)from->view.data + a * step[0] + b * step[1] + c * step[2];
                for (Py_ssize_t d = 0; d < n[3]; d++, out += size)
                    memcpy(out, row + d * step[3], size);
            }
        }
    }
    return (PyObject *)to;
}

static PyObject *tensor_float(PyObject *self, PyObject *unused)
{
    (void)unused;
    tensor *from =
        (tensor *)(is_contiguous((tensor *)self) ? Py_NewRef(self) : tensor_copy(self, NULL));
    if (!from)
        return NULL;
    mm2_tensor like = from->view;
    like.dtype = MM2_F32;
    tensor *to = (tensor *)tensor_allocate(Py_TYPE(self), &like);
    if (to) {
        mm2_status status;
        Py_BEGIN_ALLOW_THREADS status =
            mm2_tensor_decode(&from->view, to->view.data, to->nbytes / (int64_t)sizeof(float));
        Py_END_ALLOW_THREADS if (status < 0)
        {
            PyErr_SetString(PyExc_ValueError, mm2_error());
            Py_CLEAR(to);
        }
    }
    Py_DECREF(from);
    return (PyObject *)to;
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)type;
    (void)args;
    (void)keywords;
    PyErr_SetString(PyExc_TypeError,
                    "a Tensor is a view that a model or a session hands out; it cannot be made");
    return NULL;
}

static int tensor_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((tensor *)self)->owner);
    return 0;
}

static void tensor_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(((tensor *)self)->owner);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- Objects of the library ----
 *
 * A capsule releases its object when it is deallocated, and at no other time: that is after every
 * finaliser of a collected cycle has run, so that none of them can meet a released object. A
 * finaliser of Python's or cffi's own would run among them, in any order. */

#define RELEASES(noun, function)                                                                   \
    static void noun##_drop(PyObject *capsule)                                                     \
    {                                                                                              \
        mm2_##noun *object = PyCapsule_GetPointer(capsule, #noun);                                 \
        Py_BEGIN_ALLOW_THREADS;                                                                    \
        function(object);                                                                          \
        Py_END_ALLOW_THREADS;                                                                      \
    }
RELEASES(model, mm2_model_release)
RELEASES(tokenizer, mm2_tokenizer_release)
RELEASES(encoding, mm2_encoding_free)
RELEASES(reply, mm2_reply_free)
RELEASES(grammar, mm2_grammar_free)
RELEASES(constraint, mm2_constraint_free)
RELEASES(session, mm2_session_free)
RELEASES(batch, mm2_batch_free)
RELEASES(sampler, mm2_sampler_free)

static const struct {
    const char *name; /* of the capsule, too */
    PyCapsule_Destructor drop;
} kinds[] = {
    {"model", model_drop},     {"tokenizer", tokenizer_drop}, {"encoding", encoding_drop},
    {"reply", reply_drop},     {"session", session_drop},     {"batch", batch_drop},
    {"sampler", sampler_drop}, {"grammar", grammar_drop},     {"constraint", constraint_drop}};

static PyObject *hold(PyObject *module, PyObject *args)
{
    (void)module;
    const char *kind;
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "sK:hold", &kind, &address))
        return NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kind, kinds[i].name))
            return PyCapsule_New((void *)(uintptr_t)address, kinds[i].name, kinds[i].drop);
    return PyErr_Format(PyExc_ValueError, "the library has no objects of the kind %s", kind);
}

/* ---- Attributes ---- */

static PyObject *tuple_of(const int64_t *values, int n)
{
    PyObject *result = PyTuple_New(n);
    for (int i = 0; result && i < n; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (!value || PyTuple_SetItem(result, i, value) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *get_shape(PyObject *self, void *unused)
{
    (void)unused;
    const mm2_tensor *view = &((tensor *)self)->view;
    return tuple_of(view->shape, view->ndim);
}

static PyObject *get_strides(PyObject *self, void *unused)
{
    (void)unused;
    const mm2_tensor *view = &((tensor *)self)->view;
    return tuple_of(view->strides, view->ndim);
}

static PyObject *get_dtype(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(mm2_dtype_name(((tensor *)self)->view.dtype));
}

static PyObject *get_nbytes(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t(((tensor *)self)->nbytes);
}

static PyObject *get_readonly(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((tensor *)self)->view.flags & MM2_READ_ONLY);
}

static PyObject *get_address(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromVoidPtr(((tensor *)self)->view.data);
}

static PyObject *get_struct(PyObject *self, void *unused)
{
    (void)unused;
    return PyBytes_FromStringAndSize((const char *)&((tensor *)self)->view, sizeof(mm2_tensor));
}

/* ---- Buffer protocol ---- */

static int tensor_getbuffer(PyObject *self, Py_buffer *b, int flags)
{
    tensor *t = (tensor *)self;
    int readonly = t->view.flags & MM2_READ_ONLY ? 1 : 0;
    int contiguous = is_contiguous(t);
    b->obj = NULL;
    if ((flags & PyBUF_WRITABLE) && readonly) {
        PyErr_SetString(PyExc_BufferError, "this tensor is read-only; load(..., writable=True) "
                                           "maps weights copy-on-write");
        return -1;
    }
    if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && !(contiguous && t->view.ndim < 2)) {
        PyErr_SetString(PyExc_BufferError, "this tensor is in row-major order");
        return -1;
    }
    if (!contiguous && ((flags & PyBUF_STRIDES) != PyBUF_STRIDES ||
                        (flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS ||
                        (flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS)) {
        PyErr_SetString(PyExc_BufferError, "this tensor is not contiguous; copy() it first");
        return -1;
    }
    b->buf = t->view.data;
    b->len = t->nbytes;
    b->itemsize = t->item->size;
    b->readonly = readonly;
    b->ndim = t->view.ndim;
    b->format = flags & PyBUF_FORMAT ? (char *)t->item->format : NULL;
    b->shape = flags & PyBUF_ND ? t->shape : NULL;
    b->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? t->strides : NULL;
    b->suboffsets = NULL;
    b->internal = NULL;
    b->obj = Py_NewRef(self);
    return 0;
}

/* ---- DLPack ---- */

/* Consumers may drop a tensor from any thread, and after the interpreter is gone: then the
 * reference is leaked, as the specification advises. */
static void release_reference(void *object)
{
    if (!Py_IsInitialized())
        return;
    PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF((PyObject *)object);
    PyGILState_Release(state);
}

static void legacy_deleter(dl_managed *self)
{
    release_reference(self->context);
    free(self);
}

static void versioned_deleter(dl_managed_versioned *self)
{
    release_reference(self->context);
    free(self);
}

/* A consumer renames the capsule it took; only one that was never taken is released here. */
static void legacy_capsule_free(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor"))
        legacy_deleter(PyCapsule_GetPointer(capsule, "dltensor"));
}

static void versioned_capsule_free(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned"))
        versioned_deleter(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
}

static void describe(dl_tensor *out, tensor *t, int float8)
{
    *out = (dl_tensor){.data = t->view.data,
                       .device = {DL_CPU, 0},
                       .ndim = t->view.ndim,
                       .dtype = t->item->dl,
                       .shape = t->dl_shape,
                       .strides = t->dl_strides};
    if (t->view.dtype == MM2_F8_E4M3 && !float8)
        out->dtype = item_bytes.dl;
}

static PyObject *export_legacy(tensor *t)
{
    if (t->view.flags & MM2_READ_ONLY) {
        PyErr_SetString(
            PyExc_BufferError,
            "this tensor is read-only, and DLPack before version 1.0 cannot say so; ask "
            "for copy=True, or max_version=(1, 0)");
        return NULL;
    }
    dl_managed *m = calloc(1, sizeof *m);
    if (!m)
        return PyErr_NoMemory();
    describe(&m->tensor, t, 0);
    m->context = Py_NewRef((PyObject *)t);
    m->deleter = legacy_deleter;
    PyObject *capsule = PyCapsule_New(m, "dltensor", legacy_capsule_free);
    if (!capsule)
        legacy_deleter(m);
    return capsule;
}

static PyObject *export_versioned(tensor *t, int float8, int copied)
{
    dl_managed_versioned *m = calloc(1, sizeof *m);
    if (!m)
        return PyErr_NoMemory();
    m->major = DL_MAJOR;
    m->minor = float8 ? DL_MINOR : 0;
    m->flags =
        (t->view.flags & MM2_READ_ONLY ? DL_FLAG_READ_ONLY : 0) | (copied ? DL_FLAG_IS_COPIED : 0);
    describe(&m->tensor, t, float8);
    m->context = Py_NewRef((PyObject *)t);
    m->deleter = versioned_deleter;
    PyObject *capsule = PyCapsule_New(m, "dltensor_versioned", versioned_capsule_free);
    if (!capsule)
        versioned_deleter(m);
    return capsule;
}

static PyObject *tensor_dlpack(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    int major = 0, minor = 0, type = DL_CPU, id = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OOOO:__dlpack__", names, &stream, &version,
                                     &device, &copy))
        return NULL;
    if (version != Py_None &&
        (!PyTuple_Check(version) ||
         !PyArg_ParseTuple(version, "ii;max_version: (major, minor)", &major, &minor)))
        return PyErr_Occurred()
                   ? NULL
                   : PyErr_Format(PyExc_TypeError, "max_version is None or (major, minor)");
    if (device != Py_None && (!PyTuple_Check(device) ||
                              !PyArg_ParseTuple(device, "ii;dl_device: (type, id)", &type, &id)))
        return PyErr_Occurred() ? NULL
                                : PyErr_Format(PyExc_TypeError, "dl_device is None or (type, id)");
    if (stream != Py_None || type != DL_CPU || id != 0)
        return PyErr_Format(PyExc_BufferError, "tensors are in CPU memory: stream must be None and "
                                               "dl_device None or (1, 0)");
    int copied = copy == Py_None ? 0 : PyObject_IsTrue(copy);
    if (copied < 0)
        return NULL;
    PyObject *source = copied ? tensor_copy(self, NULL) : Py_NewRef(self);
    if (!source)
        return NULL;
    int float8 = major > 1 || (major == 1 && minor >= 1);
    PyObject *capsule = major >= 1 ? export_versioned((tensor *)source, float8, copied)
                                   : export_legacy((tensor *)source);
    Py_DECREF(source);
    return capsule;
}

static PyObject *tensor_dlpack_device(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return Py_BuildValue("(ii)", DL_CPU, 0);
}

/* ---- The type and the module ---- */

static PyMethodDef tensor_methods[] = {
    {"_wrap", (PyCFunction)tensor_wrap, METH_VARARGS | METH_CLASS,
     "_wrap(address of an mm2_tensor, owner)\n--\n\nA view; keeps the owner alive."},
    {"_empty", (PyCFunction)tensor_empty, METH_VARARGS | METH_CLASS,
     "_empty(dtype number, shape)\n--\n\nA contiguous tensor of zeros with memory of its own."},
    {"copy", tensor_copy, METH_NOARGS,
     "copy($self)\n--\n\nA contiguous, writable copy with memory of its own, 64-byte aligned."},
    {"float", tensor_float, METH_NOARGS,
     "float($self)\n--\n\nA float32 copy with every element decoded, [shape].\n\n"
     "FP8 codes are decoded without their block scales: for weights see\n"
     "Model.weight()."},
    {"__dlpack__", (PyCFunction)(void (*)(void))tensor_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
     "A DLPack capsule: versioned from max_version (1, 0) on, legacy before.\n\n"
     "Raises BufferError for another device, and for read-only memory that a\n"
     "legacy consumer could write to."},
    {"__dlpack_device__", tensor_dlpack_device, METH_NOARGS,
     "__dlpack_device__($self)\n--\n\n(1, 0): CPU."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tensor_attributes[] = {
    {"shape", get_shape, NULL, "Elements along each dimension, outermost first.", NULL},
    {"strides", get_strides, NULL, "Steps along each dimension, in elements.", NULL},
    {"dtype", get_dtype, NULL, "\"f32\", \"f16\", \"bf16\", \"f8_e4m3\", \"i32\", \"q4_k\", ...",
     NULL},
    {"nbytes", get_nbytes, NULL, "Bytes of all elements.", NULL},
    {"readonly", get_readonly, NULL, "Whether writing would fault.", NULL},
    {"address", get_address, NULL, "Where the first element lies in memory.", NULL},
    {"_struct", get_struct, NULL, "The mm2_tensor, as bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, "A view on memory that a model, a session or an allocation of its own keeps."},
    {Py_tp_new, tensor_new},
    {Py_tp_traverse, tensor_traverse},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_attributes},
    {Py_bf_getbuffer, tensor_getbuffer},
    {0, NULL},
};

static PyType_Spec tensor_spec = {
    .name = "minimax2._tensor.Tensor",
    .basicsize = sizeof(tensor),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tensor_slots,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &tensor_spec, NULL);
    if (!type)
        return -1;
    int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}

static PyMethodDef module_functions[] = {
    {"hold", hold, METH_VARARGS,
     "hold(kind, address)\n--\n\nA capsule that releases an object of the library when nothing "
     "refers to it\nany more. Kinds: model, tokenizer, encoding, reply, grammar, constraint, "
     "session, batch, "
     "sampler."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "minimax2._tensor",
    .m_doc = "The Tensor type (buffer protocol and DLPack), and owners of the library's objects.",
    .m_methods = module_functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__tensor(void)
{
    return PyModuleDef_Init(&module_definition);
}

/* The memory layout that DLPack 1.1 prescribes for exchanged tensors, written from its
 * specification: device and type codes, the tensor, and the two managed forms. Only what a producer
 * of CPU tensors needs. */
#ifndef MM2_DLPACK_ABI_H
#define MM2_DLPACK_ABI_H

#include <stdint.h>

enum { DL_CPU = 1 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_FLOAT8_E4M3FN = 10 };
enum { DL_MAJOR = 1, DL_MINOR = 1 };
enum { DL_FLAG_READ_ONLY = 1, DL_FLAG_IS_COPIED = 2 };

typedef struct dl_device {
    int32_t type, id;
} dl_device;

typedef struct dl_dtype {
    uint8_t code, bits;
    uint16_t lanes;
} dl_dtype;

typedef struct dl_tensor {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_dtype dtype;
    int64_t *shape;
    int64_t *strides; /* in elements */
    uint64_t byte_offset;
} dl_tensor;

/* In a capsule named "dltensor". The consumer calls deleter(self) when it is done. */
typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

/* In a capsule named "dltensor_versioned". */
typedef struct dl_managed_versioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct dl_managed_versioned *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_managed_versioned;

_Static_assert(sizeof(void *) != 8 || sizeof(dl_tensor) == 48, "DLTensor");
_Static_assert(sizeof(void *) != 8 || sizeof(dl_managed) == 64, "DLManagedTensor");
_Static_assert(sizeof(void *) != 8 || sizeof(dl_managed_versioned) == 80,
               "DLManagedTensorVersioned");

#endif

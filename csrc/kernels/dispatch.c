/* From the processor to a table of kernels.
 *
 * Each level starts as a copy of the one below it and fills the slots it has. The tables of what
 * the processor can run are built together, once, and never change; blas is built when it is first
 * asked for, because it loads a library. The environment is read at each call with MM2_ISA_AUTO, so
 * that a program may set the variable before it opens a model. */
#include "kernels/kernels.h"

#include "base/cpu.h"
#include "base/status.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static mm2_kernels avx2, avx512, amx, blas;
static const mm2_kernels *best;
static pthread_once_t native_once = PTHREAD_ONCE_INIT;

static void build_native(void)
{
    best = &mm2_kernels_ref;
#if defined(__x86_64__)
    const mm2_cpu_facts *cpu = mm2_cpu_find();
    if (cpu->avx2) {
        avx2 = *best;
        mm2_kernels_avx2(&avx2);
        best = &avx2;
    }
    if (cpu->avx512) {
        avx512 = *best;
        mm2_kernels_avx512(&avx512);
        best = &avx512;
    }
    if (cpu->amx) {
        amx = *best;
        mm2_kernels_amx(&amx);
        best = &amx;
    }
#endif
}

static const mm2_kernels *find_blas(void)
{
    /* Not a pthread_once: a failure leaves its sentence with every caller, and may be mended. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int ready;
    pthread_mutex_lock(&lock);
    if (!ready) {
        blas = *best;
        ready = mm2_kernels_blas(&blas) == 0;
    }
    const mm2_kernels *found = ready ? &blas : NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

/* The number behind a name of the environment variable; -1 if it has none. */
static int32_t parse_isa(const char *name)
{
    static const char *const names[] = {"auto", "ref", "avx2", "avx512", "amx", "blas"};
    for (int32_t isa = MM2_ISA_AUTO; isa <= MM2_ISA_BLAS; isa++)
        if (strcmp(name, names[isa]) == 0)
            return isa;
    return -1;
}

const mm2_kernels *mm2_kernels_find(int32_t isa)
{
    pthread_once(&native_once, build_native);
    if (isa == MM2_ISA_AUTO) {
        const char *name = getenv("MM2_ISA");
        if (name && *name) {
            isa = parse_isa(name);
            if (isa < 0) {
                mm2_fail(MM2_E_ARG,
                         "the environment variable MM2_ISA is \"%s\"; it may be ref, avx2, "
                         "avx512, amx, blas, or auto or unset for the best",
                         name);
                return NULL;
            }
        }
    }
    switch (isa) {
    case MM2_ISA_AUTO:
        return best;
    case MM2_ISA_REF:
        return &mm2_kernels_ref;
    case MM2_ISA_AVX2:
        if (avx2.name)
            return &avx2;
        mm2_fail(MM2_E_UNSUPPORTED,
                 "the avx2 kernels need a processor with AVX2, FMA and F16C; this one has %s",
                 mm2_cpu());
        return NULL;
    case MM2_ISA_AVX512:
        if (avx512.name)
            return &avx512;
        mm2_fail(MM2_E_UNSUPPORTED,
                 "the avx512 kernels need a processor with AVX-512 F, BW, VL, DQ, VNNI and VBMI; "
                 "this one has %s",
                 mm2_cpu());
        return NULL;
    case MM2_ISA_AMX:
        if (amx.name)
            return &amx;
        mm2_fail(MM2_E_UNSUPPORTED,
                 "the amx kernels need a processor with AMX (tiles, int8 and bf16), the avx512 "
                 "kernels, and the system's permission to use tiles, which it refuses to processes "
                 "with small signal stacks; this one has %s",
                 mm2_cpu());
        return NULL;
    case MM2_ISA_BLAS:
        return find_blas();
    default:
        mm2_fail(MM2_E_ARG, "isa is %d; expected MM2_ISA_AUTO (0) to MM2_ISA_BLAS (5)", isa);
        return NULL;
    }
}

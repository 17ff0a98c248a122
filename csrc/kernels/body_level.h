/* A vector level: all bodies, compiled in terms of the primitives of the lanes_*.h and codes_*.h that
 * the level's file has included, and how they fill the table. */
#include "kernels/kernels.h"

#include "base/cpu.h"

#include <math.h>

#include "kernels/body_exp.h"
#include "kernels/body_elementwise.h"
#include "kernels/body_float.h"
#include "kernels/body_attend_int8.h"
#include "kernels/body_attend.h"
#include "kernels/body_bf16.h"
#include "kernels/body_unpack.h"
#include "kernels/body_planes.h"
#include "kernels/body_int_direct.h"
#include "kernels/body_pieces.h"
#include "kernels/body_codebooks.h"
#include "kernels/body_int_panels.h"
#include "kernels/body_exact.h"
#include "kernels/body_limits.h"
#include "kernels/body_slots.h"

static void fill_level(mm2_kernels *t)
{
    fill_matmul(t);
    stream_tune(mm2_cpu_find());
    t->quantize[MM2_ACT_BF16] = quantize_bf16;
    t->quantize[MM2_ACT_Q8_32] = quantize_q8_32;
    t->quantize[MM2_ACT_Q8_256] = quantize_q8_256;
    t->rms_norm = rms_norm;
    t->rope = rope;
    t->swiglu = swiglu;
    t->sigmoid = sigmoid;
    t->axpy = axpy;
    t->hadamard = hadamard;
    t->quantize_head = quantize_head;
    t->attend[MM2_KV_F32] = attend_f32;
    t->attend[MM2_KV_BF16] = attend_bf16;
    t->attend[MM2_KV_INT8] = attend_int8;
    t->read = read_bytes;
    t->peak[MM2_PEAK_INT8] = peak_int8;
    t->peak[MM2_PEAK_F32] = peak_f32;
}

/* Finding the tensors of one weight, by what is there: no list in a configuration is asked, because
 * those lists are patterns in three dialects, and the tensors know better. X is the module's name:
 *
 *   X.weight          floats, or blocks of GGUF. NVFP4 blocks may have X.scale beside them
 *   X.weight          F8_E4M3; scales for 128 x 128 codes, for each row, or for all
 *   X.weight          U8; X.weight_scale F8_E4M3 and X.weight_scale_2: NVFP4 of modelopt
 *   X.weight_packed   U8; X.weight_scale F8_E4M3, X.weight_global_scale: of compressed-tensors
 *   X.weight, or X.weight_packed   U8; X.weight_scale U8: MXFP4 of Quark, of compressed-tensors
 *   X.weight_packed   I32; X.weight_scale, _shape, _zero_point: codes of 4 or 8 bits
 *
 * weight_scale_2 multiplies the scales, weight_global_scale divides them. A stack of matrices is
 * named without ".weight", and what stands beside it likewise. What belongs to activations or the
 * cache (input_scale, k_scale) is left alone. Anything else beside a weight that would change its
 * values is refused, because another form than these could mean anything.
 *
 * Codes and scales are used where they lie. Only FP8 scales, of which there are few, are copied if
 * they are not aligned float32; and a global scale, which is one number, is read when the model is
 * opened. The copies live in the mm2_floats of whoever asked. */
#include "model/quantised.h"

#include "base/status.h"
#include "tensor/dtype.h"
#include "tensor/formats.h"
#include "tensor/quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    NAME = MM2_MAX_NAME + 1,
    LONG_NAME = NAME + 32, /* and an ending */
    CHUNK = 1 << 16,       /* floats of a block of copies */
    CLAIMS = 4
};

/* ---- Copies of scales ---- */

struct mm2_floats_chunk {
    struct mm2_floats_chunk *next;
    int64_t used, room;
    float values[];
};

static float *take_floats(mm2_floats *f, int64_t n)
{
    struct mm2_floats_chunk *c = f->chunks;
    if (!c || n > c->room - c->used) {
        int64_t room = n > CHUNK ? n : CHUNK;
        if (room > (INT64_MAX - (int64_t)sizeof *c) / (int64_t)sizeof(float))
            return NULL;
        c = malloc(sizeof *c + (size_t)room * sizeof(float));
        if (!c)
            return NULL;
        *c = (struct mm2_floats_chunk){.next = f->chunks, .room = room};
        f->chunks = c;
    }
    c->used += n;
    return c->values + c->used - n;
}

void mm2_floats_free(mm2_floats *f)
{
    for (struct mm2_floats_chunk *c = f->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    f->chunks = NULL;
}

/* ---- Names ---- */

typedef struct finder {
    const mm2_checkpoint *c;
    const char *name;    /* "X.weight", or a stack's */
    size_t length, stem; /* stem: length of X; of all of a stack's name */
    int32_t ndim;
    const int64_t *shape; /* what is demanded of it; NULL: nothing */
    mm2_floats *floats;
    mm2_stack *out;
    const mm2_entry *claimed[CLAIMS]; /* what has been found to be part of it */
    int claims;
    char other[LONG_NAME]; /* the name that was last looked for */
} finder;

static const char weight_ending[] = ".weight", packed_ending[] = "_packed";

static finder begin(const mm2_checkpoint *c, const char *name, mm2_floats *floats, mm2_stack *out)
{
    size_t length = strlen(name), tail = sizeof weight_ending - 1;
    int is_stem = length > tail && !strcmp(name + length - tail, weight_ending);
    *out = (mm2_stack){0};
    return (finder){.c = c,
                    .name = name,
                    .length = length,
                    .stem = is_stem ? length - tail : length,
                    .floats = floats,
                    .out = out};
}

/* Writes the name with this ending to f->other: behind X if it begins with a dot, else behind the
 * name. */
static const char *beside(finder *f, const char *ending)
{
    size_t length = *ending == '.' ? f->stem : f->length;
    memcpy(f->other, f->name, length);
    strcpy(f->other + length, ending);
    return f->other;
}

static mm2_status claim(finder *f, const mm2_entry *e)
{
    f->claimed[f->claims++] = e;
    if (__builtin_add_overflow(f->out->nbytes, e->view.nbytes, &f->out->nbytes))
        return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is too large for any memory", e->file,
                        e->name);
    return MM2_OK;
}

/* The tensor with one of these endings, NULL at their end; *out NULL if there is none. FORMAT if
 * there are two, UNSUPPORTED if no view describes it. */
static mm2_status find_part(finder *f, const char *const *endings, const mm2_entry **out)
{
    *out = NULL;
    for (; *endings; endings++) {
        const char *name = beside(f, *endings);
        const mm2_entry *e = mm2_checkpoint_find(f->c, name);
        if (!e && mm2_checkpoint_names(f->c, name))
            return mm2_checkpoint_missing(f->c, name, "its weight");
        if (!e)
            continue;
        if (*out)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensors \"%s\" and \"%s\" both scale \"%s\": which one counts is "
                            "not known",
                            e->file, (*out)->name, name, f->name);
        *out = e;
        mm2_status status = claim(f, e);
        if (status)
            return status;
    }
    return MM2_OK;
}

static mm2_status missing_part(finder *f, const char *codes, const char *what, const char *ending)
{
    const mm2_entry *e = f->out->codes;
    return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" is %s but its %s \"%s\" are missing", e->file,
                    e->name, codes, what, beside(f, ending));
}

/* Endings that change a weight's values, whichever forms have them. */
static const char *const value_endings[] = {
    "_scale_inv",  "_scale", "_weight_scale",    "_scale_2", "_weight_scale_2", "_global_scale",
    "_zero_point", "_g_idx", ".pre_quant_scale", ".scale",   ".weight.scale",   ".qscale_weight"};

/* Endings of what belongs to a weight and changes none of its values. */
static const char *const other_endings[] = {
    "_shape",   ".input_scale", "_input_scale", ".input_global_scale", ".weight.input_scale",
    ".k_scale", ".v_scale"};

/* Everything that would change the weight's values must have been claimed. */
static mm2_status check_unclaimed(finder *f)
{
    if (mm2_act_of(f->out->first.dtype) == MM2_ACT_NONE)
        return MM2_OK; /* nor will anybody multiply it */
    for (size_t i = 0; i < sizeof value_endings / sizeof *value_endings; i++) {
        const char *name = beside(f, value_endings[i]);
        if (!mm2_checkpoint_has(f->c, name))
            continue;
        int is_claimed = 0;
        for (int k = 0; k < f->claims; k++)
            is_claimed |= !strcmp(f->claimed[k]->name, name);
        if (!is_claimed)
            return mm2_fail(MM2_E_UNSUPPORTED,
                            "%s: tensor \"%s\" stands beside \"%s\", of dtype %s: this build knows "
                            "no such form of a weight",
                            f->c->path, name, f->out->codes->name,
                            mm2_dtype_name(f->out->codes->view.dtype));
    }
    return MM2_OK;
}

/* ---- Shapes ---- */

static mm2_status wrong_dtype(const mm2_entry *e, const char *expected)
{
    return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" has dtype %s, expected %s", e->file, e->name,
                    mm2_dtype_name(e->view.dtype), expected);
}

static const char no_matrix[] = "f32, f16 or bf16: it is no matrix";

static mm2_status wrong_shape(const mm2_entry *e, const char *expected)
{
    char found[96];
    mm2_shape_show(found, sizeof found, e->view.ndim, e->view.shape);
    return mm2_fail(MM2_E_FORMAT, "%s: tensor \"%s\" has shape %s, expected %s", e->file, e->name,
                    found, expected);
}

/* The decoded shape is that of the codes, with `columns` for the last dimension. */
static void set_shape(mm2_stack *s, int64_t columns)
{
    const mm2_tensor *v = &s->codes->view;
    s->ndim = v->ndim;
    memcpy(s->shape, v->shape, sizeof s->shape);
    if (s->ndim)
        s->shape[s->ndim - 1] = columns;
}

static mm2_status check_shape(const finder *f)
{
    char expected[96], found[96], decoded[96], also[128] = "";
    const mm2_stack *s = f->out;
    const mm2_entry *e = s->codes;
    if (!f->shape ||
        (s->ndim == f->ndim && !memcmp(s->shape, f->shape, (size_t)f->ndim * sizeof *f->shape)))
        return MM2_OK;
    mm2_shape_show(expected, sizeof expected, f->ndim, f->shape);
    mm2_shape_show(found, sizeof found, e->view.ndim, e->view.shape);
    mm2_shape_show(decoded, sizeof decoded, s->ndim, s->shape);
    if (strcmp(found, decoded))
        mm2_format(also, sizeof also, ", %s decoded", decoded);
    return mm2_fail(MM2_E_FORMAT,
                    "%s: tensor \"%s\" has shape %s%s, expected %s by the configuration", e->file,
                    e->name, found, also, expected);
}

static int64_t ceiling(int64_t n, int64_t by)
{
    return n / by + (n % by != 0);
}

static int64_t rows_of(const mm2_stack *s)
{
    return s->ndim > 1 ? s->shape[s->ndim - 2] : 1;
}

static int64_t columns_of(const mm2_stack *s)
{
    return s->ndim ? s->shape[s->ndim - 1] : 1;
}

/* Is `e` of the stack's shape with `tail` in place of rows and columns? */
static int has_tail(const mm2_stack *s, const mm2_entry *e, int32_t count, const int64_t *tail)
{
    int32_t lead = s->ndim - 2;
    return e->view.ndim == lead + count &&
           !memcmp(e->view.shape, s->shape, (size_t)lead * sizeof *tail) &&
           !memcmp(e->view.shape + lead, tail, (size_t)count * sizeof *tail);
}

static int64_t elements_of(const mm2_entry *e)
{
    return e->view.nbytes / mm2_dtype_bytes(e->view.dtype);
}

/* Matrices of the stack. */
static int64_t count_of(const mm2_stack *s)
{
    int64_t count = 1;
    for (int32_t i = 0; i < s->ndim - 2; i++)
        count *= s->shape[i]; /* its bytes were counted without overflow, or one of them is 0 */
    return count;
}

/* ---- FP8 ---- */

/* Scales as float32: where they lie, or a copy. */
static mm2_status float_scales(finder *f, const mm2_entry *e, const float **out)
{
    const mm2_tensor *v = &e->view;
    int64_t n = elements_of(e);
    if (v->dtype == MM2_F32 && (uintptr_t)v->data % sizeof(float) == 0) {
        *out = v->data;
        return MM2_OK;
    }
    if (!f->floats)
        return MM2_OK;
    float *copy = take_floats(f->floats, n);
    if (!copy)
        return mm2_fail(MM2_E_NOMEM, "%s: out of memory for the %lld scales \"%s\"", e->file,
                        (long long)n, e->name);
    if (v->dtype != MM2_U8)
        mm2_dequantize_row(v->dtype, v->data, copy, n);
    else /* E8M0: 2^(e - 127) */
        for (int64_t i = 0; i < n; i++)
            copy[i] = 2 * mm2_mxfp4_scale(((const uint8_t *)v->data)[i]);
    *out = copy;
    return MM2_OK;
}

/* Which codes share a scale, by the shape of the scales. */
static mm2_status place_scales(mm2_stack *s, const mm2_entry *e)
{
    mm2_weight *w = &s->first;
    int64_t rows = rows_of(s), columns = columns_of(s), count = count_of(s);
    int64_t high = ceiling(rows, MM2_SCALE_BLOCK), wide = ceiling(columns, MM2_SCALE_BLOCK);
    int64_t block[] = {high, wide}, spread[] = {high, 1, wide, 1}, row[] = {rows, 1},
            one[] = {1, 1};
    if (has_tail(s, e, 2, block) || (s->ndim == 2 && has_tail(s, e, 4, spread))) {
        w->scale_rows = MM2_SCALE_BLOCK;
        s->scale_step = high * wide * 4;
    } else if (has_tail(s, e, 2, row) || has_tail(s, e, 1, row)) {
        w->scale_rows = 1;
        s->scale_step = rows * 4;
    } else if (elements_of(e) == 1 || has_tail(s, e, 2, one) || has_tail(s, e, 1, one) ||
               (s->ndim > 2 && has_tail(s, e, 0, one))) {
        w->scale_rows = INT32_MAX;
        s->scale_step = elements_of(e) == count ? 4 : 0;
    } else {
        char blocks[96], expected[256];
        int64_t shape[MM2_MAX_DIMS];
        memcpy(shape, s->shape, sizeof shape);
        shape[s->ndim - 2] = high;
        shape[s->ndim - 1] = wide;
        mm2_shape_show(blocks, sizeof blocks, s->ndim, shape);
        mm2_format(expected, sizeof expected,
                   "%s: one scale for %d x %d codes; or one for each of %lld rows, or one for all",
                   blocks, MM2_SCALE_BLOCK, MM2_SCALE_BLOCK, (long long)rows);
        return wrong_shape(e, expected);
    }
    return MM2_OK;
}

static mm2_status read_fp8(finder *f)
{
    static const char *const endings[] = {"_scale_inv", "_scale",         "_weight_scale",
                                          ".scale",     ".qscale_weight", NULL};
    mm2_stack *s = f->out;
    const mm2_entry *codes = s->codes, *scale;
    if (codes->view.ndim < 2)
        return wrong_dtype(codes, no_matrix);
    mm2_status status = find_part(f, endings, &scale);
    if (status)
        return status;
    if (!scale)
        return missing_part(f, "FP8", "scales", "_scale_inv");
    int64_t groups[] = {rows_of(s), ceiling(columns_of(s), 32)};
    int32_t dtype = scale->view.dtype;
    if (dtype == MM2_U8 && has_tail(s, scale, 2, groups))
        return mm2_fail(
            MM2_E_UNSUPPORTED,
            "%s: tensor \"%s\" is MXFP8, with a scale for 32 codes; this build reads FP8 "
            "with scales for 128 x 128 codes, rows or whole matrices",
            codes->file, codes->name);
    if (dtype != MM2_F32 && dtype != MM2_F16 && dtype != MM2_BF16 && dtype != MM2_U8)
        return wrong_dtype(scale, "f32, f16, bf16 or u8 (E8M0)");
    status = place_scales(s, scale);
    return status ? status : float_scales(f, scale, &s->first.scale);
}

/* ---- 4-bit floats ---- */

/* A float32 for all matrices of the stack, or for each. */
static mm2_status place_global(finder *f, const mm2_entry *e, int divides, int may_be_0)
{
    mm2_stack *s = f->out;
    int64_t n = elements_of(e), count = count_of(s);
    if (e->view.dtype != MM2_F32)
        return wrong_dtype(e, "f32");
    if (n != 1 && n != count) {
        char expected[64];
        mm2_format(expected, sizeof expected, count > 1 ? "[1] or [%lld]" : "[1]",
                   (long long)count);
        return wrong_shape(e, expected);
    }
    for (int64_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, (const char *)e->view.data + i * 4, 4);
        if (!isfinite(value) || value < 0 || (value == 0 && !may_be_0))
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\" is %g, expected a finite number above 0: scales are "
                            "%s it",
                            e->file, e->name, (double)value,
                            divides ? "divided by" : "multiplied by");
    }
    s->global = e;
    s->global_step = n == count ? 4 : 0;
    s->first.global_divides = divides;
    return MM2_OK;
}

static mm2_status read_f4(finder *f)
{
    static const char *const scales[] = {"_scale", "_weight_scale", NULL};
    static const char *const factors[] = {"_scale_2", "_weight_scale_2", NULL};
    static const char *const divisors[] = {"_global_scale", NULL};
    mm2_stack *s = f->out;
    const mm2_entry *codes = s->codes, *scale, *factor, *divisor;
    if (codes->view.ndim < 2)
        return wrong_dtype(codes, no_matrix);
    mm2_status status = find_part(f, scales, &scale);
    if (!status && !scale)
        status = missing_part(f, "packed codes", "scales", "_scale");
    if (status)
        return status;
    if (scale->view.dtype != MM2_F8_E4M3 && scale->view.dtype != MM2_U8)
        return wrong_dtype(scale,
                           "f8_e4m3 (NVFP4) or u8 (MXFP4); other 4-bit layouts of modelopt and "
                           "Quark are not supported");
    int nv = scale->view.dtype == MM2_F8_E4M3;
    int64_t group = nv ? 16 : 32, columns = columns_of(s);
    int64_t tail[] = {rows_of(s), columns / group};
    if (columns % 32 || !has_tail(s, scale, 2, tail)) {
        char shape[96], expected[128];
        mm2_shape_show(shape, sizeof shape, 2, tail);
        mm2_format(expected, sizeof expected, "%s: one scale for %lld codes of a row, %s", shape,
                   (long long)group, nv ? "NVFP4" : "MXFP4");
        return columns % 32
                   ? mm2_fail(MM2_E_UNSUPPORTED,
                              "%s: tensor \"%s\" has rows of %lld codes; this build needs a "
                              "multiple of 32",
                              codes->file, codes->name, (long long)columns)
                   : wrong_shape(scale, expected);
    }
    s->first.dtype = nv ? MM2_F4_16 : MM2_F4_32;
    s->first.spans = scale->view.data;
    s->first.span_bytes = columns / group;
    s->first.span_dtype = scale->view.dtype;
    s->first.group = (int32_t)group;
    s->spans_step = rows_of(s) * s->first.span_bytes;
    if (!nv)
        return MM2_OK;
    status = find_part(f, factors, &factor);
    if (!status)
        status = find_part(f, divisors, &divisor);
    if (status)
        return status;
    if (factor && divisor)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensors \"%s\" and \"%s\" both scale \"%s\": which one counts is not "
                        "known",
                        codes->file, factor->name, divisor->name, codes->name);
    if (!factor && !divisor)
        return missing_part(f, "NVFP4", "global scales",
                            strlen(codes->name) > f->length ? "_global_scale" : "_scale_2");
    return place_global(f, factor ? factor : divisor, !factor, factor != NULL);
}

/* ---- Packed integers ---- */

/* The unpacked shape, which a tensor says. */
static mm2_status read_unpacked(finder *f, int64_t *shape)
{
    const char *name = beside(f, "_shape");
    if (!mm2_checkpoint_names(f->c, name))
        return missing_part(f, "packed codes", "dimensions", "_shape");
    mm2_status status = mm2_checkpoint_integers(f->c, name, shape, 2);
    if (status)
        return status;
    for (int i = 0; i < 2; i++)
        if (shape[i] < 1 || shape[i] > (int64_t)1 << MM2_MAX_DIMENSION_BITS)
            return mm2_fail(MM2_E_FORMAT,
                            "%s: tensor \"%s\" says [%lld, %lld]: no shape of a matrix", f->c->path,
                            name, (long long)shape[0], (long long)shape[1]);
    return MM2_OK;
}

/* The order of the columns: each in the group where it stands, or not said at all. */
static mm2_status check_order(finder *f, int64_t columns, int64_t group)
{
    static const char *const endings[] = {"_g_idx", NULL};
    const mm2_entry *e;
    mm2_status status = find_part(f, endings, &e);
    if (status || !e)
        return status;
    int64_t tail[] = {columns};
    if (e->view.dtype != MM2_I32)
        return wrong_dtype(e, "i32");
    if (e->view.ndim != 1 || e->view.shape[0] != columns) {
        char expected[64];
        mm2_shape_show(expected, sizeof expected, 1, tail);
        return wrong_shape(e, expected);
    }
    for (int64_t i = 0; i < columns; i++) {
        int32_t at;
        memcpy(&at, (const char *)e->view.data + i * 4, 4);
        if (at == -1) /* the writer's word for "not said" */
            return MM2_OK;
        if (at != i / group)
            return mm2_fail(
                MM2_E_UNSUPPORTED,
                "%s: tensor \"%s\" places column %lld in group %d, not %lld: this build "
                "reads groups of neighbours only",
                e->file, e->name, (long long)i, at, (long long)(i / group));
    }
    return MM2_OK;
}

/* Rows whose zero points share a word. */
static int32_t rows_of_word(const mm2_weight *w)
{
    return 32 / mm2_format_of(w->dtype).bits;
}

static mm2_status read_zeros(finder *f, int64_t rows, int64_t groups)
{
    static const char *const endings[] = {"_zero_point", NULL};
    mm2_stack *s = f->out;
    const mm2_entry *e;
    mm2_status status = find_part(f, endings, &e);
    if (status || !e)
        return status;
    int64_t tail[] = {ceiling(rows, rows_of_word(&s->first)), groups};
    if (e->view.dtype != MM2_I32)
        return wrong_dtype(e, "i32: zero points are packed like the codes");
    if (!has_tail(s, e, 2, tail)) {
        char shape[96], expected[128];
        mm2_shape_show(shape, sizeof shape, 2, tail);
        mm2_format(expected, sizeof expected, "%s: zero points of %d rows in a word", shape,
                   rows_of_word(&s->first));
        return wrong_shape(e, expected);
    }
    s->first.zeros = e->view.data;
    return MM2_OK;
}

static mm2_status read_packed(finder *f)
{
    static const char *const endings[] = {"_scale", NULL};
    mm2_stack *s = f->out;
    mm2_weight *w = &s->first;
    const mm2_entry *codes = s->codes, *scale;
    int64_t shape[2], words = columns_of(s);
    if (codes->view.ndim != 2)
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: tensor \"%s\" has %d dimensions, expected a matrix of packed codes",
                        codes->file, codes->name, codes->view.ndim);
    mm2_status status = read_unpacked(f, shape);
    if (status)
        return status;
    int64_t rows = shape[0], columns = shape[1];
    int32_t bits = words == ceiling(columns, 8) ? 4 : words == ceiling(columns, 4) ? 8 : 0;
    if (rows != codes->view.shape[0])
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensor \"%s\" has %lld rows, but \"%s\" says [%lld, %lld]",
                        codes->file, codes->name, (long long)codes->view.shape[0], f->other,
                        (long long)rows, (long long)columns);
    if (!bits)
        return mm2_fail(
            MM2_E_UNSUPPORTED,
            "%s: tensor \"%s\" has %lld words for the %lld columns that \"%s\" says, about "
            "%lld bits a code; this build reads 4 and 8",
            codes->file, codes->name, (long long)words, (long long)columns, f->other,
            (long long)(words * 32 / columns));
    s->shape[1] = columns;
    status = check_shape(f);
    if (!status)
        status = find_part(f, endings, &scale);
    if (!status && !scale)
        status = missing_part(f, "packed codes", "scales", "_scale");
    if (status)
        return status;
    int32_t dtype = scale->view.dtype;
    if (dtype != MM2_F32 && dtype != MM2_F16 && dtype != MM2_BF16)
        return wrong_dtype(scale, "f32, f16 or bf16");
    int64_t groups = scale->view.ndim == 2 ? scale->view.shape[1] : 0;
    if (groups < 1 || scale->view.shape[0] != rows || columns % groups) {
        char expected[128];
        mm2_format(expected, sizeof expected, "[%lld, groups of the %lld columns]", (long long)rows,
                   (long long)columns);
        return wrong_shape(scale, expected);
    }
    int64_t group = columns / groups;
    if (columns % 32 || (group != 32 && group != 64 && group != 128 && groups != 1))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: tensor \"%s\" has groups of %lld of %lld columns; this build reads "
                        "groups of 32, 64, 128 and whole rows, of a multiple of 32 columns",
                        codes->file, codes->name, (long long)group, (long long)columns);
    w->dtype = bits == 4 ? MM2_I4 : MM2_I8;
    w->spans = scale->view.data;
    w->span_bytes = groups * mm2_dtype_bytes(dtype);
    w->span_dtype = dtype;
    w->group = (int32_t)group;
    status = read_zeros(f, rows, groups);
    return status ? status : check_order(f, columns, group);
}

/* ---- Values, and blocks of GGUF ---- */

static mm2_status read_values(finder *f)
{
    static const char *const endings[] = {".scale", ".weight.scale", NULL};
    const mm2_entry *codes = f->out->codes, *scale;
    if (codes->view.dtype != MM2_NVFP4)
        return MM2_OK;
    mm2_status status = find_part(f, endings, &scale);
    return status || !scale ? status : place_global(f, scale, 0, 0);
}

/* ---- Forms that are not read ---- */

static mm2_status refuse_foreign(finder *f)
{
    static const struct {
        const char *ending, *what;
    } forms[] = {
        {".qweight", "holds codes that lie transposed, as GPTQ, AutoRound and AWQ write them; run "
                     "\"minimax2 convert IN OUT\" once, which turns them over without loss"},
        {".trellis",
         "is of an EXL3 checkpoint; download an FP8, NVFP4 or compressed-tensors release "
         "or a GGUF file instead"},
        {".q_weight", "is of an EXL2 checkpoint; download an FP8, NVFP4 or compressed-tensors "
                      "release or a GGUF file instead"},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (mm2_checkpoint_names(f->c, beside(f, forms[i].ending)))
            return mm2_fail(MM2_E_UNSUPPORTED, "%s: tensor \"%s\" %s", f->c->path, f->other,
                            forms[i].what);
    const char *odd = mm2_checkpoint_odd(f->c, f->name);
    if (odd && !strcmp(odd, "has dtype I8"))
        return mm2_fail(MM2_E_UNSUPPORTED,
                        "%s: tensor \"%s\" has dtype I8: weights for integer activations (W8A8); "
                        "download an FP8, NVFP4 or compressed-tensors W4A16 release or a GGUF file "
                        "instead",
                        f->c->path, f->name);
    if (mm2_checkpoint_has(f->c, beside(f, ".scales")))
        return mm2_fail(
            MM2_E_UNSUPPORTED,
            "%s: tensor \"%s\" is an MLX checkpoint's, packed for Apple's framework; "
            "download an FP8, NVFP4 or compressed-tensors release or a GGUF file instead",
            f->c->path, f->other);
    return MM2_OK;
}

/* ---- Finding ---- */

int mm2_stack_exists(const mm2_checkpoint *c, const char *name)
{
    mm2_stack stack;
    finder f = begin(c, name, NULL, &stack);
    return mm2_checkpoint_names(c, name) || mm2_checkpoint_names(c, beside(&f, packed_ending)) ||
           mm2_checkpoint_names(c, beside(&f, ".qweight"));
}

/* The tensor of its codes. */
static mm2_status find_codes(finder *f)
{
    const mm2_entry *plain = mm2_checkpoint_find(f->c, f->name);
    const mm2_entry *packed = mm2_checkpoint_find(f->c, beside(f, packed_ending));
    char expected[96] = "a matrix";
    if (plain && packed)
        return mm2_fail(MM2_E_FORMAT,
                        "%s: tensors \"%s\" and \"%s\" are two for one place: which one counts is "
                        "not known",
                        f->c->path, plain->name, packed->name);
    f->out->codes = plain ? plain : packed;
    if (f->out->codes)
        return claim(f, f->out->codes);
    mm2_status status = refuse_foreign(f);
    if (f->shape)
        mm2_shape_show(expected, sizeof expected, f->ndim, f->shape);
    int is_packed = !mm2_checkpoint_names(f->c, f->name) &&
                    mm2_checkpoint_names(f->c, beside(f, packed_ending));
    return status ? status : mm2_checkpoint_missing(f->c, is_packed ? f->other : f->name, expected);
}

/* Sizes of the first matrix. They fit: of a weight that is multiplied the configuration bounds
 * them, and others are decoded by rows of a length that is checked. */
static void finish(mm2_stack *s)
{
    mm2_weight *w = &s->first;
    w->n_out = (int32_t)rows_of(s);
    w->n_in = (int32_t)columns_of(s);
    w->row_bytes = mm2_dtype_row_bytes(w->dtype, columns_of(s));
    s->data_step = rows_of(s) * w->row_bytes;
}

/* What the codes are, by their dtype, and the rest by what stands beside them. */
static mm2_status read_form(finder *f)
{
    mm2_stack *s = f->out;
    const mm2_tensor *v = &s->codes->view;
    int is_packed = strlen(s->codes->name) > f->length, dtype = v->dtype;
    int64_t columns = v->ndim ? v->shape[v->ndim - 1] : 1;
    s->first = (mm2_weight){.data = v->data, .dtype = dtype, .global = 1};
    set_shape(s, dtype == MM2_U8 && v->ndim > 1 ? 2 * columns : columns);
    if (dtype == MM2_I32 && is_packed)
        return read_packed(f);
    mm2_status status = check_shape(f);
    if (status)
        return status;
    if (dtype == MM2_U8)
        return read_f4(f);
    if (is_packed)
        return wrong_dtype(s->codes, "i32 (codes of 4 or 8 bits) or u8 (NVFP4, MXFP4)");
    return dtype == MM2_F8_E4M3 ? read_fp8(f) : read_values(f);
}

mm2_status mm2_stack_find(const mm2_checkpoint *c, const char *name, int32_t ndim,
                          const int64_t *shape, mm2_floats *floats, mm2_stack *out)
{
    finder f = begin(c, name, floats, out);
    f.ndim = ndim;
    f.shape = shape;
    mm2_status status = find_codes(&f);
    if (!status)
        status = read_form(&f);
    if (!status)
        status = check_unclaimed(&f);
    if (!status)
        finish(out);
    return status;
}

void mm2_stack_alone(const mm2_entry *e, mm2_stack *out)
{
    *out = (mm2_stack){.codes = e, .nbytes = e->view.nbytes};
    out->first = (mm2_weight){.data = e->view.data, .dtype = e->view.dtype, .global = 1};
    set_shape(out, e->view.ndim ? e->view.shape[e->view.ndim - 1] : 1);
    finish(out);
}

mm2_weight mm2_stack_slice(const mm2_stack *s, int64_t index, int64_t first, int64_t n_out)
{
    mm2_weight w = s->first;
    w.data = (const char *)w.data + index * s->data_step + first * w.row_bytes;
    w.n_out = (int32_t)n_out;
    if (w.scale) {
        int64_t wide = w.scale_rows == MM2_SCALE_BLOCK ? ceiling(w.n_in, MM2_SCALE_BLOCK) : 1;
        w.scale += index * (s->scale_step / 4) + first / w.scale_rows * wide;
        w.scale_row = (int32_t)(first % w.scale_rows);
    }
    if (w.spans)
        w.spans = (const char *)w.spans + index * s->spans_step + first * w.span_bytes;
    if (w.zeros) {
        w.zeros = (const char *)w.zeros + first / rows_of_word(&w) * (w.n_in / w.group) * 4;
        w.zeros_first = (int32_t)(first % rows_of_word(&w));
    }
    if (s->global)
        memcpy(&w.global, (const char *)s->global->view.data + index * s->global_step, 4);
    return w;
}

int32_t mm2_weight_parts(const mm2_weight *w, mm2_extent *parts)
{
    int32_t count = 0;
    if (w->data)
        parts[count++] = (mm2_extent){w->data, w->n_out * w->row_bytes};
    if (w->scale) {
        int64_t wide = w->scale_rows == MM2_SCALE_BLOCK ? ceiling(w->n_in, MM2_SCALE_BLOCK) : 1;
        int64_t high = ceiling(w->scale_row + (int64_t)w->n_out, w->scale_rows);
        parts[count++] = (mm2_extent){w->scale, high * wide * 4};
    }
    if (w->spans)
        parts[count++] = (mm2_extent){w->spans, w->n_out * w->span_bytes};
    if (w->zeros) {
        int64_t words = ceiling(w->zeros_first + (int64_t)w->n_out, rows_of_word(w));
        parts[count++] = (mm2_extent){w->zeros, words * (w->n_in / w->group) * 4};
    }
    return count;
}

int64_t mm2_weight_bytes(const mm2_weight *w)
{
    mm2_extent parts[MM2_WEIGHT_PARTS];
    int64_t bytes = 0;
    for (int32_t i = mm2_weight_parts(w, parts) - 1; i >= 0; i--)
        bytes += parts[i].bytes;
    return bytes;
}

void mm2_stack_name(const mm2_entry *e, char *out)
{
    size_t length = strlen(e->name), tail = sizeof packed_ending - 1;
    memcpy(out, e->name, length + 1);
    if (length > tail && !strcmp(out + length - tail, packed_ending))
        out[length - tail] = 0;
}

static int is_part_by(const mm2_checkpoint *c, const char *name, const char *ending)
{
    char whole[LONG_NAME];
    size_t length = strlen(name), tail = strlen(ending);
    if (length <= tail || strcmp(name + length - tail, ending))
        return 0;
    mm2_format(whole, sizeof whole, "%.*s%s", (int)(length - tail), name,
               *ending == '.' ? weight_ending : "");
    if (mm2_checkpoint_names(c, whole))
        return 1;
    strcat(whole, packed_ending);
    return mm2_checkpoint_names(c, whole);
}

int mm2_is_part(const mm2_checkpoint *c, const mm2_entry *e)
{
    for (size_t i = 0; i < sizeof value_endings / sizeof *value_endings; i++)
        if (is_part_by(c, e->name, value_endings[i]))
            return 1;
    for (size_t i = 0; i < sizeof other_endings / sizeof *other_endings; i++)
        if (is_part_by(c, e->name, other_endings[i]))
            return 1;
    return 0;
}

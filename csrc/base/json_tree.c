/* Values lie in one array in the order of the document, an object's keys as strings before their
 * values, so a container is followed by what it holds and its extent leads to its neighbour. Texts
 * lie in a second block. The room for both is known before anything is built: the value is read
 * over first, a text is never longer than its JSON, and every value but the first stands behind one
 * of "[{,:". So a tree takes at most nine times the bytes of its JSON.
 *
 * Numbers stay text until somebody asks for them: a file may hold any number in a field that nobody
 * reads. They are converted here because strtod depends on the locale. */
#include "base/json_tree.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TREE = 1 << 20 }; /* bytes of JSON; keeps the fields of mm2_value in range */

/* ---- Building ---- */

typedef struct builder {
    mm2_json_tree *t;
    mm2_json *j;
    uint32_t count; /* of values */
    char *free_text;
    int64_t text_room;
} builder;

static mm2_value *append(builder *b, int kind)
{
    mm2_value *v = &b->t->values[b->count++];
    *v = (mm2_value){.kind = (unsigned)kind, .extent = 1};
    return v;
}

static void take_text(builder *b, mm2_value *v, int64_t size)
{
    v->text = b->free_text;
    v->size = (uint32_t)size;
    b->free_text += size + 1;
    b->text_room -= size + 1;
}

static mm2_status append_string(builder *b, int is_key)
{
    mm2_value *v = append(b, MM2_VALUE_STRING);
    mm2_status status = is_key ? mm2_json_key(b->j, b->free_text, (int32_t)b->text_room)
                               : mm2_json_string(b->j, b->free_text, (int32_t)b->text_room);
    if (!status)
        take_text(b, v, (int64_t)strlen(b->free_text));
    return status;
}

static mm2_status append_scalar(builder *b)
{
    const char *text;
    int32_t length = mm2_json_scalar(b->j, &text);
    if (length < 0)
        return length;
    int kind = *text == 'n'   ? MM2_VALUE_NULL
               : *text == 'f' ? MM2_VALUE_FALSE
               : *text == 't' ? MM2_VALUE_TRUE
                              : MM2_VALUE_NUMBER;
    mm2_value *v = append(b, kind);
    if (kind == MM2_VALUE_NUMBER) {
        memcpy(b->free_text, text, (size_t)length);
        b->free_text[length] = 0;
        take_text(b, v, length);
    }
    return MM2_OK;
}

static int compare_texts(const void *x, const void *y)
{
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}

/* Sorting finds a key that is there twice in O(n log n), whatever the keys. */
static mm2_status check_keys(const builder *b, const mm2_value *object)
{
    uint32_t n = 0;
    if (object->size < 2)
        return MM2_OK;
    const char **keys = malloc(object->size * sizeof *keys);
    if (!keys)
        return mm2_fail(MM2_E_NOMEM, "%s: no memory for the keys of an object with %u fields",
                        b->j->where, object->size);
    for (const mm2_value *v = object + 1; n < object->size; v += 1 + v[1].extent)
        keys[n++] = v->text;
    qsort(keys, n, sizeof *keys, compare_texts);
    mm2_status status = MM2_OK;
    for (uint32_t i = 1; i < n && !status; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            status = mm2_fail(MM2_E_FORMAT, "%s: the key \"%.*s\" appears twice in one object",
                              b->j->where, 64, keys[i]);
    free(keys);
    return status;
}

/* Closes the containers that are complete; then the reader stands before the next value. */
static mm2_status build(builder *b)
{
    struct {
        uint32_t value;
        int begun;
    } open[MM2_JSON_DEPTH];
    int depth = 0;
    do {
        char c = mm2_json_peek(b->j);
        mm2_status status = MM2_OK;
        if (c == '{' || c == '[') { /* mm2_json_skip has counted the levels */
            open[depth].value = b->count;
            open[depth++].begun = 0;
            append(b, c == '{' ? MM2_VALUE_OBJECT : MM2_VALUE_ARRAY);
        } else {
            status = c == '"' ? append_string(b, 0) : append_scalar(b);
        }
        while (!status && depth) {
            mm2_value *v = &b->t->values[open[depth - 1].value];
            int is_object = v->kind == MM2_VALUE_OBJECT;
            int32_t more = mm2_json_next(b->j, is_object ? '{' : '[', &open[depth - 1].begun);
            if (more < 0)
                return more;
            if (more) {
                v->size++;
                status = is_object ? append_string(b, 1) : MM2_OK;
                break;
            }
            v->extent = b->count - open[depth - 1].value;
            status = is_object ? check_keys(b, v) : MM2_OK;
            depth--;
        }
        if (status)
            return status;
    } while (depth);
    return MM2_OK;
}

mm2_status mm2_json_tree_read(mm2_json_tree *t, mm2_json *j)
{
    *t = (mm2_json_tree){0};
    mm2_json over = *j;
    mm2_status status = mm2_json_skip(&over);
    if (status)
        return status;
    const char *p = j->at;
    size_t values = 1;
    if (over.at - p > MAX_TREE)
        return mm2_fail(MM2_E_FORMAT, "%s: a value of %lld bytes of JSON, expected at most %d",
                        j->where, (long long)(over.at - p), (int)MAX_TREE);
    for (; p < over.at; p++)
        values += *p == '[' || *p == '{' || *p == ',' || *p == ':';
    builder b = {.t = t, .j = j, .text_room = over.at - j->at + 1};
    t->values = malloc(values * sizeof *t->values);
    t->texts = b.free_text = malloc((size_t)b.text_room);
    status = t->values && t->texts
                 ? build(&b)
                 : mm2_fail(MM2_E_NOMEM, "%s: no memory for a tree of %lld bytes of JSON", j->where,
                            (long long)(over.at - j->at));
    if (status)
        mm2_json_tree_free(t);
    return status;
}

void mm2_json_tree_free(mm2_json_tree *t)
{
    free(t->values);
    free(t->texts);
    *t = (mm2_json_tree){0};
}

/* ---- Looking things up ---- */

const mm2_value *mm2_value_field(const mm2_value *object, const char *key)
{
    if (!mm2_value_is(object, MM2_VALUE_OBJECT))
        return NULL;
    const mm2_value *v = object + 1;
    for (uint32_t i = 0; i < object->size; i++, v += 1 + v[1].extent)
        if (!strcmp(v->text, key))
            return v[1].kind == MM2_VALUE_NULL ? NULL : v + 1;
    return NULL;
}

const mm2_value *mm2_value_next(const mm2_value *array, const mm2_value *item)
{
    if (!mm2_value_is(array, MM2_VALUE_ARRAY))
        return NULL;
    item = item ? item + item->extent : array + 1;
    return item < array + array->extent ? item : NULL;
}

const mm2_value *mm2_value_key(const mm2_value *object, const mm2_value *key)
{
    if (!mm2_value_is(object, MM2_VALUE_OBJECT))
        return NULL;
    key = key ? key + 1 + key[1].extent : object + 1;
    return key < object + object->extent ? key : NULL;
}

const mm2_value *mm2_value_item(const mm2_value *array, uint32_t index)
{
    const mm2_value *item = mm2_value_next(array, NULL);
    while (item && index--)
        item = mm2_value_next(array, item);
    return item;
}

uint32_t mm2_value_count(const mm2_value *array)
{
    return mm2_value_is(array, MM2_VALUE_ARRAY) ? array->size : 0;
}

const char *mm2_value_text(const mm2_value *v)
{
    return mm2_value_is(v, MM2_VALUE_STRING) ? v->text : NULL;
}

int mm2_value_says(const mm2_value *v, const char *text)
{
    return mm2_value_is(v, MM2_VALUE_STRING) && !strcmp(v->text, text);
}

int mm2_value_flag(const mm2_value *v, int32_t *out)
{
    if (!mm2_value_is(v, MM2_VALUE_TRUE) && !mm2_value_is(v, MM2_VALUE_FALSE))
        return 0;
    *out = v->kind == MM2_VALUE_TRUE;
    return 1;
}

int mm2_value_is_whole(const mm2_value *v)
{
    return mm2_value_is(v, MM2_VALUE_NUMBER) && v->text[strcspn(v->text, ".eENI")] == 0;
}

int mm2_value_integer(const mm2_value *v, int64_t *out)
{
    if (!mm2_value_is_whole(v))
        return 0;
    const char *p = v->text;
    int negative = *p == '-';
    int64_t value = 0;
    for (p += negative; *p; p++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            (negative ? __builtin_sub_overflow(value, *p - '0', &value)
                      : __builtin_add_overflow(value, *p - '0', &value)))
            return 0;
    *out = value;
    return 1;
}

/* 19 digits of the mantissa count. Up to 2^53 and 10^22 both sides of the product are exact, so it
 * is rounded once; beyond, a long double's 64 bits or more are rounded a few times. */
int mm2_value_number(const mm2_value *v, double *out)
{
    if (!mm2_value_is(v, MM2_VALUE_NUMBER) || strchr(v->text, 'N') || strchr(v->text, 'I'))
        return 0;
    const char *p = v->text;
    uint64_t mantissa = 0;
    int64_t exponent = 0, written = 0;
    int negative = *p == '-', behind_point = 0;
    for (p += negative; (*p >= '0' && *p <= '9') || *p == '.'; p++) {
        if (*p == '.') {
            behind_point = 1;
            continue;
        }
        int taken = mantissa < UINT64_MAX / 10 - 1;
        mantissa = taken ? mantissa * 10 + (uint64_t)(*p - '0') : mantissa;
        exponent += !taken - behind_point;
    }
    if (*p == 'e' || *p == 'E') {
        int down = p[1] == '-';
        for (p += 1 + (p[1] == '-' || p[1] == '+'); *p; p++)
            written = written > 1 << 20 ? written : written * 10 + (*p - '0');
        exponent += down ? -written : written;
    }
    double value;
    uint64_t steps = (uint64_t)(exponent < 0 ? -exponent : exponent);
    if (!mantissa) {
        value = 0;
    } else if (mantissa <= 1ULL << 53 && steps <= 22) {
        double power = 1;
        for (uint64_t i = 0; i < steps; i++)
            power *= 10;
        value = exponent < 0 ? (double)mantissa / power : (double)mantissa * power;
    } else {
        long double power = 1, base = 10, wide = (long double)mantissa;
        for (uint64_t bits = steps > 5000 ? 5000 : steps; bits; bits >>= 1, base *= base)
            power = bits & 1 ? power * base : power;
        wide = exponent < 0 ? wide / power : wide * power;
        if (wide > 1.7976931348623157e308L)
            return 0;
        value = (double)wide;
    }
    *out = negative ? -value : value;
    return 1;
}

const char *mm2_value_kind(const mm2_value *v)
{
    static const char *const kinds[] = {"null",     "false",    "true",     "",
                                        "a string", "an array", "an object"};
    if (!v)
        return "nothing";
    if (v->kind == MM2_VALUE_NUMBER)
        return mm2_value_is_whole(v) ? "a whole number" : "a decimal number";
    return kinds[v->kind];
}

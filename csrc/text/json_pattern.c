/* JSON Schema as a regular expression. */
#include "text/json_pattern.h"

#include "base/json_tree.h"
#include "base/status.h"
#include "text/pattern.h"

#include <string.h>

static mm2_status put(mm2_growing *out, const char *bytes, int64_t n)
{
    mm2_status status = mm2_growing_reserve(out, n);
    if (status)
        return status;
    memcpy(out->bytes + out->length, bytes, (size_t)n);
    out->length += n;
    return MM2_OK;
}

/* A text as a pattern that matches it alone. */
static mm2_status put_literal(mm2_growing *out, const char *text, int64_t n)
{
    mm2_status status = mm2_growing_reserve(out, 4 * n);
    for (int64_t i = 0; i < n && !status; i++) {
        uint8_t c = (uint8_t)text[i];
        char escaped[4] = {'\\', (char)c, 0, 0};
        if (c < 0x20) /* these may be ours */
            status = put(out, (char[]){'\\', 'x', (char)('0' + (c >> 4)), "0123456789abcdef"[c & 15]},
                         4);
        else if (c < 0x80 && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z') && !(c >= '0' && c <= '9'))
            status = put(out, escaped, 2);
        else
            status = put(out, text + i, 1);
    }
    return status;
}

mm2_status mm2_choices_pattern(mm2_growing *out, const char *json)
{
    mm2_json j;
    mm2_json_tree tree = {0};
    mm2_json_begin(&j, "the list", json, (int64_t)strlen(json));
    mm2_status status = mm2_json_tree_read(&tree, &j);
    if (!status)
        status = mm2_json_end(&j);
    if (!status && !mm2_value_count(tree.values))
        status = mm2_fail(MM2_E_ARG, "expected a list of at least one string, found %s",
                          mm2_value_kind(tree.values));
    for (const mm2_value *v = NULL; !status && (v = mm2_value_next(tree.values, v));) {
        if (!mm2_value_is(v, MM2_VALUE_STRING))
            status = mm2_fail(MM2_E_ARG, "expected strings, found %s", mm2_value_kind(v));
        if (!status && v != mm2_value_item(tree.values, 0))
            status = put(out, "|", 1);
        if (!status)
            status = put_literal(out, v->text, v->size);
    }
    mm2_json_tree_free(&tree);
    return status == MM2_E_FORMAT ? MM2_E_ARG : status;
}

mm2_status mm2_schema_pattern(mm2_growing *out, const char *json)
{
    return mm2_fail(MM2_E_UNSUPPORTED, "not yet");
}

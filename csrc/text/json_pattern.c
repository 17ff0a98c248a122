/* JSON Schema as a regular expression.
 *
 * Both are written from left to right: what is still to be written lies on a stack of items, texts of
 * patterns and schemas whose turn has not come. A schema that is taken from it puts its own items
 * there; so nothing recurs, however deep schemas lie in each other. Every schema that is met leaves a
 * crumb, with the one around it: they make the path for sentences, and tell a $ref that leads to
 * itself.
 *
 * A keyword is known, or says nothing about values, or is refused: no text that the pattern matches
 * may fail the schema. Some texts that fit are left out: numbers of many digits, other orders of
 * properties, properties that are not named, other spellings of strings.
 *
 * The tree of the schema lives while the pattern is written. */
#include "text/json_pattern.h"

#include "base/json_tree.h"
#include "base/status.h"
#include "text/pattern.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_ITEMS = 1 << 16 };
static const int64_t MOST_INTEGER = 999999999999999; /* 15 digits */

enum { TEXT, SCHEMA, VALUE, KEY, COUNT }; /* item.kind */

typedef struct item {
    int32_t kind, crumb; /* crumb: of what it lies in */
    const char *text;    /* a pattern, or the name of a schema */
    const char *in;      /* of a schema: the keyword that has the name; or NULL */
    const mm2_value *v;
    int64_t least, most; /* COUNT; most < 0: any */
} item;

typedef struct crumb {
    int32_t parent; /* -1: the root */
    const char *in, *name;
    const mm2_value *schema;
} crumb;

typedef struct writer {
    mm2_growing *out;
    const mm2_value *root;
    item *items;
    int32_t count, room;
    crumb *crumbs;
    int32_t crumb_count, crumb_room;
    int32_t here; /* the crumb of the schema at hand */
    mm2_status status;
} writer;

/* ---- Writing ---- */

static void put(writer *w, const char *bytes, int64_t n)
{
    if (!w->status && w->out->length + n > MM2_PATTERN_BYTES)
        w->status = mm2_fail(MM2_E_UNSUPPORTED, "it makes a pattern of more than %d bytes",
                             MM2_PATTERN_BYTES);
    if (!w->status)
        w->status = mm2_growing_reserve(w->out, n);
    if (w->status || !n)
        return;
    memcpy(w->out->bytes + w->out->length, bytes, (size_t)n);
    w->out->length += n;
}

static void put_text(writer *w, const char *text)
{
    put(w, text, (int64_t)strlen(text));
}

/* A text as a pattern that matches it alone. */
static void put_literal(writer *w, const char *text, int64_t n)
{
    for (int64_t i = 0; i < n && !w->status; i++) {
        uint8_t c = (uint8_t)text[i], letter = c | 0x20;
        char hex[] = {'\\', 'x', (char)('0' + (c >> 4)), "0123456789abcdef"[c & 15]};
        if (c < 0x20) /* some of these are ours */
            put(w, hex, 4);
        else if (c < 0x80 && !(letter >= 'a' && letter <= 'z') && !(c >= '0' && c <= '9'))
            put(w, (char[]){'\\', (char)c}, 2);
        else
            put(w, text + i, 1);
    }
}

static void put_string(writer *w, const mm2_value *v)
{
    char *escaped = malloc(6 * (size_t)v->size + 1);
    if (!escaped && !w->status)
        w->status = mm2_fail(MM2_E_NOMEM, "no memory for a text of %u bytes", v->size);
    put_text(w, "\"");
    if (!w->status)
        put_literal(w, escaped, mm2_json_escape(escaped, (mm2_view){v->text, v->size}));
    put_text(w, "\"");
    free(escaped);
}

static void put_count(writer *w, int64_t least, int64_t most)
{
    char text[64];
    if (most < 0)
        mm2_format(text, sizeof text, "{%lld,}", (long long)least);
    else
        mm2_format(text, sizeof text, "{%lld,%lld}", (long long)least, (long long)most);
    put_text(w, text);
}

/* ---- Items and sentences ---- */

/* Room for one more of something. */
static void *grow(writer *w, void *array, int32_t count, int32_t *room, size_t size)
{
    if (w->status || count < *room)
        return array;
    if (count >= MOST_ITEMS) {
        w->status = mm2_fail(MM2_E_UNSUPPORTED,
                             "it is too large: its parts, each as often as it is "
                             "used, are more than %d",
                             MOST_ITEMS);
        return array;
    }
    void *grown = realloc(array, (size_t)(2 * count + 64) * size);
    if (!grown) {
        w->status = mm2_fail(MM2_E_NOMEM, "no memory for the parts of a schema");
        return array;
    }
    *room = 2 * count + 64;
    return grown;
}

static void add(writer *w, item i)
{
    w->items = grow(w, w->items, w->count, &w->room, sizeof *w->items);
    i.crumb = w->here;
    if (!w->status)
        w->items[w->count++] = i;
}

static void add_text(writer *w, const char *text)
{
    add(w, (item){.kind = TEXT, .text = text});
}

static void add_schema(writer *w, const char *name, const mm2_value *v)
{
    add(w, (item){.kind = SCHEMA, .text = name, .v = v});
}

static void add_property(writer *w, const mm2_value *key)
{
    add(w, (item){.kind = KEY, .v = key});
    add(w, (item){.kind = SCHEMA, .text = key->text, .in = "properties", .v = key + 1});
}

/* "#/properties/a", its middle left out where it is long. */
static void path_of(const writer *w, char *out, int32_t cap)
{
    int32_t at = cap - 1;
    out[at] = 0;
    for (int32_t i = w->here; i >= 0 && w->crumbs[i].parent >= 0; i = w->crumbs[i].parent) {
        const crumb *c = &w->crumbs[i];
        const char *parts[] = {c->name, c->in};
        for (int j = 0; j < 2 && parts[j]; j++) {
            int32_t n = (int32_t)strlen(parts[j]);
            if (n + 2 > at)
                break;
            at -= n + 1;
            out[at] = '/';
            memcpy(out + at + 1, parts[j], (size_t)n);
        }
    }
    out[--at] = '#';
    memmove(out, out + at, (size_t)(cap - at));
}

static void refuse(writer *w, mm2_status code, const char *keyword, const char *why)
{
    char path[200];
    if (w->status)
        return;
    path_of(w, path, sizeof path);
    w->status = mm2_fail(code, "%s: %s%s%s", path, keyword, *keyword ? ": " : "", why);
}

/* ---- Keywords ---- */

static const mm2_value *field(writer *w, const char *name)
{
    return mm2_value_field(w->crumbs[w->here].schema, name);
}

static int is_one_of(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(name, *list))
            return 1;
    return 0;
}

/* Refuses what we do not know; `alone`: a keyword beside which no other may restrict values. */
static void check_keywords(writer *w, const char *alone)
{
    static const char *const silent[] = {
        "title",      "description", "default",   "examples", "$schema",     "$id", "$comment",
        "deprecated", "readOnly",    "writeOnly", "$defs",    "definitions", NULL};
    static const char *const known[] = {"type",
                                        "properties",
                                        "required",
                                        "items",
                                        "prefixItems",
                                        "minItems",
                                        "maxItems",
                                        "enum",
                                        "const",
                                        "minimum",
                                        "exclusiveMinimum",
                                        "maximum",
                                        "minLength",
                                        "maxLength",
                                        "pattern",
                                        "format",
                                        "exclusiveMaximum",
                                        "additionalProperties",
                                        "anyOf",
                                        "oneOf",
                                        "$ref",
                                        NULL};
    const mm2_value *schema = w->crumbs[w->here].schema, *key = schema + 1;
    for (uint32_t i = 0; i < schema->size && !w->status; i++, key += 1 + key[1].extent) {
        if (is_one_of(key->text, silent))
            continue;
        if (!is_one_of(key->text, known))
            refuse(w, MM2_E_UNSUPPORTED, key->text, "this keyword is not known here");
        else if (alone && strcmp(key->text, alone) && strcmp(key->text, "type"))
            refuse(w, MM2_E_UNSUPPORTED, key->text,
                   "not known beside enum, const, anyOf, oneOf, $ref");
    }
}

/* A count that a keyword gives. */
static int64_t count_of(writer *w, const char *name, int64_t otherwise)
{
    const mm2_value *v = field(w, name);
    int64_t count = otherwise;
    if (v && (!mm2_value_integer(v, &count) || count < 0))
        refuse(w, MM2_E_ARG, name, "expected a whole number, 0 or more");
    return count;
}

/* ---- Numbers ---- */

/* Whole numbers low..high, neither negative: each piece is a beginning, of whose last digit there is a
 * range, and any digits behind it. */
static void put_positive(writer *w, int64_t low, int64_t high, const char *before)
{
    char text[80], beginning[32];
    while (low <= high && !w->status) {
        int64_t unit = 1;
        int digits = 0;
        while (low && low % (unit * 10) == 0 && low / (unit * 10) && low + unit * 10 - 1 <= high) {
            unit *= 10;
            digits++;
        }
        int64_t head = low / unit, last = head % 10;
        for (; low && last < 9 && low + 2 * unit - 1 <= high; last++)
            low += unit;
        mm2_format(beginning, sizeof beginning, "%lld", (long long)(head / 10));
        mm2_format(text, sizeof text, "%s%s[%d-%d][0-9]{%d}", before, head < 10 ? "" : beginning,
                   (int)(head % 10), (int)last, digits);
        put_text(w, text);
        before = "|";
        low += unit;
    }
}

/* A bound that a keyword gives, which must be a whole number. */
static int64_t bound_of(writer *w, const char *name, int64_t otherwise, int64_t step)
{
    const mm2_value *v = field(w, name);
    int64_t bound = otherwise - step;
    if (v && !mm2_value_is(v, MM2_VALUE_NUMBER))
        refuse(w, MM2_E_ARG, name, "expected a number");
    else if (v && (!mm2_value_integer(v, &bound) || bound > MOST_INTEGER || bound < -MOST_INTEGER))
        refuse(w, MM2_E_UNSUPPORTED, name, "known are whole numbers of at most 15 digits");
    return bound + step;
}

static void put_integer(writer *w)
{
    int64_t low = bound_of(w, "minimum", -MOST_INTEGER, 0),
            high = bound_of(w, "maximum", MOST_INTEGER, 0);
    int64_t above = bound_of(w, "exclusiveMinimum", -MOST_INTEGER, 1);
    int64_t below = bound_of(w, "exclusiveMaximum", MOST_INTEGER, -1);
    low = low > above ? low : above;
    high = high < below ? high : below;
    if (low > high)
        refuse(w, MM2_E_ARG, "minimum", "no whole number of 15 digits is in this range");
    put_text(w, "(?:");
    if (low < 0)
        put_positive(w, high < 0 ? -high : 1, -low, "-(?:");
    if (low < 0)
        put_text(w, ")");
    if (high >= 0)
        put_positive(w, low < 0 ? 0 : low, high, low < 0 ? "|" : "");
    put_text(w, ")");
}

static void put_number(writer *w)
{
    static const char *const bounds[] = {"maximum", "exclusiveMinimum", "exclusiveMaximum", NULL};
    int64_t low = bound_of(w, "minimum", -1, 0);
    for (const char *const *name = bounds; *name; name++)
        if (field(w, *name))
            refuse(w, MM2_E_UNSUPPORTED, *name, "known for integers only");
    if (low && field(w, "minimum"))
        refuse(w, MM2_E_UNSUPPORTED, "minimum", "known for integers, and 0 for numbers");
    put_text(w, low ? "-?" : "");
    put_text(w, "(?:0|[1-9][0-9]{0,14})(?:\\.[0-9]{1,15})?(?:[eE][-+]?[0-9]{1,2})?");
}

/* ---- Strings ---- */

#define HOUR "(?:[01][0-9]|2[0-3])"
#define TIME HOUR ":[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[-+]" HOUR ":[0-5][0-9])"
#define DATE                                                                                       \
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"                               \
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"

static void put_format(writer *w, const char *name)
{
    static const struct {
        const char *name, *pattern;
    } formats[] = {{"date", DATE},
                   {"time", TIME},
                   {"date-time", "(?:" DATE ")T" TIME},
                   {"uuid", "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"}};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (name && !strcmp(name, formats[i].name)) {
            put_text(w, formats[i].pattern);
            return;
        }
    refuse(w, MM2_E_UNSUPPORTED, "format", "known are date, time, date-time, uuid");
}

/* One of the alternatives of a pattern, which may match anywhere in a string unless ^ and $ say no. */
static void put_branch(writer *w, const char *begin, const char *end)
{
    int from_start = 0, to_end = 0;
    for (; begin < end && *begin == '^'; begin++)
        from_start = 1;
    for (; end > begin && end[-1] == '$'; end--) {
        int escaped = 0;
        for (const char *p = end - 1; p > begin && p[-1] == '\\'; p--)
            escaped ^= 1;
        if (escaped)
            break;
        to_end = 1;
    }
    put_text(w, from_start ? "(?:" : "[\\s\\S]*(?:");
    put(w, begin, end - begin);
    put_text(w, to_end ? ")" : ")[\\s\\S]*");
}

static void put_pattern(writer *w, const mm2_value *v)
{
    mm2_pattern read = {0};
    const char *text = mm2_value_text(v), *begin = text;
    int depth = 0, in_class = 0;
    if (!text) {
        refuse(w, MM2_E_ARG, "pattern", "expected a string");
        return;
    }
    for (const char *p = text; *p; p++)
        if (*p == *MM2_PATTERN_IN_STRING || *p == *MM2_PATTERN_BEHIND_STRING)
            refuse(w, MM2_E_UNSUPPORTED, "pattern", "write control characters as \\x01");
    if (w->status)
        return;
    w->status = mm2_pattern_read(&read, text, v->size, 0); /* by itself, for the sentence */
    mm2_pattern_free(&read);
    if (w->status) {
        char path[200];
        path_of(w, path, sizeof path);
        mm2_fail_in(w->status, "pattern");
        mm2_fail_in(w->status, path);
        return;
    }
    for (const char *p = text;; p++) {
        if (*p == '\\') {
            p++;
        } else if (*p == '[' && !in_class) {
            in_class = 1;
            p += p[1] == '^';
            p += p[1] == ']'; /* the first one is a member */
        } else if (in_class) {
            in_class = *p != ']';
        } else if (!*p || (*p == '|' && !depth)) {
            put_branch(w, begin, p);
            if (!*p)
                return;
            put_text(w, "|");
            begin = p + 1;
        } else {
            depth += (*p == '(') - (*p == ')');
        }
    }
}

static void put_any_string(writer *w)
{
    const mm2_value *pattern = field(w, "pattern"), *format = field(w, "format");
    int64_t least = count_of(w, "minLength", 0), most = count_of(w, "maxLength", -1);
    int counted = field(w, "minLength") || field(w, "maxLength");
    if ((pattern != NULL) + (format != NULL) + counted > 1)
        refuse(w, MM2_E_UNSUPPORTED, pattern ? "pattern" : "format",
               "not known together with another of pattern, format, minLength, maxLength");
    if (most >= 0 && most < least)
        refuse(w, MM2_E_ARG, "maxLength", "smaller than minLength");
    put_text(w, "\"" MM2_PATTERN_IN_STRING "(?:");
    if (pattern)
        put_pattern(w, pattern);
    else if (format)
        put_format(w, mm2_value_text(format));
    else
        put_text(w, "[\\s\\S]");
    if (!pattern && !format)
        put_count(w, least, most);
    put_text(w, ")" MM2_PATTERN_BEHIND_STRING "\"");
}

/* ---- Containers ---- */

static void add_array(writer *w)
{
    const mm2_value *items = field(w, "items"), *first = field(w, "prefixItems");
    int64_t least = count_of(w, "minItems", 0), most = count_of(w, "maxItems", -1);
    int64_t fixed = mm2_value_count(first);
    int none = mm2_value_is(items, MM2_VALUE_FALSE) || (!items && first);
    if (first && !mm2_value_is(first, MM2_VALUE_ARRAY))
        refuse(w, MM2_E_ARG, "prefixItems", "expected a list");
    if (!items && !first)
        refuse(w, MM2_E_UNSUPPORTED, "items", "an array without it may hold anything");
    if ((most >= 0 && (most < least || most < fixed)) || (none && least > fixed))
        refuse(w, MM2_E_UNSUPPORTED, most >= 0 ? "maxItems" : "minItems",
               "no array of so many items that is known here fits");
    add_text(w, "\\[");
    for (const mm2_value *v = NULL; (v = mm2_value_next(first, v));) {
        add_text(w, v == mm2_value_next(first, NULL) ? "" : ", ?");
        add_schema(w, "prefixItems", v);
    }
    least = least > fixed ? least - fixed : 0;
    most = most < 0 ? -1 : most - fixed;
    if (!none && most) {
        if (!fixed) { /* one without a comma before it */
            add_text(w, "(?:");
            add_schema(w, "items", items);
        }
        add_text(w, "(?:, ?");
        add_schema(w, "items", items);
        add_text(w, ")");
        add(w, (item){.kind = COUNT,
                      .least = !fixed && least ? least - 1 : least,
                      .most = !fixed && most > 0 ? most - 1 : most});
        if (!fixed)
            add_text(w, least ? ")" : ")?");
    }
    add_text(w, "\\]");
}

static int is_required(writer *w, const char *name)
{
    const mm2_value *list = field(w, "required");
    for (const mm2_value *v = NULL; (v = mm2_value_next(list, v));)
        if (mm2_value_says(v, name))
            return 1;
    return 0;
}

/* Properties of which none is required: the last one that is there may follow any of those before
 * it. */
static void add_optional(writer *w, const mm2_value *properties)
{
    const mm2_value *key = properties + 1;
    add_text(w, "(?:");
    for (uint32_t i = 2; i < properties->size; i++)
        add_text(w, "(?:");
    for (uint32_t i = 0; i < properties->size; i++, key += 1 + key[1].extent) {
        if (i) {
            add_text(w, "(?:, ?");
            add_property(w, key);
            add_text(w, ")?|");
        }
        add_property(w, key);
        if (i && i + 1 < properties->size)
            add_text(w, ")");
    }
    add_text(w, ")?");
}

static void check_object(writer *w, const mm2_value *properties)
{
    const mm2_value *more = field(w, "additionalProperties"), *required = field(w, "required");
    if (more && !mm2_value_is(more, MM2_VALUE_FALSE) && !mm2_value_is(more, MM2_VALUE_TRUE))
        refuse(w, MM2_E_UNSUPPORTED, "additionalProperties", "known are true and false");
    if (!properties && !mm2_value_is(more, MM2_VALUE_FALSE))
        refuse(w, MM2_E_UNSUPPORTED, "properties", "an object without them may hold anything");
    if (properties && !mm2_value_is(properties, MM2_VALUE_OBJECT))
        refuse(w, MM2_E_ARG, "properties", "expected an object");
    if (required && !mm2_value_is(required, MM2_VALUE_ARRAY))
        refuse(w, MM2_E_ARG, "required", "expected a list");
    for (const mm2_value *v = NULL; (v = mm2_value_next(required, v));)
        if (!mm2_value_text(v))
            refuse(w, MM2_E_ARG, "required", "expected strings");
        else if (!mm2_value_field(properties, v->text))
            refuse(w, MM2_E_UNSUPPORTED, "required", "it names what is not among the properties");
}

static void add_object(writer *w)
{
    const mm2_value *properties = field(w, "properties"), *key;
    int must = 0; /* one that is there has been met */
    check_object(w, properties);
    if (w->status)
        return;
    uint32_t count = properties ? properties->size : 0, n = 0;
    const mm2_value *first = count ? properties + 1 : NULL;
    for (key = first; n < count && !is_required(w, key->text); n++)
        key += 1 + key[1].extent;
    add_text(w, "\\{");
    if (n == count && count) {
        add_optional(w, properties);
    } else {
        key = first;
        for (uint32_t i = 0; i < count; i++, key += 1 + key[1].extent) {
            int required = is_required(w, key->text);
            add_text(w, required ? must ? ", ?" : "" : must ? "(?:, ?" : "(?:");
            add_property(w, key);
            add_text(w, required ? "" : must ? ")?" : ", ?)?");
            must |= required;
        }
    }
    add_text(w, "\\}");
}

/* ---- Schemas ---- */

static int fits_type(const mm2_value *type, const mm2_value *v)
{
    static const char *const names[] = {"null",   "boolean", "boolean", "number",
                                        "string", "array",   "object"};
    const mm2_value *one = mm2_value_is(type, MM2_VALUE_ARRAY) ? mm2_value_next(type, NULL) : type;
    for (; one; one = one == type ? NULL : mm2_value_next(type, one))
        if (mm2_value_says(one, names[v->kind]) ||
            (mm2_value_says(one, "integer") && mm2_value_is_whole(v)))
            return 1;
    return !type;
}

/* enum and const: the values that fit the type. */
static void add_values(writer *w, const mm2_value *list, const mm2_value *only)
{
    int found = 0;
    add_text(w, "(?:");
    for (const mm2_value *v = only ? only : mm2_value_next(list, NULL); v && !w->status;
         v = only ? NULL : mm2_value_next(list, v)) {
        if (!fits_type(field(w, "type"), v))
            continue;
        add_text(w, found++ ? "|" : "");
        add(w, (item){.kind = VALUE, .v = v});
    }
    add_text(w, ")");
    if (!found)
        refuse(w, MM2_E_ARG, only ? "const" : "enum",
               "expected a list of values that fit the type");
}

static void add_value(writer *w, const mm2_value *v)
{
    const mm2_value *key = v + 1;
    if (mm2_value_is(v, MM2_VALUE_ARRAY)) {
        add_text(w, "\\[");
        for (const mm2_value *i = NULL; (i = mm2_value_next(v, i));) {
            add_text(w, i == v + 1 ? "" : ", ?");
            add(w, (item){.kind = VALUE, .v = i});
        }
        add_text(w, "\\]");
    } else if (mm2_value_is(v, MM2_VALUE_OBJECT)) {
        add_text(w, "\\{");
        for (uint32_t i = 0; i < v->size; i++, key += 1 + key[1].extent) {
            add_text(w, i ? ", ?" : "");
            add(w, (item){.kind = KEY, .v = key});
            add(w, (item){.kind = VALUE, .v = key + 1});
        }
        add_text(w, "\\}");
    } else if (mm2_value_is(v, MM2_VALUE_STRING)) {
        put_string(w, v);
    } else if (mm2_value_is(v, MM2_VALUE_NUMBER)) {
        mm2_view number = {v->text, v->size};
        if (mm2_json_number(number) != number.length)
            refuse(w, MM2_E_ARG, "", "NaN and Infinity are no numbers of JSON");
        put_literal(w, v->text, v->size);
    } else {
        put_text(w, v->kind == MM2_VALUE_NULL   ? "null"
                    : v->kind == MM2_VALUE_TRUE ? "true"
                                                : "false");
    }
}

/* "#/$defs/name", as Pydantic and everybody else write it. */
static void add_reference(writer *w, const mm2_value *v)
{
    const char *text = mm2_value_text(v), *name = NULL;
    const mm2_value *target = NULL;
    static const char *const places[] = {"#/$defs/", "#/definitions/"};
    for (int i = 0; i < 2 && text && !name; i++)
        if (!strncmp(text, places[i], strlen(places[i]))) {
            name = text + strlen(places[i]);
            target = mm2_value_field(mm2_value_field(w->root, i ? "definitions" : "$defs"), name);
        }
    if (!target) {
        refuse(w, MM2_E_UNSUPPORTED, "$ref", "it leads to nothing in #/$defs");
        return;
    }
    for (int32_t i = w->here; i >= 0; i = w->crumbs[i].parent)
        if (w->crumbs[i].schema == target)
            refuse(w, MM2_E_UNSUPPORTED, "$ref", "a schema that holds itself is not known here");
    add(w, (item){.kind = SCHEMA, .text = name, .in = "$defs", .v = target});
}

enum { NUMBERS = 1 << 3, EVERYTHING = 1 << 7 };

/* Which kinds of values a branch may have; all if that is not plain. */
static int kinds_of(const mm2_value *schema)
{
    static const char *const names[] = {"null",   "boolean", "boolean", "number",
                                        "string", "array",   "object",  "integer"};
    const mm2_value *type = mm2_value_field(schema, "type"),
                    *list = mm2_value_field(schema, "enum");
    const mm2_value *only = mm2_value_field(schema, "const");
    int kinds = 0;
    for (const mm2_value *v = NULL; (v = mm2_value_next(list, v));)
        kinds |= 1 << v->kind;
    if (only)
        kinds |= 1 << only->kind;
    const mm2_value *one = mm2_value_is(type, MM2_VALUE_ARRAY) ? mm2_value_next(type, NULL) : type;
    for (int given = kinds; one && !given; one = one == type ? NULL : mm2_value_next(type, one))
        for (int i = 0; i < 8; i++)
            if (mm2_value_says(one, names[i]))
                kinds |= 1 << (i == 7 ? MM2_VALUE_NUMBER : i);
    return kinds ? kinds : EVERYTHING - 1;
}

static void add_union(writer *w, const char *name, const mm2_value *list)
{
    int kinds = 0;
    if (!mm2_value_count(list))
        refuse(w, MM2_E_ARG, name, "expected a list of schemas");
    add_text(w, "(?:");
    for (const mm2_value *v = NULL; (v = mm2_value_next(list, v));) {
        if (*name == 'o' && (kinds & kinds_of(v)))
            refuse(w, MM2_E_UNSUPPORTED, name, "a value may fit several of them; use anyOf");
        kinds |= kinds_of(v);
        add_text(w, v == mm2_value_next(list, NULL) ? "" : "|");
        add_schema(w, name, v);
    }
    add_text(w, ")");
}

static void add_type(writer *w, const char *type)
{
    if (!strcmp(type, "object"))
        add_object(w);
    else if (!strcmp(type, "array"))
        add_array(w);
    else if (!strcmp(type, "null") || !strcmp(type, "boolean"))
        add_text(w, *type == 'n' ? "null" : "(?:true|false)");
    else if (!strcmp(type, "string") || !strcmp(type, "integer") || !strcmp(type, "number"))
        add(w, (item){.kind = TEXT, .text = type, .v = w->root}); /* written in its turn */
    else
        refuse(w, MM2_E_ARG, "type", "expected the name of a type");
}

static void add_types(writer *w)
{
    const mm2_value *type = field(w, "type");
    if (!type && (field(w, "properties") || field(w, "items") || field(w, "prefixItems"))) {
        add_type(w, field(w, "properties") ? "object" : "array");
    } else if (mm2_value_text(type)) {
        add_type(w, type->text);
    } else if (mm2_value_count(type)) {
        add_text(w, "(?:");
        for (const mm2_value *v = NULL; (v = mm2_value_next(type, v)) && !w->status;) {
            add_text(w, v == mm2_value_next(type, NULL) ? "" : "|");
            add_type(w, mm2_value_text(v) ? v->text : "");
        }
        add_text(w, ")");
    } else {
        refuse(w, type ? MM2_E_ARG : MM2_E_UNSUPPORTED, "type",
               type ? "expected a name or a list of names" : "a schema without it may be anything");
    }
}

static void add_parts(writer *w, const mm2_value *schema)
{
    static const char *const alone[] = {"$ref", "const", "enum", "anyOf", "oneOf"};
    const mm2_value *v = NULL;
    int i = 0;
    if (!mm2_value_is(schema, MM2_VALUE_OBJECT)) {
        refuse(w, MM2_E_UNSUPPORTED, "", "a schema must be an object here");
        return;
    }
    for (; i < 5 && !(v = field(w, alone[i])); i++)
        continue;
    check_keywords(w, v ? alone[i] : NULL);
    if (w->status)
        return;
    if (i == 0)
        add_reference(w, v);
    else if (i == 1)
        add_values(w, NULL, v);
    else if (i == 2)
        add_values(w, v, NULL);
    else if (i < 5)
        add_union(w, alone[i], v);
    else
        add_types(w);
}

/* What a schema stands for comes in place of it, in order. */
static void take_schema(writer *w, item i)
{
    w->crumbs = grow(w, w->crumbs, w->crumb_count, &w->crumb_room, sizeof *w->crumbs);
    if (w->status)
        return;
    w->here = w->crumb_count++;
    w->crumbs[w->here] = (crumb){i.crumb, i.in, i.text, i.v};
    add_parts(w, i.v);
}

static void take(writer *w, item i)
{
    int32_t begin = w->count;
    w->here = i.crumb;
    if (i.kind == SCHEMA)
        take_schema(w, i);
    else if (i.kind == VALUE)
        add_value(w, i.v);
    else if (i.kind == COUNT)
        put_count(w, i.least, i.most);
    else if (i.kind == KEY)
        put_string(w, i.v);
    else if (!i.v)
        put_text(w, i.text);
    else if (*i.text == 's')
        put_any_string(w);
    else if (*i.text == 'i')
        put_integer(w);
    else
        put_number(w);
    if (i.kind == KEY)
        put_text(w, ": ?");
    for (int32_t a = begin, b = w->count - 1; a < b; a++, b--) {
        item swap = w->items[a];
        w->items[a] = w->items[b];
        w->items[b] = swap;
    }
}

/* ---- Reading ---- */

static mm2_status read_tree(mm2_json_tree *tree, const char *json)
{
    mm2_json j;
    mm2_json_begin(&j, "JSON", json, (int64_t)strlen(json));
    mm2_status status = mm2_json_tree_read(tree, &j);
    if (!status)
        status = mm2_json_end(&j);
    return status == MM2_E_FORMAT ? MM2_E_ARG : status;
}

mm2_status mm2_schema_pattern(mm2_growing *out, const char *json)
{
    mm2_json_tree tree = {0};
    writer w = {.out = out, .here = -1};
    w.status = read_tree(&tree, json);
    w.root = tree.values;
    if (!w.status)
        add_schema(&w, "", w.root);
    while (!w.status && w.count)
        take(&w, w.items[--w.count]);
    free(w.items);
    free(w.crumbs);
    mm2_json_tree_free(&tree);
    return w.status;
}

mm2_status mm2_choices_pattern(mm2_growing *out, const char *json)
{
    mm2_json_tree tree = {0};
    writer w = {.out = out, .here = -1};
    w.status = read_tree(&tree, json);
    if (!w.status && !mm2_value_count(tree.values))
        w.status = mm2_fail(MM2_E_ARG, "expected a list of at least one string, found %s",
                            mm2_value_kind(tree.values));
    for (const mm2_value *v = NULL; !w.status && (v = mm2_value_next(tree.values, v));) {
        if (!mm2_value_is(v, MM2_VALUE_STRING))
            w.status = mm2_fail(MM2_E_ARG, "expected strings, found %s", mm2_value_kind(v));
        put_text(&w, v == mm2_value_next(tree.values, NULL) ? "" : "|");
        if (!w.status)
            put_literal(&w, v->text, v->size);
    }
    mm2_json_tree_free(&tree);
    return w.status;
}

/* A model writes every value as plain text; the tool's schema says what it means. The rule: a text
 * that can be read as one of the types is that, else it stays the text that it is, so that nothing
 * is lost and whoever checks the arguments sees what the model wrote.
 *
 *     string among the types   JSON of one of the others, exactly; anything else is the string
 *     no string                the number, boolean or null that it means in Python's spelling or
 *                              JSON's, then any JSON; anything else is a string all the same
 *
 * Numbers keep their digits, whatever a double could hold. Types are found through anyOf, oneOf,
 * allOf, enum, const and $ref, with a list of schemas to look at instead of recursion. */
#include "text/schema.h"

#include "base/status.h"

#include <string.h>

enum { MOST_SCHEMAS = 64, MOST_STEPS = 256 }; /* that one parameter's types are looked for in */

/* ---- Tools ---- */

static const mm2_value *function_of(const mm2_value *tool)
{
    const mm2_value *function = mm2_value_field(tool, "function");
    return function ? function : tool;
}

/* Of its arguments, under either name. */
static const mm2_value *schema_of(const mm2_value *function)
{
    const mm2_value *schema = mm2_value_field(function, "parameters");
    return schema ? schema : mm2_value_field(function, "input_schema");
}

/* A field of an object that is none of these, up to NULL, and not null; or NULL. objects: only such
 * fields as hold an object. */
static const mm2_value *other_field(const mm2_value *object, const char *const *names, int objects)
{
    for (const mm2_value *key = NULL; (key = mm2_value_key(object, key));) {
        int i = 0;
        while (names[i] && !mm2_value_says(key, names[i]))
            i++;
        if (!names[i] && !mm2_value_is(key + 1, MM2_VALUE_NULL) &&
            (!objects || mm2_value_is(key + 1, MM2_VALUE_OBJECT)))
            return key;
    }
    return NULL;
}

static mm2_status check_tool(const mm2_value *tool, int32_t index)
{
    enum { SHOWN = 40 }; /* bytes of a name, in sentences */
    static const char *const outer[] = {"type", "function", "cache_control", NULL};
    static const char *const inner[] = {"cache_control", NULL};
    const mm2_value *function = function_of(tool), *type = mm2_value_field(tool, "type");
    const mm2_value *description = mm2_value_field(function, "description"), *other = NULL;
    const mm2_value *schema = schema_of(function);
    const char *name = mm2_value_text(mm2_value_field(function, "name"));
    if (!name || !*name)
        return mm2_fail(MM2_E_ARG,
                        "tool %d has no name; a tool is {\"type\": \"function\", \"function\": "
                        "{\"name\": ..., \"parameters\": ...}}",
                        index);
    if (type && !mm2_value_says(type, "function") && !mm2_value_says(type, "custom"))
        return mm2_fail(MM2_E_ARG, "tool %d, \"%.*s\", has another type than \"function\"", index,
                        SHOWN, name);
    if (schema && !mm2_value_is(schema, MM2_VALUE_OBJECT))
        return mm2_fail(MM2_E_ARG,
                        "tool %d, \"%.*s\", has %s as its parameters, expected a JSON schema",
                        index, SHOWN, name, mm2_value_kind(schema));
    if (description && !mm2_value_text(description))
        return mm2_fail(MM2_E_ARG,
                        "tool %d, \"%.*s\", has %s as its description, expected a string", index,
                        SHOWN, name, mm2_value_kind(description));
    if (function != tool && (other = other_field(tool, outer, 0)))
        return mm2_fail(
            MM2_E_ARG,
            "tool %d, \"%.*s\", has \"%.*s\" beside its function, which the format has no "
            "place for",
            index, SHOWN, name, SHOWN, mm2_value_text(other));
    if (!schema && (other = other_field(function, inner, 1)))
        return mm2_fail(MM2_E_ARG,
                        "tool %d, \"%.*s\", has an object in \"%.*s\" and no parameters; its JSON "
                        "schema is expected there",
                        index, SHOWN, name, SHOWN, mm2_value_text(other));
    return MM2_OK;
}

mm2_status mm2_tools_read(mm2_tools *t, const char *json, int64_t length)
{
    mm2_json j;
    int32_t index = 0;
    *t = (mm2_tools){0};
    if (!json)
        return MM2_OK;
    mm2_json_begin(&j, "tools", json, length);
    mm2_status status = mm2_json_tree_read(&t->tree, &j);
    if (!status)
        status = mm2_json_end(&j);
    const mm2_value *list = t->tree.values;
    if (!status && !mm2_value_is(list, MM2_VALUE_ARRAY) && !mm2_value_is(list, MM2_VALUE_NULL))
        status = mm2_fail(MM2_E_ARG, "tools are %s, expected a list", mm2_value_kind(list));
    t->given = mm2_value_is(list, MM2_VALUE_ARRAY);
    for (const mm2_value *tool = NULL; !status && (tool = mm2_value_next(list, tool)); index++)
        status = check_tool(tool, index);
    return status == MM2_E_FORMAT ? MM2_E_ARG : status;
}

void mm2_tools_free(mm2_tools *t)
{
    mm2_json_tree_free(&t->tree);
}

static int is_text(const mm2_value *v, mm2_view text)
{
    return mm2_value_is(v, MM2_VALUE_STRING) && (int64_t)v->size == text.length &&
           !memcmp(v->text, text.begin, (size_t)text.length);
}

const mm2_value *mm2_tools_find(const mm2_tools *t, mm2_view name)
{
    for (const mm2_value *tool = NULL; (tool = mm2_value_next(t->tree.values, tool));)
        if (is_text(mm2_value_field(function_of(tool), "name"), name))
            return function_of(tool);
    return NULL;
}

/* ---- Types ---- */

/* The field of that name, whose value may be null. */
static const mm2_value *member(const mm2_value *object, mm2_view key)
{
    char name[256];
    if (key.length >= (int64_t)sizeof name || memchr(key.begin, 0, (size_t)key.length))
        return NULL;
    memcpy(name, key.begin, (size_t)key.length);
    name[key.length] = 0;
    return mm2_value_field(object, name);
}

/* "#/$defs/Colour", seen from the parameters' schema. */
static const mm2_value *resolve(const mm2_value *root, const char *ref)
{
    if (!ref || *ref != '#')
        return NULL;
    for (ref++; root && *ref == '/';) {
        char key[256];
        int n = 0;
        for (ref++; *ref && *ref != '/' && n < 255; ref++) {
            char c = *ref;
            if (c == '~' && (ref[1] == '0' || ref[1] == '1'))
                c = *++ref == '0' ? '~' : '/';
            key[n++] = c;
        }
        root = n < 255 ? member(root, (mm2_view){key, n}) : NULL;
    }
    return *ref ? NULL : root;
}

static uint32_t type_named(const mm2_value *name)
{
    static const char *const names[] = {"string", "integer", "number", "boolean",
                                        "object", "array",   "null"};
    for (int i = 0; i < 7; i++)
        if (mm2_value_says(name, names[i]))
            return 1U << i;
    return 0;
}

static uint32_t type_of(const mm2_value *v)
{
    switch (v->kind) {
    case MM2_VALUE_NULL:
        return MM2_TYPE_NULL;
    case MM2_VALUE_NUMBER:
        return mm2_value_is_whole(v) ? MM2_TYPE_INTEGER : MM2_TYPE_NUMBER;
    case MM2_VALUE_STRING:
        return MM2_TYPE_STRING;
    case MM2_VALUE_ARRAY:
        return MM2_TYPE_ARRAY;
    case MM2_VALUE_OBJECT:
        return MM2_TYPE_OBJECT;
    default:
        return MM2_TYPE_BOOLEAN;
    }
}

typedef struct search {
    const mm2_value *root, *schemas[MOST_SCHEMAS];
    int count, steps;
    uint32_t types;
} search;

static void look_at(search *s, const mm2_value *schema)
{
    if (s->count < MOST_SCHEMAS)
        s->schemas[s->count++] = schema;
}

static void look_into(search *s, const mm2_value *schema)
{
    static const char *const unions[] = {"anyOf", "oneOf", "allOf"};
    const mm2_value *type = mm2_value_field(schema, "type"), *item = NULL;
    const mm2_value *ref = resolve(s->root, mm2_value_text(mm2_value_field(schema, "$ref")));
    uint32_t types = type_named(type);
    int deeper = 0;
    while ((item = mm2_value_next(type, item)))
        types |= type_named(item);
    if (!types) {
        while ((item = mm2_value_next(mm2_value_field(schema, "enum"), item)))
            types |= type_of(item);
        if ((item = mm2_value_field(schema, "const")))
            types |= type_of(item);
    }
    if (!types && ref) {
        look_at(s, ref);
        deeper = 1;
    }
    for (int i = 0; i < 3 && !types; i++)
        for (item = NULL; (item = mm2_value_next(mm2_value_field(schema, unions[i]), item));) {
            look_at(s, item);
            deeper = 1;
        }
    if (!types && !deeper)
        types = MM2_TYPE_STRING;
    int32_t nullable = 0;
    if (mm2_value_flag(mm2_value_field(schema, "nullable"), &nullable) && nullable)
        types |= MM2_TYPE_NULL;
    s->types |= types;
}

uint32_t mm2_tools_types(const mm2_value *function, mm2_view parameter)
{
    search s = {.root = schema_of(function)};
    const mm2_value *schema = member(mm2_value_field(s.root, "properties"), parameter);
    if (!schema)
        schema = mm2_value_field(s.root, "additionalProperties");
    if (!mm2_value_is(schema, MM2_VALUE_OBJECT))
        return MM2_TYPE_STRING;
    look_at(&s, schema);
    while (s.count && s.steps++ < MOST_STEPS)
        look_into(&s, s.schemas[--s.count]);
    return s.types ? s.types : MM2_TYPE_STRING;
}

/* ---- Values ---- */

static int64_t put(char *out, const char *text)
{
    size_t n = strlen(text);
    memcpy(out, text, n);
    return (int64_t)n;
}

/* Are these the letters, whatever their case? */
static int is_word(mm2_view v, const char *word)
{
    if (v.length != (int64_t)strlen(word))
        return 0;
    for (int64_t i = 0; i < v.length; i++) {
        char c = v.begin[i];
        if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != word[i])
            return 0;
    }
    return 1;
}

/* Whether a double holds it. */
static int is_finite(mm2_view number)
{
    char text[512];
    double value;
    if (number.length >= (int64_t)sizeof text)
        return 0;
    memcpy(text, number.begin, (size_t)number.length);
    text[number.length] = 0;
    mm2_value v = {text, (uint32_t)number.length, MM2_VALUE_NUMBER, 1};
    return mm2_value_number(&v, &value);
}

static int has(mm2_view v, const char *characters)
{
    for (int64_t i = 0; i < v.length; i++)
        if (strchr(characters, v.begin[i]))
            return v.begin[i] != 0;
    return 0;
}

/* A number as Python's int and float read it: 007, +5, 1_000, .5, 5. Returns its length in JSON, or
 * -1. A whole number of the kind 3.0 is written as 3. */
static int64_t put_number(char *out, mm2_view v)
{
    char *begin = out, *first;
    int64_t i = 0;
    if (v.length && (*v.begin == '-' || *v.begin == '+')) {
        if (*v.begin == '-')
            *out++ = '-';
        i++;
    }
    first = out;
    for (; i < v.length; i++) { /* underscores stand between digits only */
        char c = v.begin[i];
        if (c == '_' && out > first && i + 1 < v.length && v.begin[i + 1] >= '0' &&
            v.begin[i + 1] <= '9' && v.begin[i - 1] != '_')
            continue;
        if (c == '.' && out == first)
            *out++ = '0';
        if (c == '0' && out == first && i + 1 < v.length && v.begin[i + 1] >= '0' &&
            v.begin[i + 1] <= '9')
            continue;
        *out++ = c;
        if (c == '.' && (i + 1 == v.length || v.begin[i + 1] < '0' || v.begin[i + 1] > '9'))
            *out++ = '0';
    }
    mm2_view made = {begin, out - begin};
    if (!made.length || mm2_json_number(made) != made.length)
        return -1;
    if (has(made, ".eE") && !is_finite(made))
        return -1;
    if (!has(made, "eE") && has(made, ".")) {
        int64_t n = made.length;
        while (begin[n - 1] == '0')
            n--;
        return begin[n - 1] == '.' ? n - 1 : made.length;
    }
    return made.length;
}

/* JSON of exactly one of the types. */
static int64_t put_exactly(char *out, uint32_t types, mm2_view v)
{
    char c = v.length ? *v.begin : 0;
    uint32_t type = c == '{'                                     ? MM2_TYPE_OBJECT
                    : c == '['                                   ? MM2_TYPE_ARRAY
                    : c == 't' || c == 'f'                       ? MM2_TYPE_BOOLEAN
                    : c == 'n'                                   ? MM2_TYPE_NULL
                    : c == '"' || mm2_json_number(v) != v.length ? 0
                    : has(v, ".eE")                              ? MM2_TYPE_NUMBER
                                                                 : MM2_TYPE_INTEGER;
    if (type == MM2_TYPE_INTEGER && types & MM2_TYPE_NUMBER)
        type = MM2_TYPE_NUMBER;
    if (!(types & type) || (type == MM2_TYPE_NUMBER && has(v, ".eE") && !is_finite(v)))
        return -1;
    return mm2_json_form(out, v, 0);
}

int64_t mm2_schema_value(char *out, uint32_t types, mm2_view text)
{
    mm2_view v = mm2_view_trim(text);
    int numeric = types & (MM2_TYPE_INTEGER | MM2_TYPE_NUMBER);
    if (types & MM2_TYPE_STRING)
        return put_exactly(out, types, types == (MM2_TYPE_STRING | MM2_TYPE_NULL) ? text : v);
    if (types & MM2_TYPE_NULL && (is_word(v, "null") || is_word(v, "none") || is_word(v, "nil")))
        return put(out, "null");
    if (types & MM2_TYPE_BOOLEAN) {
        if (is_word(v, "true") || (!numeric && mm2_view_is(v, "1")))
            return put(out, "true");
        if (is_word(v, "false") || (!numeric && mm2_view_is(v, "0")))
            return put(out, "false");
    }
    int64_t n = numeric ? put_number(out, v) : -1;
    if (n >= 0)
        return n;
    if (v.length && mm2_json_number(v) == v.length && has(v, ".eE") && !is_finite(v))
        return -1;
    return mm2_json_form(out, v, 0);
}

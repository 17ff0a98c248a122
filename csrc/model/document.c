/* Small documents go through jansson: it bounds its own depth, refuses invalid UTF-8, NUL, and
 * numbers out of range, and reports duplicate keys. The file is mapped only while it is parsed. */
#include "model/document.h"

#include "base/status.h"
#include "model/checkpoint.h"

#include <stdlib.h>

static mm2_status parse(mm2_document *d, const mm2_file *f)
{
    json_error_t error;
    if (!f->size)
        return mm2_fail(MM2_E_FORMAT, "%s: the file is empty", f->path);
    if (f->size > MM2_MAX_CONFIG)
        return mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected at most %d", f->path,
                        (long long)f->size, MM2_MAX_CONFIG);
    d->root = json_loadb((const char *)f->data, (size_t)f->size, JSON_REJECT_DUPLICATES, &error);
    if (!d->root)
        return mm2_fail(MM2_E_FORMAT, "%s: line %d: not JSON: %s", f->path, error.line, error.text);
    if (!json_is_object(d->root))
        return mm2_fail(MM2_E_FORMAT, "%s: expected an object, found %s", f->path,
                        mm2_document_kind(d->root));
    return MM2_OK;
}

mm2_status mm2_document_open(mm2_document *d, const char *directory, const char *name)
{
    *d = (mm2_document){0};
    mm2_status status = mm2_file_join(&d->path, directory, name, "file");
    if (status || !mm2_file_exists(d->path))
        return status;
    mm2_file f;
    status = mm2_file_open(&f, d->path, 0);
    if (!status)
        status = parse(d, &f);
    mm2_file_close(&f);
    return status;
}

void mm2_document_close(mm2_document *d)
{
    json_decref(d->root);
    free(d->path);
    *d = (mm2_document){0};
}

const json_t *mm2_document_field(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

const char *mm2_document_kind(const json_t *value)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object",      [JSON_ARRAY] = "an array",
        [JSON_STRING] = "a string",       [JSON_INTEGER] = "a whole number",
        [JSON_REAL] = "a decimal number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",           [JSON_NULL] = "null"};
    return kinds[json_typeof(value)];
}

/* The file is mapped only while it is parsed; the tree keeps what the document says. */
#include "model/document.h"

#include "base/status.h"
#include "model/checkpoint.h"

#include <stdlib.h>

static mm2_status parse(mm2_document *d, const mm2_file *f)
{
    if (!f->size)
        return mm2_fail(MM2_E_FORMAT, "%s: the file is empty", f->path);
    if (f->size > MM2_MAX_CONFIG)
        return mm2_fail(MM2_E_FORMAT, "%s: has %lld bytes, expected at most %d", f->path,
                        (long long)f->size, MM2_MAX_CONFIG);
    mm2_json j;
    mm2_json_begin(&j, f->path, f->data, f->size);
    mm2_status status = mm2_json_tree_read(&d->tree, &j);
    if (!status)
        status = mm2_json_end(&j);
    if (!status && !mm2_value_is(d->tree.values, MM2_VALUE_OBJECT))
        status = mm2_fail(MM2_E_FORMAT, "%s: expected an object, found %s", f->path,
                          mm2_value_kind(d->tree.values));
    if (!status)
        d->root = d->tree.values;
    return status;
}

mm2_status mm2_document_open(mm2_document *d, const char *directory, const char *name)
{
    *d = (mm2_document){0};
    mm2_status status = mm2_file_join(&d->path, directory, name, "file");
    if (status)
        return status;
    int32_t exists = mm2_file_exists(d->path);
    if (exists <= 0)
        return exists;
    mm2_file f;
    status = mm2_file_open(&f, d->path, 0);
    if (!status)
        status = parse(d, &f);
    mm2_file_close(&f);
    return status;
}

void mm2_document_close(mm2_document *d)
{
    mm2_json_tree_free(&d->tree);
    free(d->path);
    *d = (mm2_document){0};
}

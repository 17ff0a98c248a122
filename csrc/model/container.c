/* Which container a path holds.
 *
 * A path is looked at in this order: a file is a GGUF file or nothing; a directory with config.json
 * and safetensors is a Hugging Face checkpoint; any other directory must hold exactly one GGUF
 * checkpoint (one file, or the parts of one split set). */
#include "model/container.h"

#include "base/status.h"
#include "model/gguf.h"
#include "model/safetensors.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

/* As mm2_file_exists. */
static int32_t has_file(const char *directory, const char *name)
{
    char *path;
    mm2_status status = mm2_file_join(&path, directory, name, "file");
    if (status)
        return status;
    int32_t exists = mm2_file_exists(path);
    free(path);
    return exists;
}

/* Names of one set share everything but the part number in front of "-of-NNNNN.gguf". */
static int same_set(const char *a, const char *b)
{
    int32_t part, count, other_part, other_count;
    int32_t stem = mm2_gguf_split_name(a, &part, &count);
    return stem && mm2_gguf_split_name(b, &other_part, &other_count) == stem &&
           count == other_count && !memcmp(a, b, (size_t)stem);
}

/* The only GGUF checkpoint of a directory: a fresh file name, or NULL in *name if there is none. */
static mm2_status find_gguf(char **name, const char *directory)
{
    *name = NULL;
    DIR *d = opendir(directory);
    if (!d)
        return mm2_file_fail(directory, "list this directory");
    mm2_status status = MM2_OK;
    for (struct dirent *e; !status && (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        if (length <= 5 || e->d_name[0] == '.' || strcmp(e->d_name + length - 5, ".gguf"))
            continue;
        if (*name && !same_set(*name, e->d_name))
            status = mm2_fail(MM2_E_FORMAT,
                              "%s: holds more than one GGUF checkpoint (%.*s, %.*s): name the file",
                              directory, 200, *name, 200, e->d_name);
        else if (!*name && !(*name = strdup(e->d_name)))
            status = mm2_fail(MM2_E_NOMEM, "%s: out of memory while listing it", directory);
    }
    closedir(d);
    return status;
}

static mm2_status locate_in_directory(char **out, const char **format, const char *path)
{
    int32_t has_config = has_file(path, "config.json");
    int32_t has_tensors =
        has_config < 0 ? has_config : has_file(path, "model.safetensors.index.json");
    if (!has_tensors)
        has_tensors = has_file(path, "model.safetensors");
    if (has_tensors < 0)
        return has_tensors;
    if (has_config && has_tensors) {
        *format = "safetensors";
        *out = strdup(path);
        return *out ? MM2_OK : mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
    }
    char *name;
    mm2_status status = find_gguf(&name, path);
    if (!status && !name)
        status = mm2_fail(
            MM2_E_FORMAT,
            has_config    ? "%s: holds config.json but no model.safetensors.index.json, "
                            "model.safetensors or .gguf file: is the download complete?"
            : has_tensors ? "%s: holds safetensors but no config.json: is the download complete?"
                          : "%s: holds no checkpoint: expected config.json with safetensors, or a "
                            ".gguf file",
            path);
    if (!status) {
        *format = "gguf";
        status = mm2_file_join(out, path, name, "GGUF file");
    }
    free(name);
    return status;
}

mm2_status mm2_container_locate(char **out, const char **format, const char *path)
{
    *out = NULL;
    if (mm2_file_is_directory(path))
        return locate_in_directory(out, format, path);
    *format = "gguf";
    mm2_file f; /* a missing or special file fails here with its own sentence */
    mm2_status status = mm2_file_open(&f, path, 0);
    if (status)
        return status;
    int is_gguf = f.size >= 4 && !memcmp(f.data, "GGUF", 4);
    int64_t size = f.size;
    mm2_file_close(&f);
    if (!is_gguf)
        return mm2_fail(MM2_E_FORMAT,
                        size ? "%s: does not begin with \"GGUF\": expected a GGUF file, or the "
                               "directory of a Hugging Face checkpoint"
                             : "%s: the file is empty",
                        path);
    *out = strdup(path);
    return *out ? MM2_OK : mm2_fail(MM2_E_NOMEM, "%s: out of memory while opening it", path);
}

mm2_status mm2_container_open(mm2_checkpoint *c, const char *path, uint32_t flags)
{
    mm2_checkpoint_init(c);
    mm2_status status = mm2_container_locate(&c->path, &c->format, path);
    if (!status)
        status = !strcmp(c->format, "gguf") ? mm2_gguf_open(c, c->path, flags)
                                            : mm2_safetensors_open(c, c->path, flags);
    if (status)
        mm2_container_close(c);
    return status;
}

void mm2_container_close(mm2_checkpoint *c)
{
    if (c->gguf)
        mm2_gguf_free(c->gguf);
    free(c->gguf);
    mm2_checkpoint_close(c);
}

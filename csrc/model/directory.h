/* The documents in the directory of a Hugging Face checkpoint, beside its safetensors. */
#ifndef MM2_DIRECTORY_H
#define MM2_DIRECTORY_H

#include "model/checkpoint.h"

/* config.json, generation_config.json and the front matter of README.md: family, configuration,
 * hints, ids, licence. */
mm2_status mm2_directory_read(mm2_checkpoint *c, const char *directory);
/* generation_config.json alone, if there is one: hints, bos and end tokens. */
mm2_status mm2_directory_generation(mm2_checkpoint *c, const char *directory);

#endif

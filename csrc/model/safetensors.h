/* A Hugging Face directory: safetensors, with the documents beside them. */
#ifndef MM2_SAFETENSORS_H
#define MM2_SAFETENSORS_H

#include "model/checkpoint.h"

/* Fills files, entries, configuration and facts; what it leaves behind on failure,
 * mm2_checkpoint_close clears. */
mm2_status mm2_safetensors_open(mm2_checkpoint *c, const char *directory, uint32_t flags);

#endif

/* What minimax2.h says of the library as a whole. The other public functions stand beside what they work on: tensors in
 * tensor/, models in model/, text in text/, sessions, batches and samplers in run/; each checks its own arguments. */
#include "minimax2.h"

#include "base/status.h"

uint32_t mm2_abi(void)
{
    return MM2_ABI;
}

const char *mm2_version(void)
{
    return "0.1.0";
}

const char *mm2_error(void)
{
    return mm2_status_text();
}

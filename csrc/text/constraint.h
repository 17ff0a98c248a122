/* Grammars and constraints: the public functions, and what tests need beside them. */
#ifndef MM2_CONSTRAINT_H
#define MM2_CONSTRAINT_H

#include "minimax2.h"

/* How many bytes of places it keeps before it forgets them all. Nobody may use it meanwhile. */
void mm2_grammar_limit(mm2_grammar *g, int64_t bytes);

#endif

/* How kernels are made of their parts: templates whose constants are arguments, so that each copy is
 * compiled with its own. Under sanitizers a copy for every format costs minutes of compiling and
 * finds nothing more: there the parts are functions that are called. */
#ifndef MM2_INLINE_H
#define MM2_INLINE_H

#ifdef MM2_SANITIZED
#define INLINE static inline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#endif

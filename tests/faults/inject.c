/* malloc and its kin, and mmap, in front of the C library's own. The program defines them, so the
 * shared libraries call them as well. With AddressSanitizer, which has a malloc of its own, the
 * linker wraps the calls of our objects only (see csrc/Makefile). */
#define _GNU_SOURCE
#include "inject.h"

#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic int active, forever;
static _Atomic long countdown, hits, blocks, maps, bytes, peak, base;

void inject(long k, int lasting)
{
    countdown = k;
    forever = lasting;
    hits = 0;
    active = 1;
}

long inject_end(void)
{
    active = 0;
    return hits;
}

long blocks_in_use(void)
{
    return blocks;
}

long maps_in_use(void)
{
    return maps;
}

static int fails(void)
{
    if (!active)
        return 0;
    long left = --countdown;
    if (left > 0 || (left < 0 && !forever))
        return 0;
    hits++;
    errno = ENOMEM;
    return 1;
}

void peak_begin(void)
{
    peak = base = bytes;
}

long peak_bytes(void)
{
    return peak - base;
}

static void *counted(void *block)
{
    blocks += block != NULL;
    bytes += (long)malloc_usable_size(block); /* 0 for NULL */
    if (bytes > peak)
        peak = bytes;
    return block;
}

#ifdef __SANITIZE_ADDRESS__
#define OURS(name) __wrap_##name
#define THEIRS(name) __real_##name
#else
#define OURS(name) name
#define THEIRS(name) __libc_##name
#endif

#pragma GCC visibility push(default) /* -fvisibility=hidden would keep them from the libraries */

void *THEIRS(malloc)(size_t size);
void *THEIRS(calloc)(size_t count, size_t size);
void *THEIRS(realloc)(void *block, size_t size);
void *THEIRS(memalign)(size_t alignment, size_t size);
void THEIRS(free)(void *block);

void *OURS(malloc)(size_t size);
void *OURS(malloc)(size_t size)
{
    return fails() ? NULL : counted(THEIRS(malloc)(size));
}

void *OURS(calloc)(size_t count, size_t size);
void *OURS(calloc)(size_t count, size_t size)
{
    return fails() ? NULL : counted(THEIRS(calloc)(count, size));
}

void *OURS(realloc)(void *block, size_t size);
void *OURS(realloc)(void *block, size_t size)
{
    if (fails())
        return NULL;
    long before = (long)malloc_usable_size(block);
    void *moved = THEIRS(realloc)(block, size);
    if (moved && block) {
        blocks--;
        bytes -= before;
    }
    return counted(moved);
}

void *OURS(memalign)(size_t alignment, size_t size);
void *OURS(memalign)(size_t alignment, size_t size)
{
    return fails() ? NULL : counted(THEIRS(memalign)(alignment, size));
}

void *OURS(aligned_alloc)(size_t alignment, size_t size);
void *OURS(aligned_alloc)(size_t alignment, size_t size)
{
    return OURS(memalign)(alignment, size);
}

int OURS(posix_memalign)(void **out, size_t alignment, size_t size);
int OURS(posix_memalign)(void **out, size_t alignment, size_t size)
{
    void *block = OURS(memalign)(alignment, size);
    if (block)
        *out = block;
    return block ? 0 : ENOMEM;
}

void OURS(free)(void *block);
void OURS(free)(void *block)
{
    blocks -= block != NULL;
    bytes -= (long)malloc_usable_size(block);
    THEIRS(free)(block);
}

void *OURS(mmap)(void *address, size_t size, int protection, int flags, int file, off_t offset);
void *OURS(mmap)(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    if (fails())
        return MAP_FAILED;
    long map = syscall(SYS_mmap, address, size, protection, flags, file, offset);
    maps += map != -1;
    return map == -1 ? MAP_FAILED : (void *)map; /* syscall has set errno */
}

#ifdef __SANITIZE_ADDRESS__ /* whose own ones call its own malloc */
char *THEIRS(strdup)(const char *text);
char *OURS(strdup)(const char *text);
char *OURS(strdup)(const char *text)
{
    return fails() ? NULL : counted(THEIRS(strdup)(text));
}

char *THEIRS(strndup)(const char *text, size_t most);
char *OURS(strndup)(const char *text, size_t most);
char *OURS(strndup)(const char *text, size_t most)
{
    return fails() ? NULL : counted(THEIRS(strndup)(text, most));
}

char *THEIRS(realpath)(const char *path, char *out);
char *OURS(realpath)(const char *path, char *out);
char *OURS(realpath)(const char *path, char *out)
{
    return fails() ? NULL : counted(THEIRS(realpath)(path, out)); /* out: always NULL */
}
#endif

int OURS(munmap)(void *address, size_t size);
int OURS(munmap)(void *address, size_t size)
{
    int status = (int)syscall(SYS_munmap, address, size);
    maps -= status == 0;
    return status;
}

#pragma GCC visibility pop

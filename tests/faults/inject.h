/* Memory that runs out when a test says so. */
#ifndef INJECT_H
#define INJECT_H

/* From now on the k-th request for memory fails (k = 1: the next one), and with `lasting` all after
 * it. Requests of all threads and of the libraries that we use count; maps of files, too. */
void inject(long k, int lasting);
/* No more; returns how many requests failed. */
long inject_end(void);
/* Blocks and maps that are in use. */
long blocks_in_use(void);
long maps_in_use(void);
/* The most bytes in blocks at once since peak_begin, less those that were in use then. */
void peak_begin(void);
long peak_bytes(void);

#endif

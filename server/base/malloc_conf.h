/*
 * The allocator's settings: a name that pulls malloc_conf.c into every program with page chunks.
 *
 * Owner: nobody; a constant. Thread: any.
 */
#ifndef KVD_MALLOC_CONF_H
#define KVD_MALLOC_CONF_H

/* The settings that jemalloc reads at start; "" without jemalloc. */
const char *kvd_malloc_conf_text(void);

#endif

/*
 * The cold copy of a block: what a block in memory knows of its record, shared by all blocks of the
 * same content.
 *
 * Owner: blocks, by reference. Thread: loop only. The last reference gives the record up.
 */
#ifndef KVD_COLD_COPY_H
#define KVD_COLD_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "server/cold/cold.h"

struct kvd_service;

struct kvd_cold_copy {
    struct kvd_cold_id id;
    struct kvd_cold_record *record; /* owned; NULL: being written, or that failed */
    uint32_t refs;
    bool has_failed;
};

/* One reference, no record yet. NULL without memory. */
struct kvd_cold_copy *kvd_cold_copy_create(struct kvd_service *service, struct kvd_cold_id id);

struct kvd_cold_copy *kvd_cold_copy_ref(struct kvd_cold_copy *copy);

/* NULL ok. */
void kvd_cold_copy_unref(struct kvd_service *service, struct kvd_cold_copy *copy);

/* What is stored there can be read back. NULL ok. */
static inline bool kvd_cold_copy_is_durable(const struct kvd_cold_copy *copy)
{
    return copy != NULL && copy->record != NULL;
}

#endif

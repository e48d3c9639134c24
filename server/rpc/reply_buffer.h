/*
 * A reply's payload in one piece of memory of its own, charged to the budget until the kernel took
 * its bytes.
 *
 * Owner: who computes it, until kvd_reply_buffer_payload() hands it over. Thread: loop; workers
 * write into `data`.
 */
#ifndef KVD_REPLY_BUFFER_H
#define KVD_REPLY_BUFFER_H

#include "server/rpc/request.h"

struct kvd_reply_buffer {
    struct kvd_service *service; /* borrowed */
    struct kvd_buf buf;          /* all of data */
    size_t taken_bytes;
    uint8_t data[] __attribute__((aligned(64)));
};

/*
 * Room for `bytes`, content undefined. Returns 0; KVARN_ENOSPC or KVARN_ERETRY_LATER (budget);
 * KVARN_ENOMEM.
 */
int kvd_reply_buffer_create(struct kvd_service *service, uint64_t bytes,
    struct kvd_reply_buffer **ret, struct kvd_failure *why) KVARN_MUST_CHECK;

/* NULL ok. */
void kvd_reply_buffer_destroy(struct kvd_reply_buffer *buffer);

/* The buffer as a payload, which frees it when it is released. */
struct kvd_reply_payload kvd_reply_buffer_payload(struct kvd_reply_buffer *buffer);

#endif

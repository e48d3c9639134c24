/*
 * One step of a verification: pages of a block against their checksums, and a cold record read
 * back. It looks, and changes nothing.
 *
 * Owner: the verification. Thread: loop; hashing runs as jobs, on pages and bytes that the check
 * holds.
 */
#ifndef KVD_VERIFY_CHECK_H
#define KVD_VERIFY_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/cold/cold.h"
#include "server/io/workers.h"
#include "server/session/session.h"

/* What a check is of. The numbers are those of Kvarnd__VerifyPart. */
enum kvd_verify_part {
    KVD_VERIFY_BLOCK,
    KVD_VERIFY_SESSION, /* records of the session itself: what it is, */
    KVD_VERIFY_MAP,     /* how far it is stored, */
    KVD_VERIFY_TAIL,    /* and what is not sealed */
};

/* A sealed page. */
struct kvd_verify_unit {
    struct kvd_page *page; /* ref */
    size_t bytes;
    uint64_t checksum;
    uint32_t layer;
    bool is_wrong;
};

struct kvd_verify_check {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_cold_get get;
    struct kvd_session_op op;    /* its owner's, for what comes of it */
    struct kvd_service *service; /* borrowed */
    struct kvd_session *session; /* borrowed: its owner holds it */
    enum kvd_verify_part part;
    uint32_t block_idx;
    struct kvd_cold_copy *copy;     /* ref; NULL: no block, or it has no record */
    struct kvd_cold_record *record; /* borrowed; NULL: nothing to be read back */
    struct kvd_cold_info info;      /* of the record */
    uint8_t *head, *body;           /* owned */
    struct iovec body_vec;
    size_t charged_bytes;
    int record_err; /* 0; KVARN_ECORRUPT; another: it could not be read */
    bool is_record_read;
    uint64_t rows_pages;            /* pages of the block that have no checksum */
    uint32_t wrong_pages;           /* once it is done */
    uint32_t unit_first, unit_last; /* of the job */
    uint32_t unit_count;
    void (*done_cb)(struct kvd_verify_check *check);
    void *ctx; /* borrowed */
    struct kvd_verify_unit units[];
};

/*
 * A check of one block as it is now: its sealed pages if it is in memory, and its record if it has
 * one, unless somebody is loading it, or it is missing. NULL: no memory.
 */
struct kvd_verify_check *kvd_verify_check_block(struct kvd_session *session, uint32_t block_idx);

/* A check of a record of the session itself; `record` is borrowed. NULL: no memory. */
struct kvd_verify_check *kvd_verify_check_record(
    struct kvd_session *session, enum kvd_verify_part part, struct kvd_cold_record *record);

/* Begin; done_cb comes exactly once, perhaps from inside. */
void kvd_verify_check_start(struct kvd_verify_check *check);

/* Let go of what it holds; it must be done, or not begun. */
void kvd_verify_check_free(struct kvd_verify_check *check);

#endif

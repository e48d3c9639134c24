/*
 * Reading blocks back: snapshot, cut, convert on workers, one reply buffer.
 *
 * Owner: the request. Thread: loop; conversion runs as jobs.
 *
 * A read waits for its turn in the session, takes references on the pages of its range, and leaves
 * the queue: what it answers depends on arrival alone (SEMANTICS.md 3, 16).
 */
#ifndef KVD_READ_H
#define KVD_READ_H

#include "server/read/read_unit.h"
#include "server/rpc/request.h"
#include "server/session/session.h"

struct kvd_read;

/* A stretch of a layer in one form. */
struct kvd_read_run {
    uint32_t layer;
    Kvarnd__RunForm form;
    uint64_t first_token;
    uint64_t token_count;
};

struct kvd_read_result {
    const struct kvd_read_run *runs; /* borrowed until done_cb returns; ascending */
    uint32_t run_count;
    uint64_t epoch; /* at the snapshot */
    /* The callee's, to be sent or released; no release_cb when there are no bytes. */
    struct kvd_reply_payload payload;
};

struct kvd_read_args {
    struct kvd_session *session; /* the read takes a reference of its own */
    uint32_t layer_first, layer_count;
    uint64_t first, last;          /* tokens; none when equal */
    bool is_stored;                /* runs of records and of rows as they lie; no format then */
    struct kvd_read_format format; /* of rows, one run a layer */
    void *ctx;
    /*
     * Exactly once, possibly inside start; `result` only without a failure. KVARN_EMISS (never
     * stored, window, checksum), KVARN_EINVALID (is_stored: a sealed block is cut),
     * KVARN_ETOO_LARGE, KVARN_EDOMAIN (beyond fp16), KVARN_ENOSPC, KVARN_ERETRY_LATER,
     * KVARN_ENOMEM, KVARN_ENOT_FOUND (dropped while it waited).
     */
    void (*done_cb)(void *ctx, const struct kvd_failure *why, const struct kvd_read_result *result);
};

/*
 * Begin. Returns 0 and a token for kvd_read_cancel() in *ret, written before done_cb can run and
 * valid until then; on KVARN_ENOMEM nothing was begun. Layers were checked by the caller.
 */
int kvd_read_start(struct kvd_service *service, const struct kvd_read_args *args,
    struct kvd_read **ret) KVARN_MUST_CHECK;

/* Still waiting, the read ends at once with `err`; one that has begun ends by itself. */
void kvd_read_cancel(struct kvd_read *read, int err);

#endif

/*
 * Cutting a session back (SEMANTICS.md 11): rollback of speculative tokens, editing.
 *
 * Owner: the request. Thread: loop; re-opening sealed blocks runs as jobs.
 */
#ifndef KVD_TRUNCATE_H
#define KVD_TRUNCATE_H

#include "server/session/session.h"

struct kvd_truncate;

struct kvd_truncate_args {
    struct kvd_session *session; /* the truncate takes a reference of its own */
    uint64_t epoch;
    uint64_t length;      /* every layer becomes min(its length, this) */
    uint64_t deadline_ns; /* 0: none */
    void *ctx;
    /* Exactly once, possibly inside start. is_lossy: a sealed block was re-opened. */
    void (*done_cb)(void *ctx, const struct kvd_failure *why, bool is_lossy);
};

/*
 * Begin. Returns 0 and a token for kvd_truncate_cancel() in *ret, written before done_cb can run
 * and valid until then; on KVARN_ENOMEM nothing was begun.
 */
int kvd_truncate_start(struct kvd_service *service, const struct kvd_truncate_args *args,
    struct kvd_truncate **ret) KVARN_MUST_CHECK;

/* As kvd_append_cancel(). */
void kvd_truncate_cancel(struct kvd_truncate *truncate, int err);

#endif

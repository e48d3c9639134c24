/*
 * Copies of sessions that share what is stored (SEMANTICS.md 11).
 *
 * Owner: the request. Thread: loop only.
 *
 * A fork takes its turn in the parent's queue, so that nothing is pending there, and takes
 * references; where the copy is to be shorter than the parent it is then cut like any session, and
 * what the cut must decode is decoded by jobs, while the parent goes on. A copy with a name is in
 * the table from its first moment; whoever opens it waits for the cut.
 */
#ifndef KVD_FORK_H
#define KVD_FORK_H

#include <stdbool.h>
#include <stdint.h>

#include "server/session/session.h"

struct kvd_fork_result {
    struct kvd_session *session; /* borrowed for the callback; a reference keeps it */
    bool is_created;             /* false: may_exist, and a session of the name was there */
    bool is_lossy;               /* the cut re-opened a sealed block */
};

struct kvd_fork_args {
    struct kvd_session *parent; /* the fork takes a reference of its own */
    bool has_epoch;
    uint64_t epoch; /* has_epoch: of the parent */
    bool has_length;
    uint64_t length;  /* has_length: of the copy, at most the parent's committed length */
    const char *name; /* borrowed until done_cb; NULL: unnamed */
    bool may_exist;   /* a session of this name, of the same shape, is as good */
    uint64_t deadline_ns;
    void *ctx;
    /*
     * Exactly once, possibly inside start. why->err 0: result holds the session; one that was
     * created and is not wanted any more is the callee's to drop. Otherwise result is NULL, and
     * nothing was made.
     */
    void (*done_cb)(void *ctx, const struct kvd_failure *why, const struct kvd_fork_result *result);
};

struct kvd_fork;

/*
 * Begin. Returns 0 and a token for kvd_fork_cancel() in *ret, written before done_cb can run and
 * valid until then; on KVARN_ENOMEM nothing was begun and done_cb will not run.
 */
int kvd_fork_start(struct kvd_service *service, const struct kvd_fork_args *args,
    struct kvd_fork **ret) KVARN_MUST_CHECK;

/* Ask a fork not to happen; done_cb tells which way it went. */
void kvd_fork_cancel(struct kvd_fork *fork, int err);

#endif

/*
 * Copies of sessions that share what is stored.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/session/fork.h"

#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"
#include "server/session/truncate.h"

struct kvd_fork {
    struct kvd_session_op op; /* first: the queue's handle; of the parent, or of who has the name */
    struct kvd_service *service;
    struct kvd_fork_args args;     /* parent: a reference */
    struct kvd_session *child;     /* ref; NULL until it is made or found */
    struct kvd_truncate *truncate; /* borrowed while the child is being cut */
};

static void fork_finish(
    struct kvd_fork *fork, const struct kvd_failure *why, const struct kvd_fork_result *result)
{
    fork->args.done_cb(fork->args.ctx, why, result);
    if (fork->child != NULL) {
        kvd_session_unref(fork->child);
    }
    kvd_session_unref(fork->args.parent);
    free(fork);
}

static void fork_succeed(struct kvd_fork *fork, bool is_created, bool is_lossy)
{
    struct kvd_failure none = {0};
    struct kvd_fork_result result = {
        .session = fork->child, .is_created = is_created, .is_lossy = is_lossy};

    fork_finish(fork, &none, &result);
}

static void fork_cut_cb(void *ctx, const struct kvd_failure *why, bool is_lossy)
{
    struct kvd_fork *fork = ctx;

    fork->truncate = NULL;
    if (why->err != 0) {
        struct kvd_failure own = *why;
        own.session = NULL; /* not the child's epoch, which nobody knows */
        kvd_session_table_drop(&fork->service->sessions, fork->child);
        fork_finish(fork, &own, NULL);
        return;
    }
    kvd_cold_release(fork->child);
    fork_succeed(fork, true, is_lossy);
}

/* The session that has the name had its turn. */
static void existing_admit_cb(struct kvd_session_op *op)
{
    struct kvd_fork *fork = (struct kvd_fork *)(void *)op;
    struct kvd_failure why = {0};

    if (fork->child->is_dropped) {
        kvd_fail(&why, KVARN_ERETRY_LATER, "the session of this name was dropped meanwhile");
        why.retry_after_ms = 1;
        fork_finish(fork, &why, NULL);
        return;
    }
    fork_succeed(fork, false, false);
}

/* A session has the name. */
static void fork_meet(struct kvd_fork *fork, struct kvd_session *existing)
{
    struct kvd_failure why = {0};

    if (!fork->args.may_exist) {
        kvd_fail(&why, KVARN_ECONFLICT, "a session of this name exists");
    } else if (existing->shape != fork->args.parent->shape) {
        kvd_fail(&why, KVARN_ECONFLICT,
            "a session of this name exists, with shape %" PRIu32 ", not %" PRIu32,
            existing->shape->id, fork->args.parent->shape->id);
    }
    if (why.err != 0) {
        fork_finish(fork, &why, NULL);
        return;
    }
    fork->child = kvd_session_ref(existing);
    fork->op.admit_cb = existing_admit_cb;
    kvd_session_enqueue(existing, &fork->op);
}

static int fork_check(const struct kvd_fork *fork, uint64_t length, struct kvd_failure *why)
{
    const struct kvd_fork_args *args = &fork->args;
    const struct kvd_session_table *table = &fork->service->sessions;
    struct kvd_io *io = fork->service->io;
    uint64_t committed = kvd_session_length(args->parent);
    int err = args->has_epoch ? kvd_session_check_epoch(args->parent, args->epoch, why) : 0;

    if (err != 0) {
        return err;
    }
    if (args->parent->is_dropped) {
        return kvd_fail(why, KVARN_ENOT_FOUND, "the session was dropped");
    }
    if (args->deadline_ns != 0 && io->ops->now_ns(io) > args->deadline_ns) {
        return kvd_fail(why, KVARN_EDEADLINE, "nothing was copied");
    }
    if (length > committed) {
        why->reason = KVARND__MISS_REASON__MISS_NEVER_STORED;
        return kvd_fail(why, KVARN_EMISS,
            "the committed length is %" PRIu64 ", got length %" PRIu64, committed, length);
    }
    if (table->count >= table->count_max) {
        return kvd_fail(why, KVARN_ENOSPC, "%" PRIu32 " sessions of at most %" PRIu32, table->count,
            table->count_max);
    }
    return 0;
}

static bool is_cut_needed(const struct kvd_session *session, uint64_t length)
{
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->layers[i].length > length) {
            return true;
        }
    }
    return false;
}

/* Copy the parent, which is idle, and cut the copy. */
static void fork_make(struct kvd_fork *fork, uint64_t length)
{
    const struct kvd_fork_args *args = &fork->args;
    struct kvd_failure why = {0};

    if (kvd_session_copy(args->parent, args->name, &fork->child, &why) != 0) {
        fork_finish(fork, &why, NULL);
        return;
    }
    kvd_lifetime_touch(args->parent);
    kvd_lifetime_touch(fork->child); /* it has blocks now: the evictor learns of it */
    kvd_metrics_add(&fork->service->metrics, KVD_METRIC_sessions_forked, 1);
    bool is_cut = is_cut_needed(fork->child, length);
    if (is_cut) {
        kvd_cold_hold(fork->child);
    }
    if (args->name != NULL) {
        kvd_session_table_insert(&fork->service->sessions, fork->child);
    }
    if (!is_cut) {
        fork_succeed(fork, true, false);
        return;
    }
    struct kvd_truncate_args cut = {.session = fork->child,
        .epoch = fork->child->epoch,
        .length = length,
        .deadline_ns = args->deadline_ns,
        .ctx = fork,
        .done_cb = fork_cut_cb};
    if (kvd_truncate_start(fork->service, &cut, &fork->truncate) != 0) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the cut");
        fork_cut_cb(fork, &why, false);
    }
}

static void fork_admit_cb(struct kvd_session_op *op)
{
    struct kvd_fork *fork = (struct kvd_fork *)(void *)op;
    const struct kvd_fork_args *args = &fork->args;
    uint64_t length = args->has_length ? args->length : kvd_session_length(args->parent);
    struct kvd_session *existing = NULL;
    struct kvd_failure why = {0};

    if (args->name != NULL) {
        existing =
            kvd_session_table_find(&fork->service->sessions, args->parent->tenant_id, args->name);
    }
    if (existing != NULL) {
        fork_meet(fork, existing);
    } else if (fork_check(fork, length, &why) != 0) {
        fork_finish(fork, &why, NULL);
    } else {
        fork_make(fork, length);
    }
}

int kvd_fork_start(
    struct kvd_service *service, const struct kvd_fork_args *args, struct kvd_fork **ret)
{
    struct kvd_fork *fork = calloc(1, sizeof(*fork));

    if (fork == NULL) {
        return KVARN_ENOMEM;
    }
    fork->service = service;
    fork->args = *args;
    (void)kvd_session_ref(args->parent);
    fork->op.admit_cb = fork_admit_cb;
    fork->op.layer_count = args->parent->shape->layer_count;
    fork->op.needs_tail = true; /* both will write there */
    *ret = fork;
    kvd_session_enqueue(args->parent, &fork->op);
    return 0;
}

void kvd_fork_cancel(struct kvd_fork *fork, int err)
{
    struct kvd_failure why = {0};

    KVARN_ASSERT(err != 0);
    if (fork->truncate != NULL) {
        kvd_truncate_cancel(fork->truncate, err);
        return;
    }
    KVARN_ASSERT(fork->op.is_queued);
    kvd_fail(&why, err, "nothing was copied");
    kvd_session_op_cancel(&fork->op);
    fork_finish(fork, &why, NULL);
}

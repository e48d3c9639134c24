/*
 * Reorder: sessions become copies of each other in one step.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/session/reorder.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

struct member {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_reorder *reorder;
    struct kvd_session *session; /* ref */
    struct kvd_session *copy;    /* ref: of what it becomes; then, what it was */
    uint64_t epoch;
    uint32_t source_idx;
    bool is_held; /* had its turn: its layers are pending for us */
};

struct kvd_reorder {
    struct kvd_service *service;
    void *ctx;
    void (*done_cb)(void *ctx, const struct kvd_failure *why);
    uint64_t deadline_ns;
    struct kvd_slice slice; /* listed while copies are being made over several turns */
    bool has_no_room;       /* for what a member needs while it is held */
    uint32_t waiting;       /* members without their turn, and the start itself */
    uint32_t copied;        /* members whose copy is made */
    uint32_t burying;       /* members whose old contents the cold tier is told to forget */
    int bury_err;
    uint32_t count;
    struct member members[];
};

static void member_hold(struct member *member)
{
    if (kvd_session_want_work(member->session) != 0) {
        member->reorder->has_no_room = true; /* nothing will be reordered */
        return;
    }
    for (uint32_t i = 0; i < member->session->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(member->session, i) == 0);
        member->session->work->layers[i].pending = 1;
    }
    member->is_held = true;
}

static void member_release(struct member *member)
{
    for (uint32_t i = 0; member->is_held && i < member->session->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(member->session, i) == 1);
        member->session->work->layers[i].pending = 0;
    }
    member->is_held = false;
}

/* Tell the owner, let everybody go on, free. */
static void reorder_finish(struct kvd_reorder *reorder, const struct kvd_failure *why)
{
    for (uint32_t i = 0; i < reorder->count; i++) {
        member_release(&reorder->members[i]);
    }
    reorder->done_cb(reorder->ctx, why);
    for (uint32_t i = 0; i < reorder->count; i++) {
        struct member *member = &reorder->members[i];
        if (member->copy != NULL) {
            kvd_session_unref(member->copy);
        }
        kvd_session_kick(member->session);
        kvd_session_unref(member->session);
    }
    free(reorder);
}

static int check_members(const struct kvd_reorder *reorder, struct kvd_failure *why)
{
    struct kvd_io *io = reorder->service->io;

    for (uint32_t i = 0; i < reorder->count; i++) {
        const struct member *member = &reorder->members[i];
        int err = kvd_session_check_epoch(member->session, member->epoch, why);
        if (err == KVARN_ENOT_FOUND) {
            return kvd_fail(why, err, "session %" PRIu32 " of the item was dropped", i);
        }
        if (err != 0) {
            return kvd_fail(why, err,
                "session %" PRIu32 " of the item is at epoch %" PRIu64 ", got %" PRIu64, i,
                member->session->epoch, member->epoch);
        }
    }
    if (reorder->has_no_room) {
        return kvd_session_fail_space(reorder->service, sizeof(struct kvd_session_work), why);
    }
    if (reorder->deadline_ns != 0 && io->ops->now_ns(io) > reorder->deadline_ns) {
        return kvd_fail(why, KVARN_EDEADLINE, "nothing was reordered");
    }
    return 0;
}

/* A copy of what a member becomes: so the order of the exchange does not matter. */
static int copy_make(struct kvd_reorder *reorder, uint32_t idx, struct kvd_failure *why)
{
    struct member *member = &reorder->members[idx];

    if (member->source_idx == idx) {
        return 0;
    }
    int err =
        kvd_session_copy(reorder->members[member->source_idx].session, NULL, &member->copy, why);
    if (err == 0 && kvd_session_want_work(member->copy) != 0) {
        err = kvd_session_fail_space(reorder->service, sizeof(struct kvd_session_work), why);
    }
    return err;
}

static void members_exchange(struct kvd_reorder *reorder)
{
    for (uint32_t i = 0; i < reorder->count; i++) {
        struct member *member = &reorder->members[i];
        if (member->copy != NULL) {
            kvd_metrics_add(&reorder->service->metrics, KVD_METRIC_sessions_reordered, 1);
            kvd_session_swap_contents(member->session, member->copy);
            member->session->epoch = kvd_session_table_new_epoch(&reorder->service->sessions);
            kvd_evictor_update(member->session);
            kvd_cold_note(member->session);
        }
        kvd_lifetime_touch(member->session);
    }
}

/* The cold tier knows that what was there is no more, or could not take it. */
static void bury_part_done(void *ctx, int err)
{
    struct kvd_reorder *reorder = ctx;
    struct kvd_failure why = {0};

    reorder->bury_err = err != 0 ? err : reorder->bury_err;
    KVARN_ASSERT(reorder->burying > 0);
    reorder->burying--;
    if (reorder->burying > 0) {
        return;
    }
    if (reorder->bury_err == 0) {
        members_exchange(reorder);
    } else {
        kvd_fail(
            &why, reorder->bury_err, "the cold tier could not record it; nothing was reordered");
        for (uint32_t i = 0; i < reorder->count; i++) {
            kvd_cold_forget(reorder->members[i].session); /* written anew as another */
        }
    }
    reorder_finish(reorder, &why);
}

/*
 * What the members hold is exchanged, and what they held before must not come back: that is on disk
 * before the reply (SEMANTICS.md 23). Their layers stay pending until then.
 */
static void members_bury(struct kvd_reorder *reorder)
{
    reorder->burying = reorder->count + 1;
    for (uint32_t i = 0; i < reorder->count; i++) {
        struct member *member = &reorder->members[i];
        int err = member->copy == NULL ? KVD_COLD_NOTHING
                                       : kvd_cold_bury(member->session, bury_part_done, reorder);
        if (err != 0) {
            bury_part_done(reorder, err == KVD_COLD_NOTHING ? 0 : err);
        }
    }
    bury_part_done(reorder, 0);
}

/* Everybody had a turn: copy as far as this turn has time, then exchange. */
static void reorder_advance(struct kvd_reorder *reorder)
{
    struct kvd_slices *slices = &reorder->service->sessions.slices;
    struct kvd_failure why = {0};
    int err = check_members(reorder, &why);

    while (err == 0 && reorder->copied < reorder->count) {
        err = copy_make(reorder, reorder->copied++, &why);
        if (err == 0 && !kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &reorder->slice);
            return;
        }
    }
    if (err == 0) {
        members_bury(reorder);
        return;
    }
    reorder_finish(reorder, &why);
}

static void reorder_slice_run(struct kvd_slice *slice)
{
    reorder_advance((void *)((uint8_t *)slice - offsetof(struct kvd_reorder, slice)));
}

static void part_done(struct kvd_reorder *reorder)
{
    KVARN_ASSERT(reorder->waiting > 0);
    reorder->waiting--;
    if (reorder->waiting == 0) {
        reorder_advance(reorder);
    }
}

static void member_admit_cb(struct kvd_session_op *op)
{
    struct member *member = (struct member *)(void *)op;

    member_hold(member);
    part_done(member->reorder);
}

int kvd_reorder_start(
    struct kvd_service *service, const struct kvd_reorder_args *args, struct kvd_reorder **ret)
{
    struct kvd_reorder *reorder =
        calloc(1, sizeof(*reorder) + args->count * sizeof(reorder->members[0]));

    KVARN_ASSERT(args->count > 0);
    if (reorder == NULL) {
        return KVARN_ENOMEM;
    }
    reorder->service = service;
    reorder->ctx = args->ctx;
    reorder->done_cb = args->done_cb;
    reorder->deadline_ns = args->deadline_ns;
    reorder->slice.run = reorder_slice_run;
    reorder->count = args->count;
    reorder->waiting = args->count + 1;
    *ret = reorder;
    for (uint32_t i = 0; i < args->count; i++) {
        const struct kvd_reorder_member *from = &args->members[i];
        struct member *member = &reorder->members[i];
        KVARN_ASSERT(from->source_idx < args->count);
        KVARN_ASSERT(from->session->shape == args->members[0].session->shape);
        *member = (struct member){.reorder = reorder,
            .session = kvd_session_ref(from->session),
            .epoch = from->epoch,
            .source_idx = from->source_idx};
        member->op.admit_cb = member_admit_cb;
        member->op.layer_count = from->session->shape->layer_count;
        member->op.needs_tail = true;
    }
    for (uint32_t i = 0; i < args->count; i++) {
        kvd_session_enqueue(reorder->members[i].session, &reorder->members[i].op);
    }
    part_done(reorder);
    return 0;
}

void kvd_reorder_cancel(struct kvd_reorder *reorder, int err)
{
    struct kvd_failure why = {0};

    KVARN_ASSERT(err != 0);
    if (reorder->burying > 0) {
        return; /* what it waits for tells of its end */
    }
    kvd_fail(&why, err, "nothing was reordered");
    kvd_slices_remove(&reorder->service->sessions.slices, &reorder->slice);
    reorder->waiting = UINT32_MAX; /* who gets a turn meanwhile changes nothing */
    for (uint32_t i = 0; i < reorder->count; i++) {
        if (reorder->members[i].op.is_queued) {
            kvd_session_op_cancel(&reorder->members[i].op);
        }
    }
    reorder_finish(reorder, &why);
}

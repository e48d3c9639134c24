/* Lives of a service over one fake disk. */
#include "tests/support/session_cold.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* More turns of 10 ms than anything here may take. */
#define TURNS_MAX 2000

static bool is_resting(const struct kvt_rig *rig)
{
    const struct kvd_cold_sessions *cold = &rig->service.cold;

    return TAILQ_EMPTY(&cold->dirty) && kvd_cold_sessions_is_idle(cold) &&
           cold->tier->ops->is_idle(cold->tier);
}

void kvt_cold_spill(struct kvt_rig *rig)
{
    unsigned turns = 0;

    kvt_rig_settle(rig);
    while (!is_resting(rig)) {
        assert_true(turns++ < TURNS_MAX);
        kvd_io_fake_advance_ms(rig->fake, 10);
        kvt_rig_settle(rig);
    }
}

static void flushed_cb(void *ctx)
{
    *(bool *)ctx = true;
}

void kvt_cold_life_stop(struct kvt_rig *rig)
{
    bool is_flushed = false;
    unsigned turns = 0;

    kvt_rig_settle(rig);
    kvd_cold_flush(&rig->service.cold, flushed_cb, &is_flushed);
    while (!is_flushed) {
        assert_true(turns++ < TURNS_MAX);
        kvt_rig_settle(rig);
        kvd_io_fake_advance_ms(rig->fake, 10);
    }
    kvt_rig_fini(rig);
}

struct kvd_fake_disk *kvt_cold_life_kill(struct kvt_rig *rig, struct kvd_fake_disk *disk)
{
    /* Seeds that leave 1 when divided by 4 keep all that was written. */
    struct kvd_fake_disk *left = kvd_fake_disk_cut(disk, kvd_fake_disk_op_count(disk), 1);

    assert_non_null(left);
    kvd_io_fake_hold_files(rig->fake, false);
    kvt_cold_spill(rig);
    kvt_rig_fini(rig);
    kvd_fake_disk_destroy(disk);
    return left;
}

struct kvd_session *kvt_cold_find(struct kvt_rig *rig, const char *name)
{
    struct kvd_session *session =
        kvd_session_table_find(&rig->service.sessions, KVD_TENANT_DEFAULT, name);

    return session == NULL ? NULL : kvd_session_ref(session);
}

int kvt_cold_load(struct kvt_rig *rig, struct kvd_session *session)
{
    int err = 0;

    for (uint32_t i = 0; i < session->shape->layer_count && err == 0; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        if (ly->length == 0) {
            continue;
        }
        struct kvt_attend attend = kvt_attend_of(session, i, 1, 3);
        attend.args.is_causal = false;
        attend.args.window = 0;
        attend.args.first = (uint64_t)ly->dropped_blocks * session->shape->group;
        attend.op.block_first = ly->dropped_blocks;
        attend.op.block_last = kvd_session_block_count(session);
        err = kvt_attend_now(rig, &attend);
        kvt_attend_fini(&attend);
    }
    return err;
}

void kvt_cold_adopt(struct kvt_model *model, const struct kvd_session *session)
{
    model->shape = session->shape;
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        model->layers[i].ls = &session->shape->layers[i];
    }
}

void kvt_cold_append(struct kvt_rig *rig, struct kvd_session *session, struct kvt_model *model,
    uint32_t token_count, uint64_t values_seed)
{
    struct kvt_append append = kvt_append_of(session, token_count, values_seed);

    assert_int_equal(kvt_append_begin(rig, &append), 0);
    kvt_rig_settle(rig);
    assert_int_equal(append.outcome.done_count, 1);
    assert_int_equal(append.outcome.why.err, 0);
    if (model != NULL) {
        kvt_model_append(model, &append);
    }
    kvt_append_fini(&append);
}

/* Records of a cold tier, one by one. */
#include "tests/support/cold_edit.h"

#include <stdlib.h>

#include "lib/base/assert.h"

#define TURNS_MAX 1000

struct copying {
    struct kvt_cold_rig from, to;
    void (*cb)(void *ctx, struct kvt_cold_edit *record);
    void *ctx;
};

struct waited_put {
    struct kvd_cold_put put; /* first */
    bool is_done;
};

static void put_done(struct kvd_cold_put *put, int err)
{
    KVARN_ASSERT(err == 0);
    ((struct waited_put *)(void *)put)->is_done = true;
}

static void put_wait(struct kvt_cold_rig *rig, const struct kvt_cold_edit *record)
{
    struct iovec vec = {record->body, record->body_bytes};
    struct waited_put put = {.put = {.type = record->type,
                                 .tenant_id = record->tenant_id,
                                 .id = record->id,
                                 .head = record->head,
                                 .head_bytes = record->head_bytes,
                                 .vecs = record->body_bytes > 0 ? &vec : NULL,
                                 .vec_count = record->body_bytes > 0 ? 1 : 0,
                                 .done = put_done}};
    int err = rig->cold->ops->put(rig->cold, &put.put);

    KVARN_ASSERT(err == 0);
    for (unsigned i = 0; i < TURNS_MAX && !put.is_done; i++) {
        (void)kvd_io_fake_turn(rig->fake);
    }
    KVARN_ASSERT(put.is_done);
}

static void each_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    struct copying *copying = ctx;
    struct kvt_cold_edit edit = {.type = info->type,
        .tenant_id = info->tenant_id,
        .id = info->id,
        .head = malloc(info->head_bytes + 1),
        .body = malloc(info->body_bytes + 1),
        .head_bytes = info->head_bytes,
        .body_bytes = info->body_bytes};
    struct iovec vec = {edit.body, edit.body_bytes};
    struct kvd_cold_get get = {.record = record,
        .head = edit.head,
        .vecs = edit.body_bytes > 0 ? &vec : NULL,
        .vec_count = edit.body_bytes > 0 ? 1 : 0};

    KVARN_ASSERT(edit.head != NULL && edit.body != NULL);
    int err = copying->from.cold->ops->get_now(copying->from.cold, &get);
    KVARN_ASSERT(err == 0);
    copying->cb(copying->ctx, &edit);
    if (!edit.is_left_out) {
        put_wait(&copying->to, &edit);
    }
    free(edit.head);
    free(edit.body);
}

struct kvd_fake_disk *kvt_cold_edit(
    struct kvd_fake_disk *disk, void (*cb)(void *ctx, struct kvt_cold_edit *record), void *ctx)
{
    struct kvd_fake_disk *copy = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct copying copying = {.cb = cb, .ctx = ctx};

    options.segment_bytes = UINT64_C(1) << 20;
    options.limit_bytes = 64 * options.segment_bytes;
    kvt_cold_start(&copying.from, disk, &options, 1);
    kvt_cold_start(&copying.to, copy, &options, 2);
    KVARN_ASSERT(copying.from.err == 0 && copying.to.err == 0);
    copying.from.cold->ops->each(copying.from.cold, each_cb, &copying);
    kvt_cold_stop(&copying.from);
    kvt_cold_stop(&copying.to);
    return copy;
}

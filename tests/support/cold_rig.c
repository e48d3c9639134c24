/*
 * A cold tier on a fake disk.
 *
 * Thread: one.
 */
#include "tests/support/cold_rig.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/support/rng.h"

#define TURNS_MAX 100000

struct kvd_cold_segment_options kvt_cold_options(void)
{
    return (struct kvd_cold_segment_options){
        .dir = "/cold", .limit_bytes = 16 * 65536, .segment_bytes = 65536, .queue_bytes = 1u << 20};
}

void kvt_cold_start(struct kvt_cold_rig *rig, struct kvd_fake_disk *disk,
    const struct kvd_cold_segment_options *options, uint64_t seed)
{
    kvt_cold_start_within(rig, disk, options, seed, UINT64_C(1) << 30);
}

void kvt_cold_start_within(struct kvt_cold_rig *rig, struct kvd_fake_disk *disk,
    const struct kvd_cold_segment_options *options, uint64_t seed, uint64_t memory_bytes)
{
    struct kvd_workers_options workers = {.thread_count = 0};

    memset(rig, 0, sizeof(*rig));
    rig->disk = disk;
    rig->fake = kvd_io_fake_create(seed);
    KVARN_ASSERT(rig->fake != NULL);
    rig->io = kvd_io_fake_io(rig->fake);
    kvd_io_fake_set_disk(rig->fake, disk);
    kvd_budget_init(&rig->budget, memory_bytes);
    int err = kvd_workers_create(rig->io, &workers, &rig->workers);
    KVARN_ASSERT(err == 0);
    rig->err = kvd_cold_segment_open(
        rig->io, rig->workers, &rig->budget, options, &rig->found, &rig->cold);
}

static void closed_cb(void *ctx)
{
    *(bool *)ctx = true;
}

static void rig_free(struct kvt_cold_rig *rig)
{
    kvd_workers_destroy(rig->workers);
    rig->io->ops->destroy(rig->io);
    kvd_fake_disk_close_all(rig->disk);
}

void kvt_cold_stop(struct kvt_cold_rig *rig)
{
    bool is_closed = false;

    if (rig->cold != NULL) {
        rig->cold->ops->close(rig->cold, closed_cb, &is_closed);
        for (unsigned i = 0; i < TURNS_MAX && !is_closed; i++) {
            (void)kvd_io_fake_turn(rig->fake);
        }
        KVARN_ASSERT(is_closed);
        rig->cold->ops->destroy(rig->cold);
        KVARN_ASSERT(rig->budget.used_bytes == 0);
    }
    rig_free(rig);
}

/*
 * What is in flight must end before memory can go, but the disk that the test goes on with is one
 * that was cut before: so it ends on the old one, where nobody looks any more.
 */
void kvt_cold_crash(struct kvt_cold_rig *rig)
{
    for (unsigned i = 0; i < TURNS_MAX && !rig->cold->ops->is_idle(rig->cold); i++) {
        (void)kvd_io_fake_turn(rig->fake);
    }
    rig->cold->ops->destroy(rig->cold);
    KVARN_ASSERT(rig->budget.used_bytes == 0);
    rig_free(rig);
}

void kvt_cold_fill(uint64_t id, uint64_t version, void *dst, size_t bytes)
{
    struct kvt_rng rng = {id * 1000003 + version};
    uint8_t *out = dst;

    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = kvt_rng_u64(&rng);
        memcpy(out + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

struct rig_put {
    struct kvd_cold_put put; /* first */
    struct kvt_cold_want want;
    struct kvt_cold_head head;
    struct iovec vecs[2];
    uint8_t body[];
};

static void put_done(struct kvd_cold_put *base, int err)
{
    struct rig_put *put = (struct rig_put *)(void *)base;

    put->want.done(put->want.ctx, put->want.id, put->want.version, err, base->record);
    free(put);
}

int kvt_cold_put(struct kvt_cold_rig *rig, const struct kvt_cold_want *want)
{
    struct rig_put *put = calloc(1, sizeof(*put) + want->bytes);

    KVARN_ASSERT(put != NULL);
    put->want = *want;
    put->head = (struct kvt_cold_head){want->id, want->version, want->bytes};
    kvt_cold_fill(want->id, want->version, put->body, want->bytes);
    /* In two stretches, the first of an odd length. */
    size_t first = want->bytes / 3;
    put->vecs[0] = (struct iovec){put->body, first};
    put->vecs[1] = (struct iovec){put->body + first, want->bytes - first};
    put->put = (struct kvd_cold_put){.type = want->type,
        .tenant_id = 1,
        .id = {want->id, ~want->id},
        .flags = want->flags,
        .head = &put->head,
        .head_bytes = sizeof(put->head),
        .vecs = want->bytes > 0 ? put->vecs : NULL,
        .vec_count = want->bytes > 0 ? 2 : 0,
        .done = put_done};
    int err = rig->cold->ops->put(rig->cold, &put->put);
    if (err != 0) {
        free(put);
    }
    return err;
}

struct waited {
    bool is_done;
    int err;
    struct kvd_cold_record *record;
};

static void waited_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    (void)id;
    (void)version;
    *(struct waited *)ctx = (struct waited){true, err, record};
}

int kvt_cold_put_wait(struct kvt_cold_rig *rig, enum kvd_cold_type type, uint64_t id,
    uint64_t version, size_t bytes, struct kvd_cold_record **ret)
{
    struct waited waited = {0};
    struct kvt_cold_want want = {.type = type,
        .id = id,
        .version = version,
        .bytes = bytes,
        .flags = type == KVD_COLD_TOMBSTONE ? KVD_COLD_BARRIER : 0,
        .done = waited_cb,
        .ctx = &waited};
    int err = kvt_cold_put(rig, &want);

    for (unsigned i = 0; i < TURNS_MAX && err == 0 && !waited.is_done; i++) {
        (void)kvd_io_fake_turn(rig->fake);
    }
    KVARN_ASSERT(err != 0 || waited.is_done);
    if (err == 0 && waited.err == 0 && ret != NULL) {
        *ret = waited.record;
    }
    return err != 0 ? err : waited.err;
}

struct rig_get {
    struct kvd_cold_get get; /* first */
    bool is_done;
    int err;
};

static void get_done(struct kvd_cold_get *base, int err)
{
    struct rig_get *get = (struct rig_get *)(void *)base;

    get->is_done = true;
    get->err = err;
}

static int check(struct kvt_cold_rig *rig, struct kvd_cold_record *record,
    struct kvt_cold_head *ret, bool is_async)
{
    struct kvd_cold_info info;
    struct rig_get get = {0};

    rig->cold->ops->info(record, &info);
    KVARN_ASSERT(info.head_bytes == sizeof(*ret));
    uint8_t *body = malloc(info.body_bytes + 1);
    uint8_t *expected = malloc(info.body_bytes + 1);
    KVARN_ASSERT(body != NULL && expected != NULL);
    struct iovec vec = {body, info.body_bytes};
    get.get = (struct kvd_cold_get){.record = record,
        .head = ret,
        .vecs = info.body_bytes > 0 ? &vec : NULL,
        .vec_count = info.body_bytes > 0 ? 1 : 0,
        .done = get_done};
    if (is_async) {
        get.err = rig->cold->ops->get(rig->cold, &get.get);
        for (unsigned i = 0; i < TURNS_MAX && get.err == 0 && !get.is_done; i++) {
            (void)kvd_io_fake_turn(rig->fake);
        }
        KVARN_ASSERT(get.err != 0 || get.is_done);
    } else {
        get.err = rig->cold->ops->get_now(rig->cold, &get.get);
    }
    if (get.err == 0) {
        kvt_cold_fill(ret->id, ret->version, expected, info.body_bytes);
        bool is_right = ret->id == info.id.hi && ret->bytes == info.body_bytes &&
                        memcmp(body, expected, info.body_bytes) == 0;
        get.err = is_right ? 0 : 1;
    }
    free(body);
    free(expected);
    return get.err;
}

int kvt_cold_check(
    struct kvt_cold_rig *rig, struct kvd_cold_record *record, struct kvt_cold_head *ret)
{
    return check(rig, record, ret, false);
}

int kvt_cold_check_async(
    struct kvt_cold_rig *rig, struct kvd_cold_record *record, struct kvt_cold_head *ret)
{
    return check(rig, record, ret, true);
}

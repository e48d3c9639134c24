/*
 * Cutting a session back (SEMANTICS.md 11).
 *
 * Owner: the request. Thread: loop; reopen_run() on a worker, which reads a sealed page that its
 * job holds and writes a rows page that nobody reads yet.
 *
 * A truncate concerns all layers, so nothing is pending when its turn comes. Where the cut falls
 * into a sealed block, rows pages are taken and filled from the decoded tiles first; the lengths
 * change in one step when all are done.
 */
#include "server/session/truncate.h"

#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

struct reopen_job {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_truncate *truncate;
    struct kvd_page *tiles;     /* ref: sealed */
    struct kvd_page *rows;      /* ref: to be filled */
    struct kvd_page *tiles_new; /* ref: for the next seal, when others hold `tiles`; or NULL */
    uint32_t layer;
};

struct kvd_truncate {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_service *service;
    struct kvd_session *session; /* ref */
    struct kvd_truncate_args args;
    int cancel_err;
    uint32_t job_count;
    uint32_t jobs_left;
    struct reopen_job jobs[]; /* room for one a layer */
};

static void truncate_destroy(struct kvd_truncate *truncate)
{
    struct kvd_page_store *pages = &truncate->service->pages;

    for (uint32_t i = 0; i < truncate->job_count; i++) {
        kvd_page_unref(pages, truncate->jobs[i].tiles);
        kvd_page_unref(pages, truncate->jobs[i].rows);
        kvd_page_unref(pages, truncate->jobs[i].tiles_new);
    }
    kvd_session_unref(truncate->session);
    free(truncate);
}

static void truncate_finish(
    struct kvd_truncate *truncate, const struct kvd_failure *why, bool is_lossy)
{
    truncate->args.done_cb(truncate->args.ctx, why, is_lossy);
    truncate_destroy(truncate);
}

static uint64_t layer_cut(const struct kvd_layer *ly, uint64_t length)
{
    return ly->length < length ? ly->length : length;
}

/* The block that the cut re-opens in a layer, or UINT32_MAX. */
static uint32_t layer_reopened(const struct kvd_session *session, uint32_t layer, uint64_t length)
{
    const struct kvd_layer *ly = &session->layers[layer];
    uint64_t cut = layer_cut(ly, length);
    uint32_t block_idx = (uint32_t)(cut / session->shape->group);

    if (cut % session->shape->group == 0 || block_idx >= ly->sealed_blocks ||
        block_idx < kvd_session_sink_blocks(session)) {
        return UINT32_MAX;
    }
    return block_idx;
}

/*
 * What the next token may see must still be there (SEMANTICS.md 4): window - 1 tokens before the
 * cut. A cut to nothing needs none.
 */
static int check_window(const struct kvd_truncate *truncate, struct kvd_failure *why)
{
    const struct kvd_session *session = truncate->session;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        uint64_t window = session->shape->layers[i].window;
        uint64_t cut = layer_cut(ly, truncate->args.length);
        uint64_t kept_first = (uint64_t)ly->dropped_blocks * session->shape->group;
        uint64_t needed_first = cut < window ? 0 : cut - window + 1;
        if (cut > 0 && cut < ly->length && needed_first < kept_first) {
            why->reason = KVARND__MISS_REASON__MISS_WINDOW;
            return kvd_fail(why, KVARN_EMISS,
                "layer %" PRIu32 " keeps tokens from %" PRIu64 " on (its window); length %" PRIu64
                " needs them from %" PRIu64 " on",
                i, kept_first, cut, needed_first);
        }
    }
    return 0;
}

/* A cut within a block goes on with the rows before it: they must be there. */
static int check_present(const struct kvd_truncate *truncate, struct kvd_failure *why)
{
    const struct kvd_session *session = truncate->session;
    uint32_t group = session->shape->group;
    int err = 0;

    for (uint32_t i = 0; i < session->shape->layer_count && err == 0; i++) {
        uint64_t cut = layer_cut(&session->layers[i], truncate->args.length);
        if (cut < session->layers[i].length) {
            err = kvd_session_check_present(session, i, cut / group * group, cut, why);
        }
    }
    return err;
}

static void reopen_run(struct kvd_job *job, void *scratch)
{
    struct reopen_job *rj = (struct reopen_job *)(void *)job;
    const struct kvd_layer_shape *ls = &rj->truncate->session->shape->layers[rj->layer];
    const struct kvarn_tile_spec *spec = &ls->spec;
    size_t k_count = (size_t)spec->group * spec->k_dim;
    size_t v_count = (size_t)spec->group * spec->v_dim;
    float *k = scratch;
    float *v = k + k_count;

    for (unsigned head = 0; head < ls->kv_heads; head++) {
        uint8_t *rows = kvd_page_data(rj->rows);
        const uint8_t *tile = (const uint8_t *)kvd_page_data(rj->tiles) + head * ls->tile_bytes;
        kvarn_tile_decode(spec, tile, k, v);
        kvarn_from_f32(rows + kvd_rows_k_offset(ls, head), KVARN_F16, k, k_count);
        kvarn_from_f32(rows + kvd_rows_v_offset(ls, head), KVARN_F16, v, v_count);
    }
}

/* Put the re-opened rows in place of the tiles. */
static void reopen_commit(struct reopen_job *rj, uint32_t block_idx)
{
    struct kvd_session *session = rj->truncate->session;

    KVARN_ASSERT(kvd_session_tiles(session, block_idx, rj->layer) == rj->tiles);
    kvd_page_set_filled(rj->rows, session->shape->group);
    rj->rows = kvd_session_swap_rows(session, rj->layer, block_idx, rj->rows);
    KVARN_ASSERT(rj->rows == NULL);
    if (rj->tiles_new != NULL) {
        kvd_page_unref(&session->service->pages,
            kvd_session_swap_tiles(session, rj->layer, block_idx, rj->tiles_new));
        rj->tiles_new = NULL;
    }
}

static void lengths_commit(struct kvd_truncate *truncate)
{
    struct kvd_session *session = truncate->session;
    bool is_shorter = false;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        struct kvd_layer *ly = &session->layers[i];
        uint64_t cut = layer_cut(ly, truncate->args.length);
        uint32_t blocks = (uint32_t)(cut / session->shape->group);
        is_shorter = is_shorter || cut < ly->length;
        ly->length = (uint32_t)cut;
        if (session->work != NULL) {
            session->work->layers[i].pending_length = ly->length;
        }
        if (ly->sealed_blocks > blocks) {
            ly->sealed_blocks = blocks;
        }
        if (ly->dropped_blocks > blocks) {
            ly->dropped_blocks = blocks;
        }
    }
    if (!is_shorter) {
        return;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->work != NULL) {
            session->work->layers[i].last_count = 0; /* those retries carry the old epoch */
        }
        kvd_session_drop_spare(session, i);
    }
    session->epoch = kvd_session_table_new_epoch(&session->service->sessions);
    kvd_lifetime_touch(session);
    kvd_prefix_cut(session, truncate->args.length, truncate->job_count > 0);
    kvd_session_trim(session);
}

static void cut_stored_cb(void *ctx, int err)
{
    struct kvd_truncate *truncate = ctx;
    struct kvd_failure why = {0};

    if (err != 0) {
        kvd_fail(&why, err,
            "the session was cut, but the cold tier could not record it: after a crash the tokens"
            " may be back");
    }
    truncate_finish(truncate, &why, truncate->job_count > 0);
}

static void truncate_commit(struct kvd_truncate *truncate)
{
    struct kvd_failure none = {0};

    for (uint32_t i = 0; i < truncate->job_count; i++) {
        struct reopen_job *rj = &truncate->jobs[i];
        reopen_commit(rj, layer_reopened(truncate->session, rj->layer, truncate->args.length));
    }
    lengths_commit(truncate);
    /* What was cut off must not come back: that is on disk before the reply (SEMANTICS.md 23). */
    int err = kvd_cold_cut(truncate->session, cut_stored_cb, truncate);
    if (err == KVD_COLD_NOTHING) {
        truncate_finish(truncate, &none, truncate->job_count > 0);
    } else if (err != 0) {
        cut_stored_cb(truncate, err);
    }
}

/* Too late, or asked not to happen? */
static int check_wanted(const struct kvd_truncate *truncate, struct kvd_failure *why)
{
    struct kvd_io *io = truncate->service->io;

    if (truncate->cancel_err != 0) {
        return kvd_fail(why, truncate->cancel_err, "nothing was cut");
    }
    if (truncate->args.deadline_ns != 0 && io->ops->now_ns(io) > truncate->args.deadline_ns) {
        return kvd_fail(why, KVARN_EDEADLINE, "nothing was cut");
    }
    return 0;
}

/* Nothing is cut: give back the room for rows that were to be put in place. */
static void reopen_abandon(const struct kvd_truncate *truncate)
{
    struct kvd_session *session = truncate->session;

    for (uint32_t i = 0; i < truncate->job_count; i++) {
        uint32_t block_idx =
            layer_reopened(session, truncate->jobs[i].layer, truncate->args.length);
        kvd_block_trim_rows(session->service, kvd_block_table_at(&session->table, block_idx));
    }
}

static void truncate_conclude(struct kvd_truncate *truncate)
{
    struct kvd_session *session = kvd_session_ref(truncate->session);
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(session, i) == 1);
        session->work->layers[i].pending = 0;
    }
    if (kvd_session_check_epoch(session, truncate->args.epoch, &why) != 0 ||
        check_wanted(truncate, &why) != 0) {
        reopen_abandon(truncate);
        truncate_finish(truncate, &why, false);
    } else {
        truncate_commit(truncate);
    }
    kvd_session_kick(session);
    kvd_session_unref(session);
}

static void reopen_done(struct kvd_job *job)
{
    struct kvd_truncate *truncate = ((struct reopen_job *)(void *)job)->truncate;

    KVARN_ASSERT(truncate->jobs_left > 0);
    truncate->jobs_left--;
    if (truncate->jobs_left == 0) {
        truncate_conclude(truncate);
    }
}

/* Take the pages of one layer's re-opened block; what was taken is freed with the truncate. */
static int reopen_prepare(
    struct kvd_truncate *truncate, uint32_t layer, uint32_t block_idx, struct kvd_failure *why)
{
    struct kvd_session *session = truncate->session;
    struct kvd_page_store *pages = &session->service->pages;
    const struct kvd_layer_shape *ls = &session->shape->layers[layer];
    struct reopen_job *rj = &truncate->jobs[truncate->job_count++];

    *rj = (struct reopen_job){.truncate = truncate, .layer = layer};
    rj->job.run = reopen_run;
    rj->job.done = reopen_done;
    int err = kvd_session_own_block(session, block_idx, NULL, why);
    if (err != 0) {
        return err;
    }
    struct kvd_page *tiles = kvd_session_tiles(session, block_idx, layer);
    bool is_shared = tiles->refs > 1; /* a seal must not write what others still see */
    rj->tiles = kvd_page_ref(tiles);
    err = kvd_block_want_rows(session->service,
        kvd_block_table_at(&session->table, block_idx)); /* stays till the commit */
    if (err == 0) {
        err =
            kvd_page_take(pages, session->tenant_id, ls->rows_page_bytes, KVD_PAGE_TAIL, &rj->rows);
    }
    if (err == 0 && is_shared) {
        err = kvd_page_take(
            pages, session->tenant_id, ls->tile_page_bytes, KVD_PAGE_TILES, &rj->tiles_new);
    }
    if (err != 0) {
        return kvd_session_fail_space(
            session->service, ls->rows_page_bytes + ls->tile_page_bytes, why);
    }
    return 0;
}

/* The commit drops blocks and cannot fail: make the span that it cuts the session's own. */
static int own_cut(const struct kvd_truncate *truncate, struct kvd_failure *why)
{
    struct kvd_session *session = truncate->session;
    uint64_t longest = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint64_t cut = layer_cut(&session->layers[i], truncate->args.length);
        longest = cut > longest ? cut : longest;
    }
    uint64_t kept = (longest + session->shape->group - 1) / session->shape->group;
    if (kept % KVD_SPAN_BLOCKS == 0 || kept >= kvd_session_block_count(session)) {
        return 0;
    }
    return kvd_session_own_span(session, (uint32_t)kept, why);
}

static int truncate_prepare(struct kvd_truncate *truncate, struct kvd_failure *why)
{
    struct kvd_session *session = truncate->session;
    int err = kvd_session_check_epoch(session, truncate->args.epoch, why);

    if (err == 0) {
        err = check_wanted(truncate, why);
    }
    if (err == 0) {
        err = check_window(truncate, why);
    }
    if (err == 0) {
        err = check_present(truncate, why);
    }
    if (err == 0) {
        err = own_cut(truncate, why);
    }
    for (uint32_t i = 0; err == 0 && i < session->shape->layer_count; i++) {
        uint32_t block_idx = layer_reopened(session, i, truncate->args.length);
        if (block_idx != UINT32_MAX) {
            err = reopen_prepare(truncate, i, block_idx, why);
        }
    }
    if (err == 0 && truncate->job_count > 0 && kvd_session_want_work(session) != 0) {
        err = kvd_session_fail_space(session->service, sizeof(struct kvd_session_work), why);
    }
    return err;
}

static void truncate_admit_cb(struct kvd_session_op *op)
{
    struct kvd_truncate *truncate = (struct kvd_truncate *)(void *)op;
    struct kvd_session *session = truncate->session;
    struct kvd_failure why = {0};

    if (truncate_prepare(truncate, &why) != 0) {
        reopen_abandon(truncate);
        truncate_finish(truncate, &why, false);
        return;
    }
    if (truncate->job_count == 0) {
        truncate_commit(truncate);
        return;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        session->work->layers[i].pending++;
    }
    truncate->jobs_left = truncate->job_count;
    for (uint32_t i = 0, n = truncate->job_count; i < n; i++) {
        kvd_workers_submit(truncate->service->workers, &truncate->jobs[i].job);
    }
}

int kvd_truncate_start(
    struct kvd_service *service, const struct kvd_truncate_args *args, struct kvd_truncate **ret)
{
    uint32_t layer_count = args->session->shape->layer_count;
    struct kvd_truncate *truncate =
        calloc(1, sizeof(*truncate) + layer_count * sizeof(truncate->jobs[0]));

    if (truncate == NULL) {
        return KVARN_ENOMEM;
    }
    truncate->service = service;
    truncate->session = kvd_session_ref(args->session);
    truncate->args = *args;
    truncate->op.admit_cb = truncate_admit_cb;
    truncate->op.layer_count = layer_count;
    /* A cut within a block goes on with the rows before it. */
    if (args->length % args->session->shape->group != 0 &&
        args->length < KVARN_SESSION_TOKENS_MAX) {
        truncate->op.block_first = (uint32_t)(args->length / args->session->shape->group);
        truncate->op.block_last = truncate->op.block_first + 1;
    }
    *ret = truncate;
    kvd_session_enqueue(args->session, &truncate->op);
    return 0;
}

void kvd_truncate_cancel(struct kvd_truncate *truncate, int err)
{
    KVARN_ASSERT(err != 0);
    if (!truncate->op.is_queued) {
        truncate->cancel_err = err;
        return;
    }
    struct kvd_failure why = {0};
    kvd_fail(&why, err, "nothing was cut");
    kvd_session_op_cancel(&truncate->op);
    truncate_finish(truncate, &why, false);
}

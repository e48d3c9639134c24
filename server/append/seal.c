/*
 * Sealing: a full block's rows become tiles, on a worker.
 *
 * Owner: session. Thread: loop; seal_run() on a worker, which reads a full rows page that nobody
 * writes any more and writes a tile page that nobody reads yet.
 */
#include "server/append/seal.h"

#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Blocks that one step looks at: each costs up to half a microsecond. */
#define BLOCKS_PER_STEP 32

struct kvd_seal {
    struct kvd_job job;            /* first: the worker's handle */
    SLIST_ENTRY(kvd_seal) link;    /* until it starts */
    struct kvd_session *session;   /* ref */
    struct kvd_page *rows;         /* ref */
    struct kvd_page *tiles;        /* ref */
    struct kvd_metric_sum *metric; /* ref; NULL: sealed without */
    struct kvd_metric_wait wait;   /* for the metric's factors */
    uint32_t layer;
    uint32_t block_idx;
    enum kvarn_encoder encoder;      /* asked for */
    enum kvarn_encoder encoder_used; /* for K, by the head that fell back furthest */
    uint64_t checksum;
};

static enum kvarn_encoder head_encode(const struct kvd_seal *seal, unsigned head, const float *k,
    const float *v, void *tile, void *work)
{
    const struct kvarn_tile_spec *spec = &seal->session->shape->layers[seal->layer].spec;

    if (seal->metric == NULL) {
        return kvarn_tile_encode(spec, seal->encoder, k, v, tile, work);
    }
    const float *factor = kvd_metric_factor_of(seal->metric, head);
    return kvarn_tile_encode_aware(spec, factor, k, v, tile, work);
}

static void seal_run(struct kvd_job *job, void *scratch)
{
    struct kvd_seal *seal = (struct kvd_seal *)(void *)job;
    const struct kvd_layer_shape *ls = &seal->session->shape->layers[seal->layer];
    const struct kvarn_tile_spec *spec = &ls->spec;
    size_t k_count = (size_t)spec->group * spec->k_dim;
    size_t v_count = (size_t)spec->group * spec->v_dim;
    float *k = scratch;
    float *v = k + k_count;
    /* Dimensions are multiples of 8 and groups of 64: what follows stays 64-byte aligned. */
    void *work = v + v_count;

    KVARN_ASSERT((k_count + v_count) * sizeof(float) + kvarn_encode_scratch_bytes(spec) <=
                 KVD_WORKER_SCRATCH_BYTES);
    for (unsigned head = 0; head < ls->kv_heads; head++) {
        const uint8_t *rows = kvd_page_data(seal->rows);
        uint8_t *tile = (uint8_t *)kvd_page_data(seal->tiles) + head * ls->tile_bytes;
        kvarn_to_f32(k, rows + kvd_rows_k_offset(ls, head), KVARN_F16, k_count);
        kvarn_to_f32(v, rows + kvd_rows_v_offset(ls, head), KVARN_F16, v_count);
        enum kvarn_encoder used = head_encode(seal, head, k, v, tile, work);
        if (head == 0 || used < seal->encoder_used) {
            seal->encoder_used = used;
        }
    }
    seal->checksum = XXH3_64bits(kvd_page_data(seal->tiles), ls->tile_page_bytes);
}

/* What Stats says of the page: who sealed it, and whether that is whom the session asked for. */
static void seal_count(const struct kvd_seal *seal)
{
    static const enum kvd_metric sealed[] = {
        [KVARN_ENCODER_REFERENCE] = KVD_METRIC_pages_sealed_reference,
        [KVARN_ENCODER_REFINED] = KVD_METRIC_pages_sealed_refined,
        [KVARN_ENCODER_AWARE] = KVD_METRIC_pages_sealed_aware};
    struct kvd_metrics *metrics = &seal->session->service->metrics;
    bool is_2_bit = seal->session->shape->k_bits == 2;

    kvd_metrics_add(metrics, sealed[seal->encoder_used], 1);
    if (is_2_bit && seal->encoder != KVARN_ENCODER_REFERENCE &&
        seal->encoder_used == KVARN_ENCODER_REFERENCE) {
        kvd_metrics_add(metrics, KVD_METRIC_pages_refined_fallback, 1);
    }
    if (is_2_bit && seal->encoder == KVARN_ENCODER_AWARE &&
        seal->encoder_used != KVARN_ENCODER_AWARE) {
        kvd_metrics_add(metrics, KVD_METRIC_pages_aware_fallback, 1);
    }
}

static void seal_free(struct kvd_service *service, struct kvd_seal *seal)
{
    free(seal);
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*seal));
}

static void seal_done(struct kvd_job *job)
{
    struct kvd_seal *seal = (struct kvd_seal *)(void *)job;
    struct kvd_session *session = seal->session;
    struct kvd_service *service = session->service;
    uint32_t layer = seal->layer;

    kvd_page_set_checksum(seal->tiles, seal->checksum);
    kvd_page_set_encoder(seal->tiles, seal->encoder_used);
    kvd_page_set_version(
        seal->tiles, seal->encoder_used == KVARN_ENCODER_AWARE ? seal->metric->version : 0);
    kvd_session_count_sealed(session, seal->encoder_used);
    seal_count(seal);
    kvd_session_drop_rows(session, seal->layer, seal->block_idx);
    kvd_cold_note(session);
    kvd_page_unref(&service->pages, seal->rows);
    kvd_page_unref(&service->pages, seal->tiles);
    kvd_metric_sum_unref(seal->metric);
    seal_free(service, seal);
    KVARN_ASSERT(kvd_session_pending(session, layer) > 0);
    session->work->layers[layer].pending--;
    kvd_prefix_advance(session);
    kvd_session_kick(session);
    kvd_session_unref(session);
}

/*
 * Without an exact sink before it a block holds the first tokens, whose huge norms refined's least
 * squares handles worse than min-max (FORMAT.md, Encoders).
 */
static enum kvarn_encoder block_encoder(const struct kvd_session *session, uint32_t block_idx)
{
    if (block_idx == 0 && session->shape->sink_tokens == 0) {
        return KVARN_ENCODER_REFERENCE;
    }
    return session->options.encoder;
}

struct kvd_metric_sum *kvd_seal_pick_metric(const struct kvd_session *session, uint32_t layer)
{
    const struct kvd_metric_store *store = &session->service->query_metrics;

    if (session->options.encoder != KVARN_ENCODER_AWARE || session->shape->k_bits != 2) {
        return NULL;
    }
    return kvd_metric_pick(kvd_metric_store_find(store, session->shape), layer);
}

static void seal_factors_ready_cb(struct kvd_metric_wait *wait)
{
    struct kvd_seal *seal = (void *)((uint8_t *)wait - offsetof(struct kvd_seal, wait));

    kvd_workers_submit(seal->session->service->workers, &seal->job);
}

static void seal_start(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    struct kvd_seal *seal, struct kvd_metric_sum *metric)
{
    struct kvd_page *rows = kvd_session_rows(session, block_idx, layer);
    struct kvd_page *tiles = kvd_session_tiles(session, block_idx, layer);

    KVARN_ASSERT(kvd_page_filled(rows) == session->shape->group);
    KVARN_ASSERT(tiles->refs == 1); /* nobody reads what is about to be written */
    *seal = (struct kvd_seal){.session = kvd_session_ref(session),
        .rows = kvd_page_ref(rows),
        .tiles = kvd_page_ref(tiles),
        .layer = layer,
        .block_idx = block_idx,
        .encoder = block_encoder(session, block_idx)};
    seal->job.run = seal_run;
    seal->job.done = seal_done;
    session->work->layers[layer].pending++;
    /* Without room for its version the page is sealed as if there was no metric yet. */
    if (metric != NULL && seal->encoder == KVARN_ENCODER_AWARE &&
        kvd_page_want_version(&session->service->pages, tiles) == 0) {
        seal->metric = kvd_metric_sum_ref(metric);
        seal->wait.ready_cb = seal_factors_ready_cb;
        if (!kvd_metric_factors_ready(metric, &seal->wait)) {
            return;
        }
    }
    kvd_workers_submit(session->service->workers, &seal->job);
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* The first block that a layer of this length keeps and quantises. */
static uint32_t first_tiles(const struct kvd_session *session, uint32_t layer, uint64_t length)
{
    uint32_t dropped = max_u32(
        session->layers[layer].dropped_blocks, kvd_session_window_blocks(session, layer, length));

    return max_u32(dropped, kvd_session_sink_blocks(session));
}

/* One more job in the list, charged. */
static int seal_add(
    struct kvd_seal_list *seals, struct kvd_session *session, struct kvd_failure *why)
{
    struct kvd_budget *budget = &session->service->budget;

    if (kvd_budget_charge(budget, KVD_BUDGET_SESSIONS, sizeof(struct kvd_seal)) != 0) {
        return kvd_session_fail_space(session->service, sizeof(struct kvd_seal), why);
    }
    struct kvd_seal *seal = calloc(1, sizeof(*seal));
    if (seal == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_SESSIONS, sizeof(*seal));
        return kvd_fail(why, KVARN_ENOMEM, "no memory for a seal");
    }
    SLIST_INSERT_HEAD(seals, seal, link);
    return 0;
}

int kvd_seal_prepare(struct kvd_seal_list *seals, struct kvd_session *session,
    struct kvd_seal_want *want, struct kvd_own_log *log, struct kvd_failure *why)
{
    const struct kvd_layer *ly = &session->layers[want->layer];
    uint32_t left = kvd_session_window_blocks(session, want->layer, want->length);
    uint32_t first = max_u32(ly->sealed_blocks, first_tiles(session, want->layer, want->length));
    uint32_t due = kvd_session_sealable_blocks(session, want->length);
    uint32_t b = max_u32(want->next, ly->dropped_blocks);
    int err = 0;

    for (int n = 0; n < BLOCKS_PER_STEP && err == 0; n++, b++) {
        if (b >= left) { /* not one of those that the layer leaves */
            b = max_u32(b, first);
            b = b >= want->records.first && b < want->records.last ? want->records.last : b;
            want->is_done = b >= due;
            if (want->is_done) {
                return 0;
            }
            err = seal_add(seals, session, why);
        }
        if (err == 0) {
            err = kvd_session_own_block(session, b, log, why);
        }
    }
    want->next = b;
    return err;
}

bool kvd_seal_list_drop_some(struct kvd_service *service, struct kvd_seal_list *seals)
{
    for (int n = 0; n < BLOCKS_PER_STEP && !SLIST_EMPTY(seals); n++) {
        struct kvd_seal *seal = SLIST_FIRST(seals);
        SLIST_REMOVE_HEAD(seals, link);
        seal_free(service, seal);
    }
    return SLIST_EMPTY(seals);
}

bool kvd_seal_due(struct kvd_session *session, uint32_t layer, struct kvd_block_range records,
    struct kvd_seal_list *seals, struct kvd_metric_sum *metric)
{
    struct kvd_layer *ly = &session->layers[layer];
    uint32_t due = max_u32(kvd_session_sealable_blocks(session, ly->length), records.last);
    uint32_t first = first_tiles(session, layer, ly->length);

    KVARN_ASSERT(kvd_session_pending(session, layer) > 0);
    if (!kvd_session_drop_window(session, layer)) {
        return false;
    }
    for (int n = 0; n < BLOCKS_PER_STEP && ly->sealed_blocks < due; n++, ly->sealed_blocks++) {
        uint32_t b = ly->sealed_blocks;
        if (b < first || kvd_session_rows(session, b, layer) == NULL) {
            continue;
        }
        struct kvd_seal *seal = SLIST_FIRST(seals);
        KVARN_ASSERT(seal != NULL);
        SLIST_REMOVE_HEAD(seals, link);
        seal_start(session, layer, b, seal, metric);
    }
    return ly->sealed_blocks >= due;
}

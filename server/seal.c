/*
 * Sealing: a full block's rows become tiles, on a worker.
 *
 * Owner: session. Thread: loop; seal_run() on a worker, which reads a full rows page that nobody
 * writes any more and writes a tile page that nobody reads yet.
 */
#include "server/seal.h"

#include <stdlib.h>
#include <xxhash.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session_blocks.h"

struct seal_job {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_session *session; /* ref */
    struct kvd_page *rows;       /* ref */
    struct kvd_page *tiles;      /* ref */
    uint32_t layer;
    uint32_t block_idx;
    enum kvarn_encoder encoder;      /* asked for */
    enum kvarn_encoder encoder_used; /* for K, by the last head that fell back */
    uint64_t checksum;
};

static void seal_run(struct kvd_job *job, void *scratch)
{
    struct seal_job *seal = (struct seal_job *)job;
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
        const uint8_t *rows = seal->rows->data;
        uint8_t *tile = (uint8_t *)seal->tiles->data + head * ls->tile_bytes;
        kvarn_to_f32(k, rows + kvd_rows_k_offset(ls, head), KVARN_F16, k_count);
        kvarn_to_f32(v, rows + kvd_rows_v_offset(ls, head), KVARN_F16, v_count);
        enum kvarn_encoder used = kvarn_tile_encode(spec, seal->encoder, k, v, tile, work);
        if (head == 0 || used == KVARN_ENCODER_REFERENCE) {
            seal->encoder_used = used;
        }
    }
    seal->checksum = XXH3_64bits(seal->tiles->data, ls->tile_page_bytes);
}

static void seal_done(struct kvd_job *job)
{
    struct seal_job *seal = (struct seal_job *)job;
    struct kvd_session *session = seal->session;
    struct kvd_service *service = session->service;
    struct kvd_layer *ly = &session->layers[seal->layer];

    seal->tiles->checksum = seal->checksum;
    seal->tiles->encoder = (uint8_t)seal->encoder_used;
    session->pages_by_encoder[seal->encoder_used]++;
    bool is_refined = seal->encoder_used == KVARN_ENCODER_REFINED;
    kvd_metrics_add(&service->metrics,
        is_refined ? KVD_METRIC_pages_sealed_refined : KVD_METRIC_pages_sealed_reference, 1);
    bool asked_refined = seal->encoder == KVARN_ENCODER_REFINED ||
                         (seal->encoder == KVARN_ENCODER_DEFAULT && session->shape->k_bits == 2);
    if (asked_refined && session->shape->k_bits == 2 && !is_refined) {
        kvd_metrics_add(&service->metrics, KVD_METRIC_pages_refined_fallback, 1);
    }
    kvd_session_drop_rows(session, seal->layer, seal->block_idx);
    kvd_page_unref(&service->pages, seal->rows);
    kvd_page_unref(&service->pages, seal->tiles);
    free(seal);
    KVARN_ASSERT(ly->pending > 0);
    ly->pending--;
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

static bool seal_start(struct kvd_session *session, uint32_t layer, uint32_t block_idx)
{
    struct kvd_block_layer *bl = &session->blocks[block_idx]->layers[layer];

    if (bl->rows == NULL) {
        return true; /* came as records */
    }
    struct seal_job *seal = calloc(1, sizeof(*seal));
    if (seal == NULL) {
        return false;
    }
    seal->job.run = seal_run;
    seal->job.done = seal_done;
    seal->session = kvd_session_ref(session);
    seal->rows = kvd_page_ref(bl->rows);
    seal->tiles = kvd_page_ref(bl->tiles);
    seal->layer = layer;
    seal->block_idx = block_idx;
    seal->encoder = block_encoder(session, block_idx);
    session->layers[layer].pending++;
    kvd_workers_submit(session->service->workers, &seal->job);
    return true;
}

void kvd_seal_due(struct kvd_session *session, uint32_t layer)
{
    struct kvd_layer *ly = &session->layers[layer];
    uint32_t due = kvd_session_sealable_blocks(session, ly->length);
    uint32_t sinks = kvd_session_sink_blocks(session);

    kvd_session_drop_window(session, layer);
    while (ly->sealed_blocks < due) {
        uint32_t b = ly->sealed_blocks;
        if (b >= sinks && b >= ly->dropped_blocks && !seal_start(session, layer, b)) {
            return;
        }
        ly->sealed_blocks++;
    }
}

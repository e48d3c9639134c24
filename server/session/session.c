/*
 * Sessions: life, lengths, checks that every reader and writer shares.
 *
 * Owner: session table. Thread: loop only.
 */
#include "server/session/session.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/append/metric_sample.h"
#include "server/base/alloc_bytes.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

static size_t session_bytes(const struct kvd_shape *shape, const char *name)
{
    size_t name_bytes = name == NULL ? 0 : strlen(name) + 1;

    return kvd_alloc_bytes(
        sizeof(struct kvd_session) + shape->layer_count * sizeof(struct kvd_layer) + name_bytes);
}

int kvd_session_create(struct kvd_service *service, const struct kvd_shape *shape, const char *name,
    const struct kvd_session_options *options, struct kvd_session **ret)
{
    KVARN_ASSERT(shape->layer_count > 0);
    KVARN_ASSERT(options->seal_lag <= shape->group);
    size_t bytes = session_bytes(shape, name);
    bool is_aware = options->encoder == KVARN_ENCODER_AWARE && shape->k_bits == 2;
    int err = is_aware ? kvd_metric_sample_start(&service->query_metrics, shape) : 0;
    if (err != 0) {
        return err;
    }
    err = kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, bytes);
    if (err != 0) {
        return err;
    }
    struct kvd_session *session = calloc(1, bytes);
    if (session == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOMEM;
    }
    session->service = service;
    session->shape = shape;
    session->tenant_id = shape->tenant_id;
    session->refs = 1;
    session->options = *options;
    session->epoch = kvd_session_table_new_epoch(&service->sessions);
    kvd_lifetime_touch(session);
    TAILQ_INIT(&session->ops);
    if (name != NULL) {
        session->name = (char *)&session->layers[shape->layer_count];
        memcpy(session->name, name, strlen(name) + 1);
    }
    service->sessions.count++;
    LIST_INSERT_HEAD(&service->sessions.all, session, all_link);
    *ret = session;
    return 0;
}

/* Without work of its own, unless too many pages would have to be counted. */
static int layers_copy(const struct kvd_session *from, struct kvd_session *to)
{
    for (uint32_t i = 0; i < from->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending_length(from, i) == from->layers[i].length);
    }
    memcpy(to->layers, from->layers, from->shape->layer_count * sizeof(to->layers[0]));
    return kvd_session_open_blocks(from) > KVD_SESSION_OPEN_BLOCKS_MAX
               ? kvd_session_copy_work(from, to)
               : 0;
}

int kvd_session_copy(const struct kvd_session *from, const char *name, struct kvd_session **ret,
    struct kvd_failure *why)
{
    struct kvd_service *service = from->service;
    struct kvd_session *copy = NULL;

    if (from->cold.is_tail_cold) {
        /* The copy would have no record of it; it could not be loaded for want of memory. */
        return kvd_session_fail_space(service, from->shape->block_rows_bytes, why);
    }
    int err = kvd_session_create(service, from->shape, name, &from->options, &copy);

    KVARN_ASSERT(err != 0 || copy != NULL);
    if (err == 0) {
        err = kvd_block_table_clone(service, &from->table, &copy->table);
        err = err == 0 ? kvd_prefix_copy(from, copy) : err;
        err = err == 0 ? layers_copy(from, copy) : err;
        if (err != 0) {
            kvd_session_unref(copy);
        }
    }
    if (err == KVARN_ENOSPC) {
        return kvd_session_fail_space(service, session_bytes(from->shape, name), why);
    }
    if (err != 0) {
        return kvd_fail(why, err, "no memory for the session");
    }
    copy->missing_first = from->missing_first;
    copy->missing_last = from->missing_last;
    copy->cold.restored_blocks = from->cold.restored_blocks;
    memcpy(copy->pages_by_encoder, from->pages_by_encoder, sizeof(copy->pages_by_encoder));
    copy->prefix_tokens = from->prefix_tokens;
    copy->adopted_blocks = from->adopted_blocks;
    kvd_prefix_advance(copy); /* where the original has not come to the end of it yet */
    *ret = copy;
    return 0;
}

static void swap_u32(uint32_t *a, uint32_t *b)
{
    uint32_t value = *a;

    *a = *b;
    *b = value;
}

/*
 * Both have their work. What is pending is the operation's, not the contents'; retries carry an old
 * epoch now.
 */
static void work_swap(struct kvd_session *a, struct kvd_session *b)
{
    for (uint32_t i = 0; i < a->shape->layer_count; i++) {
        struct kvd_layer_work *left = &a->work->layers[i], *right = &b->work->layers[i];
        KVARN_ASSERT(left->pending_length == b->layers[i].length);
        swap_u32(&left->pending_length, &right->pending_length);
        swap_u32(&left->tail_pages, &right->tail_pages);
        swap_u32(&left->spare_rows, &right->spare_rows);
        left->last_count = right->last_count = 0;
    }
}

void kvd_session_swap_contents(struct kvd_session *a, struct kvd_session *b)
{
    struct kvd_block_table table = a->table;
    struct kvd_session_options options = a->options;
    struct kvd_prefix *prefix = a->prefix;

    KVARN_ASSERT(a->shape == b->shape && a->service == b->service);
    kvd_cold_forget(a);
    kvd_cold_forget(b);
    a->table = b->table;
    b->table = table;
    a->options = b->options;
    b->options = options;
    uint32_t missing_first = a->missing_first, missing_last = a->missing_last;
    a->missing_first = b->missing_first;
    a->missing_last = b->missing_last;
    b->missing_first = missing_first;
    b->missing_last = missing_last;
    uint32_t restored_blocks = a->cold.restored_blocks;
    a->cold.restored_blocks = b->cold.restored_blocks;
    b->cold.restored_blocks = restored_blocks;
    a->prefix = b->prefix;
    b->prefix = prefix;
    kvd_prefix_move(a->prefix, a);
    kvd_prefix_move(b->prefix, b);
    swap_u32(&a->prefix_tokens, &b->prefix_tokens);
    swap_u32(&a->adopted_blocks, &b->adopted_blocks);
    for (uint32_t i = 0; i < a->shape->layer_count; i++) {
        struct kvd_layer layer = a->layers[i];
        a->layers[i] = b->layers[i];
        b->layers[i] = layer;
    }
    work_swap(a, b);
    for (size_t i = 0; i < sizeof(a->pages_by_encoder) / sizeof(a->pages_by_encoder[0]); i++) {
        swap_u32(&a->pages_by_encoder[i], &b->pages_by_encoder[i]);
    }
}

struct kvd_session *kvd_session_ref(struct kvd_session *session)
{
    KVARN_ASSERT(session->refs > 0);
    session->refs++;
    return session;
}

void kvd_session_unref(struct kvd_session *session)
{
    KVARN_ASSERT(session->refs > 0);
    session->refs--;
    if (session->refs == 0) {
        KVARN_ASSERT(TAILQ_EMPTY(&session->ops));
        kvd_session_table_bury(&session->service->sessions, session);
    }
}

void kvd_session_clear(struct kvd_session *session)
{
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(session, i) == 0);
    }
    kvd_session_drop_work(session);
    kvd_block_table_clear(session->service, &session->table);
    session->missing_first = session->missing_last = 0;
    session->cold.restored_blocks = 0;
    kvd_prefix_disable(session);
}

void kvd_session_free(struct kvd_session *session)
{
    KVARN_ASSERT(session->refs == 0 && !session->kick_slice.is_listed);
    kvd_session_clear(session);
    kvd_cold_named_free(session->service, session->cold.named);
    kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS,
        session_bytes(session->shape, session->name));
    free(session);
}

uint64_t kvd_session_length(const struct kvd_session *session)
{
    uint64_t length = session->layers[0].length;

    for (uint32_t i = 1; i < session->shape->layer_count; i++) {
        if (session->layers[i].length < length) {
            length = session->layers[i].length;
        }
    }
    return length;
}

uint32_t kvd_session_sealable_blocks(const struct kvd_session *session, uint64_t length)
{
    uint32_t lag = session->options.seal_lag;

    return length < lag ? 0 : (uint32_t)((length - lag) / session->shape->group);
}

struct kvd_page *kvd_session_rows(
    const struct kvd_session *session, uint32_t block_idx, uint32_t layer)
{
    return kvd_block_rows(&session->service->pages, kvd_session_block(session, block_idx), layer);
}

struct kvd_page *kvd_session_tiles(
    const struct kvd_session *session, uint32_t block_idx, uint32_t layer)
{
    return kvd_block_tiles(&session->service->pages, kvd_session_block(session, block_idx), layer);
}

struct kvd_page *kvd_session_reader_page(
    const struct kvd_session *session, uint32_t layer, uint32_t block_idx, uint32_t sealed_blocks)
{
    bool is_tiles = block_idx >= kvd_session_sink_blocks(session) && block_idx < sealed_blocks;

    return is_tiles ? kvd_session_tiles(session, block_idx, layer)
                    : kvd_session_rows(session, block_idx, layer);
}

int kvd_session_check_epoch(
    const struct kvd_session *session, uint64_t epoch, struct kvd_failure *why)
{
    if (session->is_dropped) {
        return kvd_fail(why, KVARN_ENOT_FOUND, "the session was dropped");
    }
    if (session->epoch == epoch) {
        return 0;
    }
    why->session = session;
    why->layer_first = 0;
    why->layer_count = session->shape->layer_count;
    return kvd_fail(why, KVARN_ESTALE_EPOCH, "the session is at epoch %" PRIu64 ", got %" PRIu64,
        session->epoch, epoch);
}

int kvd_session_check_range(const struct kvd_session *session, uint32_t layer, uint64_t first,
    uint64_t last, struct kvd_failure *why)
{
    const struct kvd_layer *ly = &session->layers[layer];
    uint64_t kept_first = (uint64_t)ly->dropped_blocks * session->shape->group;

    if (first >= last) {
        return 0;
    }
    if (last > ly->length) {
        why->reason = KVARND__MISS_REASON__MISS_NEVER_STORED;
        kvd_metrics_add(&session->service->metrics, KVD_METRIC_misses_never_stored, 1);
        return kvd_fail(why, KVARN_EMISS,
            "layer %" PRIu32 " holds %" PRIu32 " tokens, got a range up to %" PRIu64, layer,
            ly->length, last);
    }
    if (first < kept_first) {
        why->reason = KVARND__MISS_REASON__MISS_WINDOW;
        kvd_metrics_add(&session->service->metrics, KVD_METRIC_misses_window, 1);
        return kvd_fail(why, KVARN_EMISS,
            "layer %" PRIu32 " keeps tokens from %" PRIu64 " on (its window), got %" PRIu64, layer,
            kept_first, first);
    }
    return kvd_session_check_present(session, layer, first, last, why);
}

static uint64_t count_from(uint64_t end, uint64_t first)
{
    return end > first ? end - first : 0;
}

static void usage_add(struct kvd_session_usage *usage, enum kvd_page_class page_class,
    uint64_t pages, size_t page_bytes)
{
    usage->pages[page_class] += pages;
    usage->bytes[page_class] += pages * page_bytes;
}

/* Those of blocks [first, last) that are missing. */
static uint64_t count_missing(const struct kvd_session *session, uint64_t first, uint64_t last)
{
    uint64_t from = first > session->missing_first ? first : session->missing_first;
    uint64_t to = last < session->missing_last ? last : session->missing_last;

    return count_from(to, from);
}

/* Those of blocks [first, last) that are there. */
static uint64_t count_present(const struct kvd_session *session, uint64_t first, uint64_t last)
{
    return count_from(last, first) - count_missing(session, first, last);
}

/*
 * Every block that a layer has not dropped and that is not missing has rows if it is a sink, else
 * tiles.
 */
void kvd_session_usage(const struct kvd_session *session, struct kvd_session_usage *ret)
{
    struct kvd_session_usage usage = {0};
    uint32_t sinks = kvd_session_sink_blocks(session);
    uint32_t blocks = kvd_session_block_count(session);
    uint32_t sinks_made = blocks < sinks ? blocks : sinks;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer_shape *ls = &session->shape->layers[i];
        const struct kvd_layer *ly = &session->layers[i];
        uint32_t first = ly->dropped_blocks > sinks ? ly->dropped_blocks : sinks;
        /* A dropped session has no blocks any more, whatever its lengths say. */
        uint64_t sealed_last = ly->sealed_blocks < blocks ? ly->sealed_blocks : blocks;
        uint64_t sealed = count_present(session, first, sealed_last);
        uint64_t made = count_present(session, first, blocks);
        usage_add(&usage, KVD_PAGE_TILES, sealed, ls->tile_page_bytes);
        usage_add(&usage, KVD_PAGE_SINK, count_present(session, ly->dropped_blocks, sinks_made),
            ls->rows_page_bytes);
        usage_add(&usage, KVD_PAGE_TAIL, kvd_session_tail_pages(session, i), ls->rows_page_bytes);
        usage.reserved_bytes += (made - sealed) * ls->tile_page_bytes;
        usage.reserved_bytes += kvd_session_has_spare(session, i) ? ls->rows_page_bytes : 0;
    }
    *ret = usage;
}

void kvd_session_add_block_usage(
    const struct kvd_session *session, uint32_t block_idx, struct kvd_session_shared *shared)
{
    bool is_sink = block_idx < kvd_session_sink_blocks(session);

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer_shape *ls = &session->shape->layers[i];
        const struct kvd_layer *ly = &session->layers[i];
        if (block_idx < ly->dropped_blocks ||
            (uint64_t)block_idx * session->shape->group >= ly->length) {
            continue;
        }
        bool is_tiles = !is_sink && block_idx < ly->sealed_blocks;
        shared->pages++;
        shared->bytes += is_tiles ? ls->tile_page_bytes : ls->rows_page_bytes;
    }
}

bool kvd_session_shared_add(
    const struct kvd_session *session, uint32_t span_idx, struct kvd_session_shared *shared)
{
    uint32_t first = span_idx * KVD_SPAN_BLOCKS;
    uint32_t count = kvd_session_block_count(session);
    uint32_t last = count - first < KVD_SPAN_BLOCKS ? count : first + KVD_SPAN_BLOCKS;

    if (first >= count) {
        return true;
    }
    const struct kvd_span *span = session->table.spans[span_idx];
    for (uint32_t b = first; b < last; b++) {
        const struct kvd_block *block = span->blocks[b - first];
        if (block != NULL && (span->refs > 1 || block->refs > 1)) {
            kvd_session_add_block_usage(session, b, shared);
        }
    }
    return last == count;
}

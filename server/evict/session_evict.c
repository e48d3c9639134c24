/*
 * Taking blocks of a session out of memory.
 *
 * Owner: session. Thread: loop only.
 */
#include "server/evict/session_evict.h"

#include <inttypes.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

void kvd_session_missing_tokens(
    const struct kvd_session *session, uint64_t *ret_first, uint64_t *ret_last)
{
    uint64_t first = (uint64_t)session->missing_first * session->shape->group;
    uint64_t last = (uint64_t)session->missing_last * session->shape->group;
    uint64_t length = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        length = length > session->layers[i].length ? length : session->layers[i].length;
    }
    *ret_last = last < length ? last : length;
    *ret_first = first < *ret_last ? first : *ret_last;
}

bool kvd_session_is_busy(const struct kvd_session *session)
{
    bool is_busy = !TAILQ_EMPTY(&session->ops) || session->is_kicking;

    for (uint32_t i = 0; i < session->shape->layer_count && !is_busy; i++) {
        is_busy = kvd_session_pending(session, i) > 0;
    }
    return is_busy;
}

/* Leading blocks that are sealed in all layers, or full sinks. */
static uint32_t sealed_blocks(const struct kvd_session *session)
{
    uint32_t sealed = kvd_session_block_count(session);

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->layers[i].sealed_blocks < sealed) {
            sealed = session->layers[i].sealed_blocks;
        }
    }
    return sealed;
}

/* The first block that some layer has rows in, sinks that are not full counted. */
static uint32_t tail_blocks_first(const struct kvd_session *session)
{
    uint32_t first = kvd_session_block_count(session);

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        uint32_t next = (uint32_t)(ly->length / session->shape->group);
        uint32_t open = ly->sealed_blocks < next ? ly->sealed_blocks : next;
        first = open < first ? open : first;
    }
    return first;
}

/* The last block of the missing range that a load brought back, or UINT32_MAX. */
static uint32_t restored_last(const struct kvd_session *session, uint32_t kept)
{
    for (uint32_t b = session->missing_last; b > session->missing_first && b > kept; b--) {
        const struct kvd_block *block = kvd_session_block(session, b - 1);
        if (block != NULL && block->state == KVD_BLOCK_RESIDENT) {
            return b - 1;
        }
    }
    return UINT32_MAX;
}

static uint32_t victim_of(const struct kvd_session *session)
{
    uint32_t kept = session->lifetime.pinned_blocks;
    uint32_t sealed = sealed_blocks(session);
    uint32_t first = session->missing_first, last = session->missing_last;

    if (session->cold.restored_blocks > 0) {
        uint32_t b = restored_last(session, kept);
        if (b != UINT32_MAX) {
            return b;
        }
    }

    if (!kvd_session_has_missing(session)) {
        if (sealed > kept) {
            return sealed - 1;
        }
        return kept == 0 && kvd_session_block_count(session) > 0 ? 0 : UINT32_MAX;
    }
    if (last < sealed) {
        return last >= kept ? last : UINT32_MAX;
    }
    if (first > kept) {
        return first - 1;
    }
    return first == 0 && kept == 0 && last < kvd_session_block_count(session) ? last : UINT32_MAX;
}

uint32_t kvd_session_next_victim(const struct kvd_session *session)
{
    uint32_t block_idx = victim_of(session);

    return block_idx == UINT32_MAX || kvd_cold_may_evict(session, block_idx) ? block_idx
                                                                             : UINT32_MAX;
}

bool kvd_session_has_evictable(const struct kvd_session *session)
{
    return victim_of(session) != UINT32_MAX;
}

bool kvd_session_has_victim(const struct kvd_session *session)
{
    uint32_t block_idx = victim_of(session);

    return block_idx != UINT32_MAX &&
           (kvd_cold_may_evict(session, block_idx) || kvd_cold_may_tail_out(session));
}

static bool is_there(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    return block != NULL && block->state == KVD_BLOCK_RESIDENT;
}

/* Nothing is missing there: it is in memory, or all layers dropped it. */
static bool is_whole(const struct kvd_session *session, uint32_t block_idx)
{
    return kvd_session_block(session, block_idx) == NULL || is_there(session, block_idx);
}

/* Blocks of [first, last) that are in memory. */
static uint32_t resident_count(const struct kvd_session *session, uint32_t first, uint32_t last)
{
    uint32_t count = 0;

    for (uint32_t b = first; b < last; b++) {
        count += is_there(session, b) ? 1 : 0;
    }
    return count;
}

void kvd_session_missing_shrink(struct kvd_session *session)
{
    uint32_t count = kvd_session_block_count(session);
    uint32_t end = session->missing_last < count ? session->missing_last : count;
    uint32_t first = session->missing_first;
    uint32_t last = end;

    while (first < last && is_whole(session, first)) {
        first++;
    }
    while (first < last && is_whole(session, last - 1)) {
        last--;
    }
    uint32_t left =
        resident_count(session, session->missing_first, first) + resident_count(session, last, end);
    uint32_t *restored = &session->cold.restored_blocks;
    *restored -= left < *restored ? left : *restored;
    session->missing_first = first < last ? first : 0;
    session->missing_last = first < last ? last : 0;
}

void kvd_session_missing_count(struct kvd_session *session)
{
    session->cold.restored_blocks =
        resident_count(session, session->missing_first, session->missing_last);
}

void kvd_session_missing_note(struct kvd_session *session, uint32_t block_idx)
{
    bool is_within = block_idx >= session->missing_first && block_idx < session->missing_last;

    session->cold.restored_blocks += is_within ? 1 : 0;
}

/* A block went: the missing range is to cover it, and what is in memory between. */
static void missing_include(struct kvd_session *session, uint32_t block_idx)
{
    uint32_t first = session->missing_first, last = session->missing_last;

    if (!kvd_session_has_missing(session)) {
        session->missing_first = block_idx;
        session->missing_last = block_idx + 1;
        return;
    }
    if (block_idx >= first && block_idx < last) {
        session->cold.restored_blocks -= session->cold.restored_blocks > 0 ? 1 : 0;
        return;
    }
    uint32_t gap_first = block_idx < first ? block_idx + 1 : last;
    uint32_t gap_last = block_idx < first ? first : block_idx;
    session->cold.restored_blocks += resident_count(session, gap_first, gap_last);
    session->missing_first = block_idx < first ? block_idx : first;
    session->missing_last = block_idx < first ? last : block_idx + 1;
}

/* A block is to go: its tokens, as far as the longest layer goes. */
static void tokens_count(struct kvd_session *session, uint32_t block_idx)
{
    uint64_t group = session->shape->group, first = block_idx * group, longest = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        longest = longest > session->layers[i].length ? longest : session->layers[i].length;
    }
    uint64_t tokens = longest > first ? longest - first : 0;
    kvd_metrics_add(
        &session->service->metrics, KVD_METRIC_evicted_tokens, tokens < group ? tokens : group);
}

uint32_t kvd_session_evict_tail(struct kvd_session *session, uint64_t *ret_freed_bytes)
{
    uint32_t kept = session->lifetime.pinned_blocks;
    uint32_t first = session->cold.tail_first > kept ? session->cold.tail_first : kept;
    uint32_t evicted = 0;

    for (uint32_t b = first; b < kvd_session_block_count(session); b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        if (block == NULL || block->state != KVD_BLOCK_RESIDENT ||
            !kvd_cold_may_evict(session, b)) {
            continue;
        }
        if (kvd_session_strip_block(
                session, b, KVARND__MISS_REASON__MISS_EVICTED, ret_freed_bytes) != 0) {
            break;
        }
        missing_include(session, b);
        tokens_count(session, b);
        evicted++;
    }
    return evicted;
}

uint32_t kvd_session_evict(struct kvd_session *session, uint32_t count, uint64_t *ret_freed_bytes)
{
    uint32_t evicted = 0;

    for (uint32_t b; evicted < count && (b = kvd_session_next_victim(session)) != UINT32_MAX;) {
        if (kvd_session_strip_block(
                session, b, KVARND__MISS_REASON__MISS_EVICTED, ret_freed_bytes) != 0) {
            break;
        }
        missing_include(session, b);
        tokens_count(session, b);
        evicted++;
    }
    return evicted;
}

int kvd_session_lose_block(
    struct kvd_session *session, uint32_t block_idx, uint64_t *ret_freed_bytes)
{
    int err = kvd_session_strip_block(
        session, block_idx, KVARND__MISS_REASON__MISS_CHECKSUM, ret_freed_bytes);

    if (err == 0) {
        missing_include(session, block_idx);
    }
    return err;
}

/* Count the miss; returns what became of the tokens, in words. */
static const char *miss_count(struct kvd_metrics *metrics, int reason, uint64_t tokens)
{
    switch (reason) {
    case KVARND__MISS_REASON__MISS_CHECKSUM:
        kvd_metrics_add(metrics, KVD_METRIC_misses_checksum, 1);
        return "do not match their checksums";
    case KVARND__MISS_REASON__MISS_RESTART:
        kvd_metrics_add(metrics, KVD_METRIC_misses_restart, 1);
        return "were not found at the last start";
    default:
        kvd_metrics_add(metrics, KVD_METRIC_misses_evicted, 1);
        kvd_metrics_add(metrics, KVD_METRIC_tokens_missed_evicted, tokens);
        return "were evicted";
    }
}

static int fail_missing(const struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint64_t tokens, struct kvd_failure *why)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    struct kvd_metrics *metrics = &session->service->metrics;
    uint64_t missing_first, missing_last;

    kvd_session_missing_tokens(session, &missing_first, &missing_last);
    /* A cold one could not be loaded for want of memory. */
    why->reason = block->state == KVD_BLOCK_MISSING ? (Kvarnd__MissReason)block->miss_reason
                                                    : KVARND__MISS_REASON__MISS_EVICTED;
    const char *became = miss_count(metrics, (int)why->reason, tokens);
    return kvd_fail(why, KVARN_EMISS,
        "of tokens %" PRIu64 " to %" PRIu64 " of layer %" PRIu32 " some or all %s", missing_first,
        missing_last - 1, layer, became);
}

int kvd_session_check_present(const struct kvd_session *session, uint32_t layer, uint64_t first,
    uint64_t last, struct kvd_failure *why)
{
    uint32_t group = session->shape->group;

    if (!kvd_session_has_missing(session) || first >= last) {
        return 0;
    }
    uint32_t from = (uint32_t)(first / group);
    uint32_t to = (uint32_t)((last - 1) / group) + 1;
    from = from > session->missing_first ? from : session->missing_first;
    to = to < session->missing_last ? to : session->missing_last;
    for (uint32_t b = from; b < to; b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        if (block != NULL && block->state != KVD_BLOCK_RESIDENT) {
            return fail_missing(session, layer, b, last - first, why);
        }
    }
    return 0;
}

int kvd_session_check_tail(
    const struct kvd_session *session, uint32_t layer, struct kvd_failure *why)
{
    const struct kvd_layer *ly = &session->layers[layer];
    uint64_t group = session->shape->group;
    uint64_t first = ly->sealed_blocks * group;
    uint64_t last = ly->length + 1;

    if (session->cold.is_tail_cold) {
        /* It is in one record, with the lengths of then: all of it comes back first. */
        first = tail_blocks_first(session) * group;
        last = kvd_session_block_count(session) * group;
    }
    return kvd_session_check_present(session, layer, first, last, why);
}

void kvd_session_trim_missing(struct kvd_session *session)
{
    uint32_t count = kvd_session_block_count(session);

    if (session->missing_last > count) {
        session->missing_last = count;
    }
    if (session->missing_first >= session->missing_last) {
        session->missing_first = session->missing_last = 0;
    }
}

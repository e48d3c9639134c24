/*
 * What of a session is not in memory, and what of it is on disk.
 *
 * Owner: none. Thread: loop only.
 */
#include "server/cold/cold_usage.h"

#include "server/service.h"

/* Blocks that hit rates look at one by one. */
#define AWAY_BLOCKS_MAX 1024

static uint64_t stored_bytes(
    const struct kvd_session *session, const struct kvd_cold_record *record)
{
    const struct kvd_cold *tier = session->service->cold.tier;
    struct kvd_cold_info info = {0};

    if (tier != NULL && record != NULL) {
        tier->ops->info(record, &info);
    }
    return info.stored_bytes;
}

static void blocks_add(struct kvd_cold_blocks *blocks, const struct kvd_session_shared *in_block)
{
    blocks->count++;
    blocks->bytes += in_block->bytes;
}

static void block_add(
    const struct kvd_session *session, uint32_t block_idx, struct kvd_cold_usage *usage)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    struct kvd_session_shared in_block = {0};

    if (block == NULL) {
        return; /* all layers dropped it */
    }
    if (kvd_cold_copy_is_durable(block->cold)) {
        usage->stored_blocks++;
        usage->stored_bytes += stored_bytes(session, block->cold->record);
    }
    if (block->state == KVD_BLOCK_RESIDENT) {
        return;
    }
    kvd_session_add_block_usage(session, block_idx, &in_block);
    blocks_add(block->state == KVD_BLOCK_COLD      ? &usage->cold
               : block->state == KVD_BLOCK_LOADING ? &usage->loading
                                                   : &usage->missing,
        &in_block);
}

void kvd_cold_usage_add_span(
    const struct kvd_session *session, uint32_t span_idx, struct kvd_cold_usage *usage)
{
    uint32_t count = kvd_session_block_count(session);
    uint32_t first = span_idx * KVD_SPAN_BLOCKS;

    for (uint32_t b = first; b < count && b - first < KVD_SPAN_BLOCKS; b++) {
        block_add(session, b, usage);
    }
}

void kvd_cold_usage_add_records(const struct kvd_session *session, struct kvd_cold_usage *usage)
{
    const struct kvd_session_cold *sc = &session->cold;

    usage->stored_bytes += stored_bytes(session, sc->session_rec);
    usage->stored_bytes += stored_bytes(session, sc->map_rec);
    usage->stored_bytes += stored_bytes(session, sc->tail_rec);
}

uint64_t kvd_cold_restart_tokens(const struct kvd_session *session)
{
    const struct kvd_session_cold *sc = &session->cold;

    return sc->map_rec == NULL ? 0 : sc->durable_tokens;
}

uint32_t kvd_cold_away_blocks(const struct kvd_session *session)
{
    uint32_t missing = session->missing_last - session->missing_first;
    uint32_t restored = session->cold.restored_blocks;

    return missing - (restored < missing ? restored : missing);
}

void kvd_cold_away(
    const struct kvd_session *session, uint32_t first, uint32_t last, struct kvd_op_cold *ret)
{
    uint32_t seen_last = last - first > AWAY_BLOCKS_MAX ? first + AWAY_BLOCKS_MAX : last;
    struct kvd_op_cold away = {0};

    for (uint32_t b = first; b < seen_last; b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        if (block != NULL &&
            (block->state == KVD_BLOCK_COLD || block->state == KVD_BLOCK_LOADING)) {
            away.block_first = away.blocks == 0 ? b : away.block_first;
            away.block_last = b + 1;
            away.blocks++;
        }
    }
    if (seen_last < last) {
        away.block_first = away.blocks == 0 ? seen_last : away.block_first;
        away.block_last = last;
        away.blocks += last - seen_last;
    }
    *ret = away;
}

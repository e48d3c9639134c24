/*
 * What comes of a check that found something wrong.
 *
 * Owner: the verification. Thread: loop only.
 */
#include "server/read/verify_repair.h"

#include "lib/base/assert.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

static struct kvd_cold_record *record_now(const struct kvd_verify_check *check)
{
    const struct kvd_session_cold *sc = &check->session->cold;

    switch (check->part) {
    case KVD_VERIFY_SESSION:
        return sc->session_rec;
    case KVD_VERIFY_MAP:
        return sc->map_rec;
    case KVD_VERIFY_TAIL:
        return sc->tail_rec;
    case KVD_VERIFY_BLOCK:
        break;
    }
    return check->record; /* the copy that the check holds keeps it */
}

bool kvd_verify_is_current(const struct kvd_verify_check *check)
{
    struct kvd_cold *tier = check->service->cold.tier;
    struct kvd_cold_record *record = record_now(check);
    struct kvd_cold_info info;

    if (record == NULL || record != check->record) {
        return false;
    }
    tier->ops->info(record, &info); /* the same place in memory may hold a newer one */
    return info.sequence == check->info.sequence;
}

/* The block still has a page that was found to be wrong; the check holds it, so it is no other. */
static bool has_wrong_page(const struct kvd_verify_check *check, const struct kvd_block *block)
{
    for (uint32_t i = 0; i < check->unit_count; i++) {
        const struct kvd_verify_unit *unit = &check->units[i];
        if (unit->is_wrong &&
            kvd_block_tiles(&check->service->pages, block, unit->layer) == unit->page) {
            return true;
        }
    }
    return false;
}

static enum kvd_verify_outcome pages_drop(const struct kvd_verify_check *check, bool is_record_bad)
{
    struct kvd_session *session = check->session;
    const struct kvd_block *block = kvd_session_block(session, check->block_idx);
    uint64_t freed = 0;

    kvd_prefix_index_withdraw(
        &check->service->prefixes, session->shape, check->block_idx, block->name);
    if (kvd_session_lose_block(session, check->block_idx, &freed) != 0) {
        return KVD_VERIFY_LEFT; /* no memory to part from those who share it */
    }
    if (is_record_bad) {
        kvd_session_part_cold(session, check->block_idx, KVARND__MISS_REASON__MISS_CHECKSUM);
        kvd_cold_changed(session, check->block_idx); /* maps end before it from now on */
    }
    kvd_evictor_update(session);
    block = kvd_session_block(session, check->block_idx);
    return block->state == KVD_BLOCK_COLD ? KVD_VERIFY_DROPPED : KVD_VERIFY_LOST;
}

static enum kvd_verify_outcome block_repair(const struct kvd_verify_check *check)
{
    struct kvd_session *session = check->session;
    struct kvd_block *block = check->block_idx < kvd_session_block_count(session)
                                  ? kvd_block_table_at(&session->table, check->block_idx)
                                  : NULL;

    if (block == NULL) {
        return KVD_VERIFY_LEFT; /* it is gone */
    }
    bool is_record_bad = check->record_err == KVARN_ECORRUPT && block->cold == check->copy;
    if (has_wrong_page(check, block)) {
        return pages_drop(check, is_record_bad);
    }
    if (is_record_bad && block->state == KVD_BLOCK_RESIDENT) {
        return kvd_cold_rewrite_block(session, check->block_idx) == 0 ? KVD_VERIFY_REWRITE
                                                                      : KVD_VERIFY_LEFT;
    }
    if (is_record_bad && block->state == KVD_BLOCK_COLD) {
        kvd_cold_block_lost(block);
        return KVD_VERIFY_LOST;
    }
    return KVD_VERIFY_LEFT;
}

static enum kvd_verify_outcome tail_repair(struct kvd_session *session)
{
    if (!session->cold.is_tail_cold || session->cold.is_tail_loading) {
        return KVD_VERIFY_LEFT; /* memory has it; the next stop writes it again */
    }
    kvd_cold_tail_lost(session);
    return KVD_VERIFY_LOST;
}

enum kvd_verify_outcome kvd_verify_repair(struct kvd_verify_check *check)
{
    struct kvd_session *session = check->session;
    bool is_done = false;

    if (session->is_dropped) {
        return KVD_VERIFY_LEFT;
    }
    if (check->part == KVD_VERIFY_BLOCK) {
        return block_repair(check);
    }
    if (!kvd_verify_is_current(check)) {
        return KVD_VERIFY_LEFT;
    }
    if (check->part == KVD_VERIFY_TAIL) {
        return tail_repair(session);
    }
    is_done = check->part == KVD_VERIFY_SESSION ? kvd_cold_rewrite_session(session)
                                                : kvd_cold_rewrite_map(session);
    return is_done ? KVD_VERIFY_REWRITE : KVD_VERIFY_LEFT;
}

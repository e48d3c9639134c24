/*
 * What a cold tier may hold after a crash at any point, by what it was told and what it told.
 *
 * Thread: one. Everything is dated by the number of operations that the disk had recorded. A page
 * must be there when it was durable and not given up; a session's map must be the newest durable
 * one or a later one; a session that was dropped must not be there at all. Everything else may be
 * lost, and nothing may be wrong.
 */
#ifndef TESTS_COLD_ORACLE_H
#define TESTS_COLD_ORACLE_H

#include "tests/support/cold_rig.h"

#define KVT_ORACLE_PAGES_MAX    4096
#define KVT_ORACLE_SESSIONS_MAX 512
#define KVT_ORACLE_MAPS_MAX     64
#define KVT_NEVER               SIZE_MAX

struct kvt_oracle_page {
    size_t durable_at, forgotten_at;
    struct kvd_cold_record *record;
    bool is_busy;
};

struct kvt_oracle_session {
    size_t map_put_at[KVT_ORACLE_MAPS_MAX], map_durable_at[KVT_ORACLE_MAPS_MAX];
    bool map_is_barrier[KVT_ORACLE_MAPS_MAX];
    unsigned map_count;
    struct kvd_cold_record *map; /* newest durable */
    uint64_t map_version;
    size_t drop_put_at, drop_durable_at;
    unsigned busy;
};

struct kvt_oracle {
    struct kvt_cold_rig *rig; /* borrowed */
    struct kvt_oracle_page pages[KVT_ORACLE_PAGES_MAX];
    struct kvt_oracle_session sessions[KVT_ORACLE_SESSIONS_MAX];
    unsigned page_count, session_count;
    uint64_t failures; /* puts that were refused or failed */
};

/* What a look at a recovered tier found. */
struct kvt_verdict {
    uint64_t checked;     /* records read back and compared */
    uint64_t wrong;       /* bytes that nobody put */
    uint64_t resurrected; /* sessions that had been dropped, maps older than the newest durable */
    uint64_t lost;        /* durable and not there */
    uint64_t alarms;      /* damage told where only a crash was */
    uint64_t unreadable;  /* found and not readable */
    uint64_t suspects;    /* tiers of which no session may be taken */
};

void kvt_oracle_init(struct kvt_oracle *oracle, struct kvt_cold_rig *rig);

/* Do one thing at random: a page, a map, a drop, giving something up, turns of the loop. */
struct kvt_rng;
void kvt_oracle_step(struct kvt_oracle *oracle, struct kvt_rng *rng);

/*
 * Open a tier on `disk`, which holds what was left after `op_count` operations, read all of it, and
 * add to the verdict. `may_lose`: the disk was damaged, so that things may be missing.
 */
void kvt_oracle_judge(const struct kvt_oracle *oracle, struct kvd_fake_disk *disk, size_t op_count,
    bool may_lose, struct kvt_verdict *verdict);

#endif

/*
 * Hit rates.
 *
 * Owner: none. Thread: loop only.
 */
#include "server/read/hits.h"

#include "lib/base/assert.h"

/* The counters of one who asks. */
struct row {
    enum kvd_metric asked, memory, cold, missed;
};

static const struct row rows[] = {
    [KVD_HITS_READ] = {KVD_METRIC_read_tokens_asked, KVD_METRIC_read_tokens_memory,
        KVD_METRIC_read_tokens_cold, KVD_METRIC_read_tokens_missed},
    [KVD_HITS_ATTEND] = {KVD_METRIC_attend_tokens_asked, KVD_METRIC_attend_tokens_memory,
        KVD_METRIC_attend_tokens_cold, KVD_METRIC_attend_tokens_missed},
    [KVD_HITS_MATCH] = {KVD_METRIC_match_tokens_asked, KVD_METRIC_match_tokens_memory,
        KVD_METRIC_match_tokens_cold, KVD_METRIC_match_tokens_missed},
};

static enum kvd_metric metric_of(int reason)
{
    switch (reason) {
    case KVARND__MISS_REASON__MISS_WINDOW:
        return KVD_METRIC_missed_tokens_window;
    case KVARND__MISS_REASON__MISS_EVICTED:
        return KVD_METRIC_missed_tokens_evicted;
    case KVARND__MISS_REASON__MISS_CHECKSUM:
        return KVD_METRIC_missed_tokens_checksum;
    case KVARND__MISS_REASON__MISS_RESTART:
        return KVD_METRIC_missed_tokens_restart;
    default:
        return KVD_METRIC_missed_tokens_never_stored;
    }
}

void kvd_hits_add(struct kvd_metrics *metrics, enum kvd_hits_of who, uint64_t tokens, uint64_t cold)
{
    KVARN_ASSERT(cold <= tokens);
    kvd_metrics_add(metrics, rows[who].asked, tokens);
    kvd_metrics_add(metrics, rows[who].memory, tokens - cold);
    kvd_metrics_add(metrics, rows[who].cold, cold);
}

void kvd_hits_miss(struct kvd_metrics *metrics, enum kvd_hits_of who, uint64_t tokens, int reason)
{
    kvd_metrics_add(metrics, rows[who].asked, tokens);
    kvd_metrics_add(metrics, rows[who].missed, tokens);
    kvd_metrics_add(metrics, metric_of(reason), tokens);
}

uint64_t kvd_hits_cold_tokens(
    const struct kvd_op_cold *cold, uint32_t group, uint64_t first, uint64_t last)
{
    uint64_t from = (uint64_t)cold->block_first * group;
    uint64_t to = (uint64_t)cold->block_last * group;
    uint64_t most = (uint64_t)cold->blocks * group;

    from = from > first ? from : first;
    to = to < last ? to : last;
    uint64_t tokens = to > from ? to - from : 0;
    return tokens < most ? tokens : most;
}

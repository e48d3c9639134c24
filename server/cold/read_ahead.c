/*
 * Read-ahead: a session whose cold blocks are read one after the other has the next ones on their
 * way before they are asked for.
 *
 * Owner: session. Thread: loop only.
 *
 * Reads follow each other when each begins where the one before ended, or in that block; the same
 * blocks once more (of another layer, or because the operation waits) change nothing. What is
 * loaded ahead doubles with each read that follows, from twice what the read itself has, up to the
 * option. It takes no memory from anybody, and leaves half of all loads to operations.
 */
#include "server/evict/session_evict.h"
#include "server/service.h"

/* A read of more brings so much by itself that nothing is gained; bounds the shift, too. */
#define READ_BLOCKS_MAX 1024

/* Doublings after which the option alone counts. */
#define RUN_MAX 5

/* Take note of a read. Returns how many blocks are to be ahead of it. */
static uint32_t depth_of(struct kvd_read_ahead *ahead, uint32_t first, uint32_t last)
{
    bool is_next =
        ahead->last > 0 && last > ahead->last && first <= ahead->last && first + 1 >= ahead->last;

    if (is_next) {
        ahead->run += ahead->run < RUN_MAX ? 1 : 0;
    } else if (first != ahead->first || last != ahead->last) {
        ahead->run = 0;
    }
    ahead->first = first;
    ahead->last = last;
    return ahead->run == 0 ? 0 : (last - first) << ahead->run;
}

void kvd_cold_read_ahead(struct kvd_session *session, const struct kvd_session_op *op)
{
    uint32_t limit = (uint32_t)session->service->config->cold_read_ahead;
    uint32_t count = kvd_session_block_count(session);

    if (limit == 0 || op->needs_tail || op->block_last <= op->block_first ||
        op->block_last - op->block_first > READ_BLOCKS_MAX) {
        return;
    }
    uint32_t depth = depth_of(&session->cold.ahead, op->block_first, op->block_last);
    depth = depth < limit ? depth : limit;
    for (uint32_t b = op->block_last; b < count && b - op->block_last < depth; b++) {
        if (kvd_cold_fetch(session, b, KVD_COLD_FOR_LATER) != 0) {
            return;
        }
    }
}

/*
 * The table of calls.
 *
 * Owner: nobody, a constant. Thread: any.
 */
#include "server/rpc/rpc.h"

/* Where a message keeps its deadline, and what describes it. */
#define MESSAGE(Type, symbol)                                         \
    .request_descriptor = &kvarnd__##symbol##__descriptor,            \
    .deadline_has_offset = offsetof(Kvarnd__##Type, has_deadline_ms), \
    .deadline_offset = offsetof(Kvarnd__##Type, deadline_ms)

static const struct kvd_method methods[KVARN_FRAME_TYPE_COUNT] = {
    [KVARN_FRAME_HELLO] = {MESSAGE(Hello, hello), .start = kvd_rpc_hello},
    [KVARN_FRAME_PING] = {MESSAGE(Ping, ping), .start = kvd_rpc_ping},
    [KVARN_FRAME_REGISTER_SHAPE] = {MESSAGE(RegisterShape, register_shape),
        .payload_bytes = kvd_rpc_register_shape_payload, .start = kvd_rpc_register_shape},
    [KVARN_FRAME_OPEN_SESSION] = {MESSAGE(OpenSession, open_session),
        .start = kvd_rpc_open_session},
    [KVARN_FRAME_APPEND] = {MESSAGE(Append, append), .payload_bytes = kvd_rpc_append_payload,
        .start = kvd_rpc_append},
    [KVARN_FRAME_APPEND_TILES] = {MESSAGE(AppendTiles, append_tiles),
        .payload_bytes = kvd_rpc_append_tiles_payload, .start = kvd_rpc_append_tiles},
    [KVARN_FRAME_READ_BLOCKS] = {MESSAGE(ReadBlocks, read_blocks), .start = kvd_rpc_read_blocks},
    [KVARN_FRAME_ATTEND] = {MESSAGE(Attend, attend), .payload_bytes = kvd_rpc_attend_payload,
        .start = kvd_rpc_attend},
    [KVARN_FRAME_APPEND_ATTEND] = {MESSAGE(AppendAttend, append_attend),
        .payload_bytes = kvd_rpc_append_attend_payload, .start = kvd_rpc_append_attend},
    [KVARN_FRAME_TRUNCATE] = {MESSAGE(Truncate, truncate), .start = kvd_rpc_truncate},
    [KVARN_FRAME_CLOSE_SESSION] = {MESSAGE(CloseSession, close_session),
        .start = kvd_rpc_close_session},
    [KVARN_FRAME_DROP_SESSION] = {MESSAGE(DropSession, drop_session),
        .start = kvd_rpc_drop_session},
    [KVARN_FRAME_LIST_SESSIONS] = {MESSAGE(ListSessions, list_sessions),
        .start = kvd_rpc_list_sessions},
    [KVARN_FRAME_INSPECT_SESSION] = {MESSAGE(InspectSession, inspect_session),
        .start = kvd_rpc_inspect_session},
    [KVARN_FRAME_STATS] = {MESSAGE(Stats, stats), .start = kvd_rpc_stats},
    [KVARN_FRAME_CANCEL] = {MESSAGE(Cancel, cancel), .start = kvd_rpc_cancel},
    [KVARN_FRAME_TOUCH] = {MESSAGE(Touch, touch), .start = kvd_rpc_touch},
    [KVARN_FRAME_PIN] = {MESSAGE(Pin, pin), .start = kvd_rpc_pin},
    [KVARN_FRAME_EVICT] = {MESSAGE(Evict, evict), .start = kvd_rpc_evict},
    [KVARN_FRAME_PREFETCH] = {MESSAGE(Prefetch, prefetch),
        .payload_bytes = kvd_rpc_prefetch_payload, .start = kvd_rpc_prefetch},
    [KVARN_FRAME_LIST_JOBS] = {MESSAGE(ListJobs, list_jobs), .start = kvd_rpc_list_jobs},
    [KVARN_FRAME_FORK] = {MESSAGE(Fork, fork), .start = kvd_rpc_fork},
    [KVARN_FRAME_REORDER] = {MESSAGE(Reorder, reorder), .start = kvd_rpc_reorder},
    [KVARN_FRAME_MATCH_PREFIX] = {MESSAGE(MatchPrefix, match_prefix),
        .payload_bytes = kvd_rpc_match_prefix_payload, .start = kvd_rpc_match_prefix},
    [KVARN_FRAME_VERIFY] = {MESSAGE(Verify, verify), .start = kvd_rpc_verify},
    [KVARN_FRAME_READ_METRIC] = {MESSAGE(ReadMetric, read_metric), .start = kvd_rpc_read_metric},
};

const struct kvd_method *kvd_method_find(unsigned type)
{
    if (type >= KVARN_FRAME_TYPE_COUNT || methods[type].start == NULL) {
        return NULL;
    }
    return &methods[type];
}

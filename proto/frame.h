/*
 * The frame of kvarnd's protocol: a fixed 32-byte little-endian header, then a protobuf message,
 * then raw payload, then (flag PAYLOAD_XXH3) an 8-byte little-endian XXH3-64 of the payload.
 *
 *   magic "KVN1" u32 | version u8 | type u8 | flags u16 | message bytes u32 | request id u64 |
 *   payload bytes u64 | CRC-32 (zlib's) of the first 28 bytes u32
 *
 * payload bytes does not count the trailer. No allocation, no I/O; used by client, daemon and
 * tests.
 */
#ifndef KVARN_PROTO_FRAME_H
#define KVARN_PROTO_FRAME_H

#include <stdint.h>

#include "kvarn/err.h"

#define KVARN_FRAME_HEADER_BYTES  32
#define KVARN_FRAME_TRAILER_BYTES 8
#define KVARN_FRAME_VERSION       1

/*
 * The one list of calls: X(number, NAME, label, Request, Reply, request_symbol, reply_symbol).
 * Numbers are wire values and never reused. Request and Reply are protobuf-c's type names without
 * the Kvarnd__ prefix; the symbols are its lower-case stems.
 */
#define KVARN_FRAME_TYPES(X)                                                                      \
    X(1, HELLO, "hello", Hello, HelloReply, hello, hello_reply)                                   \
    X(2, PING, "ping", Ping, PingReply, ping, ping_reply)                                         \
    X(3, REGISTER_SHAPE, "register_shape", RegisterShape, RegisterShapeReply, register_shape,     \
        register_shape_reply)                                                                     \
    X(4, OPEN_SESSION, "open_session", OpenSession, OpenSessionReply, open_session,               \
        open_session_reply)                                                                       \
    X(5, APPEND, "append", Append, AppendReply, append, append_reply)                             \
    X(6, APPEND_TILES, "append_tiles", AppendTiles, AppendTilesReply, append_tiles,               \
        append_tiles_reply)                                                                       \
    X(7, READ_BLOCKS, "read_blocks", ReadBlocks, ReadBlocksReply, read_blocks, read_blocks_reply) \
    X(8, ATTEND, "attend", Attend, AttendReply, attend, attend_reply)                             \
    X(9, APPEND_ATTEND, "append_attend", AppendAttend, AttendReply, append_attend, attend_reply)  \
    X(10, TRUNCATE, "truncate", Truncate, TruncateReply, truncate, truncate_reply)                \
    X(11, CLOSE_SESSION, "close_session", CloseSession, CloseSessionReply, close_session,         \
        close_session_reply)                                                                      \
    X(12, DROP_SESSION, "drop_session", DropSession, DropSessionReply, drop_session,              \
        drop_session_reply)                                                                       \
    X(13, LIST_SESSIONS, "list_sessions", ListSessions, ListSessionsReply, list_sessions,         \
        list_sessions_reply)                                                                      \
    X(14, INSPECT_SESSION, "inspect_session", InspectSession, InspectSessionReply,                \
        inspect_session, inspect_session_reply)                                                   \
    X(15, STATS, "stats", Stats, StatsReply, stats, stats_reply)                                  \
    X(16, CANCEL, "cancel", Cancel, CancelReply, cancel, cancel_reply)                            \
    X(17, FORK, "fork", Fork, ForkReply, fork, fork_reply)                                        \
    X(18, REORDER, "reorder", Reorder, ReorderReply, reorder, reorder_reply)                      \
    X(19, MATCH_PREFIX, "match_prefix", MatchPrefix, MatchPrefixReply, match_prefix,              \
        match_prefix_reply)                                                                       \
    X(20, TOUCH, "touch", Touch, TouchReply, touch, touch_reply)                                  \
    X(21, PIN, "pin", Pin, PinReply, pin, pin_reply)                                              \
    X(22, EVICT, "evict", Evict, EvictReply, evict, evict_reply)                                  \
    X(23, PREFETCH, "prefetch", Prefetch, PrefetchReply, prefetch, prefetch_reply)                \
    X(24, LIST_JOBS, "list_jobs", ListJobs, ListJobsReply, list_jobs, list_jobs_reply)            \
    X(25, VERIFY, "verify", Verify, VerifyReply, verify, verify_reply)                            \
    X(26, READ_METRIC, "read_metric", ReadMetric, ReadMetricReply, read_metric, read_metric_reply)

enum kvarn_frame_type {
#define X(number, name, label, req, rep, req_sym, rep_sym) KVARN_FRAME_##name = number,
    KVARN_FRAME_TYPES(X)
#undef X
        KVARN_FRAME_TYPE_COUNT, /* one above the largest; not a wire value */
};

/* A reply has its request's type and the flag REPLY. A reply to a type not known has type 0. */
#define KVARN_FRAME_TYPE_ERROR 0

enum kvarn_frame_flag {
    KVARN_FRAME_REPLY = 1 << 0,
    KVARN_FRAME_PAYLOAD_XXH3 = 1 << 1,
};
#define KVARN_FRAME_FLAGS_KNOWN (KVARN_FRAME_REPLY | KVARN_FRAME_PAYLOAD_XXH3)

struct kvarn_frame_header {
    uint8_t version;
    uint8_t type;
    uint16_t flags;
    uint32_t message_bytes;
    uint64_t request_id;
    uint64_t payload_bytes;
};

/* Write a header's 32 bytes; sets magic, KVARN_FRAME_VERSION and CRC itself. */
void kvarn_frame_encode(
    const struct kvarn_frame_header *header, uint8_t out[KVARN_FRAME_HEADER_BYTES]);

/*
 * Read a header. Returns 0; KVARN_EPROTOCOL for bad magic, CRC or unknown flags; KVARN_EUNSUPPORTED
 * for another version; KVARN_ETOO_LARGE when message_bytes or payload_bytes is above the wire's
 * limits (lib/base/limits.h). *ret is untouched on failure. Does not judge the type.
 */
int kvarn_frame_decode(
    const uint8_t in[KVARN_FRAME_HEADER_BYTES], struct kvarn_frame_header *ret) KVARN_MUST_CHECK;

/* Label of a call ("append_attend"); "error" for 0, "unknown" for others. */
const char *kvarn_frame_type_label(unsigned type);

#endif

/*
 * libkvarn_client: talk to a kvarnd daemon.
 *
 * Two flavours over one core. The blocking flavour (struct kvarn_client, here) makes one call at a
 * time and reconnects by itself. The asynchronous flavour (kvarn/client_uv.h) pipelines calls on
 * the caller's uv_loop. Both take the same argument structs and give the same result structs: a
 * *call* is built from arguments, a *reply* is parsed into a result. Building and parsing do no
 * I/O.
 *
 * Lengths, positions and counts are tokens; sizes bytes; times milliseconds. Layouts are
 * little-endian, C order, without padding (SEMANTICS.md 20). K is stored after RoPE.
 *
 * Errors: 0 or a negative KVARN_E... (kvarn/err.h). Errors of the daemon come back as themselves;
 * of this library's own, KVARN_EIO means no connection, or a connection that broke before the reply
 * of a call whose repetition is not safe: its outcome is not known. KVARN_EPROTOCOL means that the
 * peer sent bytes that are no reply.
 *
 * Threads: no globals. A client, its sessions and its results belong to one thread at a time;
 * several clients may be used on several threads. The library never logs and ignores no signal: it
 * sends with MSG_NOSIGNAL.
 */
#ifndef KVARN_CLIENT_H
#define KVARN_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvarn/attention.h"
#include "kvarn/codec.h"
#include "kvarn/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Words that both flavours share ---- */

/* A deadline that never passes. */
#define KVARN_DEADLINE_NONE UINT32_MAX
/* sink_tokens of a shape: the daemon's default, one group. */
#define KVARN_SINK_DEFAULT UINT32_MAX
/* position, token_last: the daemon's default. */
#define KVARN_TOKEN_DEFAULT UINT64_MAX

/* Values are wire values. SEMANTICS.md 20. */
enum kvarn_layout {
    KVARN_HEAD_MAJOR = 0,  /* [layer][K then V][KV head][token][D] */
    KVARN_TOKEN_MAJOR = 1, /* [layer][K then V][token][KV head][D] */
};

enum kvarn_open_mode {
    KVARN_OPEN_EITHER = 0,
    KVARN_OPEN_CREATE = 1,   /* CONFLICT if it exists */
    KVARN_OPEN_EXISTING = 2, /* NOT_FOUND if it does not */
};

enum kvarn_read_what {
    KVARN_READ_K_AND_V = 0,
    KVARN_READ_K = 1,
    KVARN_READ_V = 2,
};

enum kvarn_run_form {
    KVARN_RUN_RECORDS = 0,     /* whole blocks: [block][KV head] records */
    KVARN_RUN_ROWS_STORED = 1, /* rotated fp16 [K then V][KV head][token][D] */
    KVARN_RUN_ROWS = 2,        /* as the request asked */
};

/* Why tokens are not there (KVARN_EMISS). */
enum kvarn_miss_reason {
    KVARN_MISS_NONE = 0,
    KVARN_MISS_NEVER_STORED = 1,
    KVARN_MISS_WINDOW = 2,
    KVARN_MISS_EVICTED = 3,
    KVARN_MISS_CHECKSUM = 4,
    KVARN_MISS_INCOMPATIBLE = 5,
    KVARN_MISS_RESTART = 6,
};

/* A stretch of payload. The caller keeps the bytes until the call's reply has come. */
struct kvarn_span {
    const void *data; /* borrowed */
    size_t bytes;
};

/* What the daemon says of a request or of one item of a batch. */
struct kvarn_status {
    int err;                       /* 0 or KVARN_E... */
    const char *text;              /* borrowed; never NULL; names what was expected and got */
    enum kvarn_miss_reason reason; /* MISS */
    uint32_t retry_after_ms;       /* RETRY_LATER */
    bool has_epoch;
    uint64_t epoch;                /* STALE_EPOCH, CONFLICT: what holds */
    const uint64_t *layer_lengths; /* borrowed; of the layers in the request */
    size_t layer_count;
};

/*
 * A session as calls name it. handle belongs to the connection that opened it. In the blocking
 * flavour the client owns the object and keeps both fields up to date: read, do not write. In the
 * asynchronous one the caller owns it: copy both from kvarn_open_session_result, and epoch from
 * each result that carries one.
 */
struct kvarn_session {
    uint64_t handle;
    uint64_t epoch;
};

/* `layers` consecutive layers of one kind. */
struct kvarn_layer_group {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t k_dim;
    uint32_t v_dim;  /* 0: as k_dim */
    uint64_t window; /* tokens a query sees, itself included; 0: full attention */
};

struct kvarn_shape {
    const char *model;                            /* borrowed */
    const char *revision;                         /* borrowed; NULL: none */
    const struct kvarn_layer_group *layer_groups; /* borrowed */
    size_t layer_group_count;
    uint32_t group; /* 128 or 64 */
    uint8_t k_bits; /* 2 or 4 */
    uint8_t v_bits;
    uint32_t sink_tokens; /* 0, a multiple of group, or KVARN_SINK_DEFAULT */
};

/* ---- Arguments and results, one pair a call ---- */

struct kvarn_hello_args {
    const char *client; /* name and version, for the daemon's log; NULL: this library's */
    bool payload_xxh3;  /* ask for checksums of replies' payload */
};
struct kvarn_hello_result {
    const char *server_version; /* borrowed from the reply, as all pointers in results */
    uint64_t server_id;         /* new at each start of the daemon */
    const char *tenant;
    uint64_t message_bytes_max;
    uint64_t payload_bytes_max;
    uint32_t credit_requests; /* requests in flight per connection */
    uint64_t credit_bytes;    /* request payload in flight per connection */
};

struct kvarn_ping_result {
    uint64_t uptime_ms;
};

struct kvarn_register_shape_result {
    uint32_t shape_id; /* blocking: valid as long as the client; asynchronous: as the daemon */
    uint8_t fingerprint[16];
    uint32_t metric_version; /* newest query metric of the shape; 0: none yet */
};

/*
 * A shape with its query metric, for sessions of the encoder AWARE: of each KV head of each layer
 * the count of queries and, payload, the sum of q q^T over them, rotated: floats [k_dim][k_dim], of
 * which the upper triangle is read. A layer whose counts are all 0 has no payload and keeps what it
 * has.
 */
struct kvarn_register_metric_args {
    const struct kvarn_shape *shape; /* borrowed */
    uint32_t layer_first, layer_count;
    const uint64_t *counts; /* borrowed: [layer][KV head] */
    size_t count_count;
    const struct kvarn_span *payload; /* borrowed */
    size_t payload_count;
};

/* The query metric in force. */
struct kvarn_read_metric_args {
    const uint8_t *fingerprint; /* borrowed: 16 bytes */
    uint32_t layer_first;
    uint32_t layer_count; /* 0: all from layer_first on */
};
struct kvarn_read_metric_result {
    struct kvarn_shape shape;
    uint8_t fingerprint[16];
    uint32_t metric_version; /* newest of any layer; 0: none yet */
    uint32_t layer_first, layer_count;
    const uint64_t *counts; /* [layer][KV head]; a layer without a metric: all 0, and no payload */
    size_t count_count;
    const uint32_t *versions; /* of each layer */
    const void *data;         /* as kvarn_register_metric_args' payload; 16-byte aligned */
    size_t data_bytes;
};

struct kvarn_open_session_args {
    const char *name;  /* <= 256 bytes; NULL: the session ends with the connection */
    uint32_t shape_id; /* 0: none, for an existing session only */
    enum kvarn_open_mode mode;
    enum kvarn_encoder encoder; /* encoder and seal_lag count at creation only */
    uint32_t seal_lag;          /* newest tokens kept in fp16, 0..group */
    bool takeover;              /* new epoch: other holders become stale */
    uint64_t ttl_ms;            /* at creation: dropped when not used for so long; 0: never */
    uint32_t priority;          /* at creation: 0 to 100, worth more to eviction */
};
struct kvarn_open_session_result {
    uint64_t handle;
    uint64_t epoch;
    const uint64_t *layer_lengths;
    size_t layer_count;
    bool created;
    uint32_t shape_id; /* blocking: 0 when this client did not register the shape */
};

/* Payload: for each layer K then V of token_count tokens, in any cut into spans. */
struct kvarn_append_args {
    const struct kvarn_session *session; /* borrowed */
    uint32_t layer_first;
    uint32_t layer_count;
    uint64_t start; /* the length of each layer */
    uint32_t token_count;
    enum kvarn_dtype dtype;
    enum kvarn_layout layout;
    bool rotated;
    const struct kvarn_span *payload; /* borrowed */
    size_t payload_count;
};
struct kvarn_append_result {
    uint64_t epoch;
    uint64_t length;
    uint64_t sealed_tokens; /* sink included: tokens whose pages no longer change */
    bool repeated;          /* an identical append was stored before; nothing was stored twice */
};

struct kvarn_run {
    uint32_t layer;
    uint64_t first_token;
    uint64_t token_count;
    enum kvarn_run_form form;
};

/* Payload: the runs' bytes, one after the other; forms RECORDS and ROWS_STORED. */
struct kvarn_append_tiles_args {
    const struct kvarn_session *session; /* borrowed */
    const struct kvarn_run *runs;        /* borrowed */
    size_t run_count;
    const struct kvarn_span *payload; /* borrowed */
    size_t payload_count;
};
struct kvarn_append_tiles_result {
    uint64_t epoch;
    const uint64_t *lengths; /* of the layers appended to, ascending by layer */
    size_t layer_count;
};

struct kvarn_read_blocks_args {
    const struct kvarn_session *session; /* borrowed */
    uint32_t layer_first;
    uint32_t layer_count;
    uint64_t token_first;
    uint64_t token_last; /* exclusive */
    bool stored;         /* runs of RECORDS and ROWS_STORED; else ROWS in the form below */
    enum kvarn_dtype dtype;
    bool rotated;
    enum kvarn_read_what what;
    enum kvarn_layout layout;
};
struct kvarn_read_blocks_result {
    const struct kvarn_run *runs;
    size_t run_count;
    const void *data; /* the runs' bytes, one after the other; 16-byte aligned */
    size_t data_bytes;
    uint64_t epoch;
};

/* What the items of one Attend or AppendAttend share. SEMANTICS.md 19. */
struct kvarn_attend_params {
    uint32_t layer;
    uint32_t q_heads;
    bool has_scale; /* else 1 / sqrt(k_dim) */
    float scale;
    bool non_causal;
    uint64_t window; /* narrows the layer's own; 0: none */
    float softcap;   /* 0: none */
    enum kvarn_dtype q_dtype;
    bool q_rotated;
    enum kvarn_dtype out_dtype;
    bool out_rotated;
    enum kvarn_accuracy accuracy;
};
struct kvarn_attend_item {
    const struct kvarn_session *session; /* borrowed */
    uint32_t query_tokens;               /* >= 1 */
    uint64_t position;                   /* of query token 0, or KVARN_TOKEN_DEFAULT */
    uint64_t token_first;
    uint64_t token_last; /* exclusive, or KVARN_TOKEN_DEFAULT: the layer's length */
};
/* Payload: q of the items, each [query head][query token][k_dim]. */
struct kvarn_attend_args {
    struct kvarn_attend_params params;
    const struct kvarn_attend_item *items; /* borrowed */
    size_t item_count;
    const struct kvarn_span *payload; /* borrowed */
    size_t payload_count;
};
struct kvarn_append_attend_item {
    const struct kvarn_session *session; /* borrowed */
    uint64_t start;
    uint32_t token_count;  /* >= 1 */
    uint32_t query_tokens; /* >= 1 */
    uint64_t position;     /* or KVARN_TOKEN_DEFAULT: start + token_count - query_tokens */
    uint64_t token_first;
    uint64_t token_last; /* or KVARN_TOKEN_DEFAULT: start + token_count */
};
/* Payload: for each item K then V; then for each item q. */
struct kvarn_append_attend_args {
    struct kvarn_attend_params params;
    const struct kvarn_append_attend_item *items; /* borrowed */
    size_t item_count;
    enum kvarn_dtype kv_dtype;
    enum kvarn_layout kv_layout;
    bool kv_rotated;
    const struct kvarn_span *payload; /* borrowed */
    size_t payload_count;
};
struct kvarn_attend_item_result {
    struct kvarn_status status;
    uint64_t length;        /* of the layer, as this item saw it */
    uint64_t sealed_tokens; /* tokens below it were read from sealed pages */
    bool appended;          /* AppendAttend: the append is stored, whatever the status */
    bool has_epoch;
    uint64_t epoch; /* AppendAttend */
};
/*
 * out: the items' [query head][query token][v_dim] of out_dtype, one after the other; lse: fp32
 * [query head][query token] likewise. An item that failed has its place: out 0, lse -inf.
 */
struct kvarn_attend_result {
    const struct kvarn_attend_item_result *items;
    size_t item_count;
    const void *out; /* 16-byte aligned */
    size_t out_bytes;
    const float *lse;
    size_t lse_count;
};

struct kvarn_truncate_args {
    const struct kvarn_session *session; /* borrowed */
    uint64_t length;                     /* every layer becomes min(its length, this) */
};
struct kvarn_truncate_result {
    uint64_t epoch;
    const uint64_t *layer_lengths;
    size_t layer_count;
    bool lossy_tail; /* the cut re-opened a sealed block from its decoded rows */
};

struct kvarn_fork_item {
    const struct kvarn_session *session; /* borrowed; the one to copy. First: found there */
    const char *name;                    /* of the copy; NULL: unnamed */
    uint64_t length;           /* of every layer; KVARN_TOKEN_DEFAULT: the committed length */
    enum kvarn_open_mode mode; /* KVARN_OPEN_CREATE, or KVARN_OPEN_EITHER: one of that name too */
};
struct kvarn_fork_args {
    const struct kvarn_fork_item *items;
    size_t item_count; /* 1 to 1,024 */
};
struct kvarn_fork_item_result {
    struct kvarn_status status;
    uint64_t handle; /* this and the rest: when status.err is 0 */
    uint64_t epoch;
    uint64_t length; /* committed */
    bool created;
    bool lossy_tail; /* the last block was re-opened from its decoded rows */
};
struct kvarn_fork_result {
    const struct kvarn_fork_item_result *items;
    size_t item_count;
};

struct kvarn_reorder_member {
    const struct kvarn_session *session; /* borrowed. First: found there */
    uint32_t source; /* index, within its item, of the session that it becomes a copy of */
};
struct kvarn_reorder_args {
    const struct kvarn_reorder_member *members; /* of all items, one after the other */
    size_t member_count;
    const uint32_t *item_members; /* members of each item; NULL: all are of one */
    size_t item_count;            /* with item_members */
};
struct kvarn_reorder_item_result {
    struct kvarn_status status;
    const uint64_t *epochs;  /* of its sessions; done, or STALE_EPOCH */
    const uint64_t *lengths; /* committed */
    size_t session_count;
};
struct kvarn_reorder_result {
    const struct kvarn_reorder_item_result *items;
    size_t item_count;
};

struct kvarn_close_session_args {
    const struct kvarn_session *session; /* borrowed */
};

/* By session or by name: exactly one is not NULL. */
struct kvarn_drop_session_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
};

/* As it was: kvarn_touch_args. */
#define KVARN_TOUCH_KEEP UINT64_MAX

/* By session or by name: exactly one is not NULL. Here and in the two below. */
struct kvarn_touch_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
    uint64_t ttl_ms;                     /* 0: none; or KVARN_TOUCH_KEEP */
    uint64_t priority;                   /* 0 to 100; or KVARN_TOUCH_KEEP */
};
struct kvarn_touch_result {
    uint64_t ttl_left_ms; /* 0: no TTL */
    uint32_t priority;    /* what is left of it */
};

struct kvarn_pin_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
    uint64_t pin_ms;                     /* 0: the daemon's default */
    bool unpin;                          /* end a pin instead */
};
struct kvarn_pin_result {
    uint64_t pinned_bytes;      /* of this session */
    uint64_t budget_left_bytes; /* what other pins of the tenant may still keep */
};

struct kvarn_evict_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
    uint32_t blocks;                     /* at most so many, the last first; 0: all */
};
struct kvarn_evict_result {
    uint32_t blocks; /* that went */
    uint64_t freed_bytes;
    uint64_t missing_first, missing_last; /* tokens that are missing now */
};

struct kvarn_list_sessions_args {
    const char *prefix; /* NULL: all */
    const char *after;  /* names greater than this: the last name of the page before; NULL: first */
    uint32_t limit;     /* 0: the daemon's default */
};
struct kvarn_session_summary {
    const char *name;
    const char *model;
    uint64_t length; /* committed: the smallest layer length */
    uint64_t epoch;
    uint64_t bytes;
    uint32_t handles;
    uint64_t idle_ms;
    uint64_t ttl_left_ms; /* 0: no TTL */
    uint32_t priority;    /* what is left of it */
    uint64_t pin_left_ms; /* 0: not pinned */
    uint64_t missing_tokens;
};
struct kvarn_list_sessions_result {
    const struct kvarn_session_summary *sessions; /* ascending by name */
    size_t session_count;
    bool more;
};

/* By session or by name: exactly one is not NULL. */
struct kvarn_inspect_session_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
};
struct kvarn_inspect_session_result {
    struct kvarn_session_summary summary;
    struct kvarn_shape shape;
    uint8_t fingerprint[16];
    const uint64_t *layer_lengths;
    const uint64_t *layer_sealed;
    size_t layer_count;
    uint64_t tile_pages, tile_bytes;
    uint64_t sink_pages, sink_bytes;
    uint64_t tail_pages, tail_bytes;
    uint64_t reserved_bytes;
    uint64_t pages_reference, pages_refined, pages_aware; /* sealed by each encoder */
    enum kvarn_encoder encoder;
    uint32_t seal_lag;
    uint32_t metric_version; /* newest query metric of the shape; 0: none yet */
    uint64_t ttl_ms;         /* 0: none */
    uint64_t pinned_bytes;
    uint64_t missing_first, missing_last; /* tokens that were evicted */
};

struct kvarn_op_stats {
    const char *op;
    uint64_t count, errors;
    uint64_t bytes_in, bytes_out;
    uint64_t latency_us_p50, latency_us_p99, latency_us_max;
};
struct kvarn_counter {
    const char *name; /* server/metrics.def has names and meaning */
    uint64_t value;
};
struct kvarn_stats_result {
    const struct kvarn_op_stats *ops;
    size_t op_count;
    const struct kvarn_counter *counters;
    size_t counter_count;
};

struct kvarn_cancel_args {
    uint64_t request_id;
};
struct kvarn_cancel_result {
    bool found;
};

/* ---- Calls and replies: no I/O ---- */

/* A request ready to be sent: header, packed message, payload spans (borrowed from the caller). */
struct kvarn_call;
/* A reply that has arrived and is a valid frame and message. */
struct kvarn_reply;

/*
 * Build a call. deadline_ms: 0 or KVARN_DEADLINE_NONE for none. Returns 0 and sets *ret_call, owned
 * by the caller; KVARN_EINVALID for arguments that no daemon would take; KVARN_ETOO_LARGE when the
 * message is above the wire's limit; KVARN_ENOMEM. Arguments are not needed afterwards, the payload
 * they point at is.
 */
KVARN_API int kvarn_call_hello(const struct kvarn_hello_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_ping(uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_register_shape(const struct kvarn_shape *shape, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_register_metric(const struct kvarn_register_metric_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_read_metric(const struct kvarn_read_metric_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_open_session(const struct kvarn_open_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append(const struct kvarn_append_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append_tiles(const struct kvarn_append_tiles_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_read_blocks(const struct kvarn_read_blocks_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_attend(const struct kvarn_attend_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append_attend(const struct kvarn_append_attend_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_truncate(const struct kvarn_truncate_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_fork(const struct kvarn_fork_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_reorder(const struct kvarn_reorder_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_close_session(const struct kvarn_close_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_drop_session(const struct kvarn_drop_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_touch(const struct kvarn_touch_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_pin(const struct kvarn_pin_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_evict(const struct kvarn_evict_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_list_sessions(const struct kvarn_list_sessions_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_inspect_session(const struct kvarn_inspect_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_stats(uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_cancel(const struct kvarn_cancel_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;

/* Free a call that was not handed over. Accepts NULL. */
KVARN_API void kvarn_call_destroy(struct kvarn_call *call);

/* What the daemon said of the whole request; borrowed from the reply. */
KVARN_API const struct kvarn_status *kvarn_reply_status(const struct kvarn_reply *reply);

/*
 * Parse a reply. Returns the status' error (0 when the daemon did it); KVARN_EPROTOCOL when the
 * reply is of another call or contradicts itself; KVARN_ENOMEM. *ret is untouched on failure.
 * Pointers in results are borrowed from the reply. Replies without a result of their own
 * (CloseSession, DropSession) need only kvarn_reply_status().
 */
KVARN_API int kvarn_reply_hello(
    struct kvarn_reply *reply, struct kvarn_hello_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_ping(
    struct kvarn_reply *reply, struct kvarn_ping_result *ret) KVARN_MUST_CHECK;
/* Of RegisterShape with a metric and without. */
KVARN_API int kvarn_reply_register_shape(
    struct kvarn_reply *reply, struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_read_metric(
    struct kvarn_reply *reply, struct kvarn_read_metric_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_open_session(
    struct kvarn_reply *reply, struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_append(
    struct kvarn_reply *reply, struct kvarn_append_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_append_tiles(
    struct kvarn_reply *reply, struct kvarn_append_tiles_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_read_blocks(
    struct kvarn_reply *reply, struct kvarn_read_blocks_result *ret) KVARN_MUST_CHECK;
/* Of Attend and of AppendAttend. */
KVARN_API int kvarn_reply_attend(
    struct kvarn_reply *reply, struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_truncate(
    struct kvarn_reply *reply, struct kvarn_truncate_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_fork(
    struct kvarn_reply *reply, struct kvarn_fork_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_reorder(
    struct kvarn_reply *reply, struct kvarn_reorder_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_touch(
    struct kvarn_reply *reply, struct kvarn_touch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_pin(
    struct kvarn_reply *reply, struct kvarn_pin_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_evict(
    struct kvarn_reply *reply, struct kvarn_evict_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_list_sessions(
    struct kvarn_reply *reply, struct kvarn_list_sessions_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_inspect_session(
    struct kvarn_reply *reply, struct kvarn_inspect_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_stats(
    struct kvarn_reply *reply, struct kvarn_stats_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_cancel(
    struct kvarn_reply *reply, struct kvarn_cancel_result *ret) KVARN_MUST_CHECK;

/* ---- Options ---- */

enum kvarn_checksum {
    KVARN_CHECKSUM_AUTO = 0, /* on over TCP, off over a unix socket (SEMANTICS.md 24) */
    KVARN_CHECKSUM_ON = 1,
    KVARN_CHECKSUM_OFF = 2,
};

struct kvarn_client_options {
    const char *name;            /* for the daemon's log; NULL: this library's; copied */
    uint32_t connect_timeout_ms; /* connecting and Hello, and reconnecting; default 5,000 */
    uint32_t deadline_ms;        /* of calls; default 60,000; KVARN_DEADLINE_NONE: none */
    enum kvarn_checksum checksum;
    bool retry_later_fails; /* blocking: answer RETRY_LATER at once instead of trying again */
    bool reconnect_off;     /* a connection that broke stays so */
};

/* Fill in the defaults. */
KVARN_API void kvarn_client_options_init(struct kvarn_client_options *options);

/* ---- The blocking client ---- */

struct kvarn_client;

/*
 * Connect and say Hello. address: "unix:PATH" or "tcp:HOST:PORT" ("tcp:[::1]:7700" for IPv6).
 * options NULL: defaults. Returns 0 and sets *ret_client, owned by the caller; KVARN_EINVALID for
 * an address that is none; KVARN_EIO when nobody answers; else the daemon's refusal. On failure
 * `error_text` (NULL, or at least KVARN_CLIENT_ERROR_MAX bytes) says why.
 */
#define KVARN_CLIENT_ERROR_MAX 512
KVARN_API int kvarn_client_connect(const char *address, const struct kvarn_client_options *options,
    struct kvarn_client **ret_client, char *error_text) KVARN_MUST_CHECK;

/* Close the connection and free the client, its sessions and its results. Accepts NULL. */
KVARN_API void kvarn_client_destroy(struct kvarn_client *client);

/* Text of the last failure, naming the call; "" after a success. Valid until the next call. */
KVARN_API const char *kvarn_client_error(const struct kvarn_client *client);

/* Details of the last call: what the daemon said. Valid until the next call. */
KVARN_API const struct kvarn_status *kvarn_client_status(const struct kvarn_client *client);

/* What the daemon said at the last Hello. Valid until the next reconnection. */
KVARN_API const struct kvarn_hello_result *kvarn_client_server(const struct kvarn_client *client);

/* Deadline of the calls from now on. */
KVARN_API void kvarn_client_set_deadline(struct kvarn_client *client, uint32_t deadline_ms);

/* Id of the last request sent, as Cancel names it. */
KVARN_API uint64_t kvarn_client_request_id(const struct kvarn_client *client);

/* Times the client had to connect again. */
KVARN_API uint64_t kvarn_client_reconnect_count(const struct kvarn_client *client);

/*
 * The calls. Each waits for the reply, at most for the deadline (the daemon answers DEADLINE; a
 * daemon that does not even do that is given up one second later with KVARN_EIO). ret may be NULL
 * where the result is not wanted. Pointers in results hold until the client's next call.
 *
 * A connection that broke: before the request left, the client reconnects and sends it. After that,
 * before the reply, it reconnects and repeats calls whose repetition is safe: Ping, RegisterShape,
 * ReadMetric, OpenSession (but not CREATE of a named session, nor takeover), ReadBlocks, Attend,
 * List, Inspect, Stats, and Append and AppendAttend on named sessions, of which the daemon
 * recognises an identical retry (SEMANTICS.md 9). Others give KVARN_EIO. Shapes are registered
 * again and named sessions opened again (EXISTING) when next needed. A session whose epoch is not
 * the one that the client holds gives KVARN_ESTALE_EPOCH with the epoch and lengths that hold, in
 * every call, until kvarn_client_refresh_session(); one that is gone gives KVARN_ENOT_FOUND.
 *
 * RETRY_LATER is tried again within the deadline, after the daemon's retry_after_ms. Items of a
 * batch are not: each has its own status.
 */
KVARN_API int kvarn_client_ping(
    struct kvarn_client *client, struct kvarn_ping_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_register_shape(struct kvarn_client *client,
    const struct kvarn_shape *shape, struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
/* ret->shape_id is 0: a session needs the shape registered by the call above. */
KVARN_API int kvarn_client_register_metric(struct kvarn_client *client,
    const struct kvarn_register_metric_args *args,
    struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_read_metric(struct kvarn_client *client,
    const struct kvarn_read_metric_args *args,
    struct kvarn_read_metric_result *ret) KVARN_MUST_CHECK;
/* *ret_session is owned by the client, until close, drop or destroy. */
KVARN_API int kvarn_client_open_session(struct kvarn_client *client,
    const struct kvarn_open_session_args *args, struct kvarn_session **ret_session,
    struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
/* Take the session as it now is: open it again and hold its current epoch. */
KVARN_API int kvarn_client_refresh_session(struct kvarn_client *client,
    struct kvarn_session *session, struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append(struct kvarn_client *client, const struct kvarn_append_args *args,
    struct kvarn_append_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append_tiles(struct kvarn_client *client,
    const struct kvarn_append_tiles_args *args,
    struct kvarn_append_tiles_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_read_blocks(struct kvarn_client *client,
    const struct kvarn_read_blocks_args *args,
    struct kvarn_read_blocks_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_attend(struct kvarn_client *client, const struct kvarn_attend_args *args,
    struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append_attend(struct kvarn_client *client,
    const struct kvarn_append_attend_args *args, struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_truncate(struct kvarn_client *client, struct kvarn_session *session,
    uint64_t length, struct kvarn_truncate_result *ret) KVARN_MUST_CHECK;
/*
 * Copies of sessions. ret_sessions: room for item_count; each is owned by the client, as after
 * kvarn_client_open_session(), or NULL where the item failed. Repeated after a lost reply if all
 * items have names and KVARN_OPEN_EITHER.
 */
KVARN_API int kvarn_client_fork(struct kvarn_client *client, const struct kvarn_fork_args *args,
    struct kvarn_session **ret_sessions, struct kvarn_fork_result *ret) KVARN_MUST_CHECK;
/* Sessions become copies of each other; the epochs of those that did are kept up to date. */
KVARN_API int kvarn_client_reorder(struct kvarn_client *client,
    const struct kvarn_reorder_args *args, struct kvarn_reorder_result *ret) KVARN_MUST_CHECK;
/* The session object is gone afterwards, whatever is returned. */
KVARN_API int kvarn_client_close_session(
    struct kvarn_client *client, struct kvarn_session *session) KVARN_MUST_CHECK;
/* By session (its object is gone after success) or by name. */
KVARN_API int kvarn_client_drop_session(
    struct kvarn_client *client, struct kvarn_session *session) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_drop_name(
    struct kvarn_client *client, const char *name) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_touch(struct kvarn_client *client, const struct kvarn_touch_args *args,
    struct kvarn_touch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_pin(struct kvarn_client *client, const struct kvarn_pin_args *args,
    struct kvarn_pin_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_evict(struct kvarn_client *client, const struct kvarn_evict_args *args,
    struct kvarn_evict_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_list_sessions(struct kvarn_client *client,
    const struct kvarn_list_sessions_args *args,
    struct kvarn_list_sessions_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_inspect_session(struct kvarn_client *client,
    const struct kvarn_inspect_session_args *args,
    struct kvarn_inspect_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_stats(
    struct kvarn_client *client, struct kvarn_stats_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_cancel(struct kvarn_client *client, uint64_t request_id,
    struct kvarn_cancel_result *ret) KVARN_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif

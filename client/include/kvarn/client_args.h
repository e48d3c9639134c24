/*
 * libkvarn_client: the words, arguments and results of its calls (kvarn/client.h includes this).
 */
#ifndef KVARN_CLIENT_ARGS_H
#define KVARN_CLIENT_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvarn/attention.h"
#include "kvarn/codec.h"
#include "kvarn/err.h"

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
    bool share_prefix;          /* of a new session: share what is equal with others */
    const void *salt;           /* borrowed; NULL: none; what else K and V depend on */
    size_t salt_bytes;          /* at most 256 */
    uint64_t lease;             /* of MatchPrefix: begin with what it found; 0: none */
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
    bool token_ids;    /* the payload begins with u32[token_count] */
    bool block_hashes; /* it begins with 32 bytes for each block that the append ends */
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
    bool token_ids; /* each item's K and V are preceded by its ids or hashes, as in Append */
    bool block_hashes;
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

/* By ids or by hashes: exactly one count is not 0. */
struct kvarn_match_prefix_args {
    uint32_t shape_id;
    const void *salt; /* borrowed; NULL: none */
    size_t salt_bytes;
    const uint32_t *token_ids; /* borrowed until the reply */
    uint32_t token_count;
    const void *hashes; /* borrowed until the reply: 32 bytes each, one a block */
    uint32_t hash_count;
    uint32_t lease_ms; /* 0: only look */
};
struct kvarn_match_prefix_result {
    uint64_t tokens; /* stored; a multiple of group */
    uint64_t lease;  /* for kvarn_open_session_args, on the same connection; 0: none */
    uint32_t lease_ms;
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

/* By session or by name: exactly one is not NULL. Here and in the three below. */
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

/*
 * Bring blocks back from the cold tier before they are asked for: of a session, by session or by
 * name, or of a stored prefix. Exactly one of the three is not NULL.
 */
struct kvarn_prefetch_args {
    const struct kvarn_match_prefix_args *prefix; /* borrowed; its lease_ms does not count */
    const struct kvarn_session *session;          /* borrowed */
    const char *name;                             /* borrowed */
    uint32_t last_blocks; /* of a session: only so many at the end; 0: all */
};
struct kvarn_prefetch_result {
    bool has_job;    /* false: there is nothing to load */
    uint64_t job_id; /* of kvarn_job */
    uint32_t blocks; /* to be loaded */
    uint64_t bytes;  /* of their pages */
    uint64_t tokens; /* of a prefix: that are stored, in memory or not */
};

/* Numbers as on the wire. */
enum kvarn_job_state {
    KVARN_JOB_RUNNING = 0,
    KVARN_JOB_DONE = 1,
    KVARN_JOB_FAILED = 2,
    KVARN_JOB_CANCELLED = 3,
};
struct kvarn_job {
    uint64_t id;
    const char *session; /* its name; "" without */
    enum kvarn_job_state state;
    uint32_t blocks, blocks_done;
    uint64_t bytes, bytes_done;
    uint64_t age_ms; /* since it began */
    uint64_t run_ms; /* of that it ran */
    int err;         /* FAILED: KVARN_ENOSPC, no memory for a block; KVARN_EMISS, one is lost */
};
struct kvarn_list_jobs_result {
    const struct kvarn_job *jobs; /* those that run, then those that ended, the newest first */
    size_t job_count;
};

/*
 * Of one session, by session or by name; or, with neither, of all named ones from name_first on.
 * A result says where to go on.
 */
struct kvarn_verify_args {
    const struct kvarn_session *session; /* borrowed */
    const char *name;                    /* borrowed */
    const char *name_first;              /* borrowed; NULL: the first */
    uint32_t block_first;                /* of the session */
    uint32_t blocks;                     /* at most so many; 0: the daemon's default */
};
enum kvarn_verify_part {
    KVARN_VERIFY_BLOCK = 0,
    KVARN_VERIFY_SESSION = 1, /* cold records of the session itself: what it is, */
    KVARN_VERIFY_MAP = 2,     /* how far it is stored, */
    KVARN_VERIFY_TAIL = 3,    /* and what is not sealed */
};
enum kvarn_verify_outcome {
    KVARN_VERIFY_LEFT = 0,    /* as it was: it could not be read, or not be put right */
    KVARN_VERIFY_DROPPED = 1, /* went from memory: read from the cold tier when it is needed */
    KVARN_VERIFY_LOST = 2,    /* MISS, reason checksum, from now on */
    KVARN_VERIFY_REWRITE = 3, /* memory has it right: it is written to the cold tier once more */
};
struct kvarn_verify_finding {
    const char *session; /* "": unnamed */
    enum kvarn_verify_part part;
    uint32_t block;
    uint32_t wrong_pages; /* of the block, in memory */
    uint32_t layer;       /* of the first of them */
    int record_err;       /* of its record: 0; KVARN_ECORRUPT; or why it could not be read */
    enum kvarn_verify_outcome outcome;
};
struct kvarn_verify_result {
    const struct kvarn_verify_finding *findings; /* of this part */
    size_t finding_count;
    bool more;               /* go on with these two: */
    const char *next_name;   /* as name_first; NULL of one session */
    uint32_t next_block;     /* as block_first */
    uint32_t session_blocks; /* that the session of next_block has */
    uint64_t sessions;       /* that were looked at to their end */
    uint64_t blocks;
    uint64_t pages, page_bytes;     /* sealed, in memory */
    uint64_t rows_pages;            /* in memory, not sealed: they have no checksum */
    uint64_t records, record_bytes; /* read back from the cold tier */
    uint64_t wrong_pages, wrong_records, unread_records;
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
    uint64_t away_blocks;    /* not in memory: cold, on their way back, or missing */
    uint64_t restart_tokens; /* that a restart after a crash now would find; committed */
    bool tail_cold;          /* what is not sealed is on disk, not in memory */
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
    uint64_t shared_pages; /* of those above: in blocks that others hold as well */
    uint64_t shared_bytes;
    uint64_t prefix_tokens;  /* leading tokens that came with a lease */
    uint64_t adopted_blocks; /* replaced by what another session had stored before */
    bool share_prefix;
    uint32_t metric_version; /* newest query metric of the shape; 0: none yet */
    uint64_t ttl_ms;         /* 0: none */
    uint64_t pinned_bytes;
    uint64_t missing_first, missing_last; /* tokens that were evicted */
    /* Not in memory; bytes are those of their pages in memory. */
    uint64_t cold_blocks, cold_bytes;
    uint64_t loading_blocks, loading_bytes;
    uint64_t missing_blocks, missing_bytes;
    uint64_t stored_blocks; /* that have a cold record, whether in memory or not */
    uint64_t stored_bytes;  /* on disk, of these and of the session's other records */
};

struct kvarn_op_stats {
    const char *op;
    uint64_t count, errors;
    uint64_t bytes_in, bytes_out;
    uint64_t latency_us_p50, latency_us_p99, latency_us_max;
};
struct kvarn_counter {
    const char *name; /* server/base/metrics.def has names and meaning */
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

#endif

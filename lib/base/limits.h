/*
 * Every maximum that bounds input from outside, in one place. Sizes in bytes, times in
 * milliseconds. A length that comes from a peer or a file is compared with one of these before it
 * is used.
 */
#ifndef KVARN_BASE_LIMITS_H
#define KVARN_BASE_LIMITS_H

/* Codec. */
#define KVARN_HEAD_DIM_MAX  512 /* largest head_dim in use today is 256; MLA's latent is 512 */
#define KVARN_HEAD_DIM_STEP 8   /* records pack 8 / bits values a byte along tokens; scales align */
#define KVARN_GROUP_MAX     128
#define KVARN_ROTATED_ABS_MAX \
    32768.0f /* SEMANTICS: beyond it a half-precision scale may overflow */
#define KVARN_HALF_MAX 65504.0f
/*
 * Largest value a tile may decode to. Above KVARN_ROTATED_ABS_MAX, so that rounding never takes an
 * honest tile out of range; low enough that decoded rows can be encoded again: `reference` divides
 * by scales >= exp(-0.3), and 40,960 / exp(-0.3) = 55,293 still is a half.
 */
#define KVARN_DECODED_ABS_MAX 40960.0f

/* Shape of a model. */
#define KVARN_LAYERS_MAX       512
#define KVARN_LAYER_GROUPS_MAX 512
#define KVARN_KV_HEADS_MAX     256
#define KVARN_Q_HEADS_MAX      1024
#define KVARN_MODEL_NAME_MAX   256
#define KVARN_SHAPES_MAX       1024 /* registered shapes a daemon holds */
/* Queries in a metric from outside: a double counts them, and a float their sum, one by one. */
#define KVARN_METRIC_QUERIES_MAX (UINT64_C(1) << 40)

/* Sessions. */
#define KVARN_SESSION_NAME_MAX 256
#define KVARN_SESSION_TOKENS_MAX \
    (UINT64_C(1) << 27) /* 134 M tokens: far above any context length */
#define KVARN_SESSIONS_MAX        1000000
#define KVARN_PREFIX_SALT_MAX     256     /* bytes: LoRA, RoPE scaling, hashes of images */
#define KVARN_PREFIX_BLOCKS_MAX   1000000 /* entries of the prefix index */
#define KVARN_PREFIX_LEASES_MAX   1024    /* of a connection */
#define KVARN_PREFIX_LEASE_MS_MAX 3600000
#define KVARN_LIFETIME_MS_MAX \
    (UINT64_C(366) * 24 * 3600 * 1000) /* longest TTL and pin: a year; fits 64 bits of ns */

/* Cold tier. */
#define KVARN_COLD_HEAD_BYTES_MAX    (1024 * 1024) /* what describes a record */
#define KVARN_COLD_BODY_BYTES_MAX    (UINT64_C(1) << 30)
#define KVARN_COLD_SEGMENT_BYTES_MIN (64 * 1024) /* of tests; at work the default is 256 MiB */
#define KVARN_COLD_SEGMENT_BYTES_MAX (UINT64_C(1) << 31)
#define KVARN_COLD_SEGMENTS_MAX      4096 /* each holds a descriptor */
#define KVARN_COLD_PATH_MAX          512
#define KVARN_PREFETCH_JOBS_MAX      64 /* that run; one more is RETRY_LATER */
#define KVARN_PREFETCH_ENDED_MAX     64 /* that ended, for ListJobs, for so long: */
#define KVARN_PREFETCH_ENDED_MS_MAX  600000

/* Where the daemon listens and clients look when nothing else is said. */
#define KVARN_DEFAULT_SOCKET "/run/kvarnd/kvarnd.sock"

/* Wire. */
#define KVARN_MESSAGE_BYTES_MAX       (64 * 1024)
#define KVARN_HELLO_MESSAGE_BYTES_MAX (4 * 1024) /* before Hello succeeded; no payload then */
#define KVARN_PAYLOAD_BYTES_MAX       (UINT64_C(256) << 20)
#define KVARN_UNPACK_BYTES_MAX        (512 * 1024) /* memory of one unpacked message */
#define KVARN_BATCH_ITEMS_MAX         1024
#define KVARN_LIST_PAGE_MAX           256   /* sessions in one ListSessionsReply */
#define KVARN_VERIFY_BLOCKS_MAX       65536 /* blocks that one Verify looks at */
#define KVARN_VERIFY_FINDINGS_MAX     64    /* and tells of: names of 256 bytes fit a message */
#define KVARN_REORDER_SESSIONS_MAX    128   /* sessions of one item of Reorder: one step */

#endif

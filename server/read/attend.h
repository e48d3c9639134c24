/*
 * Attention of one session's layer for one batch item: snapshot, cut, walk on workers, merge.
 *
 * Owner: the request. Thread: loop; walks run as jobs.
 * The cut depends on lengths alone, and partials merge in a fixed order, so the bits of the answer
 * do not depend on the number of workers or their timing (SEMANTICS.md 3).
 */
#ifndef KVD_ATTEND_H
#define KVD_ATTEND_H

#include <stdbool.h>
#include <stdint.h>

#include "kvarn/attention.h"
#include "server/session/session.h"

struct kvd_attend_args {
    struct kvd_session *session; /* needed during start only */
    uint32_t layer;
    uint32_t q_heads; /* a multiple of the layer's KV heads */
    uint32_t q_tokens;
    uint64_t position;
    uint64_t first, last; /* token range, within the layer's length */
    uint64_t window;      /* effective: already narrowed by the layer's own; 0 = full */
    float scale;
    float softcap;
    bool is_causal;
    enum kvarn_accuracy accuracy;
    enum kvarn_dtype q_dtype;
    bool is_q_rotated;
    enum kvarn_dtype out_dtype;
    bool is_out_rotated;
    bool is_batched;        /* others begin in the same turn: leave the loop alone (SEMANTICS 18) */
    uint32_t sealed_blocks; /* read as tiles; at most layer->sealed_blocks */
    struct kvd_op_cold cold; /* what its operation waited for */
    const void *q;           /* [q_heads][q_tokens][k_dim], borrowed until done_cb */
    void *out;               /* [q_heads][q_tokens][v_dim] of out_dtype, borrowed until done_cb */
    float *lse;              /* [q_heads][q_tokens], may be unaligned: written by memcpy */
    void *ctx;
    /* Exactly once, possibly inside start. On failure out and lse hold garbage. */
    void (*done_cb)(void *ctx, const struct kvd_failure *why);
};

/*
 * Take the snapshot and begin. Every outcome comes through done_cb: KVARN_EMISS (reason window or
 * never stored), KVARN_EDOMAIN (q not finite or beyond 32,768 once rotated; scale not finite or so
 * large that logits would not be; fp16 out beyond 65,504), KVARN_ENOSPC, KVARN_ERETRY_LATER or
 * KVARN_ENOMEM for work space.
 */
void kvd_attend_start(struct kvd_service *service, const struct kvd_attend_args *args);

#endif

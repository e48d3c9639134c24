/*
 * Error on a real model's keys, values and queries (tests/data/kv): first and last block exact, the
 * 768 tokens between quantised, the recorded queries attending causally.
 *
 * Encoder aware takes its metric from the first 64 recorded tokens' queries; the divergence of
 * attention weights is of the last 64 tokens' ones, for every encoder. There each query attends to
 * all 1,024 tokens, which is how the published figures were taken.
 */
#ifndef KVARN_TESTS_SUPPORT_FIDELITY_H
#define KVARN_TESTS_SUPPORT_FIDELITY_H

#include "kvarn/codec.h"

/* Means over layers of each layer's relative squared error. */
struct kvt_fidelity {
    double k, v;
    double output;  /* of all recorded queries: half of them made aware's metric */
    double kl;      /* mean divergence of softmax(q.k) from decoded K to exact K, nats */
    unsigned tiles; /* quantised */
};

/*
 * Measure an encoder under a preset ("k2v2") on the data in `dir`. Returns 0, or -1 with a line on
 * stderr that says what is wrong.
 */
int kvt_fidelity_measure(const char *dir, enum kvarn_encoder encoder, const char *preset,
    struct kvt_fidelity *ret_fidelity);

#endif

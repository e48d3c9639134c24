/*
 * What most tests of sessions begin with: a rig, one session, and its model.
 *
 * Thread: one. Fails the test where something goes otherwise.
 */
#ifndef TESTS_SESSION_CASE_H
#define TESTS_SESSION_CASE_H

#include "tests/support/session_model.h"
#include "tests/support/session_rig.h"

#define KVT_CASE_TOKENS_MAX 4096

struct kvt_case {
    struct kvt_rig rig;
    struct kvd_session *session; /* unnamed; the reference is the case's */
    struct kvt_model model;
};

/* `options` NULL: the small shape, no workers. */
void kvt_case_init(struct kvt_case *c, const struct kvt_rig_options *options, uint32_t seal_lag);

/* Check against the model, drop, and see that all memory comes back. */
void kvt_case_fini(struct kvt_case *c);

/* The session holds what its model holds. */
void kvt_case_check(struct kvt_case *c);

/* Append to session and model, and wait. Its payload is freed. */
void kvt_case_store(struct kvt_case *c, struct kvt_append append);

/* The same for the next `token_count` tokens of all layers. */
void kvt_case_grow(struct kvt_case *c, uint32_t token_count);

/* Append what must be refused with `err`, and see that nothing has changed. */
struct kvt_outcome kvt_case_refuse(struct kvt_case *c, struct kvt_append append, int err);

/* Truncate session and model; returns whether a block was re-opened. */
bool kvt_case_cut(struct kvt_case *c, uint64_t length);

#endif

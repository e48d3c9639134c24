/*
 * Inside of an append: what append.c and append_step.c share.
 *
 * Owner: the request that appends. Thread: as append.c says.
 */
#ifndef KVD_APPEND_IMPL_H
#define KVD_APPEND_IMPL_H

#include "server/append/append.h"
#include "server/append/append_plan.h"

struct kvd_append_job {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_append *append;
    uint32_t unit_first, unit_last;
    struct kvd_append_fault fault;
};

/* What is done on the loop, in steps: before the jobs, after the commit, and to undo. */
enum kvd_append_phase {
    KVD_APPEND_PLAN,    /* lay out units */
    KVD_APPEND_RESERVE, /* make blocks */
    KVD_APPEND_NAME,    /* make names of blocks */
    KVD_APPEND_SEALS,   /* take the jobs of the seals that the commit will make due */
    KVD_APPEND_PLACE,   /* give every unit its page */
    KVD_APPEND_SUBMIT,  /* hand the units to workers */
    KVD_APPEND_RUN,     /* workers are at it; nothing to do here */
    KVD_APPEND_CHECK,   /* record in pages of records what the jobs found out */
    KVD_APPEND_COMMIT,  /* one step: it is stored */
    KVD_APPEND_NOTE,    /* put names in place */
    KVD_APPEND_SEAL,    /* let go of what is not needed any more, begin seals */
    KVD_APPEND_DONE,
    KVD_APPEND_UNDO, /* give back what was taken */
    KVD_APPEND_UNDONE,
};

/* Payload per job: large enough that the 50 us of a wake-up do not count. */
#define KVD_APPEND_JOB_BYTES_MIN (256 * 1024)

struct kvd_append {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_service *service;
    struct kvd_session *session; /* ref */
    uint64_t epoch;
    uint64_t hash;           /* of payload and meaning; of the meaning alone while unhashed */
    const uint8_t *unhashed; /* borrowed: payload that the first job hashes; NULL: it is done */
    size_t unhashed_bytes;
    bool is_batched;
    bool is_probing; /* layers pending only to learn whether this is a retry */
    uint64_t deadline_ns;
    void *ctx;
    void (*committed_cb)(void *ctx, uint32_t sealed_blocks);
    struct kvd_op_cold *ret_cold; /* borrowed; or NULL */
    void (*done_cb)(void *ctx, const struct kvd_failure *why, bool is_repeat);
    int cancel_err;
    size_t taken_bytes;
    struct kvd_prefix_note prefix_note;
    struct kvd_prefix_names prefix_names; /* within this allocation */
    struct kvd_append_plan plan;
    struct kvd_slice slice;     /* listed while steps go on over several turns */
    struct kvd_seal_list seals; /* owned: for what the commit makes due */
    struct kvd_own_log owned;   /* owned: shared blocks that copies replaced */
    struct kvd_failure why;     /* UNDO: what it ends with */
    enum kvd_append_phase phase;
    struct kvd_seal_want want;   /* SEALS: of the layer that has its step */
    uint32_t layer_idx;          /* SEALS, SEAL: that layer, of the plan */
    uint32_t record_next;        /* SEAL: its next block of records; 0: none had its step */
    uint32_t unit_count;         /* in the end */
    uint32_t unit_idx;           /* of each phase: units that had their step */
    uint32_t placed;             /* units that hold a page of the session's */
    uint32_t copied;             /* and of them, replaced one */
    struct kvd_append_job *jobs; /* within this allocation */
    uint32_t job_room;
    uint32_t job_count;
    uint32_t jobs_left; /* SUBMIT counts as one */
};

/*
 * Take one bounded step of the append's phase, before CHECK or after COMMIT, or of UNDO. Returns 0;
 * 1: the phase is over; KVARN_E... with `why` in phases before SUBMIT.
 */
int kvd_append_step(struct kvd_append *append, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Its layers are not pending for it any more. */
void kvd_append_release(struct kvd_append *append);

/* A job: on a worker, and on the loop once it has run. */
void kvd_append_job_run(struct kvd_job *job, void *scratch);
void kvd_append_job_done(struct kvd_job *job);

/* The hash that the session keeps: of what gives the payload its meaning, and of the payload. */
uint64_t kvd_append_hash_join(uint64_t meaning, uint64_t payload_hash);

#endif

/*
 * Records of a cold tier, one by one, as a test wants them: what no daemon would write.
 *
 * Thread: one.
 */
#ifndef TESTS_COLD_EDIT_H
#define TESTS_COLD_EDIT_H

#include "tests/support/cold_rig.h"

/* A record that was found; what a callback changes is written. */
struct kvt_cold_edit {
    enum kvd_cold_type type;
    uint32_t tenant_id;
    struct kvd_cold_id id;
    uint8_t *head, *body; /* owned by the copy: may be changed in place, and shortened */
    size_t head_bytes, body_bytes;
    bool is_left_out;
};

/* A tier with what is on the disk, each record as `cb` leaves it, in the order of sequences. */
struct kvd_fake_disk *kvt_cold_edit(
    struct kvd_fake_disk *disk, void (*cb)(void *ctx, struct kvt_cold_edit *record), void *ctx);

#endif

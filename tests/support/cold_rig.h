/*
 * A cold tier on a fake disk, and data that says itself what it should be.
 *
 * Thread: one. Bodies follow from (id, version, bytes), so that whoever reads one can tell whether
 * it is what was put without having kept it.
 */
#ifndef TESTS_COLD_RIG_H
#define TESTS_COLD_RIG_H

#include "server/cold/cold_segment.h"
#include "tests/support/io_fake.h"

struct kvt_cold_rig {
    struct kvd_fake_disk *disk; /* borrowed from the test */
    struct kvd_io_fake *fake;   /* owned, as all that follow */
    struct kvd_io *io;
    struct kvd_budget budget;
    struct kvd_workers *workers;
    struct kvd_cold *cold;
    struct kvd_cold_found found;
    int err; /* of the opening */
};

/* What a record of these tests says of itself in its head. */
struct kvt_cold_head {
    uint64_t id, version, bytes;
};

/* Small segments: 64 KiB, 16 of them. */
struct kvd_cold_segment_options kvt_cold_options(void);

/* Open a tier on a disk; rig->err says how it went, and without it rig->cold is there. */
void kvt_cold_start(struct kvt_cold_rig *rig, struct kvd_fake_disk *disk,
    const struct kvd_cold_segment_options *options, uint64_t seed);

/* The same with a limit on memory. */
void kvt_cold_start_within(struct kvt_cold_rig *rig, struct kvd_fake_disk *disk,
    const struct kvd_cold_segment_options *options, uint64_t seed, uint64_t memory_bytes);

/* Close the tier as a clean stop does, and free all but the disk. */
void kvt_cold_stop(struct kvt_cold_rig *rig);

/* Die: nothing more is written; what was in flight never happens. Frees all but the disk. */
void kvt_cold_crash(struct kvt_cold_rig *rig);

/* Fill a body. */
void kvt_cold_fill(uint64_t id, uint64_t version, void *dst, size_t bytes);

/* A put of its own, freed when it is done; `done` is told. Returns as put does. */
typedef void (*kvt_cold_put_cb)(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record);
struct kvt_cold_want {
    enum kvd_cold_type type;
    uint64_t id, version;
    size_t bytes; /* of the body */
    unsigned flags;
    kvt_cold_put_cb done;
    void *ctx;
};
int kvt_cold_put(struct kvt_cold_rig *rig, const struct kvt_cold_want *want);

/* The same, waited for: turns until it is done. Returns 0 and the record, or the error. */
int kvt_cold_put_wait(struct kvt_cold_rig *rig, enum kvd_cold_type type, uint64_t id,
    uint64_t version, size_t bytes, struct kvd_cold_record **ret);

/*
 * Read a record and compare it with what its head says, through get_now. Returns 0 and the head;
 * the error of the read; or 1 when the bytes are wrong, which nothing may ever cause.
 */
int kvt_cold_check(
    struct kvt_cold_rig *rig, struct kvd_cold_record *record, struct kvt_cold_head *ret);

/* The same through get, with turns. */
int kvt_cold_check_async(
    struct kvt_cold_rig *rig, struct kvd_cold_record *record, struct kvt_cold_head *ret);

#endif

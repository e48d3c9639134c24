/*
 * A disk in memory: what files hold, what of it would survive a power cut, and faults by order.
 *
 * Thread: one. A disk outlives the fake ios that use it, as a real one outlives its daemon. Each
 * operation that changes something is recorded with its data, so that the disk after any prefix of
 * them can be made, with the blocks of 4 KiB that were not synced lost or kept in any mixture.
 */
#ifndef TESTS_FAKE_DISK_H
#define TESTS_FAKE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/io/file_op.h"

#define KVD_FAKE_BLOCK 4096

struct kvd_fake_disk;

/* An empty disk; asserts on lack of memory. */
struct kvd_fake_disk *kvd_fake_disk_create(void);
void kvd_fake_disk_destroy(struct kvd_fake_disk *disk); /* accepts NULL */

/* Do one operation, with the faults that were ordered. Sets op->result and returns it. */
int64_t kvd_fake_disk_perform(struct kvd_fake_disk *disk, struct kvd_file_op *op);

/* The process died: its descriptors and locks are gone, files stay as they are. */
void kvd_fake_disk_close_all(struct kvd_fake_disk *disk);

/* Operations that were recorded so far. */
size_t kvd_fake_disk_op_count(const struct kvd_fake_disk *disk);

/*
 * What the disk could hold when the power fails after the first `op_count` recorded operations:
 * everything synced by then; of the rest, by block of 4 KiB and by name, what the seed says. Seeds
 * divisible by 4 lose all of it, those that leave 1 keep all of it. No descriptors, no faults.
 */
struct kvd_fake_disk *kvd_fake_disk_cut(
    const struct kvd_fake_disk *disk, size_t op_count, uint64_t seed);

/*
 * The same when the power fails within operation `op_idx`, a write: all before it is there, and of
 * itself the first `block_count` blocks; the next one holds noise if the seed is odd. Returns NULL
 * when that operation is not a write or has no more blocks than that.
 */
struct kvd_fake_disk *kvd_fake_disk_tear(
    const struct kvd_fake_disk *disk, size_t op_idx, size_t block_count, uint64_t seed);

/* After `skip` more operations of a verb, let `count` of them fail: nothing or half is done. */
void kvd_fake_disk_fail(
    struct kvd_fake_disk *disk, enum kvd_file_verb verb, unsigned skip, unsigned count, int err);

/* Let `permille` of all writes, syncs and allocations fail; 0: none. */
void kvd_fake_disk_fail_rate(struct kvd_fake_disk *disk, unsigned permille, int err, uint64_t seed);

/* Bytes that files may take before KVARN_ENOSPC; holes are free. 0: no limit, as at first. */
void kvd_fake_disk_set_room(struct kvd_fake_disk *disk, uint64_t bytes);

/* Bytes that files take now, and the most they ever took. */
uint64_t kvd_fake_disk_used(const struct kvd_fake_disk *disk);
uint64_t kvd_fake_disk_used_max(const struct kvd_fake_disk *disk);

/* Bytes that were written, by all writes. */
uint64_t kvd_fake_disk_written(const struct kvd_fake_disk *disk);

/* Faults that were done so far. */
unsigned kvd_fake_disk_fault_count(const struct kvd_fake_disk *disk);

/* The bytes of a file, to be looked at and damaged; NULL when there is none of this name. */
uint8_t *kvd_fake_disk_data(struct kvd_fake_disk *disk, const char *path, size_t *ret_bytes);

/* Call `cb` with the name of each file; it changes nothing. Returns how many there are. */
unsigned kvd_fake_disk_names(
    const struct kvd_fake_disk *disk, void (*cb)(void *ctx, const char *path), void *ctx);

/* Make a file with these bytes, or change the one there is, unseen by the record of operations. */
void kvd_fake_disk_put(
    struct kvd_fake_disk *disk, const char *path, const void *data, size_t bytes);

#endif

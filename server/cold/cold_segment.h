/*
 * A cold tier in files: append-only segments in a folder of their own. COLD.md has the bytes and
 * what survives what.
 *
 * Owner: service. Thread: loop only; hashes and compression run on workers, files by io.h.
 *
 * A record that was reported durable is found again after a crash or a power cut, or is known to be
 * damaged; bytes that do not match their hash are never given out. A segment that fails a write or
 * a sync is written no more, and what was not durable in it counts as lost.
 */
#ifndef KVD_COLD_SEGMENT_H
#define KVD_COLD_SEGMENT_H

#include "server/base/budget.h"
#include "server/cold/cold.h"
#include "server/io/io.h"
#include "server/io/workers.h"

struct kvd_cold_segment_options {
    const char *dir;        /* copied; made with mode 0700, its parent must exist */
    uint64_t limit_bytes;   /* of all files, never exceeded; at least four segments */
    uint64_t segment_bytes; /* a multiple of 4 KiB, within limits.h */
    uint64_t queue_bytes;   /* put and not durable, beyond which put says RETRY_LATER */
    int compress_level;     /* of zstd, for bodies of blocks; 0: never */
};

/*
 * Open the folder, at start: blocks while it reads indexes and scans what was not sealed. The io,
 * workers and budget are borrowed. Returns 0; KVARN_ECONFLICT: in use by another daemon;
 * KVARN_EFORBIDDEN, KVARN_ENOT_FOUND, KVARN_EIO: the folder; KVARN_EUNSUPPORTED: it holds segments
 * of another layout version; KVARN_ENOMEM; KVARN_EINVALID: options. Says why in the log.
 */
int kvd_cold_segment_open(struct kvd_io *io, struct kvd_workers *workers, struct kvd_budget *budget,
    const struct kvd_cold_segment_options *options, struct kvd_cold_found *ret_found,
    struct kvd_cold **ret) KVARN_MUST_CHECK;

#endif

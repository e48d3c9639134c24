/*
 * Sealing: a full block's rows become tiles, on a worker.
 *
 * Owner: session. Thread: loop; the quantising runs as a job.
 */
#ifndef KVD_SEAL_H
#define KVD_SEAL_H

#include "server/session.h"

/*
 * Bring a layer up to date with its length: drop what left the window, count what is sealable as
 * sealed and start the jobs. Called at each commit that made the layer longer, with nothing pending
 * there but that commit. Blocks that already hold tiles (records) are passed over. A seal cannot
 * fail (SEMANTICS.md 10); without memory for a job the block stays open and the next commit tries
 * again.
 */
void kvd_seal_due(struct kvd_session *session, uint32_t layer);

#endif

/*
 * What comes of a check that found something wrong.
 *
 * Owner: the verification. Thread: loop only, in the session's turn of all its layers.
 */
#ifndef KVD_VERIFY_REPAIR_H
#define KVD_VERIFY_REPAIR_H

#include "server/read/verify.h"

/* Whether the record that was read back still is what the session holds there. */
bool kvd_verify_is_current(const struct kvd_verify_check *check);

/*
 * Put it right, if it still is as it was found: a wrong page goes with its block, from the prefix
 * index too; a wrong record is written again from memory, or what it held is missing.
 */
enum kvd_verify_outcome kvd_verify_repair(struct kvd_verify_check *check);

#endif

/*
 * What several calls check in a message before they use it (SEMANTICS.md; lib/base/limits.h).
 *
 * Thread: loop only. Enums of a message are whatever number the peer sent: every one is checked.
 * All checks return 0, or an error with words in `why` that name what was expected and got.
 */
#ifndef KVD_RPC_CHECK_H
#define KVD_RPC_CHECK_H

#include <stdint.h>

#include "server/rpc/request.h"

/* Layers [first, first + count) are at least one and within the shape. */
int kvd_rpc_check_layers(const struct kvd_shape *shape, uint32_t first, uint32_t count,
    struct kvd_failure *why) KVARN_MUST_CHECK;

/* At least one token, and none beyond the longest session there may be. */
int kvd_rpc_check_tokens(uint64_t start, uint64_t count, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Number type and layout of K and V. */
int kvd_rpc_check_numbers(
    Kvarnd__DType dtype, Kvarnd__Layout layout, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * A session's name: 1 to KVARN_SESSION_NAME_MAX bytes of UTF-8 without control bytes, since lists
 * show it to everybody.
 */
int kvd_rpc_check_name(const char *name, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Text of a message that goes out again in replies must be UTF-8, as the wire's strings are. */
int kvd_rpc_check_text(
    const char *text, const char *what, struct kvd_failure *why) KVARN_MUST_CHECK;

/* A TTL or a pin's time, and a priority. */
int kvd_rpc_check_lifetime(
    uint64_t ms, uint32_t priority, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The session that a call names by exactly one of handle (if `has_handle`) and name (if not NULL).
 * NULL: `why` says INVALID or NOT_FOUND.
 */
struct kvd_session *kvd_rpc_find_session(const struct kvd_request *request, bool has_handle,
    uint64_t handle, const char *name, struct kvd_failure *why);

/*
 * A session occurs at most once in a call: two changes to it in one request would race for its
 * turn. Sorts `sessions`.
 */
int kvd_rpc_check_distinct(
    const struct kvd_session **sessions, size_t count, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Not ids and hashes both; in a message that may have either. */
int kvd_rpc_check_note(bool token_ids, bool block_hashes, struct kvd_failure *why) KVARN_MUST_CHECK;

/* A salt of at most KVARN_PREFIX_SALT_MAX bytes. */
int kvd_rpc_check_salt(const ProtobufCBinaryData *salt, struct kvd_failure *why) KVARN_MUST_CHECK;

#endif

/*
 * The table of calls: what to unpack, how much payload a message implies, who handles it.
 *
 * Thread: loop only. Handlers live in rpc_<subject>.c, one row each in rpc.c's table.
 */
#ifndef KVD_RPC_H
#define KVD_RPC_H

#include "server/rpc/request.h"

struct kvd_method {
    const ProtobufCMessageDescriptor *request_descriptor;
    size_t deadline_has_offset; /* of has_deadline_ms and deadline_ms in the unpacked struct */
    size_t deadline_offset;
    /*
     * Bytes of payload that the message implies, checked against the header before any staging is
     * allocated; refuses a message that is wrong in itself. NULL: the call takes no payload.
     */
    int (*payload_bytes)(const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why);
    /* Handle a complete request; must lead to exactly one reply or fail. */
    void (*start)(struct kvd_request *request);
};

/* The row of a call; NULL for a type that is not known. */
const struct kvd_method *kvd_method_find(unsigned type);

/* Handlers, by file. */
void kvd_rpc_hello(struct kvd_request *request); /* rpc_admin.c */
void kvd_rpc_ping(struct kvd_request *request);
void kvd_rpc_stats(struct kvd_request *request);
void kvd_rpc_cancel(struct kvd_request *request);

int kvd_rpc_register_shape_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why); /* rpc_shape.c */
void kvd_rpc_register_shape(struct kvd_request *request);
void kvd_rpc_read_metric(struct kvd_request *request); /* rpc_metric.c */

void kvd_rpc_open_session(struct kvd_request *request); /* rpc_session.c */
void kvd_rpc_close_session(struct kvd_request *request);
void kvd_rpc_drop_session(struct kvd_request *request);
void kvd_rpc_truncate(struct kvd_request *request);

void kvd_rpc_touch(struct kvd_request *request); /* rpc_lifetime.c */
void kvd_rpc_pin(struct kvd_request *request);
void kvd_rpc_evict(struct kvd_request *request);

int kvd_rpc_prefetch_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why); /* rpc_prefetch.c */
void kvd_rpc_prefetch(struct kvd_request *request);
void kvd_rpc_list_jobs(struct kvd_request *request);

void kvd_rpc_fork(struct kvd_request *request);    /* rpc_fork.c */
void kvd_rpc_reorder(struct kvd_request *request); /* rpc_reorder.c */

int kvd_rpc_match_prefix_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why); /* rpc_prefix.c */
void kvd_rpc_match_prefix(struct kvd_request *request);

void kvd_rpc_list_sessions(struct kvd_request *request); /* rpc_session_view.c */
void kvd_rpc_inspect_session(struct kvd_request *request);

void kvd_rpc_verify(struct kvd_request *request); /* rpc_verify.c */

int kvd_rpc_append_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why); /* rpc_append.c */
void kvd_rpc_append(struct kvd_request *request);
int kvd_rpc_append_tiles_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why);
void kvd_rpc_append_tiles(struct kvd_request *request);

void kvd_rpc_read_blocks(struct kvd_request *request); /* rpc_read.c */

int kvd_rpc_attend_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why); /* rpc_attend.c */
void kvd_rpc_attend(struct kvd_request *request);
int kvd_rpc_append_attend_payload(const struct kvd_request *request, uint64_t *ret,
    struct kvd_failure *why); /* rpc_append_attend.c */
void kvd_rpc_append_attend(struct kvd_request *request);

#endif

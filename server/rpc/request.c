/*
 * Requests: from an accepted header to the packed reply.
 *
 * Owner: the connection until the handler starts, then the request itself. Thread: loop; hashing a
 * large reply payload runs as a job.
 */
#include "server/rpc/request.h"

#include "lib/base/xxh3.h"
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/cache_line.h"
#include "server/conn/conn.h"
#include "server/rpc/rpc.h"
#include "server/session/session_blocks.h"

/* Payload above it is hashed on a worker: 256 KiB take some 25 us (SEMANTICS.md 18). */
#define HASH_INLINE_BYTES_MAX (256 * 1024)

struct kvd_request *kvd_request_create(
    struct kvd_conn *conn, const struct kvarn_frame_header *header, struct kvd_failure *why)
{
    struct kvd_service *service = kvd_conn_service(conn);
    size_t bytes = sizeof(struct kvd_request);

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_CONNS, bytes) != 0) {
        (void)!kvd_session_fail_space(service, bytes, why);
        return NULL;
    }
    struct kvd_request *request = calloc(1, bytes);
    if (request == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_CONNS, bytes);
        kvd_fail(why, KVARN_ENOMEM, "a request needs %zu bytes", bytes);
        return NULL;
    }
    request->conn = conn;
    request->service = service;
    request->header = *header;
    request->charged_bytes = bytes;
    request->arrived_ns = service->io->ops->now_ns(service->io);
    kvarn_wire_alloc_init(&request->alloc, KVARN_UNPACK_BYTES_MAX);
    return request;
}

static void payload_free(struct kvd_request *request)
{
    if (request->payload != NULL) {
        kvd_large_give(
            &request->service->large, KVD_BUDGET_STAGING, request->payload, request->payload_room);
        request->payload = NULL;
    }
}

void kvd_request_destroy(struct kvd_request *request)
{
    if (request == NULL) {
        return;
    }
    payload_free(request);
    kvarn_wire_alloc_fini(&request->alloc);
    kvd_budget_release(&request->service->budget, KVD_BUDGET_CONNS, request->charged_bytes);
    free(request);
}

void *kvd_request_message_room(struct kvd_request *request, struct kvd_failure *why)
{
    struct kvd_service *service = request->service;
    size_t bytes = request->header.message_bytes;

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_CONNS, bytes) != 0) {
        (void)!kvd_session_fail_space(service, bytes, why);
        return NULL;
    }
    request->charged_bytes += bytes;
    void *room = kvarn_wire_alloc_take(&request->alloc, bytes);
    if (room == NULL) {
        kvd_fail(why, KVARN_ENOMEM, "the message needs %zu bytes", bytes);
    }
    return room;
}

/* deadline_ms of whatever message this is. */
static void deadline_find(struct kvd_request *request, const struct kvd_method *method)
{
    const uint8_t *message = (const uint8_t *)request->message;
    protobuf_c_boolean has_deadline;
    uint32_t deadline_ms;

    memcpy(&has_deadline, message + method->deadline_has_offset, sizeof(has_deadline));
    memcpy(&deadline_ms, message + method->deadline_offset, sizeof(deadline_ms));
    if (has_deadline) {
        request->deadline_ns = request->arrived_ns + (uint64_t)deadline_ms * 1000000;
    }
}

int kvd_request_unpack(struct kvd_request *request, const void *message, struct kvd_failure *why)
{
    struct kvd_service *service = request->service;
    const struct kvd_method *method = kvd_method_find(request->header.type);

    KVARN_ASSERT(method != NULL && request->message == NULL);
    int err = kvarn_wire_unpack(&request->alloc, method->request_descriptor, message,
        request->header.message_bytes, &request->message);
    if (err != 0) {
        return kvd_fail(why, KVARN_EPROTOCOL, "%u bytes that are no valid %s message",
            request->header.message_bytes, method->request_descriptor->short_name);
    }
    /* The allocator's own limit bounded it; from here on the daemon's limit knows of it too. */
    KVARN_ASSERT(request->alloc.used_bytes >= request->charged_bytes - sizeof(*request));
    size_t bytes = request->alloc.used_bytes - (request->charged_bytes - sizeof(*request));
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_CONNS, bytes) != 0) {
        return kvd_session_fail_space(service, bytes, why);
    }
    request->charged_bytes += bytes;
    deadline_find(request, method);
    return 0;
}

int kvd_request_stage(struct kvd_request *request, struct kvd_failure *why)
{
    struct kvd_service *service = request->service;
    size_t room = kvd_round_64((size_t)request->header.payload_bytes);

    KVARN_ASSERT(request->payload == NULL && request->header.payload_bytes > 0);
    void *payload = NULL;
    int err = kvd_large_take(&service->large, KVD_BUDGET_STAGING, room, &payload);
    if (err == KVARN_ENOSPC) {
        return kvd_session_fail_space(service, room, why);
    }
    if (err != 0) {
        return kvd_fail(why, err, "the payload needs %zu bytes", room);
    }
    request->payload = payload;
    request->payload_room = room;
    return 0;
}

void kvd_request_start(struct kvd_request *request)
{
    struct kvd_service *service = request->service;
    struct kvd_failure why = {0};

    KVARN_ASSERT(!request->is_started);
    request->is_started = true;
    service->request_count++;
    kvd_service_tick_arm(service);
    if (service->is_draining) {
        kvd_fail(&why, KVARN_ESHUTTING_DOWN, "the daemon is stopping");
    } else if (request->deadline_ns != 0 &&
               service->io->ops->now_ns(service->io) >= request->deadline_ns) {
        kvd_fail(&why, KVARN_EDEADLINE, "the deadline passed before the request had come whole");
    }
    if (why.err != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    kvd_method_find(request->header.type)->start(request);
}

bool kvd_request_cancel(struct kvd_request *request, int err)
{
    void (*cancel_cb)(struct kvd_request *, int) = request->cancel_cb;

    if (cancel_cb == NULL) {
        return false;
    }
    request->cancel_cb = NULL;
    cancel_cb(request, err); /* request may be gone now */
    return true;
}

void kvd_request_expect_reply(struct kvd_request *request, uint64_t bytes)
{
    uint64_t bytes_max = request->service->config->payload_max; /* beyond it, it is refused */

    KVARN_ASSERT(request->reply_bytes_expected == 0);
    if (request->conn != NULL) {
        request->reply_bytes_expected = bytes < bytes_max ? bytes : bytes_max;
        kvd_conn_expect_output(request->conn, request->reply_bytes_expected);
    }
}

struct kvd_session *kvd_request_session(
    const struct kvd_request *request, uint64_t handle, struct kvd_failure *why)
{
    struct kvd_session *session =
        request->conn == NULL ? NULL : kvd_conn_handle_find(request->conn, handle);

    if (session == NULL || session->is_dropped) {
        kvd_fail(why, KVARN_ENOT_FOUND, "no session with handle %" PRIu64, handle);
        return NULL;
    }
    return session;
}

/* Replies. */

/* A reply while it is put together. */
struct reply {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_request *request;
    void *head; /* owned until it is sent; NULL: there was no memory for it */
    size_t head_bytes;
    struct kvd_reply_payload payload;
    uint64_t trailer; /* little-endian XXH3-64 of the payload */
    bool has_trailer;
    XXH3_state_t *hash; /* owned; NULL without a trailer */
    int err;
};

/* Header and packed message in one piece of memory. */
static void *head_pack(const struct kvarn_frame_header *header, const ProtobufCMessage *message)
{
    uint8_t *head = malloc(KVARN_FRAME_HEADER_BYTES + header->message_bytes);

    if (head != NULL) {
        size_t packed = protobuf_c_message_pack(message, head + KVARN_FRAME_HEADER_BYTES);
        KVARN_ASSERT(packed == header->message_bytes);
        kvarn_frame_encode(header, head);
    }
    return head;
}

static void reply_pack(
    struct reply *reply, const struct kvarn_frame_header *to, const ProtobufCMessage *message)
{
    size_t message_bytes = protobuf_c_message_get_packed_size(message);
    struct kvarn_frame_header header = {.version = KVARN_FRAME_VERSION,
        .type = to->type,
        .flags = KVARN_FRAME_REPLY,
        .message_bytes = (uint32_t)message_bytes,
        .request_id = to->request_id,
        .payload_bytes = reply->payload.bytes};

    KVARN_ASSERT(message_bytes <= KVARN_MESSAGE_BYTES_MAX);
    if (reply->has_trailer) {
        header.flags |= KVARN_FRAME_PAYLOAD_XXH3;
        reply->hash = XXH3_createState();
    }
    reply->head_bytes = KVARN_FRAME_HEADER_BYTES + message_bytes;
    if (!reply->has_trailer || reply->hash != NULL) {
        reply->head = head_pack(&header, message);
    }
}

/* Count one answered frame. */
static void count(struct kvd_service *service, const struct kvarn_frame_header *header,
    const struct reply *reply, uint64_t latency_ns)
{
    struct kvd_op_sample sample = {.type = header->type,
        .err = reply->err,
        .bytes_in = KVARN_FRAME_HEADER_BYTES + header->message_bytes + header->payload_bytes,
        .bytes_out = reply->head_bytes + reply->payload.bytes,
        .latency_ns = latency_ns};

    kvd_metrics_op(&service->metrics, &sample);
}

static void reply_send(struct kvd_conn *conn, const struct reply *reply)
{
    if (conn == NULL || reply->head == NULL) {
        free(reply->head);
        if (reply->payload.release_cb != NULL) {
            reply->payload.release_cb(reply->payload.ctx);
        }
        if (conn != NULL) {
            kvd_conn_close(conn, "no memory for a reply");
        }
        return;
    }
    kvd_conn_send(conn, reply->head, reply->head_bytes, &reply->payload,
        reply->has_trailer ? &reply->trailer : NULL);
}

/* Count, let go of the request, send. */
static void reply_finish(const struct reply *reply)
{
    struct kvd_request *request = reply->request;
    struct kvd_service *service = request->service;
    struct kvd_conn *conn = request->conn;

    (void)XXH3_freeState(reply->hash);
    count(service, &request->header, reply,
        service->io->ops->now_ns(service->io) - request->arrived_ns);
    if (conn != NULL) {
        kvd_conn_request_done(conn, request);
    }
    KVARN_ASSERT(request->is_started && service->request_count > 0);
    service->request_count--;
    kvd_request_destroy(request);
    reply_send(conn, reply);
}

static void trailer_run(struct kvd_job *job, void *scratch)
{
    struct reply *reply = (struct reply *)(void *)job;

    (void)scratch;
    (void)XXH3_64bits_reset(reply->hash);
    for (unsigned i = 0; i < reply->payload.buf_count; i++) {
        const struct kvd_buf *buf = &reply->payload.bufs[i];
        (void)XXH3_64bits_update(reply->hash, buf->data, buf->bytes);
    }
    reply->trailer = htole64(XXH3_64bits_digest(reply->hash));
}

static void trailer_done(struct kvd_job *job)
{
    struct reply *reply = (struct reply *)(void *)job;

    reply_finish(reply);
    free(reply);
}

/* The payload's checksum on a worker; false when there is no memory for the job. */
static bool trailer_submit(const struct reply *reply)
{
    struct reply *own = malloc(sizeof(*own));

    if (own == NULL) {
        return false;
    }
    *own = *reply;
    own->job.run = trailer_run;
    own->job.done = trailer_done;
    kvd_workers_submit(reply->request->service->workers, &own->job);
    return true;
}

void kvd_request_reply(struct kvd_request *request, const ProtobufCMessage *message,
    const struct kvd_reply_payload *payload, int err)
{
    struct reply reply = {.request = request, .err = err};

    request->cancel_cb = NULL; /* answered: nothing is left to cancel */
    if (payload != NULL) {
        reply.payload = *payload;
    }
    reply.has_trailer = reply.payload.bytes > 0 && request->conn != NULL &&
                        kvd_conn_wants_payload_xxh3(request->conn);
    reply_pack(&reply, &request->header, message);
    if (reply.has_trailer && reply.head != NULL) {
        if (reply.payload.bytes > HASH_INLINE_BYTES_MAX && trailer_submit(&reply)) {
            return;
        }
        trailer_run(&reply.job, NULL);
    }
    reply_finish(&reply);
}

/* Every reply message has its status as field 1, as ErrorReply has: their bytes are the same. */
static void failure_pack(
    struct reply *reply, const struct kvarn_frame_header *to, const struct kvd_failure *why)
{
    uint64_t lengths[KVARN_LAYERS_MAX];
    Kvarnd__Status status = KVARND__STATUS__INIT;
    Kvarnd__ErrorReply message = KVARND__ERROR_REPLY__INIT;

    KVARN_ASSERT(why->err != 0);
    kvd_failure_to_status(why, &status, lengths);
    message.status = &status;
    reply->err = why->err;
    reply_pack(reply, to, &message.base);
}

void kvd_request_fail(struct kvd_request *request, const struct kvd_failure *why)
{
    struct reply reply = {.request = request};

    request->cancel_cb = NULL;
    failure_pack(&reply, &request->header, why);
    reply_finish(&reply);
}

void kvd_request_refuse(
    struct kvd_conn *conn, const struct kvarn_frame_header *header, const struct kvd_failure *why)
{
    struct kvd_service *service = kvd_conn_service(conn);
    struct reply reply = {0};

    failure_pack(&reply, header, why);
    if (header->type != KVARN_FRAME_TYPE_ERROR) {
        count(service, header, &reply, 0);
    }
    reply_send(conn, &reply);
}

/* A service on the fake io, and peers that talk to it in frames. */
#include "tests/support/wire_peer.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "proto/wire_error.h"
#include "server/conn/conn.h"
#include "tests/support/frame_parts.h"

#define SETTLE_MS_MAX 60000

void kvt_host_init(struct kvt_host *host, const struct kvt_host_options *options)
{
    memset(host, 0, sizeof(*host));
    host->fake = kvd_io_fake_create(options->seed);
    KVARN_ASSERT(host->fake != NULL);
    int err = kvd_config_init(&host->config);
    KVARN_ASSERT(err == 0);
    host->config.workers = options->workers;
    if (options->memory_limit != 0) {
        host->config.memory_limit = options->memory_limit;
    }
    if (options->payload_max != 0) {
        host->config.payload_max = options->payload_max;
    }
    if (options->sessions_max != 0) {
        host->config.sessions_max = options->sessions_max;
    }
    err = kvd_service_init(&host->service, &host->config, kvd_io_fake_io(host->fake));
    KVARN_ASSERT(err == 0);
    host->budget_start = host->service.budget.used_bytes;
}

void kvt_host_settle(struct kvt_host *host)
{
    kvd_io_fake_settle(host->fake);
    while (kvd_workers_backlog(host->service.workers) > 0) {
        bool is_pending = kvd_io_fake_wait(host->fake, SETTLE_MS_MAX);
        KVARN_ASSERT(is_pending);
        kvd_io_fake_settle(host->fake);
    }
}

void kvt_host_fini(struct kvt_host *host)
{
    struct kvd_service *service = &host->service;
    struct kvd_session *session;

    kvt_host_settle(host);
    while (
        (session = kvd_session_table_next(&service->sessions, KVD_TENANT_DEFAULT, NULL)) != NULL) {
        kvd_session_table_drop(&service->sessions, session);
    }
    kvd_prefix_index_fini(&service->prefixes);
    kvt_host_settle(host);
    KVARN_ASSERT(service->sessions.count == 0);
    (void)kvd_page_store_reclaim(&service->pages, UINT64_MAX);
    /* What was learnt of queries and of use stays until the service ends. */
    KVARN_ASSERT(service->budget.used_bytes == host->budget_start +
                                                   service->budget.kind_bytes[KVD_BUDGET_QUERIES] +
                                                   service->budget.kind_bytes[KVD_BUDGET_POLICIES]);
    kvd_service_fini(service);
    struct kvd_io *io = kvd_io_fake_io(host->fake);
    io->ops->destroy(io);
    kvd_config_fini(&host->config);
}

void kvt_peer_open(struct kvt_peer *peer, struct kvt_host *host)
{
    struct kvd_stream *stream = NULL;
    struct kvd_peer who = kvd_io_fake_who();

    *peer = (struct kvt_peer){.host = host};
    peer->far = kvd_io_fake_open(host->fake, &stream);
    KVARN_ASSERT(peer->far != NULL);
    kvd_conn_accept(&host->service, stream, &who);
}

void kvt_peer_close(struct kvt_peer *peer)
{
    if (peer->far == NULL) {
        return;
    }
    if (!kvd_fake_peer_end(peer->far)) {
        kvd_fake_peer_break(peer->far);
    }
    kvt_host_settle(peer->host);
    KVARN_ASSERT(kvd_fake_peer_is_closed(peer->far));
    kvd_fake_peer_free(peer->far);
    *peer = (struct kvt_peer){0};
}

/* All of it, in as many pieces as the other side takes; false when it takes no more. */
static bool bytes_send(struct kvt_peer *peer, const uint8_t *bytes, size_t count)
{
    size_t sent = 0;

    while (sent < count) {
        size_t taken = kvd_fake_peer_send(peer->far, bytes + sent, count - sent);
        sent += taken;
        if (sent < count) {
            kvt_host_settle(peer->host);
        }
        if (taken == 0 && !kvd_fake_peer_is_read(peer->far)) {
            return false;
        }
    }
    return true;
}

uint64_t kvt_peer_send(struct kvt_peer *peer, unsigned type, const ProtobufCMessage *message,
    const void *payload, size_t payload_bytes)
{
    struct kvt_frame frame = {.header = {.version = KVARN_FRAME_VERSION,
                                  .type = (uint8_t)type,
                                  .request_id = ++peer->last_id,
                                  .payload_bytes = payload_bytes},
        .message = (ProtobufCMessage *)(uintptr_t)message,
        .payload = payload};
    size_t room = KVARN_FRAME_HEADER_BYTES + KVARN_MESSAGE_BYTES_MAX + payload_bytes;
    uint8_t *bytes = malloc(room);

    KVARN_ASSERT(bytes != NULL);
    size_t count = kvt_frame_encode(&frame, bytes, room);
    KVARN_ASSERT(count > 0);
    bool is_sent = bytes_send(peer, bytes, count);
    free(bytes);
    return is_sent ? peer->last_id : 0;
}

/* Every reply message has its status first, right behind protobuf-c's own part. */
static const Kvarnd__Status *status_of(const ProtobufCMessage *message)
{
    const Kvarnd__Status *status;

    memcpy(&status, message + 1, sizeof(status));
    return status;
}

bool kvt_peer_take(struct kvt_peer *peer, struct kvt_answer *ret)
{
    size_t count;
    const uint8_t *bytes = kvd_fake_peer_received(peer->far, &count);
    struct kvt_frame frame;
    int err;

    *ret = (struct kvt_answer){0};
    kvarn_wire_alloc_init(&ret->alloc, KVARN_UNPACK_BYTES_MAX);
    enum kvt_frame_stage stage = kvt_frame_read(&frame, &ret->alloc, bytes, count, &err);
    if (stage == KVT_FRAME_INCOMPLETE) {
        kvt_answer_fini(ret);
        return false;
    }
    KVARN_ASSERT(stage == KVT_FRAME_OK);
    KVARN_ASSERT((frame.header.flags & KVARN_FRAME_REPLY) != 0);
    ret->header = frame.header;
    ret->message = frame.message;
    ret->status = status_of(frame.message);
    ret->err = kvarn_wire_error(ret->status->code);
    ret->payload_bytes = (size_t)frame.header.payload_bytes;
    ret->payload = malloc(ret->payload_bytes + 1);
    KVARN_ASSERT(ret->payload != NULL);
    memcpy(ret->payload, frame.payload, ret->payload_bytes);
    kvd_fake_peer_drop(peer->far, frame.frame_bytes);
    return true;
}

void kvt_answer_fini(struct kvt_answer *answer)
{
    kvarn_wire_alloc_fini(&answer->alloc);
    free(answer->payload);
    *answer = (struct kvt_answer){0};
}

struct kvt_answer kvt_peer_call(struct kvt_peer *peer, unsigned type,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes)
{
    struct kvt_answer answer;
    uint64_t id = kvt_peer_send(peer, type, message, payload, payload_bytes);

    KVARN_ASSERT(id != 0);
    kvt_host_settle(peer->host);
    bool is_answered = kvt_peer_take(peer, &answer);
    KVARN_ASSERT(is_answered);
    KVARN_ASSERT(answer.header.request_id == id);
    KVARN_ASSERT(answer.header.type == type);
    return answer;
}

void kvt_peer_hello(struct kvt_peer *peer)
{
    Kvarnd__Hello hello = KVARND__HELLO__INIT;
    struct kvt_answer answer = kvt_peer_call(peer, KVARN_FRAME_HELLO, &hello.base, NULL, 0);

    KVARN_ASSERT(answer.err == 0);
    kvt_answer_fini(&answer);
}

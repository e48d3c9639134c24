/*
 * Input of a connection: frames out of a byte stream, each checked before it costs memory.
 *
 * Owner: conn. Thread: loop only. Small parts are parsed out of one buffer that all connections
 * share for the length of a read; payload goes straight into its staging.
 */
#include <endian.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/conn/conn_impl.h"
#include "server/rpc/rpc.h"

/* Less payload than this is taken through the shared buffer, with what follows it. */
#define DIRECT_BYTES_MIN (16 * 1024)
/* One read takes at most this much, so that hashing it stays below 100 us (SEMANTICS.md 18). */
#define DIRECT_BYTES_MAX (512 * 1024)

/*
 * What one connection may have parsed and handled in a turn before others get theirs: 64 KiB hold
 * 2,000 requests, each of which may take the loop 50 us (SEMANTICS.md 18).
 */
#define PARSE_NS_MAX UINT64_C(100000)

/* A client that has used up its credit, or finds a full daemon, is told to wait this long. */
#define CREDIT_RETRY_MS 5

static size_t frame_rest(const struct kvarn_frame_header *header)
{
    bool has_trailer = (header->flags & KVARN_FRAME_PAYLOAD_XXH3) != 0;

    return (size_t)header->message_bytes + (size_t)header->payload_bytes +
           (has_trailer ? KVARN_FRAME_TRAILER_BYTES : 0);
}

static void state_enter(struct kvd_conn *conn, enum kvd_read_state state)
{
    conn->reader.state = state;
    conn->reader.got_bytes = 0;
}

static void frame_end(struct kvd_conn *conn)
{
    conn->reader.started_ns = 0;
    conn->reader.payload_bytes = 0;
    conn->reader.message = NULL;
    conn->reader.request = NULL;
    state_enter(conn, KVD_READ_HEADER);
}

/* Drop `bytes` of the frame that are still to come. */
static void frame_skip(struct kvd_conn *conn, uint64_t bytes)
{
    if (bytes == 0) {
        frame_end(conn);
        return;
    }
    conn->reader.skip_bytes = bytes;
    state_enter(conn, KVD_READ_SKIP);
}

/* The stream cannot be trusted from here on: say why, then close. */
static void stream_refuse(
    struct kvd_conn *conn, uint64_t request_id, const struct kvd_failure *why, const char *reason)
{
    struct kvarn_frame_header header = {.type = KVARN_FRAME_TYPE_ERROR, .request_id = request_id};

    kvd_metrics_add(&conn->service->metrics, KVD_METRIC_protocol_errors, 1);
    kvd_request_refuse(conn, &header, why);
    kvd_conn_finish(conn, reason);
}

/* The request being received is not to be: let go of it, answer, drop the rest of its frame. */
static void request_refuse(
    struct kvd_conn *conn, uint64_t rest_bytes, const struct kvd_failure *why)
{
    struct kvarn_frame_header header = conn->reader.request->header;
    uint64_t started_ns = conn->reader.started_ns;

    kvd_conn_reader_fini(conn);
    if (rest_bytes > 0) {
        conn->reader.started_ns = started_ns; /* the rest has to come in time, too */
        conn->reader.payload_bytes = header.payload_bytes;
    }
    frame_skip(conn, rest_bytes);
    kvd_request_refuse(conn, &header, why);
}

static bool credit_is_left(const struct kvd_conn *conn, const struct kvarn_frame_header *header)
{
    const struct kvd_config *config = conn->service->config;

    return conn->request_count < config->credit_requests &&
           conn->credit_bytes_used + header->payload_bytes <= config->credit_bytes;
}

/*
 * May this frame become a request? 0, or why not. All of it is known from the header, so that a
 * refused frame costs nothing.
 */
static int header_check(
    const struct kvd_conn *conn, const struct kvarn_frame_header *header, struct kvd_failure *why)
{
    struct kvd_service *service = conn->service;

    if (kvd_method_find(header->type) == NULL) {
        return kvd_fail(why, KVARN_EUNSUPPORTED, "no call has the number %u", header->type);
    }
    if (service->is_draining) {
        return kvd_fail(why, KVARN_ESHUTTING_DOWN, "the daemon is stopping");
    }
    if (header->payload_bytes > service->config->payload_max) {
        return kvd_fail(why, KVARN_ETOO_LARGE, "a payload may have %" PRIu64 " bytes, got %" PRIu64,
            service->config->payload_max, header->payload_bytes);
    }
    if (!credit_is_left(conn, header)) {
        kvd_metrics_add(&service->metrics, KVD_METRIC_refused_credit, 1);
        why->retry_after_ms = CREDIT_RETRY_MS;
        return kvd_fail(why, KVARN_ERETRY_LATER,
            "%" PRIu32 " requests with %" PRIu64 " bytes are in flight, the credit is %" PRIu64
            " with %" PRIu64,
            conn->request_count, conn->credit_bytes_used, service->config->credit_requests,
            service->config->credit_bytes);
    }
    return 0;
}

/* Before Hello has succeeded a connection may cost next to nothing. */
static bool header_is_legal(
    struct kvd_conn *conn, const struct kvarn_frame_header *header, struct kvd_failure *why)
{
    if ((header->flags & KVARN_FRAME_REPLY) != 0) {
        kvd_fail(why, KVARN_EPROTOCOL, "a client sent a reply");
    } else if (conn->is_ready) {
        return true;
    } else if (header->type != KVARN_FRAME_HELLO) {
        kvd_fail(why, KVARN_EUNAUTHENTICATED, "the first call must be hello, got %s",
            kvarn_frame_type_label(header->type));
    } else if (header->message_bytes > KVARN_HELLO_MESSAGE_BYTES_MAX || header->payload_bytes > 0 ||
               conn->request_count > 0) {
        kvd_fail(why, KVARN_EPROTOCOL, "hello comes alone, with up to %d bytes and no payload",
            KVARN_HELLO_MESSAGE_BYTES_MAX);
    } else {
        return true;
    }
    return false;
}

static void message_done(struct kvd_conn *conn, const uint8_t *message);

static void header_done(struct kvd_conn *conn)
{
    struct kvarn_frame_header header;
    struct kvd_failure why = {0};
    int err = kvarn_frame_decode(conn->reader.header_bytes, &header);

    if (err != 0) {
        kvd_fail(&why, err, "bytes that are no valid frame header");
        stream_refuse(conn, 0, &why, "broken frame");
        return;
    }
    conn->reader.payload_bytes = header.payload_bytes;
    if (!header_is_legal(conn, &header, &why)) {
        stream_refuse(conn, header.request_id, &why, "frame out of place");
        return;
    }
    struct kvd_request *request = NULL;
    if (header_check(conn, &header, &why) == 0) {
        request = kvd_request_create(conn, &header, &why);
    }
    if (request == NULL) {
        frame_skip(conn, frame_rest(&header));
        if (why.err == KVARN_EUNSUPPORTED) {
            header.type = KVARN_FRAME_TYPE_ERROR;
        }
        kvd_request_refuse(conn, &header, &why);
        return;
    }
    conn->reader.request = request;
    conn->request_count++;
    conn->credit_bytes_used += header.payload_bytes;
    state_enter(conn, KVD_READ_MESSAGE);
    if (header.message_bytes == 0) {
        message_done(conn, conn->reader.header_bytes);
    }
}

/* All of the request is here. */
static void request_done(struct kvd_conn *conn)
{
    struct kvd_request *request = conn->reader.request;

    frame_end(conn);
    TAILQ_INSERT_TAIL(&conn->requests, request, link);
    conn->active_ns = request->arrived_ns;
    kvd_request_start(request);
}

static void payload_done(struct kvd_conn *conn)
{
    struct kvd_request *request = conn->reader.request;

    request->payload_hash = XXH3_64bits_digest(conn->reader.hash);
    if ((request->header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0) {
        state_enter(conn, KVD_READ_TRAILER);
    } else {
        request_done(conn);
    }
}

static void trailer_done(struct kvd_conn *conn)
{
    struct kvd_request *request = conn->reader.request;
    struct kvd_failure why = {0};
    uint64_t expected;

    memcpy(&expected, conn->reader.trailer_bytes, sizeof(expected));
    expected = le64toh(expected);
    if (request->header.payload_bytes > 0 && request->payload_hash != expected) {
        kvd_fail(&why, KVARN_ECORRUPT,
            "the payload's XXH3 is %016" PRIx64 ", its trailer says %016" PRIx64,
            request->payload_hash, expected);
        kvd_metrics_add(&conn->service->metrics, KVD_METRIC_protocol_errors, 1);
        request_refuse(conn, 0, &why);
        return;
    }
    request_done(conn);
}

/* What the message implies must be what the header announces. */
static int payload_check(struct kvd_request *request, struct kvd_failure *why)
{
    const struct kvd_method *method = kvd_method_find(request->header.type);
    uint64_t expected = 0;

    if (method->payload_bytes != NULL) {
        int err = method->payload_bytes(request, &expected, why);
        if (err != 0) {
            return err;
        }
    }
    if (expected != request->header.payload_bytes) {
        return kvd_fail(why, KVARN_EINVALID,
            "the message implies %" PRIu64 " bytes of payload, got %" PRIu64, expected,
            request->header.payload_bytes);
    }
    return 0;
}

static int payload_prepare(struct kvd_conn *conn, struct kvd_failure *why)
{
    if (conn->reader.hash == NULL) {
        conn->reader.hash = XXH3_createState();
        if (conn->reader.hash == NULL) {
            return kvd_fail(why, KVARN_ENOMEM, "no memory for the payload's checksum");
        }
    }
    (void)XXH3_64bits_reset(conn->reader.hash);
    return kvd_request_stage(conn->reader.request, why);
}

static void message_done(struct kvd_conn *conn, const uint8_t *message)
{
    struct kvd_request *request = conn->reader.request;
    const struct kvarn_frame_header *header = &request->header;
    struct kvd_failure why = {0};

    int err = kvd_request_unpack(request, message, &why);
    if (err == KVARN_EPROTOCOL) {
        kvd_metrics_add(&conn->service->metrics, KVD_METRIC_protocol_errors, 1);
    }
    if (err == 0) {
        err = payload_check(request, &why);
    }
    if (err == 0 && header->payload_bytes > 0) {
        err = payload_prepare(conn, &why);
    }
    if (err != 0) {
        request_refuse(conn, frame_rest(header) - header->message_bytes, &why);
    } else if (header->payload_bytes > 0) {
        state_enter(conn, KVD_READ_PAYLOAD);
    } else if ((header->flags & KVARN_FRAME_PAYLOAD_XXH3) != 0) {
        state_enter(conn, KVD_READ_TRAILER);
    } else {
        request_done(conn);
    }
}

/* Copy up to what a part of `part_bytes` still misses. Returns the bytes used. */
static size_t part_take(
    struct kvd_conn *conn, uint8_t *dst, size_t part_bytes, const uint8_t *data, size_t bytes)
{
    size_t missing = part_bytes - (size_t)conn->reader.got_bytes;
    size_t used = bytes < missing ? bytes : missing;

    memcpy(dst + conn->reader.got_bytes, data, used);
    conn->reader.got_bytes += used;
    return used;
}

static size_t header_take(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    struct kvd_io *io = conn->service->io;

    if (conn->reader.started_ns == 0) {
        conn->reader.started_ns = io->ops->now_ns(io);
    }
    size_t used = part_take(conn, conn->reader.header_bytes, KVARN_FRAME_HEADER_BYTES, data, bytes);
    if (conn->reader.got_bytes == KVARN_FRAME_HEADER_BYTES) {
        header_done(conn);
    }
    return used;
}

static size_t message_take(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    struct kvd_conn_reader *reader = &conn->reader;
    size_t message_bytes = reader->request->header.message_bytes;

    if (reader->got_bytes == 0 && bytes >= message_bytes) {
        message_done(conn, data); /* whole in the buffer: no copy */
        return message_bytes;
    }
    if (reader->message == NULL) {
        struct kvd_failure why = {0};
        reader->message = kvd_request_message_room(reader->request, &why);
        if (reader->message == NULL) {
            request_refuse(conn, frame_rest(&reader->request->header), &why);
            return 0;
        }
    }
    size_t used = part_take(conn, reader->message, message_bytes, data, bytes);
    if (reader->got_bytes == message_bytes) {
        message_done(conn, reader->message);
    }
    return used;
}

/* `bytes` of payload are in their place. */
static void payload_took(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    (void)XXH3_64bits_update(conn->reader.hash, data, bytes);
    if (conn->reader.got_bytes == conn->reader.request->header.payload_bytes) {
        payload_done(conn);
    }
}

static size_t payload_take(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    struct kvd_request *request = conn->reader.request;
    size_t used =
        part_take(conn, request->payload, (size_t)request->header.payload_bytes, data, bytes);

    payload_took(conn, data, used);
    return used;
}

static size_t trailer_take(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    size_t used =
        part_take(conn, conn->reader.trailer_bytes, KVARN_FRAME_TRAILER_BYTES, data, bytes);

    if (conn->reader.got_bytes == KVARN_FRAME_TRAILER_BYTES) {
        trailer_done(conn);
    }
    return used;
}

static size_t skip_take(struct kvd_conn *conn, size_t bytes)
{
    size_t used = bytes < conn->reader.skip_bytes ? bytes : (size_t)conn->reader.skip_bytes;

    conn->reader.skip_bytes -= used;
    if (conn->reader.skip_bytes == 0) {
        frame_end(conn);
    }
    return used;
}

static size_t bytes_take(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    switch (conn->reader.state) {
    case KVD_READ_HEADER:
        return header_take(conn, data, bytes);
    case KVD_READ_MESSAGE:
        return message_take(conn, data, bytes);
    case KVD_READ_PAYLOAD:
        return payload_take(conn, data, bytes);
    case KVD_READ_TRAILER:
        return trailer_take(conn, data, bytes);
    case KVD_READ_SKIP:
        return skip_take(conn, bytes);
    }
    return 0;
}

static void buffer_cb(void *ctx, void **ret_data, size_t *ret_bytes)
{
    struct kvd_conn *conn = ctx;
    struct kvd_conn_reader *reader = &conn->reader;
    uint64_t left = 0;

    if (reader->state == KVD_READ_PAYLOAD) {
        left = reader->request->header.payload_bytes - reader->got_bytes;
    }
    reader->is_direct = left >= DIRECT_BYTES_MIN;
    if (reader->is_direct) {
        *ret_data = (uint8_t *)reader->request->payload + reader->got_bytes;
        *ret_bytes = left < DIRECT_BYTES_MAX ? (size_t)left : DIRECT_BYTES_MAX;
    } else {
        *ret_data = conn->service->read_buffer;
        *ret_bytes = KVD_READ_BUFFER_BYTES;
    }
}

/* More output, queued or to come from requests in flight, than `bytes_max`. */
static bool output_is_above(const struct kvd_conn *conn, uint64_t bytes_max)
{
    return conn->writer.queued_bytes + conn->output_bytes_expected > bytes_max;
}

/* Parse until there is too much output, or `ns_max` are over. Returns the bytes used. */
static size_t bytes_parse(struct kvd_conn *conn, const uint8_t *data, size_t bytes, uint64_t ns_max)
{
    struct kvd_io *io = conn->service->io;
    uint64_t output_max = conn->service->config->output_max;
    uint64_t start_ns = io->ops->now_ns(io);
    size_t at = 0;

    while (at < bytes && !conn->is_finishing && !conn->is_closing &&
           !output_is_above(conn, output_max)) {
        at += bytes_take(conn, data + at, bytes - at);
        if (io->ops->now_ns(io) - start_ns > ns_max) {
            break;
        }
    }
    return at;
}

/* Bytes are left over: who sees to it that they are parsed, the peer that reads or a later turn? */
static void held_wait(struct kvd_conn *conn)
{
    bool is_over = conn->is_finishing || conn->is_closing;

    conn->reader.is_full = output_is_above(conn, conn->service->config->output_max);
    if (!conn->reader.is_full && !is_over && !conn->slice.is_listed) {
        kvd_slices_add(&conn->service->sessions.slices, &conn->slice);
    }
}

/* Keep bytes for later: the buffer that they are in is everybody's. False: no memory. */
static bool bytes_hold(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    struct kvd_conn_reader *reader = &conn->reader;
    struct kvd_budget *budget = &conn->service->budget;

    KVARN_ASSERT(reader->held == NULL && bytes > 0);
    if (kvd_budget_charge(budget, KVD_BUDGET_CONNS, bytes) == 0) {
        reader->held = malloc(bytes);
        if (reader->held == NULL) {
            kvd_budget_release(budget, KVD_BUDGET_CONNS, bytes);
        }
    }
    if (reader->held == NULL) {
        return false;
    }
    memcpy(reader->held, data, bytes);
    reader->held_at = 0;
    reader->held_bytes = bytes;
    held_wait(conn);
    return true;
}

/* More has come than may be served now. */
static void bytes_left_over(struct kvd_conn *conn, const uint8_t *data, size_t bytes)
{
    if (bytes_hold(conn, data, bytes)) {
        return;
    }
    /* Without memory to wait in, time does not count. */
    if (bytes_parse(conn, data, bytes, UINT64_MAX) < bytes && !conn->is_finishing) {
        kvd_conn_close(conn, "no memory for requests that wait");
    }
}

void kvd_conn_held_fini(struct kvd_conn *conn)
{
    struct kvd_conn_reader *reader = &conn->reader;

    if (reader->held != NULL) {
        free(reader->held);
        reader->held = NULL;
        kvd_budget_release(&conn->service->budget, KVD_BUDGET_CONNS, reader->held_bytes);
    }
}

void kvd_conn_resume(struct kvd_conn *conn)
{
    struct kvd_conn_reader *reader = &conn->reader;
    uint64_t output_max = conn->service->config->output_max;

    if (reader->held == NULL || conn->is_in_read ||
        output_is_above(conn, reader->is_full ? output_max / 2 : output_max)) {
        return;
    }
    conn->is_in_read = true;
    reader->held_at += bytes_parse(
        conn, reader->held + reader->held_at, reader->held_bytes - reader->held_at, PARSE_NS_MAX);
    conn->is_in_read = false;
    if (reader->held_at == reader->held_bytes) {
        kvd_conn_held_fini(conn);
    } else {
        held_wait(conn);
    }
}

void kvd_conn_slice_run(struct kvd_slice *slice)
{
    struct kvd_conn *conn =
        (struct kvd_conn *)(void *)((uint8_t *)slice - offsetof(struct kvd_conn, slice));

    KVARN_ASSERT(!conn->is_closing);
    kvd_conn_resume(conn);
    if (conn->is_closing) {
        return;
    }
    kvd_conn_flush(conn);
    kvd_conn_update_reading(conn);
    kvd_conn_try_finish(conn);
}

static void bytes_arrived(struct kvd_conn *conn, size_t bytes)
{
    struct kvd_conn_reader *reader = &conn->reader;
    const uint8_t *data = conn->service->read_buffer;

    if (reader->is_direct) {
        data = (uint8_t *)reader->request->payload + reader->got_bytes;
        reader->got_bytes += bytes;
        payload_took(conn, data, bytes);
        return;
    }
    size_t used = bytes_parse(conn, data, bytes, PARSE_NS_MAX);
    if (used < bytes && !conn->is_finishing && !conn->is_closing) {
        bytes_left_over(conn, data + used, bytes - used);
    }
}

static void read_cb(void *ctx, ssize_t bytes)
{
    struct kvd_conn *conn = ctx;

    if (bytes < 0) {
        kvd_conn_close(conn, "read failed");
        return;
    }
    if (bytes == 0) {
        /* The peer says no more; what it has asked is still answered. */
        kvd_conn_finish(
            conn, conn->reader.started_ns == 0 ? "closed by peer" : "cut off in a frame");
        return;
    }
    kvd_metrics_add(&conn->service->metrics, KVD_METRIC_bytes_in, (uint64_t)bytes);
    conn->is_in_read = true;
    bytes_arrived(conn, (size_t)bytes);
    conn->is_in_read = false;
    if (conn->is_closing) {
        return;
    }
    kvd_conn_flush(conn);
    kvd_conn_update_reading(conn);
    kvd_conn_try_finish(conn);
}

const struct kvd_stream_handler kvd_conn_stream_handler = {
    .buffer_cb = buffer_cb, .read_cb = read_cb};

void kvd_conn_reader_fini(struct kvd_conn *conn)
{
    struct kvd_request *request = conn->reader.request;

    if (request == NULL) {
        return;
    }
    KVARN_ASSERT(conn->request_count > 0);
    conn->request_count--;
    conn->credit_bytes_used -= request->header.payload_bytes;
    frame_end(conn);
    kvd_request_destroy(request);
}

void kvd_conn_update_reading(struct kvd_conn *conn)
{
    const struct kvd_io_ops *ops = conn->service->io->ops;
    uint64_t output_max = conn->service->config->output_max;
    /* Half-way down again before reading goes on, so that it does not flutter. */
    uint64_t bound = conn->is_reading ? output_max : output_max / 2;

    if (conn->is_closing) {
        return;
    }
    bool wants = !conn->is_finishing && conn->reader.held == NULL && !output_is_above(conn, bound);
    if (wants && !conn->is_reading) {
        conn->is_reading = true;
        if (conn->reader.started_ns != 0) {
            /* The pause was ours: the rest of the frame has its whole time from now on. */
            conn->reader.started_ns = ops->now_ns(conn->service->io);
        }
        ops->stream_read_start(conn->stream, &kvd_conn_stream_handler, conn);
    } else if (!wants && conn->is_reading) {
        conn->is_reading = false;
        ops->stream_read_stop(conn->stream);
    }
}

/*
 * The asynchronous client on the caller's uv_loop. The only file of the client that sees uv.h.
 *
 * Life of the connection: IDLE (timer waits for the back-off) -> CONNECTING -> HELLO -> READY; from
 * each of the last three to CLOSING when it fails, and then to IDLE. A request waits in `queued`
 * until READY and credit, then in `sent` until its reply. A request whose frame libuv still writes
 * is not delivered before that write has ended: its payload is the caller's.
 */
#include "kvarn/client_uv.h"

#include <stdlib.h>
#include <string.h>

#include <bsd/sys/queue.h>
#include <uv.h>

#include "client/src/address.h"
#include "client/src/call.h"
#include "client/src/reply.h"
#include "lib/base/assert.h"

#define BACKOFF_MS     50
#define BACKOFF_MS_MAX 2000
#define EXPIRY_TICK_MS 250  /* how late a silent daemon is noticed, at most */
#define SILENCE_MS     1000 /* beyond the deadline, for the daemon's own DEADLINE to arrive */

struct uv_request {
    TAILQ_ENTRY(uv_request) link;
    struct kvarn_uv_client *client; /* borrowed */
    struct kvarn_call *call;        /* owned */
    struct kvarn_reply *reply;      /* owned; NULL until it came */
    kvarn_uv_reply_cb cb;           /* NULL: the client's own Hello */
    void *ctx;                      /* borrowed */
    uv_write_t write;
    uint64_t expires_ms; /* loop time; UINT64_MAX: never */
    int err;
    bool is_writing;
    bool is_ended;
};

TAILQ_HEAD(uv_request_list, uv_request);

enum uv_stage { STAGE_IDLE, STAGE_CONNECTING, STAGE_HELLO, STAGE_READY, STAGE_CLOSING };

struct kvarn_uv_client {
    uv_loop_t *loop; /* borrowed */
    struct kvarn__address address;
    struct kvarn_client_options options; /* name owned */
    kvarn_uv_state_cb state_cb;
    void *ctx; /* borrowed */
    kvarn_uv_close_cb close_cb;
    void *close_ctx; /* borrowed */
    enum uv_stage stage;
    bool is_closed;   /* kvarn_uv_close() was called */
    bool has_stream;  /* `io` is an initialised handle */
    int lost_err;     /* why the connection closes */
    unsigned pending; /* handles and look-ups that still call back */
    uint32_t backoff_ms;
    uint64_t request_id;
    uint64_t in_flight_payload_bytes;
    size_t queued_count, sent_count, ending_count;
    struct uv_request_list queued; /* owned; not handed to libuv */
    struct uv_request_list sent;   /* owned; no reply yet */
    struct kvarn_reply *reply;     /* owned; the one that arrives now */
    struct kvarn_reply *hello;     /* owned; backs `server` */
    struct kvarn_hello_result server;
    uv_timer_t timer;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    uv_connect_t connect;
    uv_getaddrinfo_t lookup;
};

static void client_lost(struct kvarn_uv_client *client, int err);
static void client_flush(struct kvarn_uv_client *client);
static void timer_fired(uv_timer_t *timer);

static struct kvarn_reply *reply_create(void)
{
    struct kvarn_reply *reply = malloc(sizeof *reply);

    if (reply != NULL) {
        kvarn__reply_init(reply);
    }
    return reply;
}

static void reply_destroy(struct kvarn_reply *reply)
{
    if (reply == NULL) {
        return;
    }
    kvarn__reply_reset(reply);
    free(reply);
}

/* libuv's failure as ours; everything but memory is the connection's. */
static int err_of(int uv_err)
{
    return uv_err == UV_ENOMEM ? KVARN_ENOMEM : KVARN_EIO;
}

static void timer_set(struct kvarn_uv_client *client, uint64_t after_ms, uint64_t repeat_ms)
{
    int rc = uv_timer_start(&client->timer, timer_fired, after_ms, repeat_ms);

    KVARN_ASSERT(rc == 0); /* fails only on a closing timer */
}

/* ---- Requests ---- */

static void request_deliver(struct uv_request *request)
{
    struct kvarn_uv_client *client = request->client;

    KVARN_ASSERT(request->is_ended && !request->is_writing);
    client->ending_count--;
    if (request->cb != NULL) {
        request->cb(client, request->err, request->reply, request->ctx);
    }
    reply_destroy(request->reply);
    kvarn_call_destroy(request->call);
    free(request);
}

/* The request is in no list any more; tell its caller, now or when libuv has let go of it. */
static void request_end(struct uv_request *request, int err, struct kvarn_reply *reply)
{
    KVARN_ASSERT(!request->is_ended);
    request->is_ended = true;
    request->err = err;
    request->reply = reply;
    request->client->ending_count++;
    if (!request->is_writing) {
        request_deliver(request);
    }
}

static void request_written(uv_write_t *write, int status)
{
    struct uv_request *request = write->data;
    struct kvarn_uv_client *client = request->client;

    request->is_writing = false;
    if (request->is_ended) {
        request_deliver(request);
    }
    if (status != 0 && status != UV_ECANCELED) {
        client_lost(client, KVARN_EIO);
    }
}

static void sent_remove(struct kvarn_uv_client *client, struct uv_request *request)
{
    TAILQ_REMOVE(&client->sent, request, link);
    client->sent_count--;
    client->in_flight_payload_bytes -= request->call->payload_bytes;
}

/* End all requests of a list that were there when this began; callbacks may submit new ones. */
static void list_end(struct uv_request_list *list, int err)
{
    struct uv_request_list ending = TAILQ_HEAD_INITIALIZER(ending);
    struct uv_request *request;

    TAILQ_CONCAT(&ending, list, link);
    while ((request = TAILQ_FIRST(&ending)) != NULL) {
        TAILQ_REMOVE(&ending, request, link);
        request_end(request, err, NULL);
    }
}

static void sent_end(struct kvarn_uv_client *client, int err)
{
    client->sent_count = 0;
    client->in_flight_payload_bytes = 0;
    list_end(&client->sent, err);
}

static void queued_end(struct kvarn_uv_client *client, int err)
{
    client->queued_count = 0;
    list_end(&client->queued, err);
}

static bool wants_xxh3(const struct kvarn_uv_client *client)
{
    if (client->options.checksum == KVARN_CHECKSUM_AUTO) {
        return client->address.is_tcp;
    }
    return client->options.checksum == KVARN_CHECKSUM_ON;
}

static uv_buf_t buf_of(const void *data, size_t bytes)
{
    /* Frames are bounded by the wire's limits, far below what unsigned int holds per buffer. */
    return uv_buf_init((char *)(uintptr_t)data, (unsigned)bytes);
}

static int request_write(struct kvarn_uv_client *client, struct uv_request *request)
{
    struct kvarn_call *call = request->call;
    uv_buf_t *bufs = calloc(call->span_count + 2, sizeof *bufs);
    unsigned count = 0;
    int rc;

    if (bufs == NULL) {
        return KVARN_ENOMEM;
    }
    kvarn__call_stamp(call, call->request_id, wants_xxh3(client));
    bufs[count++] = buf_of(call->head, call->head_bytes);
    for (size_t i = 0; i < call->span_count; i++) {
        if (call->spans[i].bytes != 0) {
            bufs[count++] = buf_of(call->spans[i].data, call->spans[i].bytes);
        }
    }
    if (call->trailer_bytes != 0) {
        bufs[count++] = buf_of(call->trailer, call->trailer_bytes);
    }
    request->write.data = request;
    /* uv_write() copies the array of buffers, not the bytes. */
    rc = uv_write(&request->write, &client->io.stream, bufs, count, request_written);
    free(bufs);
    if (rc != 0) {
        return err_of(rc);
    }
    request->is_writing = true;
    request->expires_ms = UINT64_MAX;
    if (call->deadline_ms != KVARN_DEADLINE_NONE) {
        request->expires_ms = uv_now(client->loop) + call->deadline_ms + SILENCE_MS;
    }
    TAILQ_INSERT_TAIL(&client->sent, request, link);
    client->sent_count++;
    client->in_flight_payload_bytes += call->payload_bytes;
    return 0;
}

static bool credit_is_left(const struct kvarn_uv_client *client, const struct uv_request *request)
{
    if (client->sent_count == 0) {
        return true;
    }
    return client->sent_count < client->server.credit_requests &&
           client->in_flight_payload_bytes + request->call->payload_bytes <=
               client->server.credit_bytes;
}

/* Send what waits and has credit. */
static void client_flush(struct kvarn_uv_client *client)
{
    struct uv_request *request;

    while (client->stage == STAGE_READY && (request = TAILQ_FIRST(&client->queued)) != NULL &&
           credit_is_left(client, request)) {
        int err;

        TAILQ_REMOVE(&client->queued, request, link);
        client->queued_count--;
        err = request_write(client, request);
        if (err == 0) {
            continue;
        }
        /* Back in its place: the loss of the connection decides over it. */
        TAILQ_INSERT_HEAD(&client->queued, request, link);
        client->queued_count++;
        client_lost(client, err);
    }
    if (client->stage == STAGE_READY && client->sent_count != 0 &&
        !uv_is_active((uv_handle_t *)&client->timer)) {
        timer_set(client, EXPIRY_TICK_MS, EXPIRY_TICK_MS);
    }
}

/* Queued calls that this daemon would never take. */
static void queued_check(struct kvarn_uv_client *client)
{
    struct uv_request_list refused = TAILQ_HEAD_INITIALIZER(refused);
    struct uv_request *request = TAILQ_FIRST(&client->queued);

    while (request != NULL) {
        struct uv_request *next = TAILQ_NEXT(request, link);

        if (request->call->payload_bytes > client->server.payload_bytes_max) {
            TAILQ_REMOVE(&client->queued, request, link);
            client->queued_count--;
            TAILQ_INSERT_TAIL(&refused, request, link);
        }
        request = next;
    }
    list_end(&refused, KVARN_ETOO_LARGE);
}

/* ---- Receiving ---- */

static void hello_done(struct kvarn_uv_client *client, struct kvarn_reply *reply)
{
    int err = kvarn_reply_hello(reply, &client->server);

    if (err != 0) {
        reply_destroy(reply);
        client_lost(client, err);
        return;
    }
    reply_destroy(client->hello);
    client->hello = reply;
    client->stage = STAGE_READY;
    client->backoff_ms = BACKOFF_MS;
    (void)uv_timer_stop(&client->timer);
    if (client->state_cb != NULL) {
        client->state_cb(client, 0, client->ctx);
    }
    if (client->stage != STAGE_READY) {
        return; /* the callback closed us */
    }
    queued_check(client);
    client_flush(client);
}

static void reply_done(struct kvarn_uv_client *client)
{
    struct kvarn_reply *reply = client->reply;
    struct uv_request *request;

    client->reply = NULL;
    TAILQ_FOREACH(request, &client->sent, link)
    {
        if (request->call->request_id == reply->header.request_id) {
            break;
        }
    }
    if (request == NULL) {
        /* An error about a frame that could not be read, or an answer to nothing. */
        int err = reply->status.err != 0 ? reply->status.err : KVARN_EPROTOCOL;

        reply_destroy(reply);
        client_lost(client, err);
        return;
    }
    reply->lse_count = request->call->lse_count;
    sent_remove(client, request);
    if (client->stage == STAGE_HELLO) {
        request_end(request, 0, NULL);
        hello_done(client, reply);
        return;
    }
    request_end(request, 0, reply);
    client_flush(client);
}

static void read_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct kvarn_uv_client *client = handle->data;
    uint8_t *at = NULL;
    size_t room = 0;

    (void)suggested;
    if (client->reply == NULL) {
        client->reply = reply_create();
    }
    if (client->reply != NULL) {
        kvarn__reply_want(client->reply, &at, &room);
    }
    /* A zero buffer makes libuv report UV_ENOBUFS to the reader. */
    *buf = uv_buf_init((char *)at, room > INT32_MAX ? INT32_MAX : (unsigned)room);
}

static void read_done(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
    struct kvarn_uv_client *client = stream->data;
    int err;

    (void)buf;
    if (got == 0 || client->stage == STAGE_CLOSING) {
        return;
    }
    if (got < 0) {
        client_lost(client, got == UV_ENOBUFS ? KVARN_ENOMEM : KVARN_EIO);
        return;
    }
    err = kvarn__reply_advance(client->reply, (size_t)got);
    if (err != 0) {
        client_lost(client, err);
    } else if (client->reply->stage == KVARN__REPLY_COMPLETE) {
        reply_done(client);
    }
}

/* ---- The connection ---- */

static void client_free(struct kvarn_uv_client *client)
{
    kvarn_uv_close_cb close_cb = client->close_cb;
    void *close_ctx = client->close_ctx;

    KVARN_ASSERT(client->ending_count == 0);
    reply_destroy(client->reply);
    reply_destroy(client->hello);
    free((void *)(uintptr_t)client->options.name);
    free(client);
    if (close_cb != NULL) {
        close_cb(close_ctx);
    }
}

/* A handle or look-up has called back for the last time. */
static void pending_done(struct kvarn_uv_client *client)
{
    KVARN_ASSERT(client->pending > 0);
    client->pending--;
    if (!client->is_closed || client->pending != 0) {
        return;
    }
    sent_end(client, KVARN_ECANCELLED);
    queued_end(client, KVARN_ECANCELLED);
    client_free(client);
}

static void timer_closed(uv_handle_t *handle)
{
    pending_done(handle->data);
}

/* The connection is gone for good: what was sent is lost, and after a while we try again. */
static void client_rest(struct kvarn_uv_client *client)
{
    client->stage = STAGE_IDLE;
    reply_destroy(client->reply);
    client->reply = NULL;
    if (client->is_closed || client->options.reconnect_off) {
        return;
    }
    timer_set(client, client->backoff_ms, 0);
    client->backoff_ms *= 2;
    if (client->backoff_ms > BACKOFF_MS_MAX) {
        client->backoff_ms = BACKOFF_MS_MAX;
    }
}

/* libuv has cancelled all writes before this. */
static void stream_closed(uv_handle_t *handle)
{
    struct kvarn_uv_client *client = handle->data;

    client->has_stream = false;
    sent_end(client, client->is_closed ? KVARN_ECANCELLED : KVARN_EIO);
    if (client->options.reconnect_off && !client->is_closed) {
        queued_end(client, KVARN_EIO);
    }
    if (client->state_cb != NULL && !client->is_closed) {
        client->state_cb(client, client->lost_err, client->ctx);
    }
    client_rest(client);
    pending_done(client);
}

/* The connection failed. Callers hear of it when the handle has closed, never in here. */
static void client_lost(struct kvarn_uv_client *client, int err)
{
    if (!client->has_stream || client->stage == STAGE_CLOSING) {
        return;
    }
    client->stage = STAGE_CLOSING;
    client->lost_err = err;
    (void)uv_timer_stop(&client->timer);
    uv_close(&client->io.handle, stream_closed);
}

static void hello_send(struct kvarn_uv_client *client)
{
    const struct kvarn_hello_args args = {client->options.name, wants_xxh3(client)};
    struct uv_request *request = calloc(1, sizeof *request);
    int err = KVARN_ENOMEM;

    client->stage = STAGE_HELLO;
    if (request != NULL) {
        err = kvarn_call_hello(&args, 0, &request->call);
    }
    if (err == 0) {
        request->client = client;
        request->call->request_id = ++client->request_id;
        err = request_write(client, request);
    }
    if (err == 0) {
        return;
    }
    if (request != NULL) {
        kvarn_call_destroy(request->call);
    }
    free(request);
    client_lost(client, err);
}

static void connect_done(uv_connect_t *connect, int status)
{
    struct kvarn_uv_client *client = connect->data;
    int rc = status;

    if (client->stage != STAGE_CONNECTING) {
        return; /* cancelled by a close */
    }
    if (rc == 0) {
        rc = uv_read_start(&client->io.stream, read_alloc, read_done);
    }
    if (rc != 0) {
        client_lost(client, err_of(rc));
        return;
    }
    if (client->address.is_tcp) {
        (void)uv_tcp_nodelay(&client->io.tcp, 1); /* slower is all that failing costs */
    }
    hello_send(client);
}

/* The stream handle is there from now on; a failure goes through client_lost(). */
static int stream_init(struct kvarn_uv_client *client)
{
    int rc = client->address.is_tcp ? uv_tcp_init(client->loop, &client->io.tcp)
                                    : uv_pipe_init(client->loop, &client->io.pipe, 0);

    if (rc != 0) {
        return rc;
    }
    client->io.handle.data = client;
    client->has_stream = true;
    client->pending++;
    client->connect.data = client;
    return 0;
}

static void lookup_done(uv_getaddrinfo_t *lookup, int status, struct addrinfo *list)
{
    struct kvarn_uv_client *client = lookup->data;
    int rc = status;

    if (rc == 0 && !client->is_closed) {
        rc = stream_init(client);
    }
    if (client->has_stream) {
        timer_set(client, client->options.connect_timeout_ms, 0);
        rc = uv_tcp_connect(&client->connect, &client->io.tcp, list->ai_addr, connect_done);
        if (rc != 0) {
            client_lost(client, err_of(rc));
        }
    } else {
        if (client->state_cb != NULL && !client->is_closed) {
            client->state_cb(client, err_of(rc), client->ctx);
        }
        client_rest(client);
    }
    uv_freeaddrinfo(list);
    pending_done(client);
}

static void client_begin(struct kvarn_uv_client *client)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    int rc;

    KVARN_ASSERT(client->stage == STAGE_IDLE);
    client->stage = STAGE_CONNECTING;
    if (client->address.is_tcp) {
        client->lookup.data = client;
        rc = uv_getaddrinfo(client->loop, &client->lookup, lookup_done, client->address.host,
            client->address.port, &hints);
        if (rc == 0) {
            client->pending++;
        } else {
            client_rest(client);
        }
        return;
    }
    rc = stream_init(client);
    if (rc != 0) {
        client_rest(client);
        return;
    }
    uv_pipe_connect(&client->connect, &client->io.pipe, client->address.path, connect_done);
    timer_set(client, client->options.connect_timeout_ms, 0);
}

static void timer_fired(uv_timer_t *timer)
{
    struct kvarn_uv_client *client = timer->data;
    const struct uv_request *request;

    if (client->stage == STAGE_IDLE) {
        client_begin(client);
        return;
    }
    if (client->stage != STAGE_READY) {
        client_lost(client, KVARN_EIO); /* the daemon did not get to Hello in time */
        return;
    }
    TAILQ_FOREACH(request, &client->sent, link)
    {
        if (request->expires_ms <= uv_now(client->loop)) {
            client_lost(client, KVARN_EIO);
            return;
        }
    }
    if (client->sent_count == 0) {
        (void)uv_timer_stop(timer);
    }
}

/* ---- What callers call ---- */

int kvarn_uv_connect(struct uv_loop_s *loop, const char *address,
    const struct kvarn_client_options *options, kvarn_uv_state_cb state_cb, void *ctx,
    struct kvarn_uv_client **ret_client)
{
    struct kvarn_uv_client *client = calloc(1, sizeof *client);
    int err = KVARN_ENOMEM;

    if (client == NULL) {
        return KVARN_ENOMEM;
    }
    client->loop = loop;
    client->state_cb = state_cb;
    client->ctx = ctx;
    client->backoff_ms = BACKOFF_MS;
    TAILQ_INIT(&client->queued);
    TAILQ_INIT(&client->sent);
    if (options != NULL) {
        client->options = *options;
    } else {
        kvarn_client_options_init(&client->options);
    }
    client->options.name =
        strdup(client->options.name != NULL ? client->options.name : "libkvarn_client");
    if (client->options.name == NULL) {
        goto fail;
    }
    err = kvarn__address_parse(address, &client->address);
    if (err != 0) {
        goto fail;
    }
    (void)uv_timer_init(loop, &client->timer); /* cannot fail: it only fills in the struct */
    client->timer.data = client;
    client->pending = 1;
    timer_set(client, 0, 0);
    *ret_client = client;
    return 0;
fail:
    free((void *)(uintptr_t)client->options.name);
    free(client);
    return err;
}

int kvarn_uv_submit(struct kvarn_uv_client *client, struct kvarn_call *call, kvarn_uv_reply_cb cb,
    void *ctx, uint64_t *ret_request_id)
{
    struct uv_request *request;

    KVARN_ASSERT(cb != NULL);
    if (client->is_closed) {
        return KVARN_ECANCELLED;
    }
    if (client->options.reconnect_off && client->stage != STAGE_READY && client->request_id != 0) {
        return KVARN_EIO;
    }
    if (client->stage == STAGE_READY && call->payload_bytes > client->server.payload_bytes_max) {
        return KVARN_ETOO_LARGE;
    }
    request = calloc(1, sizeof *request);
    if (request == NULL) {
        return KVARN_ENOMEM;
    }
    request->client = client;
    request->call = call;
    request->cb = cb;
    request->ctx = ctx;
    call->request_id = ++client->request_id;
    if (ret_request_id != NULL) {
        *ret_request_id = call->request_id;
    }
    TAILQ_INSERT_TAIL(&client->queued, request, link);
    client->queued_count++;
    client_flush(client);
    return 0;
}

const struct kvarn_hello_result *kvarn_uv_server(const struct kvarn_uv_client *client)
{
    return client->stage == STAGE_READY ? &client->server : NULL;
}

size_t kvarn_uv_in_flight_count(const struct kvarn_uv_client *client)
{
    return client->queued_count + client->sent_count + client->ending_count;
}

void kvarn_uv_close(struct kvarn_uv_client *client, kvarn_uv_close_cb cb, void *ctx)
{
    KVARN_ASSERT(!client->is_closed);
    client->is_closed = true;
    client->close_cb = cb;
    client->close_ctx = ctx;
    uv_close((uv_handle_t *)&client->timer, timer_closed);
    if (client->has_stream && client->stage != STAGE_CLOSING) {
        client->stage = STAGE_CLOSING;
        uv_close(&client->io.handle, stream_closed);
    } else if (client->stage == STAGE_CONNECTING) {
        (void)uv_cancel((uv_req_t *)&client->lookup); /* too late is as good: it calls back */
    }
}

/*
 * The blocking client: one connection, one call at a time, restored when it breaks.
 */
#include "client/src/client.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/src/exchange.h"
#include "client/src/shape_copy.h"
#include "client/src/socket.h"
#include "lib/base/assert.h"

#define ATTEMPTS_MAX           3 /* sends of one call; a daemon that dies thrice on it will again */
#define SILENCE_MS             1000 /* beyond the deadline: the daemon's own DEADLINE may come */
#define RECONNECT_PAUSE_MS     50   /* first pause between attempts, doubled up to the maximum */
#define RECONNECT_PAUSE_MS_MAX 1000
#define RETRY_PAUSE_MS         10 /* RETRY_LATER without a hint */
#define IOV_MAX_COUNT          64 /* spans handed to one sendmsg() */

void kvarn_client_options_init(struct kvarn_client_options *options)
{
    *options = (struct kvarn_client_options){
        .connect_timeout_ms = 5000,
        .deadline_ms = 60000,
        .checksum = KVARN_CHECKSUM_AUTO,
    };
}

int kvarn__client_fail(
    struct kvarn_client *client, enum kvarn_frame_type type, int err, const char *text)
{
    KVARN_ASSERT(err < 0);
    if (text == NULL) {
        text = kvarn_err_text(err);
    }
    snprintf(client->error, sizeof client->error, "%s: %s: %s", kvarn_frame_type_label(type),
        kvarn_err_name(err), text);
    return err;
}

/* A failure that is not the daemon's word: the status holds no more than the error. */
static int fail_local(
    struct kvarn_client *client, enum kvarn_frame_type type, int err, const char *text)
{
    client->status = (struct kvarn_status){.err = err, .text = kvarn_err_text(err)};
    return kvarn__client_fail(client, type, err, text);
}

struct client_session *kvarn__client_session_of(const struct kvarn_session *session)
{
    /* pub is the first field; the client owns the object that the caller sees as const. */
    return (struct client_session *)(uintptr_t)session;
}

static void client_disconnect(struct kvarn_client *client)
{
    if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = -1;
}

static bool wants_xxh3(const struct kvarn_client *client)
{
    if (client->options.checksum == KVARN_CHECKSUM_AUTO) {
        return client->address.is_tcp;
    }
    return client->options.checksum == KVARN_CHECKSUM_ON;
}

/* Put the bytes of a frame from `offset` on into at most IOV_MAX_COUNT pieces. */
static int frame_slice(const struct kvarn_call *call, uint64_t offset, struct iovec *iov)
{
    int count = 0;

    for (size_t i = 0; i < call->span_count + 2 && count < IOV_MAX_COUNT; i++) {
        const void *data = call->head;
        size_t bytes = call->head_bytes;

        if (i > 0 && i <= call->span_count) {
            data = call->spans[i - 1].data;
            bytes = call->spans[i - 1].bytes;
        } else if (i > 0) {
            data = call->trailer;
            bytes = call->trailer_bytes;
        }
        if (offset >= bytes) {
            offset -= bytes;
            continue;
        }
        /* sendmsg() reads only, but iov_base is not const. */
        iov[count].iov_base = (void *)((uintptr_t)data + (uintptr_t)offset);
        iov[count].iov_len = bytes - (size_t)offset;
        offset = 0;
        count++;
    }
    return count;
}

/* Send the whole frame; *ret_begun says whether any byte left. */
static int frame_send(
    struct kvarn_client *client, const struct kvarn_call *call, uint64_t until_ms, bool *ret_begun)
{
    uint64_t total = kvarn__call_frame_bytes(call);
    uint64_t offset = 0;

    while (offset < total) {
        struct iovec iov[IOV_MAX_COUNT];
        int count = frame_slice(call, offset, iov);
        size_t sent = 0;
        int err;

        KVARN_ASSERT(count > 0);
        err = kvarn__socket_send(client->fd, iov, count, until_ms, &sent);
        if (err != 0) {
            return err;
        }
        offset += sent;
        *ret_begun = true;
    }
    return 0;
}

static int frame_receive(struct kvarn_client *client, struct kvarn_reply *reply, uint64_t until_ms)
{
    while (reply->stage != KVARN__REPLY_COMPLETE) {
        uint8_t *at;
        size_t room;
        size_t got = 0;
        int err;

        kvarn__reply_want(reply, &at, &room);
        err = kvarn__socket_receive(client->fd, at, room, until_ms, &got);
        if (err == 0) {
            err = kvarn__reply_advance(reply, got);
        }
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

/*
 * Send a call and receive its reply. Returns 0; KVARN_EIO when the connection is no more; another
 * error when what came is no reply. *ret_begun says whether the daemon may have seen the request.
 */
static int frame_exchange(struct kvarn_client *client, struct kvarn_call *call,
    struct kvarn_reply *reply, uint64_t until_ms, bool *ret_begun)
{
    uint64_t patience_ms =
        until_ms > KVARN__TIME_NEVER - SILENCE_MS ? until_ms : until_ms + SILENCE_MS;
    int send_err;
    int err;

    kvarn__reply_reset(reply);
    reply->lse_count = call->lse_count;
    kvarn__call_stamp(call, ++client->request_id, wants_xxh3(client));
    send_err = frame_send(client, call, patience_ms, ret_begun);
    if (send_err != 0 && !*ret_begun) {
        return KVARN_EIO;
    }
    /* A daemon that refuses a frame answers and closes: its answer may be there all the same. */
    err = frame_receive(client, reply, patience_ms);
    if (err == KVARN_EDEADLINE || (err != 0 && send_err != 0)) {
        return KVARN_EIO;
    }
    if (err != 0) {
        return err;
    }
    if (reply->header.request_id == call->request_id) {
        return 0;
    }
    if (reply->header.type == KVARN_FRAME_TYPE_ERROR) {
        return 0; /* about a frame that the daemon could not read */
    }
    return KVARN_EPROTOCOL;
}

/* Connect once and say Hello. */
static int client_connect_once(struct kvarn_client *client, uint64_t until_ms)
{
    struct kvarn_hello_args args = {client->options.name, wants_xxh3(client)};
    struct kvarn_call *call = NULL;
    bool is_begun = false;
    int err;

    KVARN_ASSERT(client->fd < 0);
    errno = 0;
    err = kvarn__socket_connect(&client->address, until_ms, &client->fd);
    if (err != 0) {
        const char *why = err == KVARN_EDEADLINE ? "timed out" : strerror(errno);

        client->fd = -1;
        return fail_local(client, KVARN_FRAME_HELLO, KVARN_EIO, why);
    }
    err = kvarn_call_hello(&args, 0, &call);
    if (err == 0) {
        err = frame_exchange(client, call, &client->hello, until_ms, &is_begun);
    }
    kvarn_call_destroy(call);
    if (err != 0) {
        client_disconnect(client);
        return fail_local(client, KVARN_FRAME_HELLO, err,
            err == KVARN_EIO ? "the connection was closed before Hello was answered" : NULL);
    }
    err = kvarn_reply_hello(&client->hello, &client->server);
    if (err != 0) {
        client_disconnect(client);
        client->status = client->hello.status;
        return kvarn__client_fail(client, KVARN_FRAME_HELLO, err,
            client->hello.status.err != 0 ? client->hello.status.text : NULL);
    }
    client->serial++;
    return 0;
}

/* Be connected: at once, or again with pauses until the connect timeout or `until_ms`. */
static int client_connected(struct kvarn_client *client, uint64_t until_ms)
{
    uint64_t end_ms = kvarn__time_in_ms(client->options.connect_timeout_ms);
    uint32_t pause_ms = RECONNECT_PAUSE_MS;

    if (client->fd >= 0) {
        return 0;
    }
    if (client->options.reconnect_off) {
        return fail_local(client, KVARN_FRAME_HELLO, KVARN_EIO, "the connection is closed");
    }
    if (end_ms > until_ms) {
        end_ms = until_ms;
    }
    for (;;) {
        int err = client_connect_once(client, end_ms);

        if (err == 0 || err != KVARN_EIO) {
            return err;
        }
        if (kvarn__time_now_ms() + pause_ms >= end_ms) {
            return err;
        }
        kvarn__time_sleep(pause_ms, end_ms);
        pause_ms = pause_ms * 2 > RECONNECT_PAUSE_MS_MAX ? RECONNECT_PAUSE_MS_MAX : pause_ms * 2;
    }
}

/* Open a session again on the present connection. */
static int session_reopen(
    struct kvarn_client *client, struct client_session *session, uint64_t until_ms)
{
    struct kvarn_open_session_args args = {.name = session->name, .mode = KVARN_OPEN_EXISTING};
    struct kvarn_open_session_result opened;
    struct kvarn_call *call = NULL;
    bool is_begun = false;
    int err;

    if (session->name == NULL) {
        return fail_local(client, KVARN_FRAME_OPEN_SESSION, KVARN_ENOT_FOUND,
            "the session has no name and ended with its connection");
    }
    err = kvarn_call_open_session(&args, 0, &call);
    if (err != 0) {
        return fail_local(client, KVARN_FRAME_OPEN_SESSION, err, NULL);
    }
    err = frame_exchange(client, call, &client->reply, until_ms, &is_begun);
    kvarn_call_destroy(call);
    if (err != 0) {
        client_disconnect(client);
        return fail_local(client, KVARN_FRAME_OPEN_SESSION, err, NULL);
    }
    err = kvarn_reply_open_session(&client->reply, &opened);
    if (err != 0) {
        client->status = client->reply.status;
        return kvarn__client_fail(client, KVARN_FRAME_OPEN_SESSION, err, client->status.text);
    }
    session->pub.handle = opened.handle;
    session->serial = client->serial;
    session->is_stale = opened.epoch != session->pub.epoch;
    session->epoch_now = opened.epoch;
    if (!session->is_stale) {
        return 0;
    }
    fail_local(client, KVARN_FRAME_OPEN_SESSION, KVARN_ESTALE_EPOCH,
        "the session changed while the connection was down");
    client->status.layer_lengths = opened.layer_lengths;
    client->status.layer_count = opened.layer_count;
    client->status.has_epoch = true;
    client->status.epoch = opened.epoch;
    return KVARN_ESTALE_EPOCH;
}

static int session_ready(
    struct kvarn_client *client, const struct kvarn_session *pub, uint64_t until_ms)
{
    struct client_session *session = kvarn__client_session_of(pub);

    if (session->serial != client->serial) {
        return session_reopen(client, session, until_ms);
    }
    if (!session->is_stale) {
        return 0;
    }
    fail_local(client, KVARN_FRAME_OPEN_SESSION, KVARN_ESTALE_EPOCH,
        "the session changed while the connection was down");
    client->status.has_epoch = true;
    client->status.epoch = session->epoch_now;
    return KVARN_ESTALE_EPOCH;
}

/* All sessions that the call names are open on the present connection. */
static int sessions_ready(
    struct kvarn_client *client, const struct client_exchange *exchange, uint64_t until_ms)
{
    const unsigned char *item = exchange->items;
    int err = 0;

    if (exchange->session != NULL) {
        return session_ready(client, exchange->session, until_ms);
    }
    for (size_t i = 0; i < exchange->item_count && err == 0; i++) {
        const struct kvarn_session *session;

        memcpy(&session, item + i * exchange->item_bytes, sizeof session);
        if (session == NULL) {
            return fail_local(client, exchange->type, KVARN_EINVALID, "an item has no session");
        }
        err = session_ready(client, session, until_ms);
    }
    return err;
}

/* Build, send, receive and parse once. *ret_begun on failure: the daemon may have the request. */
static int client_try(struct kvarn_client *client, const struct client_exchange *exchange,
    uint64_t until_ms, bool *ret_begun)
{
    struct kvarn_call *call = NULL;
    uint32_t left_ms = KVARN_DEADLINE_NONE;
    int err;

    if (until_ms != KVARN__TIME_NEVER) {
        uint64_t now = kvarn__time_now_ms();

        left_ms = until_ms > now ? (uint32_t)(until_ms - now) : 1;
    }
    err = kvarn__exchange_build(exchange->type, exchange->args, left_ms, &call);
    if (err != 0) {
        return fail_local(client, exchange->type, err, NULL);
    }
    if (call->payload_bytes > client->server.payload_bytes_max) {
        char text[128];

        snprintf(text, sizeof text, "payload of %llu bytes; the daemon takes %llu",
            (unsigned long long)call->payload_bytes,
            (unsigned long long)client->server.payload_bytes_max);
        kvarn_call_destroy(call);
        return fail_local(client, exchange->type, KVARN_ETOO_LARGE, text);
    }
    err = frame_exchange(client, call, &client->reply, until_ms, ret_begun);
    kvarn_call_destroy(call);
    if (err != 0) {
        client_disconnect(client);
        return fail_local(client, exchange->type, err,
            err == KVARN_EIO ? "the connection broke before the reply" : NULL);
    }
    *ret_begun = false;
    err = kvarn__exchange_parse(exchange->type, &client->reply, exchange->result);
    client->status = client->reply.status;
    if (client->reply.header.type == KVARN_FRAME_TYPE_ERROR) {
        client_disconnect(client); /* the daemon closes after it */
    }
    if (err != 0) {
        kvarn__client_fail(
            client, exchange->type, err, client->status.err == err ? client->status.text : NULL);
    }
    return err;
}

int kvarn__client_perform(struct kvarn_client *client, const struct client_exchange *exchange)
{
    uint64_t until_ms = kvarn__time_in_ms(client->options.deadline_ms);
    uint64_t serial_first = client->serial;
    int attempts = 0;

    client->was_begun = false;
    client->error[0] = '\0';
    client->status = (struct kvarn_status){.text = ""};
    for (;;) {
        uint32_t pause_ms;
        int err = client_connected(client, until_ms);

        if (err != 0) {
            return err;
        }
        if (exchange->is_bound && client->serial != serial_first) {
            return fail_local(
                client, exchange->type, KVARN_EIO, "the connection broke before the request");
        }
        client->was_begun = false;
        err = sessions_ready(client, exchange, until_ms);
        if (err == 0) {
            err = client_try(client, exchange, until_ms, &client->was_begun);
        }
        if (err == 0) {
            client->error[0] = '\0'; /* of an attempt before */
            return 0;
        }
        if (client->fd < 0 && err == KVARN_EIO) {
            bool may_repeat = !client->was_begun || exchange->is_repeatable;

            attempts++;
            if (!may_repeat || attempts >= ATTEMPTS_MAX || client->options.reconnect_off ||
                kvarn__time_now_ms() >= until_ms) {
                return err;
            }
            continue;
        }
        if (err != KVARN_ERETRY_LATER || client->options.retry_later_fails) {
            return err;
        }
        pause_ms =
            client->status.retry_after_ms != 0 ? client->status.retry_after_ms : RETRY_PAUSE_MS;
        if (until_ms != KVARN__TIME_NEVER && kvarn__time_now_ms() + pause_ms >= until_ms) {
            return err;
        }
        kvarn__time_sleep(pause_ms, until_ms);
    }
}

int kvarn_client_connect(const char *address, const struct kvarn_client_options *options,
    struct kvarn_client **ret_client, char *error_text)
{
    struct kvarn_client *client = calloc(1, sizeof *client);
    int err = KVARN_ENOMEM;

    if (client == NULL) {
        goto fail;
    }
    client->fd = -1;
    TAILQ_INIT(&client->shapes);
    TAILQ_INIT(&client->sessions);
    kvarn__reply_init(&client->hello);
    kvarn__reply_init(&client->reply);
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
        fail_local(client, KVARN_FRAME_HELLO, err, "an address is unix:PATH or tcp:HOST:PORT");
        goto fail;
    }
    err = client_connect_once(client, kvarn__time_in_ms(client->options.connect_timeout_ms));
    if (err != 0) {
        goto fail;
    }
    client->status = (struct kvarn_status){.text = ""};
    *ret_client = client;
    return 0;
fail:
    if (error_text != NULL) {
        snprintf(error_text, KVARN_CLIENT_ERROR_MAX, "%s",
            client != NULL && client->error[0] != '\0' ? client->error : kvarn_err_text(err));
    }
    kvarn_client_destroy(client);
    return err;
}

void kvarn_client_destroy(struct kvarn_client *client)
{
    struct client_session *session;
    struct client_shape *shape;

    if (client == NULL) {
        return;
    }
    client_disconnect(client);
    while ((session = TAILQ_FIRST(&client->sessions)) != NULL) {
        TAILQ_REMOVE(&client->sessions, session, link);
        free(session->name);
        free(session);
    }
    while ((shape = TAILQ_FIRST(&client->shapes)) != NULL) {
        TAILQ_REMOVE(&client->shapes, shape, link);
        kvarn__shape_copy_fini(&shape->shape);
        free(shape);
    }
    kvarn__reply_reset(&client->hello);
    kvarn__reply_reset(&client->reply);
    free((void *)(uintptr_t)client->options.name);
    free(client);
}

const char *kvarn_client_error(const struct kvarn_client *client)
{
    return client->error;
}

const struct kvarn_status *kvarn_client_status(const struct kvarn_client *client)
{
    return &client->status;
}

const struct kvarn_hello_result *kvarn_client_server(const struct kvarn_client *client)
{
    return &client->server;
}

void kvarn_client_set_deadline(struct kvarn_client *client, uint32_t deadline_ms)
{
    client->options.deadline_ms = deadline_ms;
}

uint64_t kvarn_client_request_id(const struct kvarn_client *client)
{
    return client->request_id;
}

uint64_t kvarn_client_reconnect_count(const struct kvarn_client *client)
{
    return client->serial - 1;
}

/* A scripted daemon for the client's tests. */
#include "tests/unit/client/fake_daemon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvarnd.pb-c.h"
#include "lib/base/assert.h"

static bool read_all(int fd, void *to, size_t bytes)
{
    uint8_t *at = to;

    while (bytes > 0) {
        ssize_t got = read(fd, at, bytes);

        if (got <= 0) {
            return false;
        }
        at += got;
        bytes -= (size_t)got;
    }
    return true;
}

static void write_all(int fd, const void *from, size_t bytes)
{
    const uint8_t *at = from;

    while (bytes > 0) {
        ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);

        if (sent <= 0) {
            return; /* the client went away: its test says whether it may */
        }
        at += sent;
        bytes -= (size_t)sent;
    }
}

static bool frame_read(struct fake_daemon *fake, struct fake_frame *frame)
{
    uint8_t head[KVARN_FRAME_HEADER_BYTES];
    uint8_t trailer[KVARN_FRAME_TRAILER_BYTES];

    if (!read_all(fake->fd, head, sizeof head) || kvarn_frame_decode(head, &frame->header) != 0) {
        return false;
    }
    frame->message = malloc(frame->header.message_bytes + 1);
    frame->payload = malloc((size_t)frame->header.payload_bytes + 1);
    KVARN_ASSERT(frame->message != NULL && frame->payload != NULL);
    if (!read_all(fake->fd, frame->message, frame->header.message_bytes) ||
        !read_all(fake->fd, frame->payload, (size_t)frame->header.payload_bytes)) {
        return false;
    }
    return (frame->header.flags & KVARN_FRAME_PAYLOAD_XXH3) == 0 ||
           read_all(fake->fd, trailer, sizeof trailer);
}

static void connection_serve(struct fake_daemon *fake, unsigned connection_idx)
{
    for (;;) {
        struct fake_frame *frame = &fake->frames[fake->frame_count];

        KVARN_ASSERT(fake->frame_count + 1 < FAKE_FRAMES_MAX);
        free(frame->message); /* of a frame that did not come whole */
        free(frame->payload);
        memset(frame, 0, sizeof *frame);
        frame->connection_idx = connection_idx;
        if (!frame_read(fake, frame)) {
            return;
        }
        fake->frame_count++;
        if (!fake->script(fake, frame)) {
            return;
        }
    }
}

static void *daemon_run(void *arg)
{
    struct fake_daemon *fake = arg;

    for (unsigned idx = 0;; idx++) {
        fake->fd = accept(fake->listen_fd, NULL, NULL);
        if (fake->fd < 0) {
            return NULL;
        }
        connection_serve(fake, idx);
        close(fake->fd);
    }
}

void fake_daemon_start(struct fake_daemon *fake, fake_script_cb script, void *ctx)
{
    union {
        struct sockaddr sa;
        struct sockaddr_un un;
    } u = {.un = {.sun_family = AF_UNIX}};

    memset(fake, 0, sizeof *fake);
    fake->script = script;
    fake->ctx = ctx;
    strcpy(fake->directory, "/tmp/kvarn-fake-XXXXXX");
    KVARN_ASSERT(mkdtemp(fake->directory) != NULL);
    snprintf(fake->path, sizeof fake->path, "%s/s", fake->directory);
    snprintf(fake->address, sizeof fake->address, "unix:%s", fake->path);
    memcpy(u.un.sun_path, fake->path, strlen(fake->path) + 1);
    fake->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    KVARN_ASSERT(fake->listen_fd >= 0);
    KVARN_ASSERT(bind(fake->listen_fd, &u.sa, sizeof u.un) == 0);
    KVARN_ASSERT(listen(fake->listen_fd, 8) == 0);
    KVARN_ASSERT(pthread_create(&fake->thread, NULL, daemon_run, fake) == 0);
}

void fake_daemon_stop(struct fake_daemon *fake)
{
    (void)shutdown(fake->listen_fd, SHUT_RDWR); /* wakes accept() */
    KVARN_ASSERT(pthread_join(fake->thread, NULL) == 0);
    close(fake->listen_fd);
}

void fake_daemon_fini(struct fake_daemon *fake)
{
    for (size_t i = 0; i < FAKE_FRAMES_MAX; i++) {
        free(fake->frames[i].message);
        free(fake->frames[i].payload);
    }
    unlink(fake->path);
    rmdir(fake->directory);
}

void fake_reply(struct fake_daemon *fake, const struct fake_frame *to,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes)
{
    uint8_t bytes[4096];
    size_t message_bytes = protobuf_c_message_get_packed_size(message);
    struct kvarn_frame_header header = {
        .version = KVARN_FRAME_VERSION,
        .type = to->header.type,
        .flags = KVARN_FRAME_REPLY,
        .message_bytes = (uint32_t)message_bytes,
        .request_id = to->header.request_id,
        .payload_bytes = payload_bytes,
    };

    KVARN_ASSERT(message_bytes <= sizeof bytes - KVARN_FRAME_HEADER_BYTES);
    kvarn_frame_encode(&header, bytes);
    protobuf_c_message_pack(message, bytes + KVARN_FRAME_HEADER_BYTES);
    write_all(fake->fd, bytes, KVARN_FRAME_HEADER_BYTES + message_bytes);
    write_all(fake->fd, payload, payload_bytes);
}

bool fake_reply_usual(struct fake_daemon *fake, const struct fake_frame *frame)
{
    uint8_t fingerprint[16] = {1, 2, 3};
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    Kvarnd__HelloReply hello = KVARND__HELLO_REPLY__INIT;
    Kvarnd__PingReply ping = KVARND__PING_REPLY__INIT;
    Kvarnd__RegisterShapeReply shape = KVARND__REGISTER_SHAPE_REPLY__INIT;

    switch (frame->header.type) {
    case KVARN_FRAME_HELLO:
        hello.status = &ok;
        hello.has_payload_bytes_max = hello.has_credit_bytes = hello.has_credit_requests = 1;
        hello.payload_bytes_max = hello.credit_bytes = 1 << 20;
        hello.credit_requests = 4;
        fake_reply(fake, frame, &hello.base, NULL, 0);
        return true;
    case KVARN_FRAME_PING:
        ping.status = &ok;
        ping.has_uptime_ms = 1;
        ping.uptime_ms = 7;
        fake_reply(fake, frame, &ping.base, NULL, 0);
        return true;
    case KVARN_FRAME_REGISTER_SHAPE:
        shape.status = &ok;
        shape.has_shape_id = shape.has_fingerprint = 1;
        /* Another run of the daemon gives another id. */
        shape.shape_id = 100 + frame->connection_idx;
        shape.fingerprint.data = fingerprint;
        shape.fingerprint.len = sizeof fingerprint;
        fake_reply(fake, frame, &shape.base, NULL, 0);
        return true;
    default:
        return false;
    }
}

/*
 * A scripted daemon for the client's tests: a thread behind a unix socket that reads whole frames,
 * keeps them, and lets a script answer each or drop the connection.
 */
#ifndef KVARN_TESTS_FAKE_DAEMON_H
#define KVARN_TESTS_FAKE_DAEMON_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/frame.h"

#define FAKE_FRAMES_MAX 64

struct fake_frame {
    unsigned connection_idx;
    struct kvarn_frame_header header;
    uint8_t *message; /* owned */
    uint8_t *payload; /* owned */
};

struct fake_daemon;

/* Runs on the daemon's thread for each frame. True: keep the connection; false: drop it. */
typedef bool (*fake_script_cb)(struct fake_daemon *fake, const struct fake_frame *frame);

struct fake_daemon {
    char directory[64];
    char path[96];
    char address[112];
    fake_script_cb script;
    void *ctx; /* borrowed; the script's */
    int listen_fd;
    int fd; /* of the connection being served */
    pthread_t thread;
    struct fake_frame frames[FAKE_FRAMES_MAX]; /* read after fake_daemon_stop() */
    size_t frame_count;
};

void fake_daemon_start(struct fake_daemon *fake, fake_script_cb script, void *ctx);

/* Ends the thread; the connection must have ended or end by itself. Frames stay readable. */
void fake_daemon_stop(struct fake_daemon *fake);

/* Free the frames and the socket's directory. */
void fake_daemon_fini(struct fake_daemon *fake);

/* From a script: answer a frame. */
void fake_reply(struct fake_daemon *fake, const struct fake_frame *to,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes);

/* From a script: the usual answer to Hello, Ping, RegisterShape; false for other calls. */
bool fake_reply_usual(struct fake_daemon *fake, const struct fake_frame *frame);

#endif

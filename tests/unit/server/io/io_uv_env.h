/*
 * What tests of server/io/io_uv.c share: a real loop, a near end that echoes, and a far end that is
 * a plain non-blocking socket. A repeating timer serves the far end, so one thread plays both
 * sides.
 */
#ifndef KVD_TESTS_IO_UV_ENV_H
#define KVD_TESTS_IO_UV_ENV_H

#include <stdbool.h>
#include <stddef.h>

#include "server/io/io.h"

#define ECHO_BYTES 4096

struct io_env {
    struct kvd_io *io;
    const struct kvd_io_ops *ops;
    char folder[32];
    char path[64];
    struct kvd_listener *listener;
    /* The far end. */
    struct kvd_timer *step_timer;
    bool (*step)(struct io_env *env); /* returns true when the test is over */
    unsigned steps;
    int client;
    /* The near end. */
    struct kvd_stream *stream;
    struct kvd_peer peer;
    char room[ECHO_BYTES];
    size_t echoed_bytes;
    unsigned accepts, reads, ends, writes, closes, fired;
    int write_err, read_err;
    bool is_inside_write, is_echo;
    char order[32]; /* a letter for each callback */
};

/* Setup and teardown of cmocka: *state is a struct io_env with its io, on a folder of its own. */
int io_env_setup(void **state);
int io_env_teardown(void **state);

/* Run the loop, calling `step` every millisecond, until it says true. */
void io_env_run_until(struct io_env *env, bool (*step)(struct io_env *env));

/* Near end: accepts one stream and sends back what it reads, while `is_echo`. */
extern const struct kvd_stream_handler io_env_echo_handler;
void io_env_accept_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer);
void io_env_write_cb(void *ctx, int err);
void io_env_closed_cb(void *ctx);

/* Far end: a descriptor connected to the unix socket at `path`, non-blocking. */
int io_env_connect_unix(const char *path);

/* Listen at env->path, with env->client connected to it. */
void io_env_listen_and_connect(struct io_env *env);

/* Steps: a stream was accepted; some 20 ms went by; a stream was closed. */
bool io_env_has_stream(struct io_env *env);
bool io_env_has_waited(struct io_env *env);
bool io_env_has_closed(struct io_env *env);

#endif

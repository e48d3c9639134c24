/*
 * One run of kvarnctl: its command, arguments, connection and ways of saying things.
 *
 * A command returns an exit code. What it found goes to stdout, as aligned text or as one JSON
 * object; everything else goes to stderr.
 */
#ifndef KVARNCTL_CTL_H
#define KVARNCTL_CTL_H

#include "client/cli/json.h"
#include "client/cli/options.h"
#include "kvarn/client.h"

enum ctl_exit {
    CTL_OK = 0,
    CTL_FAILED = 1,        /* the server said no, or a file or the codec failed */
    CTL_USAGE = 2,         /* the command line is wrong */
    CTL_NO_CONNECTION = 3, /* no server, or it went away */
};

struct ctl {
    const struct ctl_command *command; /* borrowed from the table */
    struct option_parse args;
    bool is_json;
    bool has_failed; /* a failure has been reported */
    struct json json;
    struct kvarn_client *client; /* owned; NULL for offline commands */
};

struct ctl_command {
    const char *name;      /* one or two words */
    const char *positions; /* "SESSION"; NULL: takes none */
    const char *summary;
    const struct option_row *options;
    size_t option_count;
    size_t position_count;
    bool is_offline;
    int (*run)(struct ctl *ctl);
};

/* The table of commands, and the options that all have. */
extern const struct ctl_command ctl_commands[];
extern const size_t ctl_command_count;
extern const struct option_set ctl_global_options;

/* Run kvarnctl: arguments without the program's name. Returns the exit code. */
int ctl_main(int count, char *const *args);

/* Values of options; the option must be in the command's table or global. */
const char *ctl_text(const struct ctl *ctl, const char *name); /* NULL if not set */
uint64_t ctl_number(const struct ctl *ctl, const char *name);  /* 0 if not set */
double ctl_real(const struct ctl *ctl, const char *name);      /* 0 if not set */
bool ctl_is_set(const struct ctl *ctl, const char *name);

/* Report a failure of a file or the codec, or of the command line; return the exit code. */
int ctl_fail(struct ctl *ctl, int err, const char *text);
int ctl_usage(struct ctl *ctl, const char *text);

/* Report the client's last failure; returns the exit code. */
int ctl_refused(struct ctl *ctl, int err);

/* Encoder by name ("reference", "refined", "aware"; NULL: default). Returns 0 or KVARN_EINVALID. */
int ctl_encoder(const char *name, enum kvarn_encoder *ret) KVARN_MUST_CHECK;
const char *ctl_encoder_name(enum kvarn_encoder encoder);

/* "1.50 MiB", "512 B". The text is in `to`. */
#define CTL_BYTES_TEXT_MAX 32
const char *ctl_bytes_text(uint64_t bytes, char to[CTL_BYTES_TEXT_MAX]);

/* A clock that only goes forward, in microseconds. */
uint64_t ctl_now_us(void);

/* Commands, by file. */
int cmd_append(struct ctl *ctl);
int cmd_attend(struct ctl *ctl);
int cmd_drop(struct ctl *ctl);
int cmd_evaluate(struct ctl *ctl);
int cmd_evict(struct ctl *ctl);
int cmd_fork(struct ctl *ctl);
int cmd_inspect(struct ctl *ctl);
int cmd_jobs(struct ctl *ctl);
int cmd_pin(struct ctl *ctl);
int cmd_ping(struct ctl *ctl);
int cmd_prefetch(struct ctl *ctl);
int cmd_read(struct ctl *ctl);
int cmd_sessions(struct ctl *ctl);
int cmd_shape_export(struct ctl *ctl);
int cmd_shape_import(struct ctl *ctl);
int cmd_size(struct ctl *ctl);
int cmd_stats(struct ctl *ctl);
int cmd_tile_decode(struct ctl *ctl);
int cmd_tile_encode(struct ctl *ctl);
int cmd_tile_inspect(struct ctl *ctl);
int cmd_top(struct ctl *ctl);
int cmd_touch(struct ctl *ctl);
int cmd_truncate(struct ctl *ctl);
int cmd_unpin(struct ctl *ctl);
int cmd_verify(struct ctl *ctl);

#endif

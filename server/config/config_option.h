/*
 * One option of the configuration, whatever its source: between config.c and config_file.c.
 *
 * Owner: main. Thread: any, before the daemon starts.
 */
#ifndef KVD_CONFIG_OPTION_H
#define KVD_CONFIG_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "server/config/config.h"

enum kvd_option_type {
    KVD_OPTION_STR,
    KVD_OPTION_SIZE,
    KVD_OPTION_UINT,
    KVD_OPTION_MS,
    KVD_OPTION_BOOL,
};

struct kvd_option {
    const char *flag; /* "listen-unix" */
    enum kvd_option_type type;
    size_t offset;         /* of the field in struct kvd_config */
    uint64_t min, max;     /* of the number, or of the text's length */
    const char *dflt_text; /* as a user would write it */
    const char *help_text; /* one line */
};

/* How a source spells names: listen-unix, listen_unix, LISTEN_UNIX. */
enum kvd_option_style { KVD_OPTION_FLAG, KVD_OPTION_KEY, KVD_OPTION_ENV };

/* Where a value comes from, and where complaints about it go. */
struct kvd_option_source {
    const char *name; /* "flag", "environment", "file /etc/kvarnd.conf line 3"; borrowed */
    char *why;        /* borrowed from kvd_config_load()'s caller */
    size_t why_bytes;
};

/* Write "<source>: ..." to why; returns KVARN_EINVALID. */
int kvd_option_refuse(const struct kvd_option_source *source, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The idx-th option in config.def's order; NULL behind the last. */
const struct kvd_option *kvd_option_at(size_t idx);

/* The option of that name; NULL when there is none. */
const struct kvd_option *kvd_option_find(
    const char *name, size_t bytes, enum kvd_option_style style);

/*
 * Set one option from text; `name` is how complaints call it. Returns 0, KVARN_EINVALID,
 * KVARN_ENOMEM; the old value stays on failure.
 */
int kvd_option_set(struct kvd_config *config, const struct kvd_option *option, const char *text,
    const struct kvd_option_source *source, const char *name) KVARN_MUST_CHECK;

/* Write "key = value" as the file has it, and a newline. */
void kvd_option_print(const struct kvd_config *config, const struct kvd_option *option, FILE *out);

/* Free a text, if it is one. */
void kvd_option_fini(struct kvd_config *config, const struct kvd_option *option);

/* Digits alone, at most `max`. Returns 0 or KVARN_EINVALID. */
int kvd_option_parse_uint(
    const char *text, size_t bytes, uint64_t max, uint64_t *ret) KVARN_MUST_CHECK;

/* Merge the file at `path`. Returns 0, KVARN_EINVALID, KVARN_EIO, KVARN_ENOMEM; says why. */
int kvd_config_file_load(
    struct kvd_config *config, const char *path, char *why, size_t why_bytes) KVARN_MUST_CHECK;

#endif

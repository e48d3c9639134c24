/*
 * Options and positional arguments of a command, by table.
 *
 * --name VALUE, --name=VALUE, -x VALUE; options and positionals in any order; "--" ends options. An
 * option may be given once.
 */
#ifndef KVARNCTL_OPTIONS_H
#define KVARNCTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kvarn/err.h"

enum option_type {
    OPTION_FLAG,
    OPTION_TEXT,
    OPTION_UINT, /* decimal, with an optional k (1,024) or M behind it */
    OPTION_REAL, /* finite */
};

struct option_row {
    const char *name; /* without the dashes */
    enum option_type type;
    const char *value;    /* what the help calls the value; NULL for flags */
    const char *fallback; /* default, in the form of an argument; NULL: none */
    const char *help;
    char letter; /* 0: none */
    bool is_required;
};

/* The value of one option. */
struct option_value {
    bool is_set; /* given, or it has a default */
    bool is_given;
    const char *text; /* borrowed from argv or the table */
    uint64_t number;
    double real;
};

#define OPTION_COUNT_MAX     32
#define OPTION_ERROR_MAX     256
#define OPTION_POSITIONS_MAX 2

struct option_set {
    const struct option_row *rows; /* borrowed */
    size_t row_count;
};

struct option_parse {
    struct option_set sets[2]; /* the command's and the global ones */
    struct option_value values[2][OPTION_COUNT_MAX];
    const char *positions[OPTION_POSITIONS_MAX]; /* borrowed from argv */
    size_t position_count;
    size_t position_max; /* more are an error */
};

/*
 * Parse arguments [0, count). Returns 0; KVARN_EINVALID with a text in `error`. Required options
 * are checked by option_parse_finish(), so that --help works without them.
 */
int option_parse_args(struct option_parse *parse, int count, char *const *args,
    char error[OPTION_ERROR_MAX]) KVARN_MUST_CHECK;
int option_parse_finish(struct option_parse *parse, char error[OPTION_ERROR_MAX]) KVARN_MUST_CHECK;

/* The value of an option, which one of the tables must hold. */
const struct option_value *option_find(const struct option_parse *parse, const char *name);

/* Index of the first argument that is neither an option of `set` nor its value; count if none. */
int option_first_position(const struct option_set *set, int count, char *const *args);

/* The table as help. */
void option_set_print(const struct option_set *set, FILE *out);

#endif

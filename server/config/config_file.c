/*
 * The configuration file: inih's dialect, one section [kvarnd], each key at most once.
 *
 * Owner: main. Thread: any, before the daemon starts. inih reads lines of 200 bytes and goes on in
 * the middle of a longer one, so lines are fed to it by a reader that refuses those.
 */
#include "server/config/config_option.h"

#include <errno.h>
#include <ini.h>
#include <string.h>

#include "lib/base/assert.h"

#define SECTION         "kvarnd"
#define OPTION_SEEN_MAX 64

struct file_load {
    FILE *file;                /* owned */
    const char *path;          /* borrowed */
    struct kvd_config *config; /* borrowed */
    struct kvd_option_source source;
    char source_name[256]; /* source.name points here */
    unsigned line;         /* of the last line read, from 1 */
    int err;               /* the first one; nothing is looked at after it */
    bool is_seen[OPTION_SEEN_MAX];
};

static void source_set(struct file_load *load)
{
    (void)snprintf(
        load->source_name, sizeof(load->source_name), "file %s line %u", load->path, load->line);
}

/* As fgets(), for inih. */
static char *line_read(char *line, int line_bytes, void *ctx)
{
    struct file_load *load = ctx;
    int bytes = 0;
    int byte = EOF;

    KVARN_ASSERT(line_bytes > 1);
    if (load->err != 0) {
        return NULL;
    }
    load->line++;
    source_set(load);
    while (bytes < line_bytes - 1 && (byte = getc(load->file)) != EOF && byte != '\0') {
        line[bytes++] = (char)byte;
        if (byte == '\n') {
            break;
        }
    }
    line[bytes] = '\0';
    if (byte == '\0') {
        load->err = kvd_option_refuse(&load->source, "a zero byte: not a text file");
    } else if (byte != EOF && byte != '\n') {
        load->err = kvd_option_refuse(&load->source, "longer than %d bytes", line_bytes - 2);
    } else if (byte == EOF && ferror(load->file) != 0) {
        (void)kvd_option_refuse(&load->source, "cannot be read: %s", strerror(errno));
        load->err = KVARN_EIO;
    } else if (line[0] != '\0' && strchr(" \t", line[0]) != NULL &&
               line[strspn(line, " \t\r\n")] != '\0') {
        /* To inih it would be more of the value above. */
        load->err = kvd_option_refuse(&load->source, "an indented line");
    }
    return load->err != 0 || bytes == 0 ? NULL : line;
}

static size_t option_idx(const struct kvd_option *option)
{
    size_t idx = (size_t)(option - kvd_option_at(0));
    KVARN_ASSERT(idx < OPTION_SEEN_MAX);
    return idx;
}

/* Returns non-zero for "go on", as inih wants. */
static int pair_cb(void *ctx, const char *section, const char *key, const char *value)
{
    struct file_load *load = ctx;

    if (load->err != 0) {
        return 0;
    }
    if (strcmp(section, SECTION) != 0) {
        load->err =
            kvd_option_refuse(&load->source, "key \"%s\" outside the section [" SECTION "]", key);
        return 0;
    }
    const struct kvd_option *option = kvd_option_find(key, strlen(key), KVD_OPTION_KEY);
    if (option == NULL) {
        load->err = kvd_option_refuse(&load->source, "unknown key \"%s\"", key);
    } else if (load->is_seen[option_idx(option)]) {
        load->err = kvd_option_refuse(&load->source, "key \"%s\" a second time", key);
    } else {
        load->is_seen[option_idx(option)] = true;
        load->err = kvd_option_set(load->config, option, value, &load->source, key);
    }
    return load->err == 0;
}

int kvd_config_file_load(struct kvd_config *config, const char *path, char *why, size_t why_bytes)
{
    struct file_load load = {.path = path, .config = config};

    KVARN_ASSERT(why_bytes > 0);
    load.source =
        (struct kvd_option_source){.name = load.source_name, .why = why, .why_bytes = why_bytes};
    load.file = fopen(path, "re");
    if (load.file == NULL) {
        (void)snprintf(why, why_bytes, "file %s: %s", path, strerror(errno));
        return KVARN_EIO;
    }
    int bad_line = ini_parse_stream(line_read, &load, pair_cb, &load);
    if (load.err == 0 && bad_line != 0) {
        load.line = bad_line > 0 ? (unsigned)bad_line : 0;
        source_set(&load);
        load.err = kvd_option_refuse(&load.source, "expected key = value or [" SECTION "]");
    }
    (void)fclose(load.file);
    return load.err;
}

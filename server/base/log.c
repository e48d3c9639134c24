/*
 * Log: lines to standard error.
 *
 * Thread: any. A line is built on the stack and leaves in one write(), so lines never mix. The
 * format comes from us and is copied as it stands; what a %s brings may come from a peer, so it is
 * escaped, and quoted where it would look like more than one value.
 */
#include "server/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kvarn/err.h"
#include "lib/base/assert.h"

#define LINE_BYTES_MAX 1024
#define SPEC_BYTES_MAX 16 /* "%-08.3llu" and the like */

static const char *const level_names[] = {
    [KVD_LOG_ERROR] = "error",
    [KVD_LOG_WARN] = "warn",
    [KVD_LOG_INFO] = "info",
    [KVD_LOG_DEBUG] = "debug",
};
#define LEVEL_COUNT (sizeof(level_names) / sizeof(level_names[0]))

/* syslog's priorities, which journald reads from "<N>". */
static const char level_priorities[] = {
    [KVD_LOG_ERROR] = '3',
    [KVD_LOG_WARN] = '4',
    [KVD_LOG_INFO] = '6',
    [KVD_LOG_DEBUG] = '7',
};

/* The log sink: set once at start. */
static enum kvd_log_level level_max = KVD_LOG_INFO;

/* A line under construction; what does not fit is dropped. */
struct line {
    char text[LINE_BYTES_MAX];
    size_t bytes;
};

/* LEVEL_COUNT when there is no such level. */
static size_t level_find(const char *name)
{
    size_t level = 0;

    while (level < LEVEL_COUNT && strcmp(name, level_names[level]) != 0) {
        level++;
    }
    return level;
}

bool kvd_log_is_level(const char *name)
{
    return level_find(name) < LEVEL_COUNT;
}

int kvd_log_set_level(const char *name)
{
    size_t level = level_find(name);

    if (level == LEVEL_COUNT) {
        return KVARN_EINVALID;
    }
    level_max = (enum kvd_log_level)level;
    return 0;
}

/* The last byte is kept for the newline. */
static void line_add(struct line *line, const char *text, size_t bytes)
{
    size_t room = sizeof(line->text) - 1 - line->bytes;

    KVARN_ASSERT(line->bytes < sizeof(line->text));
    if (bytes > room) {
        bytes = room;
    }
    memcpy(line->text + line->bytes, text, bytes);
    line->bytes += bytes;
}

static void line_add_text(struct line *line, const char *text)
{
    line_add(line, text, strlen(text));
}

static bool is_plain(unsigned char byte)
{
    return byte >= 0x20 && byte != 0x7f && byte != '"' && byte != '\\';
}

static void line_add_escaped(struct line *line, const char *value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)value[i];
        char hex[5];

        if (is_plain(byte)) {
            line_add(line, &value[i], 1);
        } else if (byte == '"' || byte == '\\') {
            const char pair[2] = {'\\', value[i]};
            line_add(line, pair, sizeof(pair));
        } else {
            (void)snprintf(hex, sizeof(hex), "\\x%02x", byte);
            line_add_text(line, hex);
        }
    }
}

/* Quotes where a value starts right after '=' and would not be read back as one word. */
static void line_add_value(struct line *line, const char *value, int bytes_max)
{
    if (value == NULL) {
        value = "(none)";
    }
    size_t bytes = bytes_max >= 0 ? strnlen(value, (size_t)bytes_max) : strlen(value);
    bool is_start = line->bytes > 0 && line->text[line->bytes - 1] == '=';
    bool needs_quotes = bytes == 0;

    for (size_t i = 0; i < bytes && !needs_quotes; i++) {
        needs_quotes = !is_plain((unsigned char)value[i]) || value[i] == ' ' || value[i] == '=';
    }
    if (is_start && needs_quotes) {
        line_add(line, "\"", 1);
    }
    line_add_escaped(line, value, bytes);
    if (is_start && needs_quotes) {
        line_add(line, "\"", 1);
    }
}

/* One conversion of a format: "%-08.3llu", "%.*s". */
struct spec {
    char text[SPEC_BYTES_MAX]; /* '%', flags, width, precision; no length, no letter */
    bool has_star;             /* the precision is an argument; strings only */
    bool is_size;
    unsigned longs; /* 'l' 1, "ll" and 'j' 2 */
    char letter;    /* '\0': not a conversion that we use */
};

struct args {
    va_list list;
};

/* `format` points behind the '%'. Returns where the text goes on. */
static const char *spec_parse(const char *format, struct spec *ret)
{
    size_t bytes = 0;

    *ret = (struct spec){0};
    ret->text[bytes++] = '%';
    for (; *format != '\0' && bytes + 3 < sizeof(ret->text); format++) {
        switch (*format) {
        case '*':
            ret->has_star = true;
            break;
        case 'h':
            break; /* promoted to int */
        case 'l':
            ret->longs++;
            break;
        case 'j':
            ret->longs = 2;
            break;
        case 'z':
        case 't':
            ret->is_size = true;
            break;
        default:
            if (strchr("-+ #.0123456789", *format) == NULL) {
                ret->letter = *format;
                return format + 1;
            }
            ret->text[bytes++] = *format;
        }
    }
    return format;
}

static intmax_t args_signed(struct args *args, const struct spec *spec)
{
    if (spec->is_size) {
        return va_arg(args->list, ptrdiff_t);
    }
    if (spec->longs == 0) {
        return va_arg(args->list, int);
    }
    return spec->longs == 1 ? va_arg(args->list, long) : va_arg(args->list, long long);
}

static uintmax_t args_unsigned(struct args *args, const struct spec *spec)
{
    if (spec->is_size) {
        return va_arg(args->list, size_t);
    }
    if (spec->longs == 0) {
        return va_arg(args->list, unsigned);
    }
    return spec->longs == 1 ? va_arg(args->list, unsigned long)
                            : va_arg(args->list, unsigned long long);
}

/* The formats put together here are checked where kvd_log() is called. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void line_add_conversion(struct line *line, struct spec *spec, struct args *args)
{
    char value[64] = "";
    char *end = spec->text + strlen(spec->text);

    switch (spec->letter) {
    case 's': {
        int bytes_max = spec->has_star ? va_arg(args->list, int) : -1;
        line_add_value(line, va_arg(args->list, const char *), bytes_max);
        return;
    }
    case 'd':
    case 'i':
        end[0] = 'j';
        end[1] = spec->letter;
        (void)snprintf(value, sizeof(value), spec->text, args_signed(args, spec));
        break;
    case 'u':
    case 'x':
    case 'X':
        end[0] = 'j';
        end[1] = spec->letter;
        (void)snprintf(value, sizeof(value), spec->text, args_unsigned(args, spec));
        break;
    case 'f':
    case 'g':
        end[0] = spec->letter;
        (void)snprintf(value, sizeof(value), spec->text, va_arg(args->list, double));
        break;
    case 'p':
        (void)snprintf(value, sizeof(value), "%p", va_arg(args->list, void *));
        break;
    default:
        KVARN_ASSERT(spec->letter == '%'); /* else add the conversion here */
        line_add(line, "%", 1);
        return;
    }
    line_add_text(line, value);
}
#pragma GCC diagnostic pop

static void line_add_format(struct line *line, const char *format, struct args *args)
{
    while (*format != '\0') {
        size_t bytes = strcspn(format, "%");
        struct spec spec;

        line_add(line, format, bytes);
        format += bytes;
        if (*format == '%') {
            format = spec_parse(format + 1, &spec);
            line_add_conversion(line, &spec, args);
        }
    }
}

/* journald names the device and inode of the stream that it reads: "8:1234". */
static bool is_read_by_journald(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char ours[64];
    struct stat st;

    if (stream == NULL || fstat(STDERR_FILENO, &st) != 0) {
        return false;
    }
    (void)snprintf(ours, sizeof(ours), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, ours) == 0;
}

/* journald notes time and level by itself; elsewhere they are part of the line. */
static void line_add_head(struct line *line, enum kvd_log_level level)
{
    if (is_read_by_journald()) {
        const char priority[] = {'<', level_priorities[level], '>'};
        line_add(line, priority, sizeof(priority));
        return;
    }
    char date[32];
    char head[64];
    struct timespec now;
    struct tm tm;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &tm);
    (void)strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(
        head, sizeof(head), "%s.%03ldZ level=%s ", date, now.tv_nsec / 1000000, level_names[level]);
    line_add_text(line, head);
}

void kvd_log(enum kvd_log_level level, const char *event, const char *format, ...)
{
    struct line line;
    struct args args;
    int saved_errno = errno;

    KVARN_ASSERT((size_t)level < LEVEL_COUNT);
    if (level > level_max) {
        return;
    }
    line.bytes = 0;
    line_add_head(&line, level);
    line_add_text(&line, "event=");
    line_add_text(&line, event);
    line_add_text(&line, format[0] == '\0' ? "" : " ");
    va_start(args.list, format);
    line_add_format(&line, format, &args);
    va_end(args.list);
    line.text[line.bytes++] = '\n';
    /* Nothing can be done about a log that takes no lines; errno is the caller's. */
    ssize_t written = write(STDERR_FILENO, line.text, line.bytes);
    (void)written;
    errno = saved_errno;
}

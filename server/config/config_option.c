/*
 * The table of options: names, parsing, ranges, printing. Rows come from config.def, ranges from
 * here.
 *
 * Owner: main. Thread: any, before the daemon starts.
 */
#include "server/config/config_option.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"

#define MIB    UINT64_C(1048576)
#define DAY_MS UINT64_C(86400000)

/*
 * Smallest and largest value of each option; of texts, their length. Texts are short enough that
 * their line fits the 200 bytes that inih reads.
 */
#define RANGE_listen_unix     0, 107 /* a socket's path, without its end */
#define RANGE_listen_tcp      0, 64
#define RANGE_insecure_tcp    0, 1
#define RANGE_allow_uids      0, 160
#define RANGE_memory_limit    16 * MIB, UINT64_C(1) << 50
#define RANGE_metric_memory   0, UINT64_C(1) << 50
#define RANGE_evict_policy    1, 16
#define RANGE_evict_start     1, 100
#define RANGE_evict_free      0, 100
#define RANGE_pin_memory      0, UINT64_C(1) << 50
#define RANGE_workers         0, 256
#define RANGE_cold_dir        0, 160
#define RANGE_cold_limit      MIB / 4, UINT64_C(1) << 50
#define RANGE_cold_segment    KVARN_COLD_SEGMENT_BYTES_MIN, KVARN_COLD_SEGMENT_BYTES_MAX
#define RANGE_cold_compress   0, 19
#define RANGE_cold_read_ahead 0, 32
#define RANGE_connections_max 1, 1000000
#define RANGE_sessions_max    1, KVARN_SESSIONS_MAX
#define RANGE_credit_requests 1, 65536
#define RANGE_credit_bytes    1, UINT64_C(1) << 40
#define RANGE_payload_max     1, KVARN_PAYLOAD_BYTES_MAX
#define RANGE_output_max      1, UINT64_C(1) << 40
#define RANGE_header_timeout  1, DAY_MS
#define RANGE_write_timeout   1, DAY_MS
#define RANGE_idle_timeout    0, 30 * DAY_MS
#define RANGE_drain_timeout   0, DAY_MS
#define RANGE_flush_timeout   0, DAY_MS
#define RANGE_log_level       1, 16

static const struct kvd_option options[] = {
#define X(field, type, flag, dflt, help) \
    {flag, KVD_OPTION_##type, offsetof(struct kvd_config, field), RANGE_##field, dflt, help},
#include "server/config/config.def"
#undef X
};
#define OPTION_COUNT (sizeof(options) / sizeof(options[0]))

int kvd_option_refuse(const struct kvd_option_source *source, const char *format, ...)
{
    va_list args;
    int bytes = snprintf(source->why, source->why_bytes, "%s: ", source->name);

    if (bytes >= 0 && (size_t)bytes < source->why_bytes) {
        va_start(args, format);
        (void)vsnprintf(source->why + bytes, source->why_bytes - (size_t)bytes, format, args);
        va_end(args);
    }
    return KVARN_EINVALID;
}

const struct kvd_option *kvd_option_at(size_t idx)
{
    return idx < OPTION_COUNT ? &options[idx] : NULL;
}

/* One letter of a flag in another style. */
static char spell(char letter, enum kvd_option_style style)
{
    if (style == KVD_OPTION_FLAG) {
        return letter;
    }
    if (letter == '-') {
        return '_';
    }
    bool is_lower = letter >= 'a' && letter <= 'z';
    return style == KVD_OPTION_ENV && is_lower ? (char)(letter - 'a' + 'A') : letter;
}

static bool is_named(
    const struct kvd_option *option, const char *name, size_t bytes, enum kvd_option_style style)
{
    for (size_t i = 0; i < bytes; i++) {
        if (option->flag[i] == '\0' || spell(option->flag[i], style) != name[i]) {
            return false;
        }
    }
    return option->flag[bytes] == '\0';
}

const struct kvd_option *kvd_option_find(
    const char *name, size_t bytes, enum kvd_option_style style)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (is_named(&options[i], name, bytes, style)) {
            return &options[i];
        }
    }
    return NULL;
}

int kvd_option_parse_uint(const char *text, size_t bytes, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;

    if (bytes == 0) {
        return KVARN_EINVALID;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return KVARN_EINVALID;
        }
        unsigned digit = (unsigned)(text[i] - '0');
        if (value > max / 10 || digit > max - value * 10) {
            return KVARN_EINVALID;
        }
        value = value * 10 + digit;
    }
    *ret = value;
    return 0;
}

/* Powers of 1024; "KB" is left out, because it means 1000 or 1024. */
static const struct {
    const char *name;
    unsigned shift;
} units[] = {{"", 0}, {"B", 0}, {"K", 10}, {"KiB", 10}, {"M", 20}, {"MiB", 20}, {"G", 30},
    {"GiB", 30}, {"T", 40}, {"TiB", 40}};
#define UNIT_COUNT (sizeof(units) / sizeof(units[0]))

int kvd_config_parse_size(const char *text, uint64_t *ret_bytes)
{
    size_t digits = strspn(text, "0123456789");

    for (size_t i = 0; i < UNIT_COUNT; i++) {
        uint64_t value;
        if (strcmp(text + digits, units[i].name) != 0) {
            continue;
        }
        int err = kvd_option_parse_uint(text, digits, UINT64_MAX >> units[i].shift, &value);
        if (err == 0) {
            *ret_bytes = value << units[i].shift;
        }
        return err;
    }
    return KVARN_EINVALID;
}

/* The largest unit that leaves no fraction. */
static void size_format(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const names[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;

    while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < sizeof(names) / sizeof(names[0])) {
        bytes /= 1024;
        unit++;
    }
    (void)snprintf(out, out_bytes, "%" PRIu64 "%s", bytes, names[unit]);
}

static int bool_parse(const char *text, bool *ret)
{
    static const char *const words[][2] = {
        {"false", "true"}, {"no", "yes"}, {"off", "on"}, {"0", "1"}};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        for (int value = 0; value < 2; value++) {
            if (strcmp(text, words[i][value]) == 0) {
                *ret = value == 1;
                return 0;
            }
        }
    }
    return KVARN_EINVALID;
}

/* Text that a file can hold: on one line, no blanks at its ends, nothing that starts a comment. */
static bool is_text_printable(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte < 0x20 || byte == 0x7f || byte == ';') {
            return false;
        }
    }
    return bytes == 0 || (text[0] != ' ' && text[bytes - 1] != ' ');
}

static int set_text(char **field, const struct kvd_option *option, const char *text,
    const struct kvd_option_source *source, const char *name)
{
    size_t bytes = strlen(text);

    if (bytes < option->min || bytes > option->max) {
        return kvd_option_refuse(source,
            "%s: expected a text of %" PRIu64 " to %" PRIu64 " bytes, got %zu", name, option->min,
            option->max, bytes);
    }
    if (!is_text_printable(text, bytes)) {
        return kvd_option_refuse(
            source, "%s: control bytes, ';' and blanks at the ends are not allowed", name);
    }
    char *copy = strdup(text);
    if (copy == NULL) {
        (void)kvd_option_refuse(source, "%s: out of memory", name);
        return KVARN_ENOMEM;
    }
    free(*field);
    *field = copy;
    return 0;
}

static int set_number(uint64_t *field, const struct kvd_option *option, const char *text,
    const struct kvd_option_source *source, const char *name)
{
    bool is_size = option->type == KVD_OPTION_SIZE;
    uint64_t value;
    char min[32];
    char max[32];

    int err = is_size ? kvd_config_parse_size(text, &value)
                      : kvd_option_parse_uint(text, strlen(text), UINT64_MAX, &value);
    if (err == 0 && value >= option->min && value <= option->max) {
        *field = value;
        return 0;
    }
    if (is_size) {
        size_format(option->min, min, sizeof(min));
        size_format(option->max, max, sizeof(max));
    } else {
        (void)snprintf(min, sizeof(min), "%" PRIu64, option->min);
        (void)snprintf(max, sizeof(max), "%" PRIu64, option->max);
    }
    const char *kind = option->type == KVD_OPTION_MS ? "milliseconds"
                       : is_size                     ? "a size (512MiB, 2G)"
                                                     : "a number";
    return kvd_option_refuse(
        source, "%s: expected %s from %s to %s, got \"%s\"", name, kind, min, max, text);
}

int kvd_option_set(struct kvd_config *config, const struct kvd_option *option, const char *text,
    const struct kvd_option_source *source, const char *name)
{
    void *field = (char *)config + option->offset;

    KVARN_ASSERT(option->offset < sizeof(*config));
    switch (option->type) {
    case KVD_OPTION_STR:
        return set_text(field, option, text, source, name);
    case KVD_OPTION_BOOL:
        if (bool_parse(text, field) != 0) {
            return kvd_option_refuse(source, "%s: expected true or false, got \"%s\"", name, text);
        }
        return 0;
    case KVD_OPTION_SIZE:
    case KVD_OPTION_UINT:
    case KVD_OPTION_MS:
        break;
    }
    return set_number(field, option, text, source, name);
}

void kvd_option_print(const struct kvd_config *config, const struct kvd_option *option, FILE *out)
{
    const void *field = (const char *)config + option->offset;
    char text[32];

    for (const char *letter = option->flag; *letter != '\0'; letter++) {
        (void)fputc(spell(*letter, KVD_OPTION_KEY), out);
    }
    switch (option->type) {
    case KVD_OPTION_STR:
        (void)fprintf(
            out, " =%s%s\n", **(char *const *)field != '\0' ? " " : "", *(char *const *)field);
        return;
    case KVD_OPTION_BOOL:
        (void)fprintf(out, " = %s\n", *(const bool *)field ? "true" : "false");
        return;
    case KVD_OPTION_SIZE:
        size_format(*(const uint64_t *)field, text, sizeof(text));
        (void)fprintf(out, " = %s\n", text);
        return;
    case KVD_OPTION_UINT:
    case KVD_OPTION_MS:
        break;
    }
    (void)fprintf(out, " = %" PRIu64 "\n", *(const uint64_t *)field);
}

void kvd_option_fini(struct kvd_config *config, const struct kvd_option *option)
{
    if (option->type == KVD_OPTION_STR) {
        void *field = (char *)config + option->offset;
        free(*(char **)field);
        *(char **)field = NULL;
    }
}

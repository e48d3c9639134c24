/* Writer of JSON text. */
#include "client/cli/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"

void json_init(struct json *json, FILE *out)
{
    memset(json, 0, sizeof *json);
    json->out = out;
}

/* Bytes of the valid UTF-8 sequence at `s`, 0 if there is none. `s` ends with NUL. */
static unsigned utf8_bytes(const unsigned char *s)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned bytes = s[0] < 0x80             ? 1
                     : (s[0] & 0xe0) == 0xc0 ? 2
                     : (s[0] & 0xf0) == 0xe0 ? 3
                     : (s[0] & 0xf8) == 0xf0 ? 4
                                             : 0;
    uint32_t code;

    if (bytes <= 1) {
        return bytes;
    }
    code = s[0] & (0x7fU >> bytes);
    for (unsigned i = 1; i < bytes; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
        code = code << 6 | (s[i] & 0x3fU);
    }
    if (code < smallest[bytes] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
        return 0;
    }
    return bytes;
}

static void quoted_write(FILE *out, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;

    fputc('"', out);
    while (*s != '\0') {
        unsigned bytes = utf8_bytes(s);

        if (bytes == 0) {
            fputs("\\ufffd", out);
            s++;
        } else if (*s == '"' || *s == '\\') {
            fprintf(out, "\\%c", *s++);
        } else if (*s < 0x20 || *s == 0x7f) {
            fprintf(out, "\\u%04x", *s++);
        } else {
            fwrite(s, 1, bytes, out);
            s += bytes;
        }
    }
    fputc('"', out);
}

static void item_begin(struct json *json, const char *key)
{
    if (json->depth > 0) {
        fputs(json->has_items[json->depth - 1] ? ",\n" : "\n", json->out);
        json->has_items[json->depth - 1] = true;
        fprintf(json->out, "%*s", (int)json->depth * 2, "");
    }
    if (key != NULL) {
        quoted_write(json->out, key);
        fputs(": ", json->out);
    }
}

static void group_open(struct json *json, const char *key, char bracket)
{
    item_begin(json, key);
    KVARN_ASSERT(json->depth < JSON_DEPTH_MAX);
    fputc(bracket, json->out);
    json->has_items[json->depth++] = false;
}

static void group_close(struct json *json, char bracket)
{
    KVARN_ASSERT(json->depth > 0);
    json->depth--;
    if (json->has_items[json->depth]) {
        fprintf(json->out, "\n%*s", (int)json->depth * 2, "");
    }
    fputc(bracket, json->out);
    if (json->depth == 0) {
        fputc('\n', json->out);
    }
}

void json_object_open(struct json *json, const char *key)
{
    group_open(json, key, '{');
}

void json_object_close(struct json *json)
{
    group_close(json, '}');
}

void json_array_open(struct json *json, const char *key)
{
    group_open(json, key, '[');
}

void json_array_close(struct json *json)
{
    group_close(json, ']');
}

void json_text(struct json *json, const char *key, const char *value)
{
    item_begin(json, key);
    quoted_write(json->out, value);
}

void json_u64(struct json *json, const char *key, uint64_t value)
{
    item_begin(json, key);
    fprintf(json->out, "%" PRIu64, value);
}

void json_f64(struct json *json, const char *key, double value)
{
    item_begin(json, key);
    if (isfinite(value)) {
        fprintf(json->out, "%.9g", value);
    } else {
        fputs("null", json->out);
    }
}

void json_bool(struct json *json, const char *key, bool value)
{
    item_begin(json, key);
    fputs(value ? "true" : "false", json->out);
}

void json_u64_array(struct json *json, const char *key, const uint64_t *values, size_t count)
{
    item_begin(json, key);
    fputc('[', json->out);
    for (size_t i = 0; i < count; i++) {
        fprintf(json->out, "%s%" PRIu64, i == 0 ? "" : ", ", values[i]);
    }
    fputc(']', json->out);
}

void json_hex(struct json *json, const char *key, const uint8_t *bytes, size_t count)
{
    item_begin(json, key);
    fputc('"', json->out);
    for (size_t i = 0; i < count; i++) {
        fprintf(json->out, "%02x", bytes[i]);
    }
    fputc('"', json->out);
}

/*
 * Writer of JSON text: commas, indentation and escapes are its business. Strings that are not valid
 * UTF-8 have their bad bytes replaced by U+FFFD; numbers that JSON has not become null.
 */
#ifndef KVARNCTL_JSON_H
#define KVARNCTL_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_DEPTH_MAX 16

struct json {
    FILE *out; /* borrowed */
    unsigned depth;
    bool has_items[JSON_DEPTH_MAX]; /* of the open object or array at each depth */
};

/* key: NULL inside an array and at the top. */
void json_init(struct json *json, FILE *out);
void json_object_open(struct json *json, const char *key);
void json_object_close(struct json *json);
void json_array_open(struct json *json, const char *key);
void json_array_close(struct json *json);
void json_text(struct json *json, const char *key, const char *value);
void json_u64(struct json *json, const char *key, uint64_t value);
void json_f64(struct json *json, const char *key, double value);
void json_bool(struct json *json, const char *key, bool value);
void json_u64_array(struct json *json, const char *key, const uint64_t *values, size_t count);
/* Bytes in hexadecimal. */
void json_hex(struct json *json, const char *key, const uint8_t *bytes, size_t count);

#endif

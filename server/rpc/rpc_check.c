/*
 * What several calls check in a message before they use it.
 *
 * Thread: loop only.
 */
#include "server/rpc/rpc_check.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

int kvd_rpc_check_layers(
    const struct kvd_shape *shape, uint32_t first, uint32_t count, struct kvd_failure *why)
{
    KVARN_ASSERT(shape->layer_count > 0);
    if (count == 0) {
        return kvd_fail(why, KVARN_EINVALID, "layer_count must not be 0");
    }
    if (first >= shape->layer_count || count > shape->layer_count - first) {
        return kvd_fail(why, KVARN_EINVALID,
            "the shape has %" PRIu32 " layers, got %" PRIu32 " from layer %" PRIu32,
            shape->layer_count, count, first);
    }
    return 0;
}

int kvd_rpc_check_tokens(uint64_t start, uint64_t count, struct kvd_failure *why)
{
    if (count == 0) {
        return kvd_fail(why, KVARN_EINVALID, "token_count must not be 0");
    }
    if (start > KVARN_SESSION_TOKENS_MAX || count > KVARN_SESSION_TOKENS_MAX - start) {
        return kvd_fail(why, KVARN_ETOO_LARGE,
            "a session holds at most %" PRIu64 " tokens, got %" PRIu64 " from %" PRIu64,
            KVARN_SESSION_TOKENS_MAX, count, start);
    }
    return 0;
}

int kvd_rpc_check_numbers(Kvarnd__DType dtype, Kvarnd__Layout layout, struct kvd_failure *why)
{
    if (kvarn_dtype_bytes((enum kvarn_dtype)dtype) == 0) {
        return kvd_fail(why, KVARN_EINVALID, "unknown dtype %d", (int)dtype);
    }
    if ((unsigned)layout > KVARND__LAYOUT__TOKEN_MAJOR) {
        return kvd_fail(why, KVARN_EINVALID, "unknown layout %d", (int)layout);
    }
    return 0;
}

/*
 * Bytes of the UTF-8 character at `text`, which ends with a zero; 0 when there is none. The second
 * byte's range is narrower after some leads: no overlong forms, no surrogates, none past U+10FFFF.
 */
static size_t utf8_char_bytes(const unsigned char *text)
{
    unsigned char lead = text[0];
    unsigned char low = 0x80, high = 0xBF;
    size_t bytes;

    if (lead < 0x80) {
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        bytes = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        bytes = 3;
        low = lead == 0xE0 ? 0xA0 : low;
        high = lead == 0xED ? 0x9F : high;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        bytes = 4;
        low = lead == 0xF0 ? 0x90 : low;
        high = lead == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    for (size_t i = 1; i < bytes; i++) {
        if (text[i] < low || text[i] > high) {
            return 0; /* the final zero is below `low`: nothing behind it is read */
        }
        low = 0x80;
        high = 0xBF;
    }
    return bytes;
}

int kvd_rpc_check_text(const char *text, const char *what, struct kvd_failure *why)
{
    const unsigned char *at = (const unsigned char *)text;

    while (*at != '\0') {
        size_t bytes = utf8_char_bytes(at);
        if (bytes == 0) {
            return kvd_fail(why, KVARN_EINVALID, "%s is not UTF-8 at byte %zu", what,
                (size_t)(at - (const unsigned char *)text));
        }
        at += bytes;
    }
    return 0;
}

int kvd_rpc_check_name(const char *name, struct kvd_failure *why)
{
    size_t bytes = strlen(name);

    if (bytes == 0 || bytes > KVARN_SESSION_NAME_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "name must have 1 to %d bytes, got %zu",
            KVARN_SESSION_NAME_MAX, bytes);
    }
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7F) {
            return kvd_fail(
                why, KVARN_EINVALID, "name has the control byte 0x%02x at byte %zu", c, i);
        }
    }
    return kvd_rpc_check_text(name, "name", why);
}

struct kvd_session *kvd_rpc_find_session(const struct kvd_request *request, bool has_handle,
    uint64_t handle, const char *name, struct kvd_failure *why)
{
    struct kvd_session_table *table = &request->service->sessions;

    if (has_handle == (name != NULL)) {
        kvd_fail(why, KVARN_EINVALID, "give either a handle or a name, got %s",
            has_handle ? "both" : "neither");
        return NULL;
    }
    if (has_handle) {
        return kvd_request_session(request, handle, why);
    }
    struct kvd_session *session = kvd_session_table_find(table, KVD_TENANT_DEFAULT, name);
    if (session == NULL) {
        kvd_fail(why, KVARN_ENOT_FOUND, "no session has this name");
    }
    return session;
}

static int pointer_compare(const void *a, const void *b)
{
    uintptr_t left = (uintptr_t) * (const void *const *)a;
    uintptr_t right = (uintptr_t) * (const void *const *)b;

    return left < right ? -1 : left > right;
}

int kvd_rpc_check_distinct(
    const struct kvd_session **sessions, size_t count, struct kvd_failure *why)
{
    qsort(sessions, count, sizeof(sessions[0]), pointer_compare);
    for (size_t i = 1; i < count; i++) {
        if (sessions[i] == sessions[i - 1]) {
            return kvd_fail(why, KVARN_EINVALID, "a session may occur once, got one twice");
        }
    }
    return 0;
}

int kvd_rpc_check_lifetime(uint64_t ms, uint32_t priority, struct kvd_failure *why)
{
    if (ms > KVARN_LIFETIME_MS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "a time must be at most %" PRIu64 " ms, got %" PRIu64,
            KVARN_LIFETIME_MS_MAX, ms);
    }
    if (priority > KVD_EVICT_PRIORITY_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "priority must be 0 to %d, got %" PRIu32,
            KVD_EVICT_PRIORITY_MAX, priority);
    }
    return 0;
}

int kvd_rpc_check_note(bool token_ids, bool block_hashes, struct kvd_failure *why)
{
    if (token_ids && block_hashes) {
        return kvd_fail(why, KVARN_EINVALID, "give either token_ids or block_hashes, got both");
    }
    return 0;
}

int kvd_rpc_check_salt(const ProtobufCBinaryData *salt, struct kvd_failure *why)
{
    if (salt->len > KVARN_PREFIX_SALT_MAX) {
        return kvd_fail(why, KVARN_ETOO_LARGE, "salt has at most %d bytes, got %zu",
            KVARN_PREFIX_SALT_MAX, salt->len);
    }
    return 0;
}

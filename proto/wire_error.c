/*
 * Errors and miss reasons between C and wire, from lib/base/err.def and kvarnd.proto: no second
 * list.
 *
 * Owner: none. Thread: any; no state.
 */
#include "proto/wire_error.h"

#include "kvarnd.pb-c.h"

uint32_t kvarn_wire_status(int err)
{
    switch (err) {
    case KVARN_OK:
        return 0;
#define X(code, name, label, text) \
    case KVARN_E##name:            \
        return code;
#include "kvarn/err.def"
#undef X
    default:
        return (uint32_t)-KVARN_EINTERNAL;
    }
}

int kvarn_wire_error(uint32_t status)
{
    switch (status) {
    case 0:
        return KVARN_OK;
#define X(code, name, label, text) \
    case code:                     \
        return KVARN_E##name;
#include "kvarn/err.def"
#undef X
    default:
        return KVARN_EINTERNAL;
    }
}

const char *kvarn_miss_reason_label(uint32_t reason)
{
    switch (reason) {
    case KVARND__MISS_REASON__MISS_NONE:
        return "none";
    case KVARND__MISS_REASON__MISS_NEVER_STORED:
        return "never_stored";
    case KVARND__MISS_REASON__MISS_WINDOW:
        return "window";
    case KVARND__MISS_REASON__MISS_EVICTED:
        return "evicted";
    case KVARND__MISS_REASON__MISS_CHECKSUM:
        return "checksum";
    case KVARND__MISS_REASON__MISS_INCOMPATIBLE:
        return "incompatible";
    case KVARND__MISS_REASON__MISS_RESTART:
        return "restart";
    default:
        return "unknown";
    }
}

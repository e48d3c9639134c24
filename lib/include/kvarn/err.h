/*
 * Errors of libkvarn, the protocol and the daemon: one list (err.def), one number space.
 *
 * A function that can fail returns 0 or a negative KVARN_E...; its outputs (`ret_x`) are untouched
 * on failure.
 */
#ifndef KVARN_ERR_H
#define KVARN_ERR_H

#if defined(__GNUC__)
#define KVARN_MUST_CHECK __attribute__((warn_unused_result))
#define KVARN_API        __attribute__((visibility("default")))
#else
#define KVARN_MUST_CHECK
#define KVARN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum kvarn_err {
    KVARN_OK = 0,
#define X(code, name, label, text) KVARN_E##name = -(code),
#include "kvarn/err.def"
#undef X
};

/* Name of an error as documents write it ("CONFLICT"); "OK" for 0, "UNKNOWN" else. */
KVARN_API const char *kvarn_err_name(int err);

/* Lower-case label of an error, for metrics and scripts ("conflict"); "ok" for 0. */
KVARN_API const char *kvarn_err_label(int err);

/* One sentence for people; never NULL. */
KVARN_API const char *kvarn_err_text(int err);

#ifdef __cplusplus
}
#endif

#endif

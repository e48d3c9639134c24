/* Names, labels and texts of the errors, from the one list in err.def. */
#include "kvarn/err.h"

#include <stddef.h>

struct err_row {
    const char *name;
    const char *label;
    const char *text;
};

static const struct err_row err_rows[] = {
    [0] = {"OK", "ok", "no error"},
#define X(code, name, label, text) [code] = {#name, label, text},
#include "kvarn/err.def"
#undef X
};

static const struct err_row err_unknown = {
    "UNKNOWN", "unknown", "an error this version does not know"};

static const struct err_row *err_find(int err)
{
    const int count = (int)(sizeof(err_rows) / sizeof(err_rows[0]));

    /* Not -err first: INT_MIN has no negative. */
    if (err > 0 || err <= -count || err_rows[-err].name == NULL) {
        return &err_unknown;
    }
    return &err_rows[-err];
}

const char *kvarn_err_name(int err)
{
    return err_find(err)->name;
}

const char *kvarn_err_label(int err)
{
    return err_find(err)->label;
}

const char *kvarn_err_text(int err)
{
    return err_find(err)->text;
}

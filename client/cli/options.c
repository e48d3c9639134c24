/* Parser of options by table. */
#include "client/cli/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"

static int number_parse(const char *text, uint64_t *ret)
{
    uint64_t scale = 1;
    uint64_t value;
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return KVARN_EINVALID; /* strtoull takes signs and spaces */
    }
    errno = 0;
    value = strtoull(text, &end, 10);
    if (*end == 'k' || *end == 'M') {
        scale = *end++ == 'k' ? 1024 : 1024 * 1024;
    }
    if (errno != 0 || *end != '\0' || value > UINT64_MAX / scale) {
        return KVARN_EINVALID;
    }
    *ret = value * scale;
    return 0;
}

static int real_parse(const char *text, double *ret)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(value)) {
        return KVARN_EINVALID;
    }
    *ret = value;
    return 0;
}

static int value_parse(
    const struct option_row *row, const char *text, struct option_value *value, char *error)
{
    static const char *const expected[] = {
        [OPTION_UINT] = "a whole number",
        [OPTION_REAL] = "a finite number",
    };
    int err = 0;

    if (row->type == OPTION_UINT) {
        err = number_parse(text, &value->number);
    } else if (row->type == OPTION_REAL) {
        err = real_parse(text, &value->real);
    }
    if (err != 0) {
        snprintf(error, OPTION_ERROR_MAX, "--%s: expected %s, got \"%.80s\"", row->name,
            expected[row->type], text);
        return err;
    }
    value->text = text;
    value->is_set = true;
    return 0;
}

/* The row that an argument names: "--name", "--name=..." or "-x". */
static const struct option_row *row_find(const struct option_set *set, const char *arg)
{
    size_t name_bytes = arg[1] == '-' ? strcspn(arg + 2, "=") : 0;

    for (size_t i = 0; i < set->row_count; i++) {
        const struct option_row *row = &set->rows[i];

        if (name_bytes != 0 && strlen(row->name) == name_bytes &&
            strncmp(row->name, arg + 2, name_bytes) == 0) {
            return row;
        }
        if (name_bytes == 0 && row->letter != 0 && arg[1] == row->letter && arg[2] == '\0') {
            return row;
        }
    }
    return NULL;
}

static const struct option_row *any_row_find(
    struct option_parse *parse, const char *arg, struct option_value **ret_value)
{
    for (size_t s = 0; s < 2; s++) {
        const struct option_row *row = row_find(&parse->sets[s], arg);

        if (row != NULL) {
            *ret_value = &parse->values[s][row - parse->sets[s].rows];
            return row;
        }
    }
    return NULL;
}

/* One option at args[*at]; *at moves to its last argument. */
static int option_take(
    struct option_parse *parse, int count, char *const *args, int *at, char *error)
{
    const char *arg = args[*at];
    const char *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
    struct option_value *value = NULL;
    const struct option_row *row = any_row_find(parse, arg, &value);

    if (row == NULL) {
        snprintf(error, OPTION_ERROR_MAX, "unknown option %.80s", arg);
        return KVARN_EINVALID;
    }
    if (value->is_given) {
        snprintf(error, OPTION_ERROR_MAX, "--%s is given twice", row->name);
        return KVARN_EINVALID;
    }
    value->is_given = true;
    if (row->type == OPTION_FLAG) {
        if (equals != NULL) {
            snprintf(error, OPTION_ERROR_MAX, "--%s takes no value", row->name);
            return KVARN_EINVALID;
        }
        value->is_set = true;
        return 0;
    }
    if (equals == NULL && *at + 1 >= count) {
        snprintf(error, OPTION_ERROR_MAX, "--%s needs a value: %s", row->name, row->value);
        return KVARN_EINVALID;
    }
    return value_parse(row, equals != NULL ? equals + 1 : args[++*at], value, error);
}

int option_parse_args(
    struct option_parse *parse, int count, char *const *args, char error[OPTION_ERROR_MAX])
{
    bool is_ended = false;

    for (int at = 0; at < count; at++) {
        const char *arg = args[at];
        int err;

        if (!is_ended && strcmp(arg, "--") == 0) {
            is_ended = true;
        } else if (!is_ended && arg[0] == '-' && arg[1] != '\0') {
            err = option_take(parse, count, args, &at, error);
            if (err != 0) {
                return err;
            }
        } else if (parse->position_count < parse->position_max) {
            parse->positions[parse->position_count++] = arg;
        } else {
            snprintf(error, OPTION_ERROR_MAX, "unexpected argument \"%.80s\"", arg);
            return KVARN_EINVALID;
        }
    }
    return 0;
}

int option_parse_finish(struct option_parse *parse, char error[OPTION_ERROR_MAX])
{
    for (size_t s = 0; s < 2; s++) {
        KVARN_ASSERT(parse->sets[s].row_count <= OPTION_COUNT_MAX);
        for (size_t i = 0; i < parse->sets[s].row_count; i++) {
            const struct option_row *row = &parse->sets[s].rows[i];
            struct option_value *value = &parse->values[s][i];

            if (value->is_set) {
                continue;
            }
            if (row->is_required) {
                snprintf(error, OPTION_ERROR_MAX, "--%s %s is needed", row->name, row->value);
                return KVARN_EINVALID;
            }
            if (row->fallback != NULL) {
                int err = value_parse(row, row->fallback, value, error);

                if (err != 0) {
                    return err;
                }
            }
        }
    }
    return 0;
}

const struct option_value *option_find(const struct option_parse *parse, const char *name)
{
    const struct option_value *found = NULL;

    for (size_t s = 0; s < 2; s++) {
        for (size_t i = 0; i < parse->sets[s].row_count; i++) {
            if (strcmp(parse->sets[s].rows[i].name, name) == 0) {
                found = &parse->values[s][i];
            }
        }
    }
    KVARN_ASSERT(found != NULL);
    return found;
}

int option_first_position(const struct option_set *set, int count, char *const *args)
{
    for (int at = 0; at < count; at++) {
        const struct option_row *row;

        if (args[at][0] != '-' || args[at][1] == '\0') {
            return at;
        }
        row = row_find(set, args[at]);
        if (row == NULL) {
            return count; /* not ours: the caller reports it */
        }
        if (row->type != OPTION_FLAG && strchr(args[at], '=') == NULL) {
            at++;
        }
    }
    return count;
}

void option_set_print(const struct option_set *set, FILE *out)
{
    for (size_t i = 0; i < set->row_count; i++) {
        const struct option_row *row = &set->rows[i];
        char left[64];

        snprintf(left, sizeof left, "%s%c%s--%s%s%s", row->letter != 0 ? "-" : "",
            row->letter != 0 ? row->letter : ' ', row->letter != 0 ? ", " : "   ", row->name,
            row->value != NULL ? " " : "", row->value != NULL ? row->value : "");
        fprintf(out, "  %-34s %s", left, row->help);
        if (row->fallback != NULL) {
            fprintf(out, " (default %s)", row->fallback);
        }
        fprintf(out, "%s\n", row->is_required ? " (needed)" : "");
    }
}

/* A run of kvarnctl: find the command, parse, connect, run, report. */
#include "client/cli/ctl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/cli/printable.h"
#include "kvarn/cpu.h"
#include "kvarn/version.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

const char *ctl_text(const struct ctl *ctl, const char *name)
{
    return option_find(&ctl->args, name)->text;
}

uint64_t ctl_number(const struct ctl *ctl, const char *name)
{
    return option_find(&ctl->args, name)->number;
}

double ctl_real(const struct ctl *ctl, const char *name)
{
    return option_find(&ctl->args, name)->real;
}

bool ctl_is_set(const struct ctl *ctl, const char *name)
{
    return option_find(&ctl->args, name)->is_set;
}

/* Say what failed: to people on stderr, and with --json as the one object on stdout. */
static void failure_print(struct ctl *ctl, int err, const char *text)
{
    char shown[KVARN_CLIENT_ERROR_MAX + 512];

    KVARN_ASSERT(err < 0);
    /* Texts of the server may quote what others sent. */
    fprintf(stderr, "kvarnctl: %s\n", printable_text(text, shown, sizeof shown));
    ctl->has_failed = true;
    if (!ctl->is_json || ctl->json.depth != 0) {
        return;
    }
    json_object_open(&ctl->json, NULL);
    json_object_open(&ctl->json, "error");
    json_text(&ctl->json, "name", kvarn_err_name(err));
    json_u64(&ctl->json, "code", (uint64_t)-err);
    json_text(&ctl->json, "text", text);
    json_object_close(&ctl->json);
    json_object_close(&ctl->json);
}

int ctl_fail(struct ctl *ctl, int err, const char *text)
{
    char line[768];

    snprintf(line, sizeof line, "%s: %s: %s", ctl->command->name, kvarn_err_name(err), text);
    failure_print(ctl, err, line);
    return CTL_FAILED;
}

int ctl_usage(struct ctl *ctl, const char *text)
{
    fprintf(stderr, "kvarnctl: %s: %s\nTry: kvarnctl %s --help\n", ctl->command->name, text,
        ctl->command->name);
    return CTL_USAGE;
}

int ctl_refused(struct ctl *ctl, int err)
{
    const struct kvarn_status *status = kvarn_client_status(ctl->client);
    char line[KVARN_CLIENT_ERROR_MAX + 128];
    size_t used;

    used = (size_t)snprintf(line, sizeof line, "%s", kvarn_client_error(ctl->client));
    if (status->has_epoch && used < sizeof line) {
        used +=
            (size_t)snprintf(line + used, sizeof line - used, " (epoch %" PRIu64, status->epoch);
    }
    if (status->has_epoch && used < sizeof line) {
        snprintf(line + used, sizeof line - used,
            status->layer_count != 0 ? ", length %" PRIu64 ")" : ")",
            status->layer_count != 0 ? status->layer_lengths[0] : 0);
    }
    failure_print(ctl, err, line);
    return err == KVARN_EIO ? CTL_NO_CONNECTION : CTL_FAILED;
}

int ctl_encoder(const char *name, enum kvarn_encoder *ret)
{
    if (name == NULL || strcmp(name, "default") == 0) {
        *ret = KVARN_ENCODER_DEFAULT;
    } else if (strcmp(name, "reference") == 0) {
        *ret = KVARN_ENCODER_REFERENCE;
    } else if (strcmp(name, "refined") == 0) {
        *ret = KVARN_ENCODER_REFINED;
    } else if (strcmp(name, "aware") == 0) {
        *ret = KVARN_ENCODER_AWARE;
    } else {
        return KVARN_EINVALID;
    }
    return 0;
}

const char *ctl_encoder_name(enum kvarn_encoder encoder)
{
    return encoder == KVARN_ENCODER_REFERENCE ? "reference"
           : encoder == KVARN_ENCODER_REFINED ? "refined"
           : encoder == KVARN_ENCODER_AWARE   ? "aware"
                                              : "default";
}

const char *ctl_bytes_text(uint64_t bytes, char to[CTL_BYTES_TEXT_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024.0 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024.0;
        unit++;
    }
    snprintf(to, CTL_BYTES_TEXT_MAX, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
    return to;
}

uint64_t ctl_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void usage_print(FILE *out)
{
    fprintf(out, "Usage: kvarnctl [OPTIONS] COMMAND [ARGUMENTS]\n\nCommands:\n");
    for (size_t i = 0; i < ctl_command_count; i++) {
        fprintf(out, "  %-14s %s\n", ctl_commands[i].name, ctl_commands[i].summary);
    }
    fprintf(out, "\nOptions of all commands:\n");
    option_set_print(&ctl_global_options, out);
    fprintf(out, "\nkvarnctl COMMAND --help tells more of a command.\n"
                 "Exit: 0 ok, 1 the server said no or a file failed, 2 usage, 3 no connection.\n");
}

static void command_print(const struct ctl_command *command, FILE *out)
{
    const struct option_set own = {command->options, command->option_count};

    fprintf(out, "Usage: kvarnctl %s%s%s [OPTIONS]\n%s.\n", command->name,
        command->positions != NULL ? " " : "", command->positions != NULL ? command->positions : "",
        command->summary);
    if (own.row_count != 0) {
        fprintf(out, "\nOptions:\n");
    }
    option_set_print(&own, out);
    fprintf(out, "\nOptions of all commands:\n");
    option_set_print(&ctl_global_options, out);
}

/* The command that args[*at] (and the word behind it) names; *at moves behind it. */
static const struct ctl_command *command_find(int count, char *const *args, int *at)
{
    for (size_t i = 0; i < ctl_command_count; i++) {
        const char *name = ctl_commands[i].name;
        const char *space = strchr(name, ' ');
        size_t word_bytes = space != NULL ? (size_t)(space - name) : strlen(name);

        if (strlen(args[*at]) != word_bytes || strncmp(args[*at], name, word_bytes) != 0) {
            continue;
        }
        if (space == NULL) {
            *at += 1;
            return &ctl_commands[i];
        }
        if (*at + 1 < count && strcmp(args[*at + 1], space + 1) == 0) {
            *at += 2;
            return &ctl_commands[i];
        }
    }
    return NULL;
}

static int ctl_connect(struct ctl *ctl)
{
    struct kvarn_client_options options;
    const char *address = ctl_text(ctl, "server");
    char error[KVARN_CLIENT_ERROR_MAX];
    int err;

    if (address == NULL) {
        address = getenv("KVARN_SERVER");
    }
    if (address == NULL || address[0] == '\0') {
        address = "unix:" KVARN_DEFAULT_SOCKET;
    }
    kvarn_client_options_init(&options);
    options.name = "kvarnctl";
    if (ctl_number(ctl, "deadline-ms") != 0) {
        options.deadline_ms = (uint32_t)ctl_number(ctl, "deadline-ms");
    }
    err = kvarn_client_connect(address, &options, &ctl->client, error);
    if (err == 0) {
        return CTL_OK;
    }
    if (err == KVARN_EINVALID && strncmp(address, "unix:", 5) != 0 &&
        strncmp(address, "tcp:", 4) != 0) {
        return ctl_usage(ctl, "--server: expected unix:PATH or tcp:HOST:PORT");
    }
    {
        char line[KVARN_CLIENT_ERROR_MAX + 300];

        snprintf(line, sizeof line, "%.256s: %s", address, error);
        failure_print(ctl, err, line);
    }
    if (err == KVARN_EIO) {
        fprintf(stderr, "Is kvarnd running, and is that its address? --server or KVARN_SERVER "
                        "names another.\n");
    }
    return err == KVARN_EIO ? CTL_NO_CONNECTION : CTL_FAILED;
}

static int command_run(struct ctl *ctl)
{
    int code = CTL_OK;

    if (ctl_number(ctl, "deadline-ms") > UINT32_MAX) {
        return ctl_usage(ctl, "--deadline-ms: expected at most 4294967295");
    }
    if (!ctl->command->is_offline) {
        code = ctl_connect(ctl);
    }
    if (code == CTL_OK) {
        code = ctl->command->run(ctl);
    }
    kvarn_client_destroy(ctl->client);
    /* A result that could not be written is no result. */
    if (code == CTL_OK && (fflush(stdout) != 0 || ferror(stdout))) {
        return CTL_FAILED;
    }
    return code;
}

static int command_parse(struct ctl *ctl, int before, int count, int at, char *const *args)
{
    char error[OPTION_ERROR_MAX] = "";
    int err;

    ctl->args.sets[0] = (struct option_set){ctl->command->options, ctl->command->option_count};
    ctl->args.sets[1] = ctl_global_options;
    err = option_parse_args(&ctl->args, before, args, error);
    ctl->args.position_max = ctl->command->position_count;
    if (err == 0) {
        err = option_parse_args(&ctl->args, count - at, args + at, error);
    }
    if (err != 0) {
        return ctl_usage(ctl, error);
    }
    if (ctl_is_set(ctl, "help")) {
        command_print(ctl->command, stdout);
        return CTL_OK;
    }
    if (option_parse_finish(&ctl->args, error) != 0) {
        return ctl_usage(ctl, error);
    }
    if (ctl->args.position_count != ctl->command->position_count) {
        snprintf(error, sizeof error, "%s is missing", ctl->command->positions);
        return ctl_usage(ctl, error);
    }
    ctl->is_json = ctl_is_set(ctl, "json");
    json_init(&ctl->json, stdout);
    return command_run(ctl);
}

int ctl_main(int count, char *const *args)
{
    static const char *const helps[] = {"--help", "-h", "help"};
    struct ctl ctl = {0};
    int before = option_first_position(&ctl_global_options, count, args);
    int at = before;
    char why[128];

    if (kvarn_cpu_init(NULL, why, sizeof(why)) != 0) {
        fprintf(stderr, "kvarnctl: %s\n", why);
        return CTL_USAGE;
    }
    for (size_t i = 0; count > 0 && i < sizeof helps / sizeof helps[0]; i++) {
        if (strcmp(args[0], helps[i]) == 0) {
            usage_print(stdout);
            return CTL_OK;
        }
    }
    if (count > 0 && strcmp(args[0], "--version") == 0) {
        printf("kvarnctl %s\n", KVARN_VERSION);
        return CTL_OK;
    }
    if (before < count) {
        ctl.command = command_find(count, args, &at);
    }
    if (ctl.command == NULL) {
        if (before < count) {
            fprintf(stderr, "kvarnctl: no such command: %s\n", args[before]);
        } else if (count > 0) {
            fprintf(stderr, "kvarnctl: no command, or an option that is not for all commands\n");
        }
        usage_print(stderr);
        return CTL_USAGE;
    }
    return command_parse(&ctl, before, count, at, args);
}

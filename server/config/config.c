/*
 * Configuration: merges the sources and checks the result.
 *
 * Owner: main. Thread: any, before the daemon starts.
 */
#include "server/config/config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/base/net_address.h"
#include "server/config/config_option.h"
#include "server/evict/evict_policy.h"

#define ENV_PREFIX        "KVARND_"
#define ENV_PREFIX_TEST   "KVARND_TEST_" /* hooks of tests, not options */
#define ENV_CONFIG        "KVARND_CONFIG"
#define ENV_BUILD_DIR     "KVARND_BUILD_DIR" /* where tests find the binaries */
#define UID_INVALID       UINT32_MAX         /* (uid_t)-1: nobody */
#define HELP_COLUMN_BYTES 20

static bool has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

int kvd_config_init(struct kvd_config *config)
{
    const struct kvd_option *option;
    char why[256];
    const struct kvd_option_source source = {
        .name = "default", .why = why, .why_bytes = sizeof(why)};

    memset(config, 0, sizeof(*config));
    for (size_t i = 0; (option = kvd_option_at(i)) != NULL; i++) {
        int err = kvd_option_set(config, option, option->dflt_text, &source, option->flag);
        KVARN_ASSERT(err == 0 || err == KVARN_ENOMEM); /* config.def holds valid defaults */
        if (err != 0) {
            kvd_config_fini(config);
            return err;
        }
    }
    return 0;
}

void kvd_config_fini(struct kvd_config *config)
{
    const struct kvd_option *option;

    for (size_t i = 0; config != NULL && (option = kvd_option_at(i)) != NULL; i++) {
        kvd_option_fini(config, option);
    }
}

/* Flags. */

/* What the command line says besides options. */
struct command {
    const char *file; /* borrowed from argv; NULL: no --config */
    enum kvd_config_action action;
};

/* One flag taken apart. */
struct flag {
    const char *name; /* behind "--"; ends at '=' */
    size_t name_bytes;
    const char *value; /* behind '=', or the next argument; NULL: none */
    bool has_equals;
};

static bool flag_is(const struct flag *flag, const char *name)
{
    return flag->name_bytes == strlen(name) && memcmp(flag->name, name, flag->name_bytes) == 0;
}

static bool flag_action(const struct flag *flag, enum kvd_config_action *ret)
{
    static const struct {
        const char *name;
        enum kvd_config_action action;
    } actions[] = {
        {"check-config", KVD_CONFIG_CHECK},
        {"print-config", KVD_CONFIG_PRINT},
        {"help", KVD_CONFIG_HELP},
        {"version", KVD_CONFIG_VERSION},
    };

    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (flag_is(flag, actions[i].name)) {
            *ret = actions[i].action;
            return true;
        }
    }
    return false;
}

static struct flag flag_split(const char *argument, const char *next)
{
    const char *name = argument + 2;
    const char *equals = strchr(name, '=');

    return (struct flag){
        .name = name,
        .name_bytes = equals != NULL ? (size_t)(equals - name) : strlen(name),
        .value = equals != NULL ? equals + 1 : next,
        .has_equals = equals != NULL,
    };
}

/* Handle one flag; config NULL: look for the command only. Sets whether it took the next argument.
 */
static int flag_take(struct kvd_config *config, const struct flag *flag, struct command *command,
    const struct kvd_option_source *source, bool *ret_took_next)
{
    int name_bytes = (int)flag->name_bytes;
    char name[64];

    (void)snprintf(name, sizeof(name), "--%.*s", name_bytes, flag->name);
    *ret_took_next = false;
    if (flag_action(flag, &command->action)) {
        return flag->has_equals ? kvd_option_refuse(source, "%s takes no value", name) : 0;
    }
    const struct kvd_option *option =
        kvd_option_find(flag->name, flag->name_bytes, KVD_OPTION_FLAG);
    bool is_config = flag_is(flag, "config");
    if (option == NULL && !is_config) {
        return kvd_option_refuse(source, "unknown flag %s; --help lists them", name);
    }
    const char *value = flag->value;
    if (option != NULL && option->type == KVD_OPTION_BOOL && !flag->has_equals) {
        value = "true";
    } else {
        *ret_took_next = !flag->has_equals;
    }
    if (value == NULL) {
        return kvd_option_refuse(source, "%s needs a value", name);
    }
    if (is_config) {
        command->file = value;
        return 0;
    }
    return config == NULL ? 0 : kvd_option_set(config, option, value, source, name);
}

static int flags_walk(struct kvd_config *config, int argc, char **argv, struct command *command,
    const struct kvd_option_source *source)
{
    for (int i = 1; i < argc; i++) {
        bool took_next;
        if (!has_prefix(argv[i], "--") || argv[i][2] == '\0') {
            return kvd_option_refuse(source, "expected --FLAG, got \"%s\"", argv[i]);
        }
        struct flag flag = flag_split(argv[i], i + 1 < argc ? argv[i + 1] : NULL);
        int err = flag_take(config, &flag, command, source, &took_next);
        if (err != 0) {
            return err;
        }
        i += took_next ? 1 : 0;
    }
    return 0;
}

/* Environment. */

static int environment_merge(
    struct kvd_config *config, char **envp, const struct kvd_option_source *source)
{
    for (; envp != NULL && *envp != NULL; envp++) {
        const char *equals = strchr(*envp, '=');
        char name[64];

        if (!has_prefix(*envp, ENV_PREFIX) || has_prefix(*envp, ENV_PREFIX_TEST) ||
            equals == NULL) {
            continue;
        }
        size_t bytes = (size_t)(equals - *envp);
        (void)snprintf(name, sizeof(name), "%.*s", (int)(bytes < 63 ? bytes : 63), *envp);
        if (strcmp(name, ENV_CONFIG) == 0 || strcmp(name, ENV_BUILD_DIR) == 0) {
            continue;
        }
        const char *stem = *envp + strlen(ENV_PREFIX);
        const struct kvd_option *option =
            kvd_option_find(stem, bytes - strlen(ENV_PREFIX), KVD_OPTION_ENV);
        if (option == NULL) {
            return kvd_option_refuse(source, "unknown variable %s", name);
        }
        int err = kvd_option_set(config, option, equals + 1, source, name);
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

static const char *environment_get(char **envp, const char *name)
{
    size_t bytes = strlen(name);

    for (; envp != NULL && *envp != NULL; envp++) {
        if (strncmp(*envp, name, bytes) == 0 && (*envp)[bytes] == '=') {
            return *envp + bytes + 1;
        }
    }
    return NULL;
}

/* Checks of the whole. */

/* The next uid of a list "1000,1001"; moves *text on. Returns 0 or KVARN_EINVALID. */
static int uid_next(const char **text, uint64_t *ret)
{
    size_t bytes = strcspn(*text, ",");
    int err = kvd_option_parse_uint(*text, bytes, UID_INVALID - 1, ret);

    if (err == 0 && (*text)[bytes] == ',') {
        bytes++;
        err = (*text)[bytes] == '\0' ? KVARN_EINVALID : 0;
    }
    *text += bytes;
    return err;
}

static int uids_check(const char *text, const struct kvd_option_source *source)
{
    const char *rest = text;
    uint64_t uid;

    while (*rest != '\0') {
        if (uid_next(&rest, &uid) != 0) {
            return kvd_option_refuse(
                source, "allow-uids: expected numbers like 1000,1001, got \"%s\"", text);
        }
    }
    return 0;
}

bool kvd_config_allows_uid(const struct kvd_config *config, uid_t uid)
{
    const char *rest = config->allow_uids;
    uint64_t allowed;

    if (uid == 0 || uid == geteuid()) {
        return true;
    }
    while (*rest != '\0' && uid_next(&rest, &allowed) == 0) {
        if (allowed == uid) {
            return true;
        }
    }
    return false;
}

/* SEMANTICS.md 25: without authentication, TCP is for this machine alone, and only when asked. */
static int tcp_check(const struct kvd_config *config, const struct kvd_option_source *source)
{
    struct sockaddr_storage address;
    socklen_t bytes;

    if (config->listen_tcp[0] == '\0') {
        return 0;
    }
    if (kvd_net_parse(config->listen_tcp, &address, &bytes) != 0) {
        return kvd_option_refuse(source,
            "listen-tcp: expected a numeric HOST:PORT like 127.0.0.1:7411 or [::1]:7411, got "
            "\"%s\"",
            config->listen_tcp);
    }
    if (!config->insecure_tcp) {
        return kvd_option_refuse(source,
            "listen-tcp: connections over TCP are not authenticated; say insecure-tcp to allow "
            "them");
    }
    if (!kvd_net_is_loopback(&address)) {
        return kvd_option_refuse(source,
            "listen-tcp: without authentication only 127.0.0.0/8 and [::1] are allowed, got "
            "\"%s\"",
            config->listen_tcp);
    }
    return 0;
}

static int config_check(const struct kvd_config *config, const struct kvd_option_source *source)
{
    if (config->listen_unix[0] == '\0' && config->listen_tcp[0] == '\0') {
        return kvd_option_refuse(source, "nothing to listen on: set listen-unix or listen-tcp");
    }
    enum kvd_evict_kind kind;
    if (strcmp(config->evict_policy, "none") != 0 &&
        kvd_evict_kind_parse(config->evict_policy, &kind) != 0) {
        return kvd_option_refuse(source,
            "evict-policy: expected cost, lru, s3fifo or none, got \"%s\"", config->evict_policy);
    }
    if (!kvd_log_is_level(config->log_level)) {
        return kvd_option_refuse(source,
            "log-level: expected error, warn, info or debug, got \"%s\"", config->log_level);
    }
    if (config->cold_segment % 4096 != 0 || config->cold_limit / 4 < config->cold_segment) {
        return kvd_option_refuse(source,
            "cold-segment: expected a multiple of 4096 of which cold-limit holds four, got %" PRIu64
            " with a limit of %" PRIu64,
            config->cold_segment, config->cold_limit);
    }
    int err = uids_check(config->allow_uids, source);
    return err != 0 ? err : tcp_check(config, source);
}

int kvd_config_load(struct kvd_config *config, int argc, char **argv, char **envp,
    enum kvd_config_action *ret_action, char *why, size_t why_bytes)
{
    struct kvd_option_source flags = {.name = "flag", .why = why, .why_bytes = why_bytes};
    struct kvd_option_source environment = {
        .name = "environment", .why = why, .why_bytes = why_bytes};
    struct kvd_option_source merged = {.name = "configuration", .why = why, .why_bytes = why_bytes};
    struct command command = {.action = KVD_CONFIG_RUN};

    KVARN_ASSERT(why_bytes > 0);
    /* Flags are walked twice: for the file's name, and last, because they win. */
    int err = flags_walk(NULL, argc, argv, &command, &flags);
    if (err != 0) {
        return err;
    }
    if (command.action == KVD_CONFIG_HELP || command.action == KVD_CONFIG_VERSION) {
        *ret_action = command.action;
        return 0;
    }
    const char *file = command.file != NULL ? command.file : environment_get(envp, ENV_CONFIG);
    if (file != NULL && file[0] != '\0') {
        err = kvd_config_file_load(config, file, why, why_bytes);
    }
    if (err == 0) {
        err = environment_merge(config, envp, &environment);
    }
    if (err == 0) {
        err = flags_walk(config, argc, argv, &command, &flags);
    }
    if (err == 0) {
        err = config_check(config, &merged);
    }
    if (err == 0) {
        *ret_action = command.action;
    }
    return err;
}

/* Text for people. */

void kvd_config_print(const struct kvd_config *config, FILE *out)
{
    const struct kvd_option *option;

    (void)fprintf(out, "[kvarnd]\n");
    for (size_t i = 0; (option = kvd_option_at(i)) != NULL; i++) {
        (void)fprintf(out, "# %s\n", option->help_text);
        kvd_option_print(config, option, out);
    }
}

static const char *value_name(enum kvd_option_type type)
{
    switch (type) {
    case KVD_OPTION_STR:
        return "TEXT";
    case KVD_OPTION_SIZE:
        return "SIZE";
    case KVD_OPTION_UINT:
        return "N";
    case KVD_OPTION_MS:
        return "MS";
    case KVD_OPTION_BOOL:
        break;
    }
    return "";
}

void kvd_config_usage(FILE *out)
{
    const struct kvd_option *option;

    (void)fprintf(out,
        "usage: kvarnd [--FLAG VALUE | --FLAG=VALUE]...\n"
        "KV-cache server daemon with attention on 2-bit KVarN tiles.\n\n"
        "Flags win over the environment (KVARND_LISTEN_UNIX), which wins over the file\n"
        "(listen_unix in section [kvarnd]). Sizes: 512MiB, 2G. Times: milliseconds.\n\n"
        "  --config FILE          read this file; KVARND_CONFIG names one too\n"
        "  --check-config         check the configuration and exit: 0, or 2 with the reason\n"
        "  --print-config         print the merged configuration as a file and exit\n"
        "  --version, --help      print and exit\n\n");
    for (size_t i = 0; (option = kvd_option_at(i)) != NULL; i++) {
        char name[48];
        (void)snprintf(name, sizeof(name), "%s %s", option->flag, value_name(option->type));
        (void)fprintf(out, "  --%-*s %s", HELP_COLUMN_BYTES, name, option->help_text);
        (void)fprintf(out, " [%s]\n", option->dflt_text);
    }
}

/*
 * kvarnd: argv -> configuration -> daemon.
 *
 * Thread: main, which becomes the loop. Exit codes: 0 ok, 1 failure at run time, 2 usage or
 * configuration.
 */
#include <stdio.h>
#include <unistd.h>

#include "kvarn/cpu.h"
#include "kvarn/version.h"
#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/config/config.h"
#include "server/daemon.h"

#define EXIT_RUN   1
#define EXIT_USAGE 2

static int daemon_start(const struct kvd_config *config)
{
    int err = kvd_log_set_level(config->log_level);

    KVARN_ASSERT(err == 0); /* the configuration was checked */
    if (config->listen_tcp[0] != '\0') {
        kvd_log(KVD_LOG_WARN, "tcp_not_authenticated", "address=%s meaning=%s", config->listen_tcp,
            "every process of this machine can read and change all sessions");
    }
    return kvd_daemon_run(config);
}

static int act(enum kvd_config_action action, const struct kvd_config *config)
{
    switch (action) {
    case KVD_CONFIG_RUN:
        return daemon_start(config);
    case KVD_CONFIG_CHECK:
        (void)printf("configuration ok\n");
        break;
    case KVD_CONFIG_PRINT:
        kvd_config_print(config, stdout);
        break;
    case KVD_CONFIG_HELP:
        kvd_config_usage(stdout);
        break;
    case KVD_CONFIG_VERSION:
        (void)printf("kvarnd " KVARN_VERSION "\n");
        break;
    }
    /* A full disk or a closed pipe must not pass for a printed configuration. */
    return fflush(stdout) == 0 ? 0 : EXIT_RUN;
}

int main(int argc, char **argv)
{
    struct kvd_config config;
    enum kvd_config_action action = KVD_CONFIG_RUN;
    char why[512] = "";
    int rc = EXIT_RUN;

    if (kvarn_cpu_init(NULL, why, sizeof(why)) != 0) {
        (void)fprintf(stderr, "kvarnd: %s\n", why);
        return EXIT_USAGE;
    }
    if (kvd_config_init(&config) != 0) {
        (void)fprintf(stderr, "kvarnd: out of memory\n");
        return EXIT_RUN;
    }
    if (kvd_config_load(&config, argc, argv, environ, &action, why, sizeof(why)) != 0) {
        (void)fprintf(stderr, "kvarnd: %s\n", why);
        rc = EXIT_USAGE;
    } else {
        rc = act(action, &config);
    }
    kvd_config_fini(&config);
    return rc;
}

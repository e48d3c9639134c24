/*
 * Configuration: flags > environment > file > defaults, one row per option in config.def.
 *
 * Owner: main. Thread: any, before the daemon starts; immutable after.
 */
#ifndef KVD_CONFIG_H
#define KVD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "kvarn/err.h"
#include "lib/base/limits.h"

#define KVD_CONFIG_TYPE_STR  char *
#define KVD_CONFIG_TYPE_SIZE uint64_t
#define KVD_CONFIG_TYPE_UINT uint64_t
#define KVD_CONFIG_TYPE_MS   uint64_t
#define KVD_CONFIG_TYPE_BOOL bool

struct kvd_config {
#define X(field, type, flag, dflt, help) KVD_CONFIG_TYPE_##type field; /* strings owned */
#include "server/config/config.def"
#undef X
};

enum kvd_config_action {
    KVD_CONFIG_RUN,
    KVD_CONFIG_CHECK,   /* --check-config */
    KVD_CONFIG_PRINT,   /* --print-config: the merged result as a file that can be read back */
    KVD_CONFIG_HELP,    /* --help */
    KVD_CONFIG_VERSION, /* --version */
};

/* Set every field to its default. Returns 0 or KVARN_ENOMEM. */
int kvd_config_init(struct kvd_config *config) KVARN_MUST_CHECK;
void kvd_config_fini(struct kvd_config *config);

/*
 * Merge file (--config FILE or KVARND_CONFIG), environment and flags into an initialised config and
 * check the result (ranges, --listen-tcp against --insecure-tcp and loopback: SEMANTICS.md 25).
 * envp: as main's environ. On failure `why` names the source, the key, what was expected and got.
 * Returns 0 or KVARN_EINVALID (unknown key or bad value), KVARN_EIO (file cannot be read).
 */
int kvd_config_load(struct kvd_config *config, int argc, char **argv, char **envp,
    enum kvd_config_action *ret_action, char *why, size_t why_bytes) KVARN_MUST_CHECK;

void kvd_config_print(const struct kvd_config *config, FILE *out);
void kvd_config_usage(FILE *out);

/* True for root, for our own uid and for those of --allow-uids. */
bool kvd_config_allows_uid(const struct kvd_config *config, uid_t uid);

/* "512MiB", "2G", "1048576" -> bytes. Returns 0 or KVARN_EINVALID. */
int kvd_config_parse_size(const char *text, uint64_t *ret_bytes) KVARN_MUST_CHECK;

#endif

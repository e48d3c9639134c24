/* Tests of server/config*.c: sources, their order, complaints, and what is allowed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/config/config.h"
#include "server/config/config_option.h"

#define ARGS_MAX 16

/* One call of kvd_config_load() and what came of it. */
struct load {
    struct kvd_config config;
    enum kvd_config_action action;
    int err;
    char why[512];
};

/* `args` and `envp` end with NULL. */
static void load_all(struct load *load, const char *const *args, const char *const *envp)
{
    char *argv[ARGS_MAX + 2] = {(char *)(uintptr_t) "kvarnd"};
    char *environment[ARGS_MAX + 1] = {NULL};
    int argc = 1;

    for (; args[argc - 1] != NULL; argc++) {
        assert_true(argc <= ARGS_MAX);
        argv[argc] = (char *)(uintptr_t)args[argc - 1];
    }
    for (size_t i = 0; envp[i] != NULL; i++) {
        assert_true(i < ARGS_MAX);
        environment[i] = (char *)(uintptr_t)envp[i];
    }
    memset(load, 0, sizeof(*load));
    load->action = (enum kvd_config_action)77;
    assert_int_equal(kvd_config_init(&load->config), 0);
    load->err = kvd_config_load(
        &load->config, argc, argv, environment, &load->action, load->why, sizeof(load->why));
    if (load->err != 0) {
        assert_int_equal(load->action, 77); /* outputs are untouched on failure */
        assert_true(load->why[0] != '\0');
    }
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NONE      ((const char *const[]){NULL})

static void expect_ok(struct load *load)
{
    if (load->err != 0) {
        fail_msg("%s", load->why);
    }
}

static void expect_refused(struct load *load, const char *part)
{
    assert_int_equal(load->err, KVARN_EINVALID);
    if (strstr(load->why, part) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", part, load->why);
    }
    kvd_config_fini(&load->config);
}

static void refuse_args(const char *const *args, const char *part)
{
    struct load load;
    load_all(&load, args, NONE);
    expect_refused(&load, part);
}

/* A file with that text; the caller unlinks it. */
static void file_write(char path[static 32], const char *text, size_t bytes)
{
    (void)snprintf(path, 32, "/tmp/kvd_config_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, bytes), (ssize_t)bytes);
    (void)close(fd);
}

static void load_file(struct load *load, const char *text)
{
    char path[32];
    file_write(path, text, strlen(text));
    load_all(load, ARGS("--config", path), NONE);
    (void)unlink(path);
}

static void refuse_file(const char *text, const char *part)
{
    struct load load;
    load_file(&load, text);
    expect_refused(&load, part);
}

static void defaults(void **state)
{
    struct load load;

    (void)state;
    load_all(&load, NONE, NONE);
    expect_ok(&load);
    assert_int_equal(load.action, KVD_CONFIG_RUN);
    assert_string_equal(load.config.listen_unix, KVARN_DEFAULT_SOCKET);
    assert_string_equal(load.config.listen_tcp, "");
    assert_false(load.config.insecure_tcp);
    assert_int_equal(load.config.memory_limit, UINT64_C(1) << 30);
    assert_int_equal(load.config.workers, 1);
    assert_int_equal(load.config.drain_timeout, 10000);
    kvd_config_fini(&load.config);
}

static void flags_in_both_forms(void **state)
{
    struct load load;

    (void)state;
    load_all(&load,
        ARGS("--listen-unix", "/tmp/a b.sock", "--memory-limit=2G", "--workers", "0",
            "--insecure-tcp", "--listen-tcp=127.0.0.1:0", "--log-level=debug"),
        NONE);
    expect_ok(&load);
    assert_string_equal(load.config.listen_unix, "/tmp/a b.sock");
    assert_int_equal(load.config.memory_limit, UINT64_C(2) << 30);
    assert_int_equal(load.config.workers, 0);
    assert_true(load.config.insecure_tcp);
    assert_string_equal(load.config.listen_tcp, "127.0.0.1:0");
    kvd_config_fini(&load.config);

    load_all(&load, ARGS("--insecure-tcp=no", "--listen-unix=", "--listen-unix", "/x"), NONE);
    expect_ok(&load);
    assert_false(load.config.insecure_tcp);
    assert_string_equal(load.config.listen_unix, "/x");
    kvd_config_fini(&load.config);
}

static void flags_win_over_environment_over_file(void **state)
{
    static const char text[] = "[kvarnd]\nworkers = 2\nsessions_max = 20\ncredit_requests = 200\n";
    struct load load;
    char path[32];
    char variable[64];

    (void)state;
    file_write(path, text, strlen(text));
    (void)snprintf(variable, sizeof(variable), "KVARND_CONFIG=%s", path);
    load_all(&load, ARGS("--workers", "4"),
        ARGS(variable, "KVARND_WORKERS=3", "KVARND_SESSIONS_MAX=30", "PATH=/bin"));
    expect_ok(&load);
    assert_int_equal(load.config.workers, 4);
    assert_int_equal(load.config.sessions_max, 30);
    assert_int_equal(load.config.credit_requests, 200);
    kvd_config_fini(&load.config);

    /* The flag's file instead of the environment's. */
    load_all(&load, ARGS("--config", path), ARGS("KVARND_CONFIG=/nowhere"));
    expect_ok(&load);
    assert_int_equal(load.config.workers, 2);
    kvd_config_fini(&load.config);
    (void)unlink(path);
}

static void unknown_names_are_refused_by_name(void **state)
{
    struct load load;

    (void)state;
    refuse_args(ARGS("--work", "3"), "flag: unknown flag --work");
    refuse_args(ARGS("--listen_unix", "/x"), "--listen_unix");
    refuse_args(ARGS("--"), "\"--\"");
    refuse_args(ARGS("serve"), "\"serve\"");
    refuse_args(ARGS("-w"), "\"-w\"");
    refuse_args(ARGS("--=x"), "--");
    load_all(&load, NONE, ARGS("KVARND_WORKER=3"));
    expect_refused(&load, "environment: unknown variable KVARND_WORKER");
    load_all(&load, NONE, ARGS("KVARND_workers=3"));
    expect_refused(&load, "KVARND_workers");
    refuse_file("[kvarnd]\nworkers = 1\nworker = 3\n", "line 3: unknown key \"worker\"");
    refuse_file("[kvarnd]\nlisten-unix = /x\n", "line 2: unknown key \"listen-unix\"");
}

static void variables_of_tests_are_left_alone(void **state)
{
    struct load load;

    (void)state;
    load_all(&load, NONE,
        ARGS("KVARND_TEST_SEED=1", "KVARND_BUILD_DIR=/b", "KVARND_CONFIG=", "KVARND_NO_EQUALS"));
    expect_ok(&load);
    kvd_config_fini(&load.config);
}

static void bad_values_name_source_key_and_range(void **state)
{
    struct load load;

    (void)state;
    refuse_args(
        ARGS("--workers", "-1"), "flag: --workers: expected a number from 0 to 256, got \"-1\"");
    refuse_args(ARGS("--workers", "257"), "257");
    refuse_args(ARGS("--workers", "99999999999999999999"), "99999999999999999999");
    refuse_args(ARGS("--workers", ""), "\"\"");
    refuse_args(ARGS("--workers"), "--workers needs a value");
    refuse_args(ARGS("--workers="), "--workers");
    refuse_args(ARGS("--idle-timeout", "10s"), "milliseconds");
    refuse_args(ARGS("--insecure-tcp=maybe"), "true or false");
    refuse_args(ARGS("--help=x"), "takes no value");
    refuse_args(ARGS("--log-level", "loud"), "log-level: expected error, warn, info or debug");
    load_all(&load, NONE, ARGS("KVARND_MEMORY_LIMIT=lots"));
    expect_refused(&load, "environment: KVARND_MEMORY_LIMIT: expected a size");
    refuse_file("[kvarnd]\npayload_max = 1GiB\n", "line 2: payload_max: expected a size");
}

static void limits_of_sizes(void **state)
{
    struct load load;

    (void)state;
    refuse_args(ARGS("--memory-limit", "16777215"), "from 16MiB");
    refuse_args(ARGS("--payload-max", "268435457"), "to 256MiB");
    load_all(&load, ARGS("--memory-limit", "16MiB", "--payload-max", "256MiB"), NONE);
    expect_ok(&load);
    kvd_config_fini(&load.config);
}

static void sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0}, {"1048576", 1048576}, {"512MiB", UINT64_C(512) << 20},
        {"2G", UINT64_C(2) << 30}, {"7B", 7}, {"3K", 3072}, {"3KiB", 3072},
        {"1T", UINT64_C(1) << 40}, {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"", "M", "1.5G", "1 G", "2GB", "2g", "-1", "+1", "0x10",
        "1Gx", "18446744073709551616", "18014398509481984K", "16777216T"};
    uint64_t bytes = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(kvd_config_parse_size(good[i].text, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bytes = 77;
        assert_int_equal(kvd_config_parse_size(bad[i], &bytes), KVARN_EINVALID);
        assert_int_equal(bytes, 77);
    }
}

static void semantics_25_tcp_needs_insecure_tcp(void **state)
{
    (void)state;
    refuse_args(ARGS("--listen-tcp", "127.0.0.1:7411"), "not authenticated");
    refuse_args(ARGS("--listen-tcp", "127.0.0.1:7411", "--insecure-tcp=false"), "insecure-tcp");
}

static void semantics_25_tcp_is_loopback_only(void **state)
{
    static const char *const far[] = {"0.0.0.0:7411", "192.168.1.1:7411", "[::]:7411",
        "[fe80::1]:7411", "[::ffff:127.0.0.1]:7411"};
    static const char *const wrong[] = {"localhost:7411", "127.0.0.1", "7411", "::1:7411"};
    static const char *const near[] = {"127.0.0.1:7411", "127.9.8.7:0", "[::1]:7411"};

    (void)state;
    for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
        refuse_args(ARGS("--insecure-tcp", "--listen-tcp", far[i]), "only 127.0.0.0/8 and [::1]");
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        refuse_args(ARGS("--insecure-tcp", "--listen-tcp", wrong[i]), "numeric HOST:PORT");
    }
    for (size_t i = 0; i < sizeof(near) / sizeof(near[0]); i++) {
        struct load load;
        load_all(&load, ARGS("--insecure-tcp", "--listen-tcp", near[i]), NONE);
        expect_ok(&load);
        kvd_config_fini(&load.config);
    }
}

static void semantics_25_tcp_is_off_by_default(void **state)
{
    struct load load;

    (void)state;
    load_all(&load, ARGS("--insecure-tcp"), NONE);
    expect_ok(&load);
    assert_string_equal(load.config.listen_tcp, "");
    kvd_config_fini(&load.config);
}

static void semantics_25_uids_that_may_connect(void **state)
{
    struct load load;
    uid_t own = geteuid();

    (void)state;
    load_all(&load, ARGS("--allow-uids", "1000,4294967294"), NONE);
    expect_ok(&load);
    assert_true(kvd_config_allows_uid(&load.config, 0));
    assert_true(kvd_config_allows_uid(&load.config, own));
    assert_true(kvd_config_allows_uid(&load.config, 1000));
    assert_true(kvd_config_allows_uid(&load.config, UINT32_MAX - 1));
    assert_false(kvd_config_allows_uid(&load.config, own == 1001 ? 1002 : 1001));
    assert_false(kvd_config_allows_uid(&load.config, own == 100 ? 101 : 100));
    assert_false(kvd_config_allows_uid(&load.config, UINT32_MAX));
    kvd_config_fini(&load.config);
    refuse_args(ARGS("--allow-uids", "1000,"), "allow-uids: expected numbers");
    refuse_args(ARGS("--allow-uids", ","), "allow-uids");
    refuse_args(ARGS("--allow-uids", "1000,,1"), "allow-uids");
    refuse_args(ARGS("--allow-uids", "root"), "allow-uids");
    refuse_args(ARGS("--allow-uids", "4294967295"), "allow-uids");
}

static void something_must_be_listened_on(void **state)
{
    struct load load;

    (void)state;
    refuse_args(ARGS("--listen-unix", ""), "nothing to listen on");
    load_all(&load, ARGS("--listen-unix=", "--listen-tcp=127.0.0.1:0", "--insecure-tcp"), NONE);
    expect_ok(&load);
    kvd_config_fini(&load.config);
}

static void texts_that_no_file_could_hold(void **state)
{
    char path[200];

    (void)state;
    memset(path, 'p', sizeof(path));
    path[108] = '\0';
    refuse_args(ARGS("--listen-unix", path), "0 to 107 bytes, got 108");
    refuse_args(ARGS("--listen-unix", "/a\nb"), "control bytes");
    refuse_args(ARGS("--listen-unix", "/a ;b"), "';'");
    refuse_args(ARGS("--listen-unix", " /a"), "blanks");
}

static void files_in_inis_dialect(void **state)
{
    struct load load;

    (void)state;
    load_file(&load, "# comment\n; comment\n\n[kvarnd]\r\nworkers=3\r\n  \nlisten_unix = /a#b\n"
                     "memory_limit: 32MiB ; inline\ninsecure_tcp = yes");
    expect_ok(&load);
    assert_int_equal(load.config.workers, 3);
    assert_int_equal(load.config.memory_limit, UINT64_C(32) << 20);
    assert_true(load.config.insecure_tcp);
    kvd_config_fini(&load.config);
}

static void files_that_are_wrong(void **state)
{
    char line[512];
    char path[32];
    struct load load;

    (void)state;
    refuse_file("workers = 3\n", "line 1: key \"workers\" outside the section [kvarnd]");
    refuse_file("[other]\nworkers = 3\n", "outside the section");
    refuse_file("[kvarnd]\nworkers\n", "line 2: expected key = value");
    refuse_file("[kvarnd\n", "line 1: expected key = value");
    refuse_file("[kvarnd\nworkers = 1\n", "outside the section");
    refuse_file("[kvarnd]\nworkers = 3\nworkers = 3\n", "line 3: key \"workers\" a second time");
    refuse_file("[kvarnd]\nlisten_unix = /a\n  /b\n", "line 3: an indented line");

    (void)snprintf(line, sizeof(line), "[kvarnd]\nallow_uids = %0300d\n", 7);
    refuse_file(line, "line 2: longer than");
    file_write(path, "[kvarnd]\nworkers = 3\0\n", 22);
    load_all(&load, ARGS("--config", path), NONE);
    expect_refused(&load, "line 2: a zero byte");
    (void)unlink(path);
}

static void files_that_cannot_be_read(void **state)
{
    struct load load;

    (void)state;
    load_all(&load, ARGS("--config", "/nowhere/kvarnd.conf"), NONE);
    assert_int_equal(load.err, KVARN_EIO);
    assert_non_null(strstr(load.why, "/nowhere/kvarnd.conf"));
    kvd_config_fini(&load.config);
    load_all(&load, ARGS("--config", "/tmp"), NONE);
    assert_int_equal(load.err, KVARN_EIO);
    kvd_config_fini(&load.config);
    load_all(&load, ARGS("--config"), NONE);
    expect_refused(&load, "--config needs a value");
}

static void actions(void **state)
{
    static const struct {
        const char *flag;
        enum kvd_config_action action;
    } cases[] = {{"--check-config", KVD_CONFIG_CHECK}, {"--print-config", KVD_CONFIG_PRINT},
        {"--help", KVD_CONFIG_HELP}, {"--version", KVD_CONFIG_VERSION}};
    struct load load;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        load_all(&load, ARGS("--workers", "2", cases[i].flag), NONE);
        expect_ok(&load);
        assert_int_equal(load.action, cases[i].action);
        kvd_config_fini(&load.config);
    }
    /* Help must come even when the rest cannot be used. */
    load_all(&load, ARGS("--help", "--config", "/nowhere"), ARGS("KVARND_NONSENSE=1"));
    expect_ok(&load);
    assert_int_equal(load.action, KVD_CONFIG_HELP);
    kvd_config_fini(&load.config);
}

static char *print_to_text(const struct kvd_config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);

    assert_non_null(out);
    kvd_config_print(config, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void what_is_printed_can_be_read_back(void **state)
{
    char path107[108];
    char uids[161];
    struct load load;
    struct load again;

    (void)state;
    memset(path107, 'p', sizeof(path107) - 1);
    path107[sizeof(path107) - 1] = '\0';
    for (size_t i = 0; i < sizeof(uids) - 1; i++) {
        uids[i] = i % 4 == 3 ? ',' : '1';
    }
    uids[159] = '1';
    uids[160] = '\0';
    load_all(&load,
        ARGS("--listen-unix", path107, "--allow-uids", uids, "--memory-limit=16777217",
            "--listen-tcp=[::1]:0", "--insecure-tcp", "--payload-max=3MiB", "--idle-timeout=5"),
        NONE);
    expect_ok(&load);
    char *text = print_to_text(&load.config);
    load_file(&again, text);
    expect_ok(&again);
#define KVD_SAME_STR(a, b)               assert_string_equal(a, b)
#define KVD_SAME_SIZE(a, b)              assert_int_equal(a, b)
#define KVD_SAME_UINT(a, b)              assert_int_equal(a, b)
#define KVD_SAME_MS(a, b)                assert_int_equal(a, b)
#define KVD_SAME_BOOL(a, b)              assert_int_equal(a, b)
#define X(field, type, flag, dflt, help) KVD_SAME_##type(load.config.field, again.config.field);
#include "server/config/config.def"
#undef X
    char *text_again = print_to_text(&again.config);
    assert_string_equal(text, text_again);
    free(text);
    free(text_again);
    kvd_config_fini(&load.config);
    kvd_config_fini(&again.config);
}

static void help_names_every_flag(void **state)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    unsigned count = 0;

    (void)state;
    assert_non_null(out);
    kvd_config_usage(out);
    assert_int_equal(fclose(out), 0);
#define X(field, type, flag, dflt, help)            \
    assert_non_null(strstr(text, "  --" flag " ")); \
    count++;
#include "server/config/config.def"
#undef X
    assert_true(count > 10);
    free(text);
}

static void a_small_room_for_why_is_enough(void **state)
{
    char *argv[] = {(char *)(uintptr_t) "kvarnd", (char *)(uintptr_t) "--nonsense"};
    struct kvd_config config;
    enum kvd_config_action action;
    char why[4] = "zzz";

    (void)state;
    assert_int_equal(kvd_config_init(&config), 0);
    assert_int_equal(
        kvd_config_load(&config, 2, argv, NULL, &action, why, sizeof(why)), KVARN_EINVALID);
    assert_string_equal(why, "fla");
    kvd_config_fini(&config);
    kvd_config_fini(&config); /* again: harmless */
    kvd_config_fini(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(flags_in_both_forms),
        cmocka_unit_test(flags_win_over_environment_over_file),
        cmocka_unit_test(unknown_names_are_refused_by_name),
        cmocka_unit_test(variables_of_tests_are_left_alone),
        cmocka_unit_test(bad_values_name_source_key_and_range),
        cmocka_unit_test(limits_of_sizes),
        cmocka_unit_test(sizes),
        cmocka_unit_test(semantics_25_tcp_needs_insecure_tcp),
        cmocka_unit_test(semantics_25_tcp_is_loopback_only),
        cmocka_unit_test(semantics_25_tcp_is_off_by_default),
        cmocka_unit_test(semantics_25_uids_that_may_connect),
        cmocka_unit_test(something_must_be_listened_on),
        cmocka_unit_test(texts_that_no_file_could_hold),
        cmocka_unit_test(files_in_inis_dialect),
        cmocka_unit_test(files_that_are_wrong),
        cmocka_unit_test(files_that_cannot_be_read),
        cmocka_unit_test(actions),
        cmocka_unit_test(what_is_printed_can_be_read_back),
        cmocka_unit_test(help_names_every_flag),
        cmocka_unit_test(a_small_room_for_why_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Tests of server/base/log.c: what arrives on standard error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>

#include "kvarn/err.h"
#include "server/base/log.h"

#define LINE_MAX_BYTES 4096

struct capture {
    int saved_fd;
    int read_fd;
    char text[LINE_MAX_BYTES];
};

/* Standard error into a pipe; a log line fits its buffer. */
static void capture_start(struct capture *capture)
{
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    capture->saved_fd = dup(STDERR_FILENO);
    assert_true(capture->saved_fd >= 0);
    assert_int_equal(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
    (void)close(fds[1]);
    capture->read_fd = fds[0];
}

static const char *capture_end(struct capture *capture)
{
    assert_int_equal(dup2(capture->saved_fd, STDERR_FILENO), STDERR_FILENO);
    (void)close(capture->saved_fd);
    ssize_t bytes = read(capture->read_fd, capture->text, sizeof(capture->text) - 1);
    assert_true(bytes >= 0);
    (void)close(capture->read_fd);
    capture->text[bytes] = '\0';
    return capture->text;
}

#define CAPTURE(capture, ...) \
    (capture_start(capture), kvd_log(KVD_LOG_ERROR, __VA_ARGS__), capture_end(capture))

/* The line behind the time, without its newline. */
static const char *tail_of(char *line)
{
    size_t bytes = strlen(line);

    assert_true(bytes > 0 && line[bytes - 1] == '\n');
    line[bytes - 1] = '\0';
    assert_null(strchr(line, '\n'));
    char *tail = strstr(line, "level=");
    assert_non_null(tail);
    return tail;
}

static void a_line_has_time_level_event(void **state)
{
    struct capture capture;
    int year;
    int month;
    char z;

    (void)state;
    (void)CAPTURE(&capture, "started", "%s", "");
    assert_int_equal(
        sscanf(capture.text, "%4d-%2d-%*2dT%*2d:%*2d:%*2d.%*3d%c", &year, &month, &z), 3);
    assert_true(year >= 2024 && month >= 1 && month <= 12 && z == 'Z');
    assert_string_equal(tail_of(capture.text), "level=error event=started ");
}

static void values_of_every_type(void **state)
{
    struct capture capture;

    (void)state;
    (void)CAPTURE(&capture, "x", "a=%d b=%" PRIu64 " c=%zu d=%08" PRIx64 " e=%.2f f=%5u g=%ld h=%%",
        -5, UINT64_MAX, (size_t)7, UINT64_C(0xabc), 1.5, 42u, -9L);
    assert_string_equal(tail_of(capture.text),
        "level=error event=x a=-5 b=18446744073709551615 c=7 d=00000abc e=1.50 f=   42 g=-9 h=%");
}

static void texts_cut_by_precision(void **state)
{
    struct capture capture;
    const char unterminated[3] = {'a', 'b', 'c'};

    (void)state;
    (void)CAPTURE(&capture, "x", "a=%.*s b=%s", 2, unterminated, "z");
    assert_string_equal(tail_of(capture.text), "level=error event=x a=ab b=z");
}

static void hostile_text_stays_one_value(void **state)
{
    struct capture capture;

    (void)state;
    (void)CAPTURE(&capture, "x", "name=%s reason=%s", "a b=c\n\"\\\x01\x7f", "ok");
    assert_string_equal(tail_of(capture.text),
        "level=error event=x name=\"a b=c\\x0a\\\"\\\\\\x01\\x7f\" reason=ok");
}

static void empty_and_missing_text(void **state)
{
    struct capture capture;
    const char *volatile missing = NULL;

    (void)state;
    (void)CAPTURE(&capture, "x", "a=%s b=%s", "", missing);
    assert_string_equal(tail_of(capture.text), "level=error event=x a=\"\" b=(none)");
}

static void a_long_line_is_cut_and_ends(void **state)
{
    struct capture capture;
    char name[3000];

    (void)state;
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    (void)CAPTURE(&capture, "x", "name=%s", name);
    assert_int_equal(strlen(capture.text), 1024);
    assert_int_equal(capture.text[1023], '\n');
}

static void levels_filter(void **state)
{
    struct capture capture;

    (void)state;
    assert_int_equal(kvd_log_set_level("loud"), KVARN_EINVALID);
    assert_int_equal(kvd_log_set_level("warn"), 0);
    capture_start(&capture);
    kvd_log(KVD_LOG_INFO, "hidden", "a=%d", 1);
    kvd_log(KVD_LOG_DEBUG, "hidden", "a=%d", 1);
    kvd_log(KVD_LOG_WARN, "seen", "a=%d", 1);
    (void)capture_end(&capture);
    assert_string_equal(tail_of(capture.text), "level=warn event=seen a=1");
    assert_int_equal(kvd_log_set_level("info"), 0);
    assert_true(kvd_log_is_level("debug"));
    assert_false(kvd_log_is_level("Debug"));
}

static void errno_survives(void **state)
{
    struct capture capture;

    (void)state;
    capture_start(&capture);
    (void)close(STDERR_FILENO);
    errno = ENOENT;
    kvd_log(KVD_LOG_ERROR, "x", "a=%d", 1);
    assert_int_equal(errno, ENOENT);
    (void)capture_end(&capture);
}

static void journald_gets_priorities(void **state)
{
    struct capture capture;
    struct stat st;
    char stream[64];

    (void)state;
    capture_start(&capture);
    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    (void)snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    assert_int_equal(setenv("JOURNAL_STREAM", stream, 1), 0);
    kvd_log(KVD_LOG_WARN, "x", "a=%d", 1);
    (void)capture_end(&capture);
    assert_string_equal(capture.text, "<4>event=x a=1\n");

    /* Somebody else's stream: the variable is inherited, standard error was redirected. */
    assert_int_equal(setenv("JOURNAL_STREAM", "1:1", 1), 0);
    (void)CAPTURE(&capture, "x", "a=%d", 1);
    assert_string_equal(tail_of(capture.text), "level=error event=x a=1");
    assert_int_equal(unsetenv("JOURNAL_STREAM"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_time_level_event),
        cmocka_unit_test(values_of_every_type),
        cmocka_unit_test(texts_cut_by_precision),
        cmocka_unit_test(hostile_text_stays_one_value),
        cmocka_unit_test(empty_and_missing_text),
        cmocka_unit_test(a_long_line_is_cut_and_ends),
        cmocka_unit_test(levels_filter),
        cmocka_unit_test(errno_survives),
        cmocka_unit_test(journald_gets_priorities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Tests of server/base/sd_notify.c: what a service manager receives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/sd_notify.h"

static int manager_open(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t bytes = strlen(path);

    assert_true(bytes < sizeof(name.sun_path));
    memcpy(name.sun_path, path, bytes);
    if (path[0] == '@') {
        name.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)(const void *)&name,
                         (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)),
        0);
    assert_int_equal(setenv("NOTIFY_SOCKET", path, 1), 0);
    return fd;
}

static void expect_message(int fd, const char *expected)
{
    char message[1024];
    ssize_t bytes = recv(fd, message, sizeof(message) - 1, 0);

    assert_true(bytes > 0);
    message[bytes] = '\0';
    assert_string_equal(message, expected);
}

static void exercise(const char *path)
{
    char status[2000];
    char message[1024];
    int fd = manager_open(path);

    kvd_sd_notify_ready("serving on unix:/a");
    expect_message(fd, "READY=1\nSTATUS=serving on unix:/a");
    kvd_sd_notify_status("two\nREADY=1");
    expect_message(fd, "STATUS=two");
    kvd_sd_notify_stopping("draining");
    expect_message(fd, "STOPPING=1\nSTATUS=draining");

    memset(status, 's', sizeof(status) - 1);
    status[sizeof(status) - 1] = '\0';
    kvd_sd_notify_status(status);
    ssize_t bytes = recv(fd, message, sizeof(message), 0);
    assert_true(bytes > 100 && (size_t)bytes < sizeof(status));
    assert_int_equal(recv(fd, message, sizeof(message), 0), -1);
    (void)close(fd);
    assert_int_equal(unsetenv("NOTIFY_SOCKET"), 0);
}

static void a_file_socket_is_told(void **state)
{
    char folder[] = "/tmp/kvd_notify_XXXXXX";
    char path[64];

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof(path), "%s/notify", folder);
    exercise(path);
    (void)unlink(path);
    (void)rmdir(folder);
}

static void an_abstract_socket_is_told(void **state)
{
    char path[64];

    (void)state;
    (void)snprintf(path, sizeof(path), "@kvd_notify_%ld", (long)getpid());
    exercise(path);
}

static void nobody_asked(void **state)
{
    (void)state;
    assert_int_equal(unsetenv("NOTIFY_SOCKET"), 0);
    kvd_sd_notify_ready("ready");
    assert_int_equal(setenv("NOTIFY_SOCKET", "/nowhere/at/all", 1), 0);
    kvd_sd_notify_ready("ready");
    assert_int_equal(setenv("NOTIFY_SOCKET", "", 1), 0);
    kvd_sd_notify_stopping("bye");
    assert_int_equal(unsetenv("NOTIFY_SOCKET"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_socket_is_told),
        cmocka_unit_test(an_abstract_socket_is_told),
        cmocka_unit_test(nobody_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

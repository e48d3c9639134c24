/* Tests of server/io/listen_socket.c: who may reach a socket, and whose path it was before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <fcntl.h>
#include <netinet/in.h>

#include "server/base/log.h"
#include "server/base/net_address.h"
#include "server/io/listen_socket.h"

#define STARTERS 8

struct folder {
    char name[32];
    char path[128]; /* of the socket */
};

static int folder_setup(void **state)
{
    struct folder *folder = calloc(1, sizeof(*folder));

    assert_non_null(folder);
    (void)snprintf(folder->name, sizeof(folder->name), "/tmp/kvd_listen_XXXXXX");
    assert_non_null(mkdtemp(folder->name));
    (void)snprintf(folder->path, sizeof(folder->path), "%s/k.sock", folder->name);
    *state = folder;
    return 0;
}

static int folder_teardown(void **state)
{
    struct folder *folder = *state;

    (void)unlink(folder->path);
    assert_int_equal(rmdir(folder->name), 0); /* nothing of ours is left in it */
    free(folder);
    return 0;
}

static int client_connect(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_true(strlen(path) < sizeof(name.sun_path));
    memcpy(name.sun_path, path, strlen(path));
    if (connect(fd, (const struct sockaddr *)(const void *)&name, sizeof(name)) != 0) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

static unsigned mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode & 07777;
}

static bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static void semantics_25_folder_0700_socket_0600(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket listening;
    char sub[64];
    char path[96];
    mode_t mask = umask(0);

    (void)snprintf(sub, sizeof(sub), "%s/run", folder->name);
    (void)snprintf(path, sizeof(path), "%s/k.sock", sub);
    assert_int_equal(kvd_listen_socket_unix(path, &listening), 0);
    assert_int_equal(umask(mask), 0); /* given back */
    assert_int_equal(mode_of(sub), 0700);
    assert_int_equal(mode_of(path), 0600);
    assert_int_equal(strncmp(listening.address, "unix:/", 6), 0);
    assert_string_equal(listening.address + 5, path);

    int fd = client_connect(path);
    assert_true(fd >= 0);
    (void)close(fd);
    kvd_listen_socket_close(&listening);
    assert_false(exists(path));
    assert_int_equal(rmdir(sub), 0);
}

static void a_stale_socket_is_replaced(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket dead;
    struct kvd_listen_socket listening;

    assert_int_equal(kvd_listen_socket_unix(folder->path, &dead), 0);
    (void)close(dead.fd); /* as a killed daemon leaves it */
    assert_true(exists(folder->path));
    assert_int_equal(kvd_listen_socket_unix(folder->path, &listening), 0);
    int fd = client_connect(folder->path);
    assert_true(fd >= 0);
    (void)close(fd);
    kvd_listen_socket_close(&listening);
}

static void a_live_socket_is_a_conflict(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket live;
    struct kvd_listen_socket second;

    memset(&second, 0x5a, sizeof(second));
    struct kvd_listen_socket before = second;
    assert_int_equal(kvd_listen_socket_unix(folder->path, &live), 0);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &second), KVARN_ECONFLICT);
    assert_memory_equal(&second, &before, sizeof(second));
    int fd = client_connect(folder->path);
    assert_true(fd >= 0); /* the first one was not disturbed */
    (void)close(fd);
    kvd_listen_socket_close(&live);
}

static void a_full_live_socket_is_a_conflict_too(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket live;
    struct kvd_listen_socket second;

    assert_int_equal(kvd_listen_socket_unix(folder->path, &live), 0);
    assert_int_equal(listen(live.fd, 0), 0); /* room for one that waits */
    int fd = client_connect(folder->path);
    assert_true(fd >= 0);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &second), KVARN_ECONFLICT);
    assert_true(exists(folder->path));
    (void)close(fd);
    kvd_listen_socket_close(&live);
}

static void what_is_not_a_socket_is_never_removed(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket listening;
    char target[64];

    int fd = open(folder->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    (void)close(fd);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &listening), KVARN_EINVALID);
    assert_true(exists(folder->path));
    assert_int_equal(unlink(folder->path), 0);

    assert_int_equal(mkdir(folder->path, 0700), 0);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &listening), KVARN_EINVALID);
    assert_int_equal(rmdir(folder->path), 0);

    (void)snprintf(target, sizeof(target), "%s/elsewhere", folder->name);
    assert_int_equal(symlink(target, folder->path), 0);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &listening), KVARN_EINVALID);
    assert_true(exists(folder->path));
}

static void paths_that_do_not_work(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket listening;
    char path[300];

    assert_int_equal(kvd_listen_socket_unix("", &listening), KVARN_EINVALID);
    (void)snprintf(path, sizeof(path), "%s/%0200d", folder->name, 0);
    assert_int_equal(kvd_listen_socket_unix(path, &listening), KVARN_EINVALID);
    (void)snprintf(path, sizeof(path), "%s/a/b/k.sock", folder->name);
    assert_int_equal(kvd_listen_socket_unix(path, &listening), KVARN_EIO);

    /* The longest that fits. */
    size_t bytes = (size_t)snprintf(path, sizeof(path), "%s/", folder->name);
    memset(path + bytes, 'k', 107 - bytes);
    path[107] = '\0';
    assert_int_equal(kvd_listen_socket_unix(path, &listening), 0);
    assert_string_equal(listening.address + 5, path);
    kvd_listen_socket_close(&listening);
    assert_false(exists(path));
}

static void paths_without_a_folder(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket listening;
    char before[4096];

    assert_non_null(getcwd(before, sizeof(before)));
    assert_int_equal(chdir(folder->name), 0);
    assert_int_equal(kvd_listen_socket_unix("k.sock", &listening), 0);
    assert_true(exists(folder->path));
    kvd_listen_socket_close(&listening);
    assert_int_equal(chdir(before), 0);
}

static void a_successors_socket_is_not_removed(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket first;
    struct kvd_listen_socket second;

    assert_int_equal(kvd_listen_socket_unix(folder->path, &first), 0);
    assert_int_equal(unlink(folder->path), 0);
    assert_int_equal(kvd_listen_socket_unix(folder->path, &second), 0);
    kvd_listen_socket_close(&first);
    assert_true(exists(folder->path));
    kvd_listen_socket_close(&second);
    assert_false(exists(folder->path));
}

/* In a child: wait for the start, listen, tell the parent, hold on until the parent has counted. */
static void starter_run(const char *path, int start_fd, int result_fd, int end_fd)
{
    struct kvd_listen_socket listening;
    char byte;

    if (read(start_fd, &byte, 1) != 0) { /* the parent closes its end */
        _exit(1);
    }
    byte = kvd_listen_socket_unix(path, &listening) == 0 ? 'y' : 'n';
    if (write(result_fd, &byte, 1) != 1) {
        _exit(1);
    }
    _exit(read(end_fd, &byte, 1) == 0 ? 0 : 1);
}

static void of_many_starters_exactly_one_wins(void **state)
{
    const struct folder *folder = *state;
    struct kvd_listen_socket dead;
    int start[2];
    int result[2];
    int end[2];
    unsigned winners = 0;

    assert_int_equal(kvd_listen_socket_unix(folder->path, &dead), 0);
    (void)close(dead.fd);
    assert_int_equal(pipe(start) | pipe(result) | pipe(end), 0);
    for (int i = 0; i < STARTERS; i++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            (void)close(start[1]);
            (void)close(end[1]);
            starter_run(folder->path, start[0], result[1], end[0]);
        }
    }
    (void)close(start[1]); /* all at once */
    for (int i = 0; i < STARTERS; i++) {
        char byte = 0;
        assert_int_equal(read(result[0], &byte, 1), 1);
        winners += byte == 'y' ? 1 : 0;
    }
    (void)close(end[1]);
    while (wait(NULL) > 0) {
    }
    assert_int_equal(winners, 1);
    (void)close(start[0]);
    (void)close(end[0]);
    (void)close(result[0]);
    (void)close(result[1]);
}

static void tcp_says_its_real_port(void **state)
{
    struct kvd_listen_socket listening;
    struct kvd_listen_socket second;
    struct sockaddr_storage address;
    socklen_t bytes;

    (void)state;
    assert_int_equal(kvd_listen_socket_tcp("127.0.0.1:0", &listening), 0);
    assert_int_equal(strncmp(listening.address, "tcp:127.0.0.1:", 14), 0);
    assert_int_equal(kvd_net_parse(listening.address + 4, &address, &bytes), 0);
    assert_int_not_equal(((const struct sockaddr_in *)(const void *)&address)->sin_port, 0);

    assert_int_equal(kvd_listen_socket_tcp(listening.address + 4, &second), KVARN_ECONFLICT);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)(const void *)&address, bytes), 0);
    (void)close(fd);
    kvd_listen_socket_close(&listening);
}

static void tcp_addresses_that_do_not_work(void **state)
{
    struct kvd_listen_socket listening;

    (void)state;
    assert_int_equal(kvd_listen_socket_tcp("localhost:0", &listening), KVARN_EINVALID);
    assert_int_equal(kvd_listen_socket_tcp("", &listening), KVARN_EINVALID);
    assert_int_equal(kvd_listen_socket_tcp("192.0.2.1:1", &listening), KVARN_EIO); /* not ours */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            semantics_25_folder_0700_socket_0600, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(a_stale_socket_is_replaced, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(a_live_socket_is_a_conflict, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(
            a_full_live_socket_is_a_conflict_too, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(
            what_is_not_a_socket_is_never_removed, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(paths_that_do_not_work, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(paths_without_a_folder, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(
            a_successors_socket_is_not_removed, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(
            of_many_starters_exactly_one_wins, folder_setup, folder_teardown),
        cmocka_unit_test(tcp_says_its_real_port),
        cmocka_unit_test(tcp_addresses_that_do_not_work),
    };
    (void)alarm(50); /* a hang fails with a signal, before the runner's own limit */
    return cmocka_run_group_tests(tests, NULL, NULL);
}

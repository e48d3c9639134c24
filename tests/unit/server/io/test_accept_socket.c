/* Tests of server/io/accept_socket.c: who came, and what happens without descriptors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "server/base/net_address.h"
#include "server/io/accept_socket.h"

struct env {
    char folder[32];
    struct kvd_listen_socket listening;
    struct kvd_accept_reserve reserve;
};

static int env_setup(void **state)
{
    struct env *env = calloc(1, sizeof(*env));
    char path[64];

    assert_non_null(env);
    (void)snprintf(env->folder, sizeof(env->folder), "/tmp/kvd_accept_XXXXXX");
    assert_non_null(mkdtemp(env->folder));
    (void)snprintf(path, sizeof(path), "%s/k.sock", env->folder);
    assert_int_equal(kvd_listen_socket_unix(path, &env->listening), 0);
    kvd_accept_reserve_init(&env->reserve);
    assert_true(env->reserve.fd >= 0);
    *state = env;
    return 0;
}

static int env_teardown(void **state)
{
    struct env *env = *state;

    kvd_accept_reserve_fini(&env->reserve);
    kvd_accept_reserve_fini(&env->reserve); /* again: harmless */
    kvd_listen_socket_close(&env->listening);
    assert_int_equal(rmdir(env->folder), 0);
    free(env);
    return 0;
}

static int client_connect(const struct env *env)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    (void)snprintf(name.sun_path, sizeof(name.sun_path), "%s", env->listening.address + 5);
    assert_int_equal(connect(fd, (const struct sockaddr *)(const void *)&name, sizeof(name)), 0);
    return fd;
}

/* No descriptor above those that are open now; returns the old limit. */
static rlim_t descriptors_exhaust(void)
{
    struct rlimit limit;
    int fd = dup(STDIN_FILENO);

    assert_true(fd >= 0);
    (void)close(fd);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)fd;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return before;
}

static void descriptors_restore(rlim_t before)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = before;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void semantics_25_a_unix_peer_is_known(void **state)
{
    struct env *env = *state;
    struct kvd_peer peer;
    char text[80];
    int fd = -1;

    assert_int_equal(kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_EMPTY);
    assert_int_equal(fd, -1);
    int client = client_connect(env);
    assert_int_equal(kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_TAKEN);
    assert_true(peer.is_unix);
    assert_int_equal(peer.uid, geteuid());
    assert_int_equal(peer.gid, getegid());
    assert_int_equal(peer.pid, getpid());
    (void)snprintf(text, sizeof(text), "unix:uid=%u,pid=%d", (unsigned)geteuid(), (int)getpid());
    assert_string_equal(peer.text, text);
    assert_true((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    (void)close(fd);
    (void)close(client);
}

static int option_int(int fd, int level, int name)
{
    int value = -1;
    socklen_t bytes = sizeof(value);
    assert_int_equal(getsockopt(fd, level, name, &value, &bytes), 0);
    return value;
}

static void a_tcp_peer_is_known_and_tuned(void **state)
{
    struct kvd_listen_socket listening;
    struct kvd_accept_reserve reserve;
    struct sockaddr_storage address;
    struct kvd_peer peer;
    socklen_t bytes;
    char text[KVD_NET_TEXT_MAX];
    int fd = -1;

    (void)state;
    kvd_accept_reserve_init(&reserve);
    assert_int_equal(kvd_listen_socket_tcp("127.0.0.1:0", &listening), 0);
    assert_int_equal(kvd_net_parse(listening.address + 4, &address, &bytes), 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(client, (const struct sockaddr *)(const void *)&address, bytes), 0);
    assert_int_equal(kvd_accept_take(&listening, &reserve, &fd, &peer), KVD_ACCEPT_TAKEN);
    assert_false(peer.is_unix);
    assert_int_equal(getsockname(client, (struct sockaddr *)(void *)&address, &bytes), 0);
    kvd_net_format(&address, text, sizeof(text));
    assert_int_equal(strncmp(peer.text, "tcp:", 4), 0);
    assert_string_equal(peer.text + 4, text);
    assert_int_equal(option_int(fd, IPPROTO_TCP, TCP_NODELAY), 1);
    assert_int_equal(option_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 30000);
    assert_int_equal(option_int(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
    (void)close(fd);
    (void)close(client);
    kvd_listen_socket_close(&listening);
    kvd_accept_reserve_fini(&reserve);
}

static void without_descriptors_clients_hear_no(void **state)
{
    struct env *env = *state;
    struct kvd_peer peer;
    char byte;
    int fd = -1;
    int clients[2] = {client_connect(env), client_connect(env)};
    rlim_t before = descriptors_exhaust();

    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(
            kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_SKIPPED);
        assert_int_equal(read(clients[i], &byte, 1), 0); /* closed, not left to wait */
        assert_int_equal(env->reserve.refused_count, i + 1);
    }
    assert_int_equal(kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_EMPTY);
    assert_int_equal(env->reserve.refused_count, 2);
    assert_true(env->reserve.fd >= 0);
    descriptors_restore(before);

    int client = client_connect(env);
    assert_int_equal(kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_TAKEN);
    (void)close(fd);
    (void)close(client);
    (void)close(clients[0]);
    (void)close(clients[1]);
}

static void without_a_reserve_the_listener_rests(void **state)
{
    struct env *env = *state;
    struct kvd_peer peer;
    char byte;
    int fd = -1;
    int client = client_connect(env);

    kvd_accept_reserve_fini(&env->reserve); /* another thread took the number in between */
    int other = dup(STDIN_FILENO);
    rlim_t before = descriptors_exhaust();
    assert_int_equal(kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_REST);
    (void)close(other);
    /* The first free descriptor becomes the reserve again, and the waiting client hears of it. */
    assert_int_equal(
        kvd_accept_take(&env->listening, &env->reserve, &fd, &peer), KVD_ACCEPT_SKIPPED);
    assert_true(env->reserve.fd >= 0);
    assert_int_equal(read(client, &byte, 1), 0);
    descriptors_restore(before);
    (void)close(client);
}

static void a_peer_that_left_is_skipped_or_taken(void **state)
{
    struct env *env = *state;
    struct kvd_peer peer;
    int fd = -1;

    (void)close(client_connect(env));
    enum kvd_accept result = kvd_accept_take(&env->listening, &env->reserve, &fd, &peer);
    assert_int_equal(result, KVD_ACCEPT_TAKEN); /* unix: its credentials outlive it */
    assert_int_equal(peer.pid, getpid());
    (void)close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(semantics_25_a_unix_peer_is_known, env_setup, env_teardown),
        cmocka_unit_test(a_tcp_peer_is_known_and_tuned),
        cmocka_unit_test_setup_teardown(
            without_descriptors_clients_hear_no, env_setup, env_teardown),
        cmocka_unit_test_setup_teardown(
            without_a_reserve_the_listener_rests, env_setup, env_teardown),
        cmocka_unit_test_setup_teardown(
            a_peer_that_left_is_skipped_or_taken, env_setup, env_teardown),
    };
    (void)alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

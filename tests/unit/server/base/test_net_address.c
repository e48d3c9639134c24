/* Tests of server/base/net_address.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/net_address.h"

static void addresses_come_back_as_written(void **state)
{
    static const char *const texts[] = {
        "127.0.0.1:0", "10.1.2.3:65535", "[::1]:7411", "[fe80::1:2]:1", "0.0.0.0:7411", "[::]:80"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct sockaddr_storage address;
        socklen_t bytes = 0;
        char text[KVD_NET_TEXT_MAX];
        assert_int_equal(kvd_net_parse(texts[i], &address, &bytes), 0);
        assert_true(bytes > 0 && bytes <= sizeof(address));
        kvd_net_format(&address, text, sizeof(text));
        assert_string_equal(text, texts[i]);
    }
}

static void wrong_addresses_are_refused(void **state)
{
    static const char *const texts[] = {"", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
        "127.0.0.1:x", "127.0.0.1:+1", "127.0.0.1:-1", "127.0.0.1: 1", "127.0.0.1:000001",
        "localhost:1", ":7411", "::1:7411", "[]:1", "[:1", "]:1", "[::1:1", "::1]:1",
        "[127.0.0.1]:1", "1.2.3:1", "[::1%lo]:1",
        "[1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd]:1"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct sockaddr_storage address;
        struct sockaddr_storage before;
        socklen_t bytes = 77;
        memset(&address, 0x5a, sizeof(address));
        before = address;
        assert_int_equal(kvd_net_parse(texts[i], &address, &bytes), KVARN_EINVALID);
        assert_int_equal(bytes, 77);
        assert_memory_equal(&address, &before, sizeof(address));
    }
}

static void semantics_25_loopback_is_127_8_and_1(void **state)
{
    static const struct {
        const char *text;
        bool is_loopback;
    } cases[] = {{"127.0.0.1:1", true}, {"127.255.255.254:1", true}, {"[::1]:1", true},
        {"128.0.0.1:1", false}, {"126.255.255.255:1", false}, {"0.0.0.0:1", false},
        {"[::]:1", false}, {"[::ffff:127.0.0.1]:1", false}, {"192.168.0.1:1", false}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sockaddr_storage address;
        socklen_t bytes;
        assert_int_equal(kvd_net_parse(cases[i].text, &address, &bytes), 0);
        assert_int_equal(kvd_net_is_loopback(&address), cases[i].is_loopback);
    }
    struct sockaddr_storage local = {.ss_family = AF_UNIX};
    char text[KVD_NET_TEXT_MAX];
    assert_false(kvd_net_is_loopback(&local));
    kvd_net_format(&local, text, sizeof(text));
    assert_string_equal(text, "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_come_back_as_written),
        cmocka_unit_test(wrong_addresses_are_refused),
        cmocka_unit_test(semantics_25_loopback_is_127_8_and_1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

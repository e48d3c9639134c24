/* Tests of server/rpc/reply_buffer.c: what is charged comes back, whoever lets go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/rpc/reply_buffer.h"
#include "tests/support/wire_peer.h"

static void test_released_payload_gives_its_charge_back(void **state)
{
    struct kvt_host host;
    struct kvd_reply_buffer *buffer;
    struct kvd_failure why = {0};

    (void)state;
    kvt_host_init(&host, &(struct kvt_host_options){0});
    uint64_t used = host.service.budget.used_bytes;
    assert_int_equal(kvd_reply_buffer_create(&host.service, 1000, &buffer, &why), 0);
    assert_true(host.service.budget.used_bytes >= used + 1000);
    assert_int_equal((uintptr_t)buffer->data % 64, 0);
    struct kvd_reply_payload payload = kvd_reply_buffer_payload(buffer);
    assert_int_equal(payload.bytes, 1000);
    assert_ptr_equal(payload.bufs[0].data, buffer->data);
    payload.release_cb(payload.ctx);
    assert_int_equal(host.service.budget.used_bytes, used);
    kvd_reply_buffer_destroy(NULL);
    kvt_host_fini(&host);
}

static void test_full_budget_refuses(void **state)
{
    struct kvt_host host;
    struct kvd_reply_buffer *buffer = NULL;
    struct kvd_failure why = {0};

    (void)state;
    kvt_host_init(&host, &(struct kvt_host_options){.memory_limit = 1 << 20});
    uint64_t used = host.service.budget.used_bytes;
    assert_int_equal(kvd_reply_buffer_create(&host.service, 1 << 20, &buffer, &why), KVARN_ENOSPC);
    assert_int_equal(why.err, KVARN_ENOSPC);
    assert_null(buffer);
    assert_int_equal(host.service.budget.used_bytes, used);
    kvt_host_fini(&host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_payload_gives_its_charge_back),
        cmocka_unit_test(test_full_budget_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The capacity calculator against figures computed by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/cli/size.h"

/* Llama-3.1-8B: 32 layers, 8 KV heads, head_dim 128. A token is 131,072 B in fp16. */
static struct size_in llama(uint64_t tokens)
{
    return (struct size_in){
        .spec = {128, 128, 128, 2, 2},
        .layers = 32,
        .kv_heads = 8,
        .sink_tokens = 128,
        .tokens = tokens,
    };
}

static void semantics_1_ratio_counts_sink_and_tail(void **state)
{
    /* A block: 32 * 77,824 = 2,490,368 B of tiles, 128 * 131,072 = 16,777,216 B of rows. */
    struct size_in in = llama(1024);
    struct size_out out;

    (void)state;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.fp16_bytes, 134217728);
    assert_int_equal(out.format_bytes, 7 * 2490368);
    assert_int_equal(out.sink_bytes, 16777216);
    assert_int_equal(out.tail_bytes, 0);
    assert_int_equal(out.reserved_bytes, 0);
    assert_int_equal(out.total_bytes, 7 * 2490368 + 16777216);
    assert_true(out.format_bits == 2.375);
    assert_true(out.ratio > 3.92 && out.ratio < 3.93); /* 134,217,728 / 34,209,792 */
    in.tokens = 32768;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_true(out.ratio > 6.58 && out.ratio < 6.59); /* 4,294,967,296 / 651,821,056 */
    assert_int_equal(out.total_bytes, 255 * UINT64_C(2490368) + 16777216);
}

static void semantics_2_lag_keeps_blocks_open(void **state)
{
    struct size_in in = llama(1024);
    struct size_out out;

    (void)state;
    in.seal_lag = 32; /* 1,024 < 8 * 128 + 32: the last block stays open */
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.format_bytes, 6 * 2490368);
    assert_int_equal(out.tail_bytes, 16777216);
    assert_int_equal(out.reserved_bytes, 2490368);
    in.tokens = 1056;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.format_bytes, 7 * 2490368);
    assert_int_equal(
        out.tail_bytes, 16777216); /* of the ninth block, 32 of whose tokens are there */
}

static void edges_of_length(void **state)
{
    struct size_in in = llama(0);
    struct size_out out;

    (void)state;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.total_bytes, 0);
    assert_true(out.ratio == 0.0);
    in.tokens = 1;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.sink_bytes, 16777216);
    assert_int_equal(out.total_bytes, 16777216);
    in.sink_tokens = 0;
    assert_int_equal(size_compute(&in, &out), 0);
    assert_int_equal(out.tail_bytes, 16777216);
    assert_int_equal(out.reserved_bytes, 2490368);
}

static void shapes_that_no_model_has_are_refused(void **state)
{
    struct size_in in = llama(1024);
    struct size_out out;

    (void)state;
    in.sink_tokens = 100;
    assert_int_equal(size_compute(&in, &out), KVARN_EINVALID);
    in = llama(1024);
    in.seal_lag = 129;
    assert_int_equal(size_compute(&in, &out), KVARN_EINVALID);
    in = llama(1024);
    in.layers = 0;
    assert_int_equal(size_compute(&in, &out), KVARN_EINVALID);
    in = llama(1024);
    in.spec.k_dim = 100;
    assert_int_equal(size_compute(&in, &out), KVARN_EINVALID);
    in = llama(UINT64_MAX);
    assert_int_equal(size_compute(&in, &out), KVARN_EINVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_1_ratio_counts_sink_and_tail),
        cmocka_unit_test(semantics_2_lag_keeps_blocks_open),
        cmocka_unit_test(edges_of_length),
        cmocka_unit_test(shapes_that_no_model_has_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

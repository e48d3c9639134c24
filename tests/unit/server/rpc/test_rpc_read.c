/* ReadBlocks over the wire: every form of rows, stored blocks, misses, snapshots, limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/read/read.h"
#include "tests/unit/server/rpc/rpc_rig.h"

static Kvarnd__ReadBlocks read_message(const struct rpc_session *session, uint32_t layer_first,
    uint32_t layer_count, uint64_t first, uint64_t last)
{
    Kvarnd__ReadBlocks message = KVARND__READ_BLOCKS__INIT;

    message.handle = session->handle;
    message.layer_first = layer_first;
    message.has_layer_count = 1;
    message.layer_count = layer_count;
    message.token_first = first;
    message.token_last = last;
    message.has_dtype = message.has_layout = message.has_rotated = message.has_what = 1;
    return message;
}

static struct kvt_answer read_call(struct rpc_rig *rig, const Kvarnd__ReadBlocks *message)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_READ_BLOCKS, &message->base, NULL, 0);
}

static int read_err(struct rpc_rig *rig, const Kvarnd__ReadBlocks *message)
{
    return rpc_call_err(rig, KVARN_FRAME_READ_BLOCKS, &message->base, NULL, 0);
}

/* One token's row of one head, from rotated floats to what the message asks for. */
static size_t row_expected(
    const Kvarnd__ReadBlocks *message, const float *rotated, uint32_t dim, uint8_t *dst)
{
    float row[KVARN_HEAD_DIM_MAX];

    memcpy(row, rotated, dim * sizeof(*row));
    if (!message->rotated) {
        kvarn_rotate(row, 1, dim);
    }
    kvarn_from_f32(dst, (enum kvarn_dtype)message->dtype, row, dim);
    return dim * kvarn_dtype_bytes((enum kvarn_dtype)message->dtype);
}

/* K or V of one layer, in the layout asked for; returns what was compared. */
static const uint8_t *side_compare(const Kvarnd__ReadBlocks *message,
    const struct kvd_layer_shape *ls, const struct rpc_floats *floats, bool is_v, const uint8_t *at)
{
    uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    const float *base = is_v ? floats->v : floats->k;
    uint64_t tokens = message->token_last - message->token_first;
    bool is_token_major = message->layout == KVARND__LAYOUT__TOKEN_MAJOR;
    uint8_t expected[KVARN_HEAD_DIM_MAX * sizeof(float)];

    for (uint64_t i = 0; i < tokens * ls->kv_heads; i++) {
        uint64_t head = is_token_major ? i % ls->kv_heads : i / tokens;
        uint64_t token = message->token_first + (is_token_major ? i / ls->kv_heads : i % tokens);
        uint64_t row = head * (floats->last - floats->first) + token - floats->first;
        size_t bytes = row_expected(message, base + row * dim, dim, expected);
        assert_memory_equal(at, expected, bytes);
        at += bytes;
    }
    return at;
}

/* Read and compare with what the layers hold, bit for bit. */
static void rows_compare(
    struct rpc_rig *rig, const Kvarnd__ReadBlocks *message, const struct rpc_floats *layers)
{
    struct kvt_answer answer = read_call(rig, message);
    const Kvarnd__ReadBlocksReply *reply = answer.message;
    const uint8_t *at = answer.payload;

    if (answer.err != 0) {
        fail_msg("read: %s", answer.status->text);
    }
    assert_int_equal(reply->n_runs, message->layer_count);
    for (uint32_t i = 0; i < message->layer_count; i++) {
        uint32_t layer = message->layer_first + i;
        const struct kvd_layer_shape *ls = &rig->shape->layers[layer];
        assert_int_equal(reply->runs[i]->layer, layer);
        assert_int_equal(reply->runs[i]->form, KVARND__RUN_FORM__ROWS);
        assert_int_equal(reply->runs[i]->first_token, message->token_first);
        assert_int_equal(reply->runs[i]->token_count, message->token_last - message->token_first);
        if (message->what != KVARND__READ_WHAT__V_ONLY) {
            at = side_compare(message, ls, &layers[layer], false, at);
        }
        if (message->what != KVARND__READ_WHAT__K_ONLY) {
            at = side_compare(message, ls, &layers[layer], true, at);
        }
    }
    assert_ptr_equal(at, (uint8_t *)answer.payload + answer.payload_bytes);
    kvt_answer_fini(&answer);
}

static void test_s20_rows_in_every_form(void **state)
{
    const uint64_t ranges[][2] = {{0, 200}, {10, 20}, {60, 70}, {64, 128}, {100, 150}, {120, 200},
        {199, 200}, {0, 64}, {191, 193}};
    struct rpc_floats layers[3];
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 200);
    for (uint32_t i = 0; i < 3; i++) {
        layers[i] = rpc_read_floats(&rig, &session, i, 0, 200);
    }
    for (unsigned form = 0; form < 3 * 2 * 2 * 3; form++) {
        for (size_t r = 0; r < sizeof(ranges) / sizeof(ranges[0]); r++) {
            uint32_t first = (uint32_t)r % 3;
            Kvarnd__ReadBlocks message =
                read_message(&session, first, 3 - first, ranges[r][0], ranges[r][1]);
            message.dtype = (Kvarnd__DType)(form % 3);
            message.layout = (Kvarnd__Layout)(form / 3 % 2);
            message.rotated = form / 6 % 2;
            message.what = (Kvarnd__ReadWhat)(form / 12);
            rows_compare(&rig, &message, layers);
        }
    }
    for (uint32_t i = 0; i < 3; i++) {
        rpc_floats_fini(&layers[i]);
    }
    rpc_rig_fini(&rig);
}

/* A token's rotated half row as the daemon must hold it. */
static void half_row(
    uint32_t layer, bool is_v, uint32_t head, uint64_t token, uint32_t dim, uint16_t *dst)
{
    uint16_t sent[KVARN_HEAD_DIM_MAX];
    float x[KVARN_HEAD_DIM_MAX];
    size_t bad_row;

    for (uint32_t d = 0; d < dim; d++) {
        x[d] = rpc_value(1, layer, is_v, head, token, d);
    }
    kvarn_from_f32(sent, KVARN_F16, x, dim);
    struct kvarn_rows_in in = {
        .src = sent, .dtype = KVARN_F16, .src_stride = dim, .rows = 1, .head_dim = dim};
    assert_int_equal(kvarn_rows_to_half(&in, dst, &bad_row), 0);
}

/* The record of one head of one block, made here from the rows that were sent. */
static void record_make(
    const struct kvd_layer_shape *ls, uint32_t layer, uint32_t head, uint64_t first, uint8_t *dst)
{
    const struct kvarn_tile_spec *spec = &ls->spec;
    float *k = calloc((size_t)spec->group * spec->k_dim, sizeof(float));
    float *v = calloc((size_t)spec->group * spec->v_dim, sizeof(float));
    void *tile = aligned_alloc(64, kvarn_tile_bytes(spec));
    void *scratch = aligned_alloc(64, (kvarn_encode_scratch_bytes(spec) + 63) / 64 * 64);
    uint16_t row[KVARN_HEAD_DIM_MAX];

    assert_true(k != NULL && v != NULL && tile != NULL && scratch != NULL);
    for (uint32_t t = 0; t < spec->group; t++) {
        half_row(layer, false, head, first + t, spec->k_dim, row);
        kvarn_to_f32(k + (size_t)t * spec->k_dim, row, KVARN_F16, spec->k_dim);
        half_row(layer, true, head, first + t, spec->v_dim, row);
        kvarn_to_f32(v + (size_t)t * spec->v_dim, row, KVARN_F16, spec->v_dim);
    }
    (void)kvarn_tile_encode(spec, KVARN_ENCODER_DEFAULT, k, v, tile, scratch);
    kvarn_tile_to_record(spec, tile, dst);
    free(k);
    free(v);
    free(tile);
    free(scratch);
}

static const uint8_t *stored_rows_compare(
    const struct kvd_layer_shape *ls, const Kvarnd__Run *run, const uint8_t *at)
{
    uint16_t row[KVARN_HEAD_DIM_MAX];

    for (int is_v = 0; is_v < 2; is_v++) {
        uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
        for (uint64_t i = 0; i < ls->kv_heads * run->token_count; i++) {
            half_row(run->layer, is_v, (uint32_t)(i / run->token_count),
                run->first_token + i % run->token_count, dim, row);
            assert_memory_equal(at, row, dim * sizeof(*row));
            at += dim * sizeof(*row);
        }
    }
    return at;
}

static const uint8_t *records_compare(
    const struct kvd_layer_shape *ls, const Kvarnd__Run *run, const uint8_t *at)
{
    size_t bytes = kvarn_record_bytes(&ls->spec);
    uint8_t *record = malloc(bytes);

    assert_non_null(record);
    for (uint64_t t = 0; t < run->token_count; t += ls->spec.group) {
        for (uint32_t head = 0; head < ls->kv_heads; head++) {
            record_make(ls, run->layer, head, run->first_token + t, record);
            assert_memory_equal(at, record, bytes);
            at += bytes;
        }
    }
    free(record);
    return at;
}

static void test_s21_stored_runs_are_records_and_rows(void **state)
{
    const int forms[] = {
        KVARND__RUN_FORM__ROWS_STORED, KVARND__RUN_FORM__RECORDS, KVARND__RUN_FORM__ROWS_STORED};
    const uint64_t firsts[] = {0, 64, 192};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 200);
    struct kvt_answer answer = rpc_read_stored(&rig, &session, 0, 3, 0, 200);
    const Kvarnd__ReadBlocksReply *reply = answer.message;
    const uint8_t *at = answer.payload;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->epoch, session.epoch);
    assert_int_equal(reply->n_runs, 9);
    for (size_t i = 0; i < reply->n_runs; i++) {
        const Kvarnd__Run *run = reply->runs[i];
        const struct kvd_layer_shape *ls = &rig.shape->layers[run->layer];
        assert_int_equal(run->layer, i / 3);
        assert_int_equal(run->form, forms[i % 3]);
        assert_int_equal(run->first_token, firsts[i % 3]);
        at = i % 3 == 1 ? records_compare(ls, run, at) : stored_rows_compare(ls, run, at);
    }
    assert_ptr_equal(at, (uint8_t *)answer.payload + answer.payload_bytes);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_s21_a_cut_sealed_block_is_refused(void **state)
{
    const struct {
        uint64_t first, last;
        const char *words; /* NULL: fine */
    } cases[] = {{0, 64, NULL}, {3, 64, NULL}, {64, 128, NULL}, {192, 199, NULL}, {193, 200, NULL},
        {10, 20, NULL}, {65, 128, "token_first 65 cuts the block of tokens 64 to 128"},
        {64, 129, "token_last 129 cuts the block of tokens 128 to 192"},
        {100, 101, "token_first 100 cuts"}};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 200);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_answer answer =
            rpc_read_stored(&rig, &session, 0, 2, cases[i].first, cases[i].last);
        if (cases[i].words == NULL) {
            assert_int_equal(answer.err, 0);
        } else {
            assert_int_equal(answer.err, KVARN_EINVALID);
            assert_non_null(strstr(answer.status->text, cases[i].words));
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_rows_never_stored_are_a_miss(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 50, .seed = 1};
    const struct {
        uint32_t layer_count;
        uint64_t first, last;
    } cases[] = {{1, 0, 51}, {2, 0, 50}, {1, 50, 51}, {1, UINT64_MAX - 1, UINT64_MAX}};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &session, &rows);
    for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        Kvarnd__ReadBlocks message = read_message(
            &session, 0, cases[i / 2].layer_count, cases[i / 2].first, cases[i / 2].last);
        message.stored = message.has_stored = i % 2;
        struct kvt_answer answer = read_call(&rig, &message);
        assert_int_equal(answer.err, KVARN_EMISS);
        assert_int_equal(answer.status->reason, KVARND__MISS_REASON__MISS_NEVER_STORED);
        assert_int_equal(answer.payload_bytes, 0);
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_s04_rows_out_of_the_window_are_a_miss(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 300); /* keeps 100 + 64: tokens from 128 on */
    Kvarnd__ReadBlocks message = read_message(&session, 2, 1, 127, 300);
    struct kvt_answer answer = read_call(&rig, &message);
    assert_int_equal(answer.err, KVARN_EMISS);
    assert_int_equal(answer.status->reason, KVARND__MISS_REASON__MISS_WINDOW);
    kvt_answer_fini(&answer);
    message.token_first = 128;
    assert_int_equal(read_err(&rig, &message), 0);
    message.layer_first = 0;
    message.layer_count = 3;
    message.token_first = 0;
    assert_int_equal(read_err(&rig, &message), KVARN_EMISS);
    message.layer_count = 2; /* full layers keep all */
    assert_int_equal(read_err(&rig, &message), 0);
    rpc_rig_fini(&rig);
}

/* Rotated 30,000 in every place is 120,000 in the first once rotated back. */
static void test_s10_fp16_out_of_range_is_domain(void **state)
{
    struct rpc_rows rows = {
        .layer_count = 1, .token_count = 3, .dtype = KVARN_F32, .is_rotated = true};
    struct rpc_rig rig;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    Kvarnd__Append append = rpc_append_message(&session, &rows);
    float *payload = (void *)rpc_rows_make(&rig, &rows, &bytes);
    for (size_t d = 0; d < 16; d++) {
        payload[96 + 48 + 32 + d] = 30000; /* V, head 1, token 2 */
    }
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_APPEND, &append.base, payload, bytes), 0);
    free(payload);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 3);
    struct kvt_answer answer = read_call(&rig, &message);
    assert_int_equal(answer.err, KVARN_EDOMAIN);
    assert_non_null(strstr(answer.status->text, "V of layer 0, head 1, token 2"));
    kvt_answer_fini(&answer);
    message.dtype = KVARND__DTYPE__BF16;
    assert_int_equal(read_err(&rig, &message), 0);
    message.dtype = KVARND__DTYPE__F16;
    message.rotated = 1;
    assert_int_equal(read_err(&rig, &message), 0);
    message.rotated = 0;
    message.what = KVARND__READ_WHAT__K_ONLY;
    assert_int_equal(read_err(&rig, &message), 0);
    rpc_rig_fini(&rig);
}

static void test_wrong_reads_are_refused(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 10);
    for (int i = 0; i < 8; i++) {
        Kvarnd__ReadBlocks message = read_message(&session, 0, 3, 0, 10);
        message.handle += i == 0;
        message.layer_first = i == 1 ? 3 : message.layer_first;
        message.layer_count = i == 2 ? 0 : message.layer_count;
        message.layer_count = i == 3 ? UINT32_MAX : message.layer_count;
        message.token_first = i == 4 ? 11 : message.token_first;
        message.dtype = (Kvarnd__DType)(i == 5 ? 3 : message.dtype);
        message.layout = (Kvarnd__Layout)(i == 6 ? 2 : message.layout);
        message.what = (Kvarnd__ReadWhat)(i == 7 ? 3 : message.what);
        assert_int_equal(read_err(&rig, &message), i == 0 ? KVARN_ENOT_FOUND : KVARN_EINVALID);
    }
    rpc_rig_fini(&rig);
}

static void test_empty_range_has_no_runs(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    for (int stored = 0; stored < 2; stored++) {
        Kvarnd__ReadBlocks message = read_message(&session, 0, 3, 0, 0);
        message.stored = message.has_stored = stored;
        struct kvt_answer answer = read_call(&rig, &message);
        const Kvarnd__ReadBlocksReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->n_runs, 0);
        assert_int_equal(reply->epoch, session.epoch);
        assert_int_equal(answer.payload_bytes, 0);
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_reply_above_the_limit_is_too_large(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.payload_max = 32000}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 100);
    rpc_append_all(&rig, &session, 100, 100);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 2, 0, 125);
    assert_int_equal(read_err(&rig, &message), 0); /* 2 layers of 128 B a token: 32,000 */
    message.token_last = 126;
    struct kvt_answer answer = read_call(&rig, &message);
    assert_int_equal(answer.err, KVARN_ETOO_LARGE);
    assert_non_null(strstr(answer.status->text, "32256 bytes, the limit is 32000"));
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_reply_without_memory_is_refused(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 256, .dtype = KVARN_F16, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    for (int i = 0; i < 4; i++) {
        rpc_append_ok(&rig, &session, &rows);
        rows.start += 256;
    }
    rig.host.service.budget.limit_bytes = rig.host.service.budget.used_bytes + (4 << 20);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 1024);
    message.dtype = KVARND__DTYPE__F32; /* 8 MiB */
    assert_int_equal(read_err(&rig, &message), KVARN_ENOSPC);
    message.token_last = 8;
    assert_int_equal(read_err(&rig, &message), 0);
    rpc_rig_fini(&rig);
}

static struct kvd_page *tiles_of(struct rpc_rig *rig, uint32_t layer, uint32_t block)
{
    struct kvd_session *session =
        kvd_session_table_find(&rig->host.service.sessions, KVD_TENANT_DEFAULT, "s");

    assert_non_null(session);
    return kvd_session_tiles(session, block, layer);
}

static void test_s14_page_that_changed_is_a_miss(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 200);
    struct kvd_page *page = tiles_of(&rig, 1, 2);
    ((uint8_t *)kvd_page_data(page))[kvd_page_bytes(page) / 2] ^= 1;
    for (int stored = 0; stored < 2; stored++) {
        Kvarnd__ReadBlocks message = read_message(&session, 0, 2, 64, 192);
        message.stored = message.has_stored = stored;
        struct kvt_answer answer = read_call(&rig, &message);
        assert_int_equal(answer.err, KVARN_EMISS);
        assert_int_equal(answer.status->reason, KVARND__MISS_REASON__MISS_CHECKSUM);
        assert_non_null(strstr(answer.status->text, "layer 1, tokens from 128"));
        kvt_answer_fini(&answer);
        message.layer_count = 1;
        assert_int_equal(read_err(&rig, &message), 0);
    }
    ((uint8_t *)kvd_page_data(page))[kvd_page_bytes(page) / 2] ^= 1;
    rpc_rig_fini(&rig);
}

/* Sent at once, without waiting for answers; the id. */
static uint64_t send_rows(
    struct rpc_rig *rig, const struct rpc_session *session, uint64_t start, uint32_t token_count)
{
    struct rpc_rows rows = {.layer_count = rig->shape->layer_count,
        .start = start,
        .token_count = token_count,
        .seed = 1};
    Kvarnd__Append message = rpc_append_message(session, &rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, &rows, &bytes);
    uint64_t id = kvt_peer_send(&rig->peer, KVARN_FRAME_APPEND, &message.base, payload, bytes);

    free(payload);
    return id;
}

static struct kvt_answer answer_find(struct rpc_rig *rig, uint64_t id)
{
    struct kvt_answer answer;

    while (kvt_peer_take(&rig->peer, &answer)) {
        if (answer.header.request_id == id) {
            return answer;
        }
        kvt_answer_fini(&answer);
    }
    fail_msg("no answer to request %llu", (unsigned long long)id);
    return answer;
}

/* What a read sees as tiles depends on the lengths that it meets, not on when seals are done. */
static void test_s03_read_waits_for_the_seals_that_are_due(void **state)
{
    struct rpc_rig rig;

    (void)state;
    for (unsigned workers = 0; workers < 3; workers++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){.workers = workers}, &rpc_shape_large);
        struct rpc_session session = rpc_open(&rig, "s", 0);
        (void)send_rows(&rig, &session, 0, 300);
        Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 300);
        message.stored = message.has_stored = 1;
        uint64_t id = kvt_peer_send(&rig.peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
        kvt_host_settle(&rig.host);
        struct kvt_answer answer = answer_find(&rig, id);
        const Kvarnd__ReadBlocksReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->n_runs, 3);
        assert_int_equal(reply->runs[1]->form, KVARND__RUN_FORM__RECORDS);
        assert_int_equal(reply->runs[1]->token_count, 128);
        kvt_answer_fini(&answer);
        rpc_rig_fini(&rig);
    }
}

/* A read that has begun is not changed by what comes behind it on its connection. */
static void test_s16_read_is_a_snapshot(void **state)
{
    Kvarnd__Truncate cut = KVARND__TRUNCATE__INIT;
    Kvarnd__DropSession drop = KVARND__DROP_SESSION__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 300);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 300);
    struct kvt_answer before = read_call(&rig, &message);
    uint64_t id = kvt_peer_send(&rig.peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
    cut.handle = session.handle;
    cut.epoch = session.epoch;
    cut.length = 10;
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_TRUNCATE, &cut.base, NULL, 0);
    drop.has_handle = 1;
    drop.handle = session.handle;
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_DROP_SESSION, &drop.base, NULL, 0);
    kvt_host_settle(&rig.host);
    struct kvt_answer after = answer_find(&rig, id);
    assert_int_equal(after.err, 0);
    assert_int_equal(after.payload_bytes, before.payload_bytes);
    assert_memory_equal(after.payload, before.payload, before.payload_bytes);
    kvt_answer_fini(&before);
    kvt_answer_fini(&after);
    rpc_rig_fini(&rig);
}

/* A read that waits behind an append: cancelled, late, or of a session that is dropped. */
static void test_s17_waiting_read_ends(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    Kvarnd__DropSession drop = KVARND__DROP_SESSION__INIT;
    const int errs[] = {KVARN_ECANCELLED, KVARN_EDEADLINE, KVARN_ENOT_FOUND};
    struct rpc_rig rig;

    (void)state;
    for (int i = 0; i < 3; i++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
        struct rpc_session session = rpc_open(&rig, "s", 0);
        (void)send_rows(&rig, &session, 0, 300);
        Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 300);
        message.has_deadline_ms = i == 1;
        message.deadline_ms = 5;
        uint64_t id = kvt_peer_send(&rig.peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
        if (i == 0) {
            cancel.request_id = id;
            (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
        } else if (i == 1) {
            kvd_conn_tick_all(&rig.host.service, UINT64_MAX);
        } else {
            drop.has_handle = 1;
            drop.handle = session.handle;
            (void)kvt_peer_send(&rig.peer, KVARN_FRAME_DROP_SESSION, &drop.base, NULL, 0);
        }
        kvt_host_settle(&rig.host);
        struct kvt_answer answer = answer_find(&rig, id);
        assert_int_equal(answer.err, errs[i]);
        kvt_answer_fini(&answer);
        rpc_rig_fini(&rig);
    }
}

/* What waits is charged, so that many reads that wait stay within the limit. */
static void test_waiting_read_is_charged(void **state)
{
    const struct kvd_budget *budget;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    budget = &rig.host.service.budget;
    (void)send_rows(&rig, &session, 0, 300);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 300);
    uint64_t before = budget->kind_bytes[KVD_BUDGET_REPLIES];
    uint64_t id = kvt_peer_send(&rig.peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
    assert_true(budget->kind_bytes[KVD_BUDGET_REPLIES] >= before + 3 * sizeof(struct kvd_read_run));
    kvt_host_settle(&rig.host);
    struct kvt_answer answer = answer_find(&rig, id);
    assert_int_equal(answer.err, 0);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* One read cut into jobs gives the bits that many small ones on the loop give. */
static void test_s03_large_read_equals_small_ones(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 2}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 700);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 700);
    message.layout = KVARND__LAYOUT__TOKEN_MAJOR;
    message.what = KVARND__READ_WHAT__V_ONLY; /* token by token, so that pieces are stretches */
    struct kvt_answer whole = read_call(&rig, &message);
    const uint8_t *at = whole.payload;
    assert_int_equal(whole.err, 0);
    for (uint64_t t = 0; t < 700; t += 7) {
        message.token_first = t;
        message.token_last = t + 7;
        struct kvt_answer piece = read_call(&rig, &message);
        assert_int_equal(piece.err, 0);
        assert_memory_equal(at, piece.payload, piece.payload_bytes);
        at += piece.payload_bytes;
        kvt_answer_fini(&piece);
    }
    assert_ptr_equal(at, (uint8_t *)whole.payload + whole.payload_bytes);
    kvt_answer_fini(&whole);
    assert_int_equal(rig.host.service.metrics.values[KVD_METRIC_tokens_read], 2 * 700);
    rpc_rig_fini(&rig);
}

/* The peer goes while its read is converted: the reply goes nowhere, its memory comes back. */
static void test_read_of_a_peer_that_goes(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 500);
    Kvarnd__ReadBlocks message = read_message(&session, 0, 1, 0, 500);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
    kvd_fake_peer_break(rig.peer.far);
    rpc_rig_fini(&rig); /* asserts that nothing is charged any more */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s20_rows_in_every_form),
        cmocka_unit_test(test_s21_stored_runs_are_records_and_rows),
        cmocka_unit_test(test_s21_a_cut_sealed_block_is_refused),
        cmocka_unit_test(test_rows_never_stored_are_a_miss),
        cmocka_unit_test(test_s04_rows_out_of_the_window_are_a_miss),
        cmocka_unit_test(test_s10_fp16_out_of_range_is_domain),
        cmocka_unit_test(test_wrong_reads_are_refused),
        cmocka_unit_test(test_empty_range_has_no_runs),
        cmocka_unit_test(test_reply_above_the_limit_is_too_large),
        cmocka_unit_test(test_reply_without_memory_is_refused),
        cmocka_unit_test(test_waiting_read_is_charged),
        cmocka_unit_test(test_s14_page_that_changed_is_a_miss),
        cmocka_unit_test(test_s03_read_waits_for_the_seals_that_are_due),
        cmocka_unit_test(test_s16_read_is_a_snapshot),
        cmocka_unit_test(test_s17_waiting_read_ends),
        cmocka_unit_test(test_s03_large_read_equals_small_ones),
        cmocka_unit_test(test_read_of_a_peer_that_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

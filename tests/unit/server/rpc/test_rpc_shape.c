/* RegisterShape, with query metrics and without, and ReadMetric over the wire. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <math.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define TEXT(text) ((char *)(uintptr_t)(text))

static void test_shape_defaults_are_filled_in(void **state)
{
    struct rpc_shape_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    rpc_shape_words_init(&words, "m");
    struct kvt_answer answer = rpc_shape_call(&rig, &words);
    const Kvarnd__RegisterShapeReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    const struct kvd_shape *shape =
        kvd_shape_find(&rig.host.service.shapes, KVD_TENANT_DEFAULT, reply->shape_id);
    assert_non_null(shape);
    assert_int_equal(reply->fingerprint.len, sizeof(shape->fingerprint));
    assert_memory_equal(reply->fingerprint.data, shape->fingerprint, sizeof(shape->fingerprint));
    assert_int_equal(shape->group, 128);
    assert_int_equal(shape->sink_tokens, 128);
    assert_int_equal(shape->k_bits, 2);
    assert_int_equal(shape->layers[0].spec.v_dim, 64);
    uint32_t id = reply->shape_id;
    kvt_answer_fini(&answer);
    words.shape.has_group = words.shape.has_sink_tokens = words.group.has_v_dim = 1;
    words.shape.group = words.shape.sink_tokens = 128;
    words.group.v_dim = 64;
    answer = rpc_shape_call(&rig, &words); /* the same, spelled out */
    reply = answer.message;
    assert_int_equal(reply->shape_id, id);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_wrong_shapes_are_refused(void **state)
{
    const char *words_of[] = {"model is not UTF-8", "revision is not UTF-8", "kv_heads", "KV head",
        "v_dim", "group", "layer_groups", "sink"};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (int i = 0; i < 8; i++) {
        struct rpc_shape_words words;
        rpc_shape_words_init(&words, i == 0 ? "\xC0\x80" : "m");
        words.shape.revision = i == 1 ? TEXT("r\xFF") : NULL;
        words.group.kv_heads = i == 2 || i == 3 ? 0 : 2;
        words.group.has_v_dim = i == 4;
        words.group.v_dim = 12;
        words.shape.has_group = i == 5;
        words.shape.group = 100;
        words.shape.n_layer_groups = i == 6 ? 0 : 1;
        words.shape.has_sink_tokens = i == 7;
        words.shape.sink_tokens = 5;
        struct kvt_answer answer = rpc_shape_call(&rig, &words);
        assert_int_equal(answer.err, KVARN_EINVALID);
        if (i != 2 && strstr(answer.status->text, words_of[i]) == NULL) {
            fail_msg("case %d: %s", i, answer.status->text);
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

/* A metric of the words' shape, two layers of two KV heads of 16. */
#define LAYERS 2
#define HEADS  2
#define DIM    16

struct metric_words {
    struct rpc_shape_words words;
    uint64_t counts[LAYERS * HEADS + 1];
    float sums[LAYERS * HEADS * DIM * DIM];
};

static void metric_words_init(struct metric_words *metric)
{
    rpc_shape_words_init(&metric->words, "metric");
    metric->words.group.layers = LAYERS;
    metric->words.group.k_dim = DIM;
    metric->words.message.has_metric_layer_count = 1;
    metric->words.message.metric_layer_count = LAYERS;
    metric->words.message.metric_counts = metric->counts;
    metric->words.message.n_metric_counts = LAYERS * HEADS;
    for (unsigned i = 0; i < LAYERS * HEADS; i++) {
        metric->counts[i] = 100 + i;
        for (unsigned j = 0; j < DIM * DIM; j++) {
            bool is_below = j / DIM > j % DIM;
            metric->sums[i * DIM * DIM + j] =
                is_below ? NAN : (j / DIM == j % DIM ? 100.0f : 1.0f / (float)(i + j + 1));
        }
    }
}

static struct kvt_answer metric_call(
    struct rpc_rig *rig, struct metric_words *metric, const float *sums, unsigned layers)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_REGISTER_SHAPE, &metric->words.message.base, sums,
        sizeof(float) * layers * HEADS * DIM * DIM);
}

static uint32_t metric_register(struct rpc_rig *rig, struct metric_words *metric)
{
    struct kvt_answer answer = metric_call(rig, metric, metric->sums, LAYERS);
    const Kvarnd__RegisterShapeReply *reply = answer.message;

    assert_int_equal(answer.err, 0);
    rig->shape = kvd_shape_find(&rig->host.service.shapes, KVD_TENANT_DEFAULT, reply->shape_id);
    uint32_t version = reply->metric_version;
    kvt_answer_fini(&answer);
    return version;
}

static struct kvt_answer metric_read(struct rpc_rig *rig, uint32_t layer_first)
{
    Kvarnd__ReadMetric message = KVARND__READ_METRIC__INIT;

    message.has_fingerprint = 1;
    message.fingerprint.data = (uint8_t *)(uintptr_t)rig->shape->fingerprint;
    message.fingerprint.len = KVD_FINGERPRINT_BYTES;
    message.has_layer_first = 1;
    message.layer_first = layer_first;
    return kvt_peer_call(&rig->peer, KVARN_FRAME_READ_METRIC, &message.base, NULL, 0);
}

static void test_s13_a_metric_comes_and_goes_out_again(void **state)
{
    static struct metric_words metric;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    metric_words_init(&metric);
    assert_int_equal(metric_register(&rig, &metric), 1);
    struct kvt_answer answer = metric_read(&rig, 0);
    const Kvarnd__ReadMetricReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->metric_version, 1);
    assert_int_equal(reply->n_versions, LAYERS);
    assert_int_equal(reply->versions[1], 1);
    assert_int_equal(reply->n_counts, LAYERS * HEADS);
    assert_memory_equal(reply->counts, metric.counts, sizeof(uint64_t) * LAYERS * HEADS);
    assert_string_equal(reply->shape->model, "metric");
    assert_int_equal(answer.payload_bytes, sizeof(metric.sums));
    const float *got = answer.payload;
    for (unsigned i = 0; i < sizeof(metric.sums) / sizeof(float); i++) {
        bool is_below = i % (DIM * DIM) / DIM > i % DIM;
        assert_true(is_below || memcmp(&got[i], &metric.sums[i], sizeof(float)) == 0);
    }
    kvt_answer_fini(&answer);
    /* One layer alone, and nothing for the other. */
    metric.counts[0] = metric.counts[1] = 0;
    metric.counts[2] = 7;
    answer = metric_call(&rig, &metric, metric.sums, 1);
    assert_int_equal(answer.err, 0);
    assert_int_equal(((const Kvarnd__RegisterShapeReply *)answer.message)->metric_version, 2);
    kvt_answer_fini(&answer);
    answer = metric_read(&rig, 0);
    reply = answer.message;
    assert_int_equal(reply->versions[0], 1);
    assert_int_equal(reply->versions[1], 2);
    assert_int_equal(reply->counts[0], 100);
    assert_int_equal(reply->counts[2], 7);
    kvt_answer_fini(&answer);
    answer = metric_read(&rig, 1);
    reply = answer.message;
    assert_int_equal(reply->layer_first, 1);
    assert_int_equal(reply->n_counts, HEADS);
    assert_int_equal(answer.payload_bytes, sizeof(metric.sums) / LAYERS);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_a_shape_without_a_metric_says_so(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct kvt_answer answer = metric_read(&rig, 0);
    const Kvarnd__ReadMetricReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->metric_version, 0);
    assert_int_equal(reply->n_counts, 2 + 2 + 1);
    assert_int_equal(reply->counts[4], 0);
    assert_int_equal(answer.payload_bytes, 0);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_metrics_that_are_wrong_in_themselves_are_refused(void **state)
{
    static struct metric_words metric;
    static const char *const words_of[] = {"metric_counts: expected one", "metric_counts: expected",
        "all of its 2 KV heads", "at most", "2 layers", "at most 512", "keys of 2 bits", "no such"};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (unsigned i = 0; i < sizeof(words_of) / sizeof(words_of[0]); i++) {
        metric_words_init(&metric);
        Kvarnd__RegisterShape *message = &metric.words.message;
        message->n_metric_counts = i == 0 ? 3 : i == 1 ? 5 : 4;
        metric.counts[1] = i == 2 ? 0 : 1;
        metric.counts[2] = i == 3 ? UINT64_MAX : 1;
        message->has_metric_layer_first = 1;
        message->metric_layer_first = i == 4 ? 1 : 0;
        message->metric_layer_count = i == 5 ? 513 : 2;
        message->n_metric_counts = i == 4 ? 2 : message->n_metric_counts;
        metric.words.shape.has_k_bits = 1;
        metric.words.shape.k_bits = i == 6 ? 4 : 2;
        metric.words.group.k_dim = i == 7 ? 4096 : DIM;
        struct kvt_answer answer = metric_call(&rig, &metric, metric.sums, LAYERS);
        assert_int_equal(answer.err, KVARN_EINVALID);
        if (strstr(answer.status->text, words_of[i]) == NULL) {
            fail_msg("case %u: %s", i, answer.status->text);
        }
        kvt_answer_fini(&answer);
    }
    metric_words_init(&metric); /* a payload that is not what the counts say */
    struct kvt_answer answer = metric_call(&rig, &metric, metric.sums, 1);
    assert_int_equal(answer.err, KVARN_EINVALID);
    kvt_answer_fini(&answer);
    assert_int_equal(rig.host.service.budget.kind_bytes[KVD_BUDGET_QUERIES], 0);
    rpc_rig_fini(&rig);
}

/* Nothing is taken of a metric with one wrong number: what holds goes on to hold. */
static void test_s10_metrics_with_wild_numbers_are_refused_whole(void **state)
{
    static struct metric_words metric, wild;
    struct rpc_rig rig;
    const unsigned last = (LAYERS * HEADS - 1) * DIM * DIM; /* the last head */

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    metric_words_init(&metric);
    assert_int_equal(metric_register(&rig, &metric), 1);
    uint64_t held = rig.host.service.budget.kind_bytes[KVD_BUDGET_QUERIES];
    for (unsigned i = 0; i < 3; i++) {
        metric_words_init(&wild);
        wild.counts[0] = 9;
        wild.sums[last + (i == 0      ? 5
                             : i == 1 ? 3 * DIM + 3
                                      : 4 * DIM + 4)] = i == 0   ? INFINITY
                                                        : i == 1 ? -1.0f
                                                                 : NAN;
        struct kvt_answer answer = metric_call(&rig, &wild, wild.sums, LAYERS);
        assert_int_equal(answer.err, KVARN_EDOMAIN);
        assert_non_null(strstr(answer.status->text, "layer 1, KV head 1"));
        kvt_answer_fini(&answer);
        assert_int_equal(rig.host.service.budget.kind_bytes[KVD_BUDGET_QUERIES], held);
    }
    struct kvt_answer answer = metric_read(&rig, 0);
    const Kvarnd__ReadMetricReply *reply = answer.message;
    assert_int_equal(reply->metric_version, 1);
    assert_int_equal(reply->counts[0], 100);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_without_room_for_metrics_there_is_no_space(void **state)
{
    static struct metric_words metric;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    rig.host.service.query_metrics.bytes_max = 6000; /* of one layer some 4,600 */
    metric_words_init(&metric);
    struct kvt_answer answer = metric_call(&rig, &metric, metric.sums, LAYERS);
    assert_int_equal(answer.err, KVARN_ENOSPC);
    assert_non_null(strstr(answer.status->text, "--metric-memory"));
    kvt_answer_fini(&answer);
    assert_int_equal(rig.host.service.query_metrics.used_bytes, 0);
    rpc_rig_fini(&rig);
}

static void test_wrong_reads_are_refused(void **state)
{
    static const int errors[] = {KVARN_EINVALID, KVARN_EINVALID, KVARN_EINVALID, KVARN_ENOT_FOUND,
        KVARN_ENOT_FOUND, KVARN_EINVALID, KVARN_EINVALID, KVARN_EINVALID};
    uint8_t nobody[KVD_FINGERPRINT_BYTES] = {1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (unsigned i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        Kvarnd__ReadMetric message = KVARND__READ_METRIC__INIT;
        message.has_shape_id = i != 0 && i != 2 && i != 4; /* 0: neither */
        message.shape_id = i == 3 ? 77 : rig.shape->id;
        message.has_fingerprint = i == 1 || i == 2 || i == 4; /* 1: both */
        message.fingerprint.data = nobody;
        message.fingerprint.len = i == 2 ? 15 : sizeof(nobody);
        message.has_layer_first = i >= 5;
        message.layer_first = i == 5 ? 3 : i == 6 ? 1 : UINT32_MAX;
        message.has_layer_count = i >= 6;
        message.layer_count = i == 6 ? 3 : UINT32_MAX;
        assert_int_equal(
            rpc_call_err(&rig, KVARN_FRAME_READ_METRIC, &message.base, NULL, 0), errors[i]);
    }
    rpc_rig_fini(&rig);
}

/* A session of the encoder AWARE is sealed by a metric that came, from its first block on. */
static void test_s13_what_comes_seals_from_the_first_block_on(void **state)
{
    static struct metric_words metric;
    struct rpc_rig rig;
    Kvarnd__OpenSession open = KVARND__OPEN_SESSION__INIT;
    Kvarnd__InspectSession inspect = KVARND__INSPECT_SESSION__INIT;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    metric_words_init(&metric);
    assert_int_equal(metric_register(&rig, &metric), 1);
    open.has_shape_id = open.has_encoder = 1;
    open.shape_id = rig.shape->id;
    open.encoder = KVARND__ENCODER__AWARE;
    struct kvt_answer answer =
        kvt_peer_call(&rig.peer, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    const Kvarnd__OpenSessionReply *opened = answer.message;
    struct rpc_session session = {.handle = opened->handle, .epoch = opened->epoch};
    kvt_answer_fini(&answer);
    rpc_append_all(&rig, &session, 0, 300); /* group and sink 128: block 1 is sealed */
    answer = rpc_read_stored(&rig, &session, 0, 2, 0, 300);
    assert_int_equal(answer.err, 0);
    kvt_answer_fini(&answer);
    inspect.has_handle = 1;
    inspect.handle = session.handle;
    answer = kvt_peer_call(&rig.peer, KVARN_FRAME_INSPECT_SESSION, &inspect.base, NULL, 0);
    const Kvarnd__InspectSessionReply *seen = answer.message;
    assert_int_equal(seen->pages_aware, LAYERS);
    assert_int_equal(seen->pages_refined, 0);
    assert_int_equal(seen->metric_version, 1);
    assert_int_equal(seen->encoder, KVARND__ENCODER__AWARE);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shape_defaults_are_filled_in),
    cmocka_unit_test(test_wrong_shapes_are_refused),
    cmocka_unit_test(test_s13_a_metric_comes_and_goes_out_again),
    cmocka_unit_test(test_a_shape_without_a_metric_says_so),
    cmocka_unit_test(test_metrics_that_are_wrong_in_themselves_are_refused),
    cmocka_unit_test(test_s10_metrics_with_wild_numbers_are_refused_whole),
    cmocka_unit_test(test_without_room_for_metrics_there_is_no_space),
    cmocka_unit_test(test_wrong_reads_are_refused),
    cmocka_unit_test(test_s13_what_comes_seals_from_the_first_block_on),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}

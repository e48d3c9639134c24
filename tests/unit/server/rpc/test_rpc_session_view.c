/* ListSessions and InspectSession over the wire: pages, order, bounded replies, figures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define TEXT(text) ((char *)(uintptr_t)(text))

static struct kvt_answer list_call(
    struct rpc_rig *rig, const char *prefix, const char *after, uint32_t limit)
{
    Kvarnd__ListSessions message = KVARND__LIST_SESSIONS__INIT;

    message.prefix = TEXT(prefix);
    message.after = TEXT(after);
    message.has_limit = limit != 0;
    message.limit = limit;
    return kvt_peer_call(&rig->peer, KVARN_FRAME_LIST_SESSIONS, &message.base, NULL, 0);
}

/* All pages; asserts strict order and returns how many sessions and (if asked) pages there were. */
static size_t list_all(struct rpc_rig *rig, const char *prefix, uint32_t limit, size_t *ret_pages)
{
    char after[KVARN_SESSION_NAME_MAX + 1] = "";
    size_t count = 0, pages = 0;
    bool more = true;

    while (more) {
        struct kvt_answer answer = list_call(rig, prefix, count == 0 ? NULL : after, limit);
        const Kvarnd__ListSessionsReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_true(reply->n_sessions <= (limit == 0 ? 64 : limit));
        assert_true(reply->n_sessions > 0 || !reply->more);
        assert_true(answer.header.message_bytes <= KVARN_MESSAGE_BYTES_MAX);
        for (size_t i = 0; i < reply->n_sessions; i++) {
            const char *name = reply->sessions[i]->name;
            assert_true(count == 0 || strcmp(name, after) > 0);
            assert_true(prefix == NULL || strncmp(name, prefix, strlen(prefix)) == 0);
            (void)snprintf(after, sizeof(after), "%s", name);
            count++;
        }
        more = reply->more;
        pages++;
        kvt_answer_fini(&answer);
    }
    if (ret_pages != NULL) {
        *ret_pages = pages;
    }
    return count;
}

static void test_list_is_paged_in_order(void **state)
{
    struct rpc_rig rig;
    size_t pages;
    char name[32];

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    assert_int_equal(list_all(&rig, NULL, 0, &pages), 0);
    assert_int_equal(pages, 1);
    for (unsigned i = 0; i < 300; i++) {
        (void)snprintf(name, sizeof(name), "%c/%u", "zmab"[i % 4], i * 7919 % 300);
        (void)rpc_open(&rig, name, 0);
    }
    (void)rpc_open(&rig, NULL, 0); /* unnamed sessions are nobody else's business */
    assert_int_equal(list_all(&rig, NULL, 0, &pages), 300);
    assert_int_equal(pages, 5);
    assert_int_equal(list_all(&rig, NULL, 256, &pages), 300);
    assert_int_equal(pages, 2);
    assert_int_equal(list_all(&rig, NULL, 1, &pages), 300);
    assert_int_equal(list_all(&rig, NULL, 100, &pages), 300);
    assert_int_equal(pages, 3); /* a full last page says that nothing follows */
    assert_int_equal(list_all(&rig, "m/", 10, NULL), 75);
    assert_int_equal(list_all(&rig, "z", 10, NULL), 75);
    assert_int_equal(list_all(&rig, "", 10, NULL), 300);
    assert_int_equal(list_all(&rig, "y", 10, NULL), 0);
    rpc_rig_fini(&rig);
}

/* `after` against a prefix: before it, within it, behind it; the prefix is a name itself. */
static void test_list_starts_where_it_should(void **state)
{
    const char *names[] = {"a", "b", "b1", "b2", "c"};
    const struct {
        const char *prefix, *after, *expected;
    } cases[] = {{"b", NULL, "b"}, {"b", "a", "b"}, {"b", "b", "b1"}, {"b", "b1", "b2"},
        {"b", "b2", NULL}, {"b", "c", NULL}, {NULL, "b", "b1"}, {NULL, "b11", "b2"},
        {"b1", NULL, "b1"}, {"b11", NULL, NULL}, {NULL, "c", NULL}, {"", NULL, "a"}};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        (void)rpc_open(&rig, names[i], 0);
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_answer answer = list_call(&rig, cases[i].prefix, cases[i].after, 1);
        const Kvarnd__ListSessionsReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->n_sessions, cases[i].expected != NULL);
        if (cases[i].expected != NULL) {
            assert_string_equal(reply->sessions[0]->name, cases[i].expected);
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_list_limits_are_checked(void **state)
{
    Kvarnd__ListSessions message = KVARND__LIST_SESSIONS__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    message.has_limit = 1;
    message.limit = 0;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_LIST_SESSIONS, &message.base, NULL, 0), KVARN_EINVALID);
    message.limit = KVARN_LIST_PAGE_MAX + 1;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_LIST_SESSIONS, &message.base, NULL, 0), KVARN_EINVALID);
    message.limit = KVARN_LIST_PAGE_MAX;
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_LIST_SESSIONS, &message.base, NULL, 0), 0);
    rpc_rig_fini(&rig);
}

/* 256 of the longest names and models are 130 KiB: pages end early and lose nothing. */
static void test_list_of_long_names_stays_within_a_message(void **state)
{
    char name[KVARN_SESSION_NAME_MAX + 1], model[KVARN_MODEL_NAME_MAX + 1];
    struct kvd_shape_desc desc = rpc_shape_small;
    struct rpc_rig rig;
    size_t pages;

    (void)state;
    memset(model, 'm', sizeof(model) - 1);
    model[sizeof(model) - 1] = '\0';
    desc.model = model;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &desc);
    for (unsigned i = 0; i < KVARN_LIST_PAGE_MAX; i++) {
        (void)snprintf(name, sizeof(name), "%0*u", KVARN_SESSION_NAME_MAX, i);
        (void)rpc_open(&rig, name, 0);
    }
    assert_int_equal(list_all(&rig, NULL, KVARN_LIST_PAGE_MAX, &pages), KVARN_LIST_PAGE_MAX);
    assert_true(pages == 3);
    rpc_rig_fini(&rig);
}

static const struct kvd_layer_group many_groups[] = {
    {.layers = KVARN_LAYERS_MAX, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};

/* Sessions of many layers cost more to sum up: a page looks at so many only. */
static void test_s18_list_bounds_the_layers_of_a_page(void **state)
{
    struct kvd_shape_desc desc = rpc_shape_small;
    struct rpc_rig rig;
    size_t pages;
    char name[8];

    (void)state;
    desc.layer_groups = many_groups;
    desc.layer_group_count = 1;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &desc);
    for (unsigned i = 0; i < 40; i++) {
        (void)snprintf(name, sizeof(name), "%u", i);
        (void)rpc_open(&rig, name, 0);
    }
    assert_int_equal(list_all(&rig, NULL, 64, &pages), 40);
    assert_int_equal(pages, 3); /* 16 sessions of 512 layers each */
    rpc_rig_fini(&rig);
}

static struct kvt_answer inspect_call(struct rpc_rig *rig, const uint64_t *handle, const char *name)
{
    Kvarnd__InspectSession message = KVARND__INSPECT_SESSION__INIT;

    message.has_handle = handle != NULL;
    message.handle = handle == NULL ? 0 : *handle;
    message.name = TEXT(name);
    return kvt_peer_call(&rig->peer, KVARN_FRAME_INSPECT_SESSION, &message.base, NULL, 0);
}

static void test_inspect_finds_by_handle_or_name(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session named = rpc_open(&rig, "s", 0);
    struct rpc_session unnamed = rpc_open(&rig, NULL, 0);
    const uint64_t no_handle = named.handle + 12345;
    const struct {
        const uint64_t *handle;
        const char *name;
        int err;
        const char *found;
    } cases[] = {{NULL, NULL, KVARN_EINVALID, NULL}, {&named.handle, "s", KVARN_EINVALID, NULL},
        {NULL, "t", KVARN_ENOT_FOUND, NULL}, {NULL, "", KVARN_ENOT_FOUND, NULL},
        {&no_handle, NULL, KVARN_ENOT_FOUND, NULL}, {NULL, "s", 0, "s"},
        {&named.handle, NULL, 0, "s"}, {&unnamed.handle, NULL, 0, ""}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_answer answer = inspect_call(&rig, cases[i].handle, cases[i].name);
        const Kvarnd__InspectSessionReply *reply = answer.message;
        assert_int_equal(answer.err, cases[i].err);
        if (cases[i].err == 0) {
            assert_string_equal(reply->summary->name, cases[i].found);
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

/* 200 tokens in two layers, 100 in the third: every figure follows from the shape. */
static void test_inspect_figures(void **state)
{
    struct rpc_rows rows = {.layer_count = 2, .start = 100, .token_count = 100, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 7);
    rpc_append_all(&rig, &session, 0, 100);
    rpc_append_ok(&rig, &session, &rows);
    kvd_io_fake_advance_ms(rig.host.fake, 1234);
    struct kvt_answer answer = inspect_call(&rig, NULL, "s");
    const Kvarnd__InspectSessionReply *reply = answer.message;
    const struct kvd_layer_shape *wide = &rig.shape->layers[0], *narrow = &rig.shape->layers[2];
    assert_int_equal(answer.err, 0);
    assert_string_equal(reply->summary->model, "small");
    assert_int_equal(reply->summary->length, 100);
    assert_int_equal(reply->summary->epoch, session.epoch);
    assert_int_equal(reply->summary->handles, 1);
    assert_int_equal(reply->summary->idle_ms, 1234);
    assert_int_equal(reply->fingerprint.len, 16);
    assert_memory_equal(reply->fingerprint.data, rig.shape->fingerprint, 16);
    assert_int_equal(reply->n_layer_lengths, 3);
    assert_int_equal(reply->layer_lengths[1], 200);
    assert_int_equal(reply->layer_lengths[2], 100);
    assert_int_equal(reply->layer_sealed[1], 192);
    assert_int_equal(reply->layer_sealed[2], 64);
    assert_int_equal(reply->tile_pages, 4); /* blocks 1 and 2 of two layers */
    assert_int_equal(reply->tile_bytes, 4 * wide->tile_page_bytes);
    assert_int_equal(reply->sink_pages, 3);
    assert_int_equal(reply->sink_bytes, 2 * wide->rows_page_bytes + narrow->rows_page_bytes);
    assert_int_equal(reply->tail_pages, 3); /* block 3 of two layers, block 1 of the third */
    assert_int_equal(reply->tail_bytes, 2 * wide->rows_page_bytes + narrow->rows_page_bytes);
    assert_int_equal(
        reply->reserved_bytes, 2 * wide->tile_page_bytes + 3 * narrow->tile_page_bytes);
    assert_int_equal(
        reply->summary->bytes, reply->tile_bytes + reply->sink_bytes + reply->tail_bytes);
    assert_int_equal(reply->pages_refined, 4);
    assert_int_equal(reply->pages_reference, 0);
    assert_int_equal(reply->encoder, KVARND__ENCODER__ENCODER_DEFAULT);
    assert_int_equal(reply->seal_lag, 7);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* The shape comes back as it was described, so that a client may register it elsewhere. */
static void test_inspect_shape_registers_alike(void **state)
{
    Kvarnd__RegisterShape message = KVARND__REGISTER_SHAPE__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    (void)rpc_open(&rig, "s", 0);
    struct kvt_answer seen = inspect_call(&rig, NULL, "s");
    message.shape = ((const Kvarnd__InspectSessionReply *)seen.message)->shape;
    struct kvt_answer answer =
        kvt_peer_call(&rig.peer, KVARN_FRAME_REGISTER_SHAPE, &message.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    assert_int_equal(((const Kvarnd__RegisterShapeReply *)answer.message)->shape_id, rig.shape->id);
    kvt_answer_fini(&answer);
    kvt_answer_fini(&seen);
    rpc_rig_fini(&rig);
}

/* The most layers, no two alike, the longest texts and lengths: one message holds it. */
static void test_inspect_of_the_largest_shape_fits(void **state)
{
    static Kvarnd__LayerGroup groups[KVARN_LAYER_GROUPS_MAX];
    Kvarnd__LayerGroup *list[KVARN_LAYER_GROUPS_MAX];
    char text[KVARN_MODEL_NAME_MAX + 1], name[KVARN_SESSION_NAME_MAX + 1];
    Kvarnd__RegisterShape message = KVARND__REGISTER_SHAPE__INIT;
    Kvarnd__Shape shape = KVARND__SHAPE__INIT;
    struct rpc_rig rig;

    (void)state;
    memset(text, 't', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (uint32_t i = 0; i < KVARN_LAYER_GROUPS_MAX; i++) {
        kvarnd__layer_group__init(&groups[i]);
        groups[i].layers = 1;
        groups[i].kv_heads = 256 - i % 2;
        groups[i].k_dim = 512;
        groups[i].has_window = 1;
        groups[i].window = KVARN_SESSION_TOKENS_MAX;
        list[i] = &groups[i];
    }
    shape.model = shape.revision = text;
    shape.n_layer_groups = KVARN_LAYER_GROUPS_MAX;
    shape.layer_groups = list;
    message.shape = &shape;
    struct kvt_answer answer =
        kvt_peer_call(&rig.peer, KVARN_FRAME_REGISTER_SHAPE, &message.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    uint32_t id = ((const Kvarnd__RegisterShapeReply *)answer.message)->shape_id;
    rig.shape = kvd_shape_find(&rig.host.service.shapes, KVD_TENANT_DEFAULT, id);
    kvt_answer_fini(&answer);
    (void)rpc_open(&rig, name, 0);
    struct kvd_session *session =
        kvd_session_table_find(&rig.host.service.sessions, KVD_TENANT_DEFAULT, name);
    for (uint32_t i = 0; i < KVARN_LAYERS_MAX; i++) {
        session->layers[i].length = KVARN_SESSION_TOKENS_MAX; /* the figure alone */
    }
    answer = inspect_call(&rig, NULL, name);
    const Kvarnd__InspectSessionReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->n_layer_lengths, KVARN_LAYERS_MAX);
    assert_int_equal(reply->shape->n_layer_groups, KVARN_LAYER_GROUPS_MAX);
    kvt_answer_fini(&answer);
    for (uint32_t i = 0; i < KVARN_LAYERS_MAX; i++) {
        session->layers[i].length = 0;
    }
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list_is_paged_in_order),
        cmocka_unit_test(test_list_starts_where_it_should),
        cmocka_unit_test(test_list_limits_are_checked),
        cmocka_unit_test(test_list_of_long_names_stays_within_a_message),
        cmocka_unit_test(test_s18_list_bounds_the_layers_of_a_page),
        cmocka_unit_test(test_inspect_finds_by_handle_or_name),
        cmocka_unit_test(test_inspect_figures),
        cmocka_unit_test(test_inspect_shape_registers_alike),
        cmocka_unit_test(test_inspect_of_the_largest_shape_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

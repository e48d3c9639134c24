/* Builders of calls, read back with protobuf-c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/src/call.h"
#include "kvarnd.pb-c.h"

static const struct kvarn_session session = {.handle = 11, .epoch = 22};

static void *unpacked(const struct kvarn_call *call, const ProtobufCMessageDescriptor *descriptor)
{
    void *message = protobuf_c_message_unpack(descriptor, NULL,
        call->head_bytes - KVARN_FRAME_HEADER_BYTES, call->head + KVARN_FRAME_HEADER_BYTES);

    assert_non_null(message);
    return message;
}

static void append_says_what_its_arguments_say(void **state)
{
    const struct kvarn_span payload[] = {{"kkkk", 4}, {"vv", 2}};
    const struct kvarn_append_args args = {
        .session = &session,
        .layer_first = 3,
        .layer_count = 2,
        .start = 128,
        .token_count = 5,
        .dtype = KVARN_BF16,
        .layout = KVARN_TOKEN_MAJOR,
        .rotated = true,
        .payload = payload,
        .payload_count = 2,
    };
    struct kvarn_call *call = NULL;
    struct kvarn_frame_header header;
    Kvarnd__Append *m;

    (void)state;
    assert_int_equal(kvarn_call_append(&args, 250, &call), 0);
    kvarn__call_stamp(call, 99, true);
    assert_int_equal(kvarn_frame_decode(call->head, &header), 0);
    assert_int_equal(header.type, KVARN_FRAME_APPEND);
    assert_int_equal(header.flags, KVARN_FRAME_PAYLOAD_XXH3);
    assert_int_equal(header.request_id, 99);
    assert_int_equal(header.payload_bytes, 6);
    assert_int_equal(kvarn__call_frame_bytes(call), call->head_bytes + 6 + 8);
    m = unpacked(call, &kvarnd__append__descriptor);
    assert_int_equal(m->handle, 11);
    assert_int_equal(m->epoch, 22);
    assert_int_equal(m->layer_first, 3);
    assert_int_equal(m->layer_count, 2);
    assert_int_equal(m->start, 128);
    assert_int_equal(m->token_count, 5);
    assert_int_equal(m->dtype, KVARND__DTYPE__BF16);
    assert_int_equal(m->layout, KVARND__LAYOUT__TOKEN_MAJOR);
    assert_true(m->rotated);
    assert_int_equal(m->deadline_ms, 250);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn__call_stamp(call, 100, false);
    assert_int_equal(kvarn_frame_decode(call->head, &header), 0);
    assert_int_equal(header.flags, 0);
    kvarn_call_destroy(call);
}

static void defaults_stay_off_the_wire(void **state)
{
    const struct kvarn_attend_item item = {.session = &session,
        .query_tokens = 2,
        .position = KVARN_TOKEN_DEFAULT,
        .token_last = KVARN_TOKEN_DEFAULT};
    const struct kvarn_attend_args args = {
        .params = {.q_heads = 4}, .items = &item, .item_count = 1};
    struct kvarn_call *call = NULL;
    Kvarnd__Attend *m;

    (void)state;
    assert_int_equal(kvarn_call_attend(&args, KVARN_DEADLINE_NONE, &call), 0);
    assert_int_equal(call->lse_count, 8);
    m = unpacked(call, &kvarnd__attend__descriptor);
    assert_false(m->has_deadline_ms);
    assert_false(m->params->has_scale);
    assert_false(m->params->has_softcap);
    assert_false(m->items[0]->has_position);
    assert_false(m->items[0]->has_token_last);
    assert_int_equal(m->params->out_dtype, KVARND__DTYPE__F16); /* as the zeroed arguments say */
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
}

static void prefetch_says_what_its_arguments_say(void)
{
    struct kvarn_prefetch_args prefetch = {.name = "n"};
    struct kvarn_call *call = NULL;
    Kvarnd__Prefetch *m;

    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), 0);
    m = unpacked(call, &kvarnd__prefetch__descriptor);
    assert_false(m->has_handle || m->has_last_blocks); /* all of them */
    assert_string_equal(m->name, "n");
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    prefetch = (struct kvarn_prefetch_args){.session = &session, .last_blocks = 3};
    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), 0);
    m = unpacked(call, &kvarnd__prefetch__descriptor);
    assert_true(m->has_last_blocks && m->last_blocks == 3 && m->handle == 11 && m->name == NULL);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    prefetch.name = "both";
    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), KVARN_EINVALID);
    const uint32_t ids[3] = {7, 8, 9};
    struct kvarn_match_prefix_args prefix = {
        .shape_id = 5, .salt = "s", .salt_bytes = 1, .token_ids = ids, .token_count = 3};
    prefetch = (struct kvarn_prefetch_args){.prefix = &prefix};
    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), 0);
    m = unpacked(call, &kvarnd__prefetch__descriptor);
    assert_true(m->has_shape_id && m->shape_id == 5 && m->token_count == 3 && m->salt.len == 1);
    assert_false(m->has_handle || m->has_hash_count || m->has_last_blocks);
    assert_int_equal(call->payload_bytes, sizeof(ids));
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    prefix.hash_count = 1; /* both */
    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), KVARN_EINVALID);
    prefix.hash_count = 0;
    prefetch.last_blocks = 1;
    assert_int_equal(kvarn_call_prefetch(&prefetch, 0, &call), KVARN_EINVALID);
}

static void lifetimes_say_what_their_arguments_say(void **state)
{
    struct kvarn_touch_args touch = {
        .session = &session, .ttl_ms = KVARN_TOUCH_KEEP, .priority = KVARN_TOUCH_KEEP};
    const struct kvarn_pin_args pin = {.name = "n", .pin_ms = 7000};
    const struct kvarn_evict_args evict = {.session = &session};
    struct kvarn_call *call = NULL;
    Kvarnd__Touch *t;
    Kvarnd__Pin *p;
    Kvarnd__Evict *e;

    (void)state;
    assert_int_equal(kvarn_call_touch(&touch, 0, &call), 0);
    t = unpacked(call, &kvarnd__touch__descriptor);
    assert_int_equal(t->handle, 11);
    assert_false(t->has_ttl_ms || t->has_priority); /* as they were */
    protobuf_c_message_free_unpacked(&t->base, NULL);
    kvarn_call_destroy(call);
    touch.ttl_ms = 0;
    touch.priority = 9;
    assert_int_equal(kvarn_call_touch(&touch, 0, &call), 0);
    t = unpacked(call, &kvarnd__touch__descriptor);
    assert_true(t->has_ttl_ms && t->ttl_ms == 0 && t->has_priority && t->priority == 9);
    protobuf_c_message_free_unpacked(&t->base, NULL);
    kvarn_call_destroy(call);
    assert_int_equal(kvarn_call_pin(&pin, 0, &call), 0);
    p = unpacked(call, &kvarnd__pin__descriptor);
    assert_false(p->has_handle || p->unpin);
    assert_string_equal(p->name, "n");
    assert_int_equal(p->pin_ms, 7000);
    protobuf_c_message_free_unpacked(&p->base, NULL);
    kvarn_call_destroy(call);
    assert_int_equal(kvarn_call_evict(&evict, 0, &call), 0);
    e = unpacked(call, &kvarnd__evict__descriptor);
    assert_false(e->has_blocks); /* all of them */
    protobuf_c_message_free_unpacked(&e->base, NULL);
    kvarn_call_destroy(call);
    prefetch_says_what_its_arguments_say();
    touch.name = "both";
    assert_int_equal(kvarn_call_touch(&touch, 0, &call), KVARN_EINVALID);
}

static void impossible_arguments_are_refused(void **state)
{
    static char name[300];
    const struct kvarn_span huge = {"", SIZE_MAX};
    const struct kvarn_open_session_args open_args = {.name = name};
    const struct kvarn_drop_session_args drop = {0};
    const struct kvarn_attend_args attend = {0};
    const struct kvarn_list_sessions_args none = {0};
    struct kvarn_append_args append = {.layer_count = 1, .token_count = 1};
    struct kvarn_call *call = NULL;

    (void)state;
    memset(name, 'n', sizeof name - 1);
    assert_int_equal(kvarn_call_open_session(&open_args, 0, &call), KVARN_ETOO_LARGE);
    assert_int_equal(kvarn_call_drop_session(&drop, 0, &call), KVARN_EINVALID);
    assert_int_equal(kvarn_call_attend(&attend, 0, &call), KVARN_EINVALID);
    assert_int_equal(kvarn_call_append(&append, 0, &call), KVARN_EINVALID);
    append.session = &session;
    append.payload = &huge;
    append.payload_count = 1;
    assert_int_equal(kvarn_call_append(&append, 0, &call), KVARN_ETOO_LARGE);
    assert_null(call);
    assert_int_equal(kvarn_call_list_sessions(&none, 0, &call), 0);
    kvarn_call_destroy(call);
}

static void shape_is_packed_whole(void **state)
{
    const struct kvarn_layer_group groups[] = {{2, 8, 128, 0, 0}, {3, 4, 192, 128, 1024}};
    const struct kvarn_shape shape = {"model", NULL, groups, 2, 64, 4, 2, 0};
    struct kvarn_call *call = NULL;
    Kvarnd__RegisterShape *m;

    (void)state;
    assert_int_equal(kvarn_call_register_shape(&shape, 0, &call), 0);
    m = unpacked(call, &kvarnd__register_shape__descriptor);
    assert_string_equal(m->shape->model, "model");
    assert_null(m->shape->revision);
    assert_int_equal(m->shape->group, 64);
    assert_int_equal(m->shape->k_bits, 4);
    assert_true(m->shape->has_sink_tokens);
    assert_int_equal(m->shape->n_layer_groups, 2);
    assert_false(m->shape->layer_groups[0]->has_v_dim);
    assert_int_equal(m->shape->layer_groups[1]->v_dim, 128);
    assert_int_equal(m->shape->layer_groups[1]->window, 1024);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(append_says_what_its_arguments_say),
        cmocka_unit_test(defaults_stay_off_the_wire),
        cmocka_unit_test(lifetimes_say_what_their_arguments_say),
        cmocka_unit_test(impossible_arguments_are_refused),
        cmocka_unit_test(shape_is_packed_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

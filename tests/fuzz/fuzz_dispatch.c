/*
 * Fuzz target: the daemon's connections and calls, from accepted bytes to sent replies.
 *
 * A service on the fake io without workers, so that all is one thread and replays exactly. An input
 * is a byte of options and then steps: frames made up by field (dispatch_message.h), frames and
 * bytes as they stand in the input, retries, turns, time, peers that leave or read slowly. Frames
 * get a right CRC and the payload that their message implies, unless the input says otherwise, so
 * that most of them reach a handler.
 *
 * What must hold: replies are whole, valid, one a request, of the size that they say, with finite
 * numbers; all is answered in the end; sessions are at rest then; staging is never more than what
 * legal frames announced; and nothing is charged once all have left.
 *
 * Owner: libFuzzer or replay.c. Thread: one.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/append/append.h"
#include "server/base/log.h"
#include "server/rpc/rpc.h"
#include "tests/fuzz/dispatch_client.h"
#include "tests/fuzz/fuzz_target.h"

#define CLIENTS_MAX       4
#define STEPS_MAX         96
#define PAYLOAD_BYTES_MAX (256 * 1024)
#define MESSAGE_ROOM      4096
#define FILLED_SESSIONS   3 /* all but the large one */

enum option {
    OPTION_BARE = 1 << 0,       /* no Hello, shapes and sessions to begin with */
    OPTION_FILLED = 1 << 1,     /* tokens in them, enough for sealed blocks */
    OPTION_TIGHT = 1 << 2,      /* next to no memory */
    OPTION_UNCREDITED = 1 << 3, /* two requests in flight, little payload */
    OPTION_XXH3 = 1 << 4,       /* the first client wants checksums of replies */
};

struct run {
    struct kvt_host host;
    struct fuzz_input input;
    struct dispatch_client clients[CLIENTS_MAX];
    struct dispatch_client *client; /* that the steps speak for */
    uint64_t left_bound;            /* staging that those who left may still hold */
    uint64_t payload_seed;
    uint8_t message[MESSAGE_ROOM];
    uint8_t *payload; /* owned: PAYLOAD_BYTES_MAX */
};

/* Payload. */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15)); /* splitmix64 */

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/*
 * Numbers that are finite and small in each of the types: 16 bits of which the exponent's highest
 * two are never both set, so that halves are below 2, and pairs of them are floats below 2^64 too.
 */
static void payload_fill_small(struct run *run, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t byte = (uint8_t)next_random(&run->payload_seed);
        run->payload[i] = i % 2 == 1 ? byte & 0xbb : byte;
    }
}

static void payload_fill(struct run *run, size_t bytes)
{
    const uint8_t how = fuzz_take_u8(&run->input);

    run->payload_seed = how % 4u; /* few, so that the same comes again */
    if (how < 0xc0) {
        payload_fill_small(run, bytes);
    } else if (how < 0xe0) {
        memset(run->payload, how == 0xc0 ? 0 : how, bytes);
    } else if (how < 0xf0) {
        size_t given = 0;
        const uint8_t *data = fuzz_take_bytes(&run->input, fuzz_take_u8(&run->input), &given);
        for (size_t i = 0; i < bytes; i++) {
            run->payload[i] = given == 0 ? 0xff : data[i % given];
        }
    } else {
        payload_fill_small(run, bytes);
        if (bytes > 0) {
            run->payload[next_random(&run->payload_seed) % bytes] = 0x7f; /* one NaN or huge */
        }
    }
}

/* Frames. */

/* Flags and sizes: right, unless this byte of the input is rare. */
static void frame_send(struct run *run, uint8_t type, const uint8_t *message, size_t message_bytes)
{
    const uint8_t how = fuzz_take_u8(&run->input);
    const uint64_t implied =
        dispatch_client_implied_bytes(run->client, type, message, message_bytes);
    struct dispatch_frame frame = {.type = type,
        .message = message,
        .message_bytes = message_bytes,
        .payload = run->payload,
        .payload_bytes = implied < PAYLOAD_BYTES_MAX ? (size_t)implied : 0,
        .announced_bytes = (size_t)implied};

    if (how % 2 == 1) {
        frame.flags = KVARN_FRAME_PAYLOAD_XXH3;
    }
    if (how >= 0xfe) {
        frame.flags |= KVARN_FRAME_REPLY;
    } else if (how >= 0xf8) {
        frame.has_wrong_trailer = true;
    } else if (how >= 0xf0) {
        frame.payload_bytes = frame.announced_bytes = how; /* not what it implies */
    } else if (how >= 0xec && frame.payload_bytes > 0) {
        frame.payload_bytes--; /* the rest does not come */
        frame.flags = 0;
    } else if (how >= 0xe8) {
        frame.announced_bytes = PAYLOAD_BYTES_MAX; /* as if it were a lot */
        frame.flags = 0;
    }
    payload_fill(run, frame.payload_bytes);
    dispatch_client_send(run->client, &frame);
}

static void step_made_frame(struct run *run)
{
    uint8_t type = (uint8_t)(1 + fuzz_take_u8(&run->input) % (KVARN_FRAME_TYPE_COUNT - 1u));

    if (kvd_method_find(type) == NULL) {
        type = KVARN_FRAME_READ_METRIC; /* numbers that no call has */
    }
    const ProtobufCMessageDescriptor *descriptor = kvd_method_find(type)->request_descriptor;
    const size_t bytes = dispatch_message_make(
        &run->input, &run->client->hints, descriptor, run->message, sizeof run->message);

    frame_send(run, type, run->message, bytes);
}

static void step_given_frame(struct run *run)
{
    const uint8_t type = fuzz_take_u8(&run->input);
    const uint16_t wanted = fuzz_take_u16(&run->input);
    size_t bytes = 0;
    const uint8_t *message = fuzz_take_bytes(&run->input, wanted, &bytes);

    frame_send(run, type, message, bytes);
}

static void step_raw_bytes(struct run *run)
{
    const uint16_t wanted = fuzz_take_u16(&run->input);
    size_t bytes = 0;
    const uint8_t *data = fuzz_take_bytes(&run->input, wanted, &bytes);

    dispatch_client_send_raw(run->client, data, bytes);
}

/* Append the runs that the client has read before to a session that it holds. */
static void step_clone(struct run *run)
{
    struct dispatch_client *client = run->client;
    struct dispatch_hints *hints = &client->hints;
    const uint8_t which = fuzz_take_u8(&run->input);
    uint8_t head[64];

    if (client->kept_message == NULL || hints->handle_count == 0) {
        return;
    }
    /* Of two values of a field the last one counts: the handle and the epoch go behind the runs. */
    const uint64_t handle = hints->handles[which % hints->handle_count];
    const struct kvd_session *session = hints->session_of(hints->ctx, handle);
    Kvarnd__AppendTiles tail = KVARND__APPEND_TILES__INIT;
    tail.handle = handle;
    tail.epoch = session != NULL ? session->epoch : which;
    const size_t tail_bytes = protobuf_c_message_pack(&tail.base, head);
    const size_t bytes = client->kept_message_bytes + tail_bytes;
    uint8_t *message = malloc(bytes);
    KVARN_ASSERT(message != NULL && tail_bytes <= sizeof head);
    memcpy(message, client->kept_message, client->kept_message_bytes);
    memcpy(message + client->kept_message_bytes, head, tail_bytes);
    const uint64_t implied =
        dispatch_client_implied_bytes(client, KVARN_FRAME_APPEND_TILES, message, bytes);
    if (implied == client->kept_payload_bytes) {
        const struct dispatch_frame frame = {.type = KVARN_FRAME_APPEND_TILES,
            .message = message,
            .message_bytes = bytes,
            .payload = client->kept_payload,
            .payload_bytes = client->kept_payload_bytes,
            .announced_bytes = client->kept_payload_bytes};
        dispatch_client_send(client, &frame);
    }
    free(message);
}

/* Peers and time. */

static void client_leave(struct run *run, struct dispatch_client *client, bool is_broken)
{
    run->left_bound += dispatch_client_staging_bound(client);
    dispatch_client_close(client, is_broken);
}

static void step_select(struct run *run)
{
    const uint8_t how = fuzz_take_u8(&run->input);

    run->client = &run->clients[how % CLIENTS_MAX];
    if (how < 0xb0) {
        return;
    }
    if (run->client->far != NULL) {
        client_leave(run, run->client, how % 8 >= 4);
    }
    if (how < 0xc0) {
        dispatch_client_open(run->client, &run->host, true);
    }
}

static void step_peer(struct run *run)
{
    static const size_t rates[] = {SIZE_MAX, 1, 7, 100, 4000, 0, SIZE_MAX, SIZE_MAX};
    static const size_t pieces[] = {0, 1, 3, 31, 33, 1000, 20000, 0};
    const uint8_t how = fuzz_take_u8(&run->input);

    if (run->client->far == NULL) {
        return;
    }
    if (how < 0x80) {
        kvd_fake_peer_set_rate(run->client->far, rates[how % 8]);
    } else if (how < 0xf0) {
        kvd_fake_peer_set_piece(run->client->far, pieces[how % 8]);
    } else if (how < 0xf8) {
        (void)kvd_fake_peer_end(run->client->far);
    } else {
        run->host.service.is_draining = true;
    }
}

static void step_advance(struct run *run)
{
    static const uint64_t ms[] = {1, 10, 11, 100, 1000, 5000, 11000, 40000};

    kvd_io_fake_advance_ms(run->host.fake, ms[fuzz_take_u8(&run->input) % 8]);
}

static void step_settle(struct run *run)
{
    kvt_host_settle(&run->host);
    run->left_bound = 0;
}

/* What must hold at any time: nothing big is charged before a frame has proved its right to it. */
static void staging_check(struct run *run)
{
    const struct kvd_budget *budget = &run->host.service.budget;
    uint64_t bound = run->left_bound;

    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        dispatch_client_take(&run->clients[i]);
        bound += dispatch_client_staging_bound(&run->clients[i]);
    }
    KVARN_ASSERT(budget->kind_bytes[KVD_BUDGET_STAGING] <= bound);
    KVARN_ASSERT(budget->used_bytes <= budget->limit_bytes);
}

static void step(struct run *run)
{
    const uint8_t op = fuzz_take_u8(&run->input);

    if (!dispatch_client_is_open(run->client)) {
        client_leave(run, run->client, true);
        dispatch_client_open(run->client, &run->host, false);
    }
    switch (run->client->far == NULL ? 0xff : op % 20) {
    case 11:
        step_given_frame(run);
        break;
    case 12:
        step_raw_bytes(run);
        break;
    case 13:
        dispatch_client_send_again(run->client);
        break;
    case 14:
        step_clone(run);
        break;
    case 15:
        step_select(run);
        break;
    case 16:
        step_peer(run);
        break;
    case 17:
        step_advance(run);
        break;
    case 18:
        (void)kvd_io_fake_turn(run->host.fake);
        break;
    case 19:
        step_settle(run);
        break;
    case 0xff:
        break; /* no connection to be had */
    default:
        step_made_frame(run);
    }
    staging_check(run);
}

/* Beginning and end. */

static void prelude_send(
    struct run *run, uint8_t type, const ProtobufCMessage *message, size_t payload_bytes)
{
    const struct dispatch_frame frame = {.type = type,
        .message = run->message,
        .message_bytes = protobuf_c_message_pack(message, run->message),
        .payload = run->payload,
        .payload_bytes = payload_bytes,
        .announced_bytes = payload_bytes};

    KVARN_ASSERT(frame.message_bytes <= sizeof run->message);
    dispatch_client_send(run->client, &frame);
    kvt_host_settle(&run->host);
    dispatch_client_check_answered(run->client);
}

/*
 * Shape 1: full attention with a sink. Shape 2: a window, other dims and bits, no sink. Shape 3:
 * large, so that a block's rows are more than the loop handles itself.
 */
static void prelude_shapes(struct run *run)
{
    static const struct kvd_layer_group groups[][2] = {
        {{1, 1, 8, 8, 0}, {1, 1, 8, 8, 0}},
        {{1, 2, 8, 8, 0}, {1, 2, 16, 8, 70}},
        {{1, 4, 128, 128, 0}, {1, 1, 8, 8, 64}},
    };

    for (uint32_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        Kvarnd__RegisterShape message = KVARND__REGISTER_SHAPE__INIT;
        Kvarnd__Shape shape = KVARND__SHAPE__INIT;
        Kvarnd__LayerGroup wire[2] = {KVARND__LAYER_GROUP__INIT, KVARND__LAYER_GROUP__INIT};
        Kvarnd__LayerGroup *list[] = {&wire[0], &wire[1]};

        for (uint32_t j = 0; j < 2; j++) {
            wire[j].layers = groups[i][j].layers;
            wire[j].kv_heads = groups[i][j].kv_heads;
            wire[j].k_dim = groups[i][j].k_dim;
            wire[j].has_v_dim = wire[j].has_window = 1;
            wire[j].v_dim = groups[i][j].v_dim;
            wire[j].window = groups[i][j].window;
        }
        shape.model = (char[]){"m"};
        shape.n_layer_groups = 2;
        shape.layer_groups = list;
        shape.has_group = shape.has_sink_tokens = shape.has_k_bits = 1;
        shape.group = 64;
        shape.k_bits = i == 1 ? 4 : 2;
        shape.sink_tokens = i == 1 ? 0 : 64;
        message.shape = &shape;
        prelude_send(run, KVARN_FRAME_REGISTER_SHAPE, &message.base, 0);
    }
}

/* Session "a" of shape 1, "b" of shape 2, one without a name, and "c" of shape 3. */
static void prelude_sessions(struct run *run)
{
    static const struct {
        const char *name;
        uint32_t shape_id, seal_lag;
        Kvarnd__Encoder encoder;
    } sessions[] = {{"a", 1, 0, KVARND__ENCODER__ENCODER_DEFAULT},
        {"b", 2, 3, KVARND__ENCODER__REFERENCE}, {NULL, 1, 64, KVARND__ENCODER__AWARE},
        {"c", 3, 0, KVARND__ENCODER__REFERENCE}};

    for (size_t i = 0; i < sizeof sessions / sizeof *sessions; i++) {
        Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;

        message.name = (char *)(uintptr_t)sessions[i].name;
        message.has_shape_id = message.has_seal_lag = message.has_encoder = 1;
        message.encoder = sessions[i].encoder;
        message.shape_id = sessions[i].shape_id;
        message.seal_lag = sessions[i].seal_lag;
        prelude_send(run, KVARN_FRAME_OPEN_SESSION, &message.base, 0);
    }
}

static void prelude_tokens(struct run *run)
{
    const struct dispatch_hints *hints = &run->client->hints;

    for (unsigned i = 0; i < hints->handle_count && i < FILLED_SESSIONS; i++) {
        const struct kvd_session *session = hints->session_of(hints->ctx, hints->handles[i]);
        Kvarnd__Append message = KVARND__APPEND__INIT;

        message.handle = hints->handles[i];
        message.epoch = session->epoch;
        message.has_layer_count = 1;
        message.layer_count = session->shape->layer_count;
        message.token_count = 135; /* two blocks, and what the lag of "b" needs */
        const size_t bytes = (size_t)kvd_append_payload_bytes(
            session->shape, 0, session->shape->layer_count, message.token_count, KVARN_F16);
        payload_fill_small(run, bytes);
        prelude_send(run, KVARN_FRAME_APPEND, &message.base, bytes);
    }
}

static void run_init(struct run *run, uint8_t options)
{
    const bool is_tight = (options & OPTION_TIGHT) != 0;
    const struct kvt_host_options host_options = {
        .memory_limit = is_tight ? UINT64_C(9) << 20 : UINT64_C(48) << 20,
        .payload_max = PAYLOAD_BYTES_MAX,
        .sessions_max = 8};

    kvt_host_init(&run->host, &host_options);
    struct kvd_config *config = &run->host.config;
    config->connections_max = CLIENTS_MAX - 1;
    config->output_max = 64 * 1024;
    config->credit_requests = (options & OPTION_UNCREDITED) != 0 ? 2 : 32;
    config->credit_bytes = (options & OPTION_UNCREDITED) != 0 ? 8 * 1024 : 4 * PAYLOAD_BYTES_MAX;
    run->payload = malloc(PAYLOAD_BYTES_MAX);
    KVARN_ASSERT(run->payload != NULL);
    run->client = &run->clients[0];
    dispatch_client_open(run->client, &run->host, false);
    if ((options & OPTION_BARE) == 0) {
        char *features[] = {(char[]){"payload_xxh3"}};
        Kvarnd__Hello hello = KVARND__HELLO__INIT;

        hello.features = features;
        hello.n_features = (options & OPTION_XXH3) != 0;
        prelude_send(run, KVARN_FRAME_HELLO, &hello.base, 0);
        prelude_shapes(run);
        prelude_sessions(run);
    }
    if ((options & OPTION_FILLED) != 0) {
        prelude_tokens(run);
    }
}

static void session_check(const struct kvd_session *session)
{
    const uint64_t group = session->shape->group;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];

        KVARN_ASSERT(kvd_session_pending(session, i) == 0 &&
                     kvd_session_pending_length(session, i) == ly->length);
        KVARN_ASSERT(ly->sealed_blocks * group <= ly->length);
        KVARN_ASSERT(ly->dropped_blocks <= ly->sealed_blocks);
        KVARN_ASSERT(kvd_session_block_count(session) * group >= ly->length);
    }
    KVARN_ASSERT(TAILQ_EMPTY(&session->ops));
}

/* Everybody reads, nothing moves any more. */
static void rest_check(struct run *run)
{
    struct kvd_session_table *table = &run->host.service.sessions;
    const char *after = NULL;
    const struct kvd_session *session;

    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        if (run->clients[i].far != NULL) {
            kvd_fake_peer_set_rate(run->clients[i].far, SIZE_MAX);
        }
    }
    step_settle(run);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        dispatch_client_check_answered(&run->clients[i]);
        dispatch_client_check_credit(&run->clients[i]);
    }
    KVARN_ASSERT(kvd_service_is_idle(&run->host.service));
    KVARN_ASSERT(run->host.service.budget.kind_bytes[KVD_BUDGET_REPLIES] == 0);
    while ((session = kvd_session_table_next(table, KVD_TENANT_DEFAULT, after)) != NULL) {
        session_check(session);
        after = session->name;
    }
}

static void run_fini(struct run *run)
{
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        dispatch_client_close(&run->clients[i], i % 2 == 1);
    }
    step_settle(run);
    KVARN_ASSERT(run->host.service.conn_count == 0);
    kvt_host_fini(&run->host);
    free(run->payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run run = {.input = {.data = data, .left = size}};

    (void)!kvd_log_set_level("error");
    run_init(&run, fuzz_take_u8(&run.input));
    for (unsigned i = 0; i < STEPS_MAX && run.input.left > 0; i++) {
        step(&run);
    }
    rest_check(&run);
    run_fini(&run);
    return 0;
}

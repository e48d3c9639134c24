/*
 * kvarn-bench turns: how long a call holds the loop, at its largest.
 *
 * In process, on a service over the fake io, whose clock runs with the thread's processor time, so
 * that slices end as they do in the daemon. Calls come as frames. What is shown is the longest
 * callback of the loop from the first byte of the call to rest (SEMANTICS.md 18).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/session/session_blocks.h"
#include "tests/bench/bench.h"
#include "tests/support/io_fake_impl.h"
#include "tests/support/wire_peer.h"

#define GROUP        64
#define LAYERS_MANY  128
#define TOKENS_LONG  ((uint64_t)1000000)
#define TOKENS_WIDE  60000 /* of 128 layers: a payload of 234 MiB */
#define MEMORY_LIMIT ((uint64_t)12 << 30)
#define NS_PER_US    1000.0
#define TURN_US_MAX  100.0 /* SEMANTICS.md 18 */

/* Slots as small as they can be: what counts is their number. */
static const struct kvd_layer_group thin_groups[] = {
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_layer_group many_groups[] = {
    {.layers = LAYERS_MANY, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_shape_desc thin_shape = {.model = "thin",
    .group = GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .layer_groups = thin_groups,
    .layer_group_count = 1};
static const struct kvd_shape_desc many_shape = {.model = "many",
    .group = GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .layer_groups = many_groups,
    .layer_group_count = 1};

struct turns {
    struct kvb_report *report; /* borrowed */
    struct kvt_host host;
    struct kvt_peer peer;
    const struct kvd_shape *thin, *many; /* borrowed */
    uint8_t *payload;                    /* owned: zeros, then ids */
    uint32_t scale; /* sizes are divided by it: 1, or more when it is to be quick */
};

/* A session as a client has it. */
struct opened {
    uint64_t handle, epoch;
};

static void row(struct turns *turns, const char *what, const char *params, double goal_us)
{
    double us = (double)kvd_io_fake_longest_ns(turns->host.fake) / NS_PER_US;

    kvb_report_row(turns->report, &(struct kvb_row){.what = what,
                                      .variant = "longest turn",
                                      .params = params,
                                      .value = us,
                                      .low = us,
                                      .high = us,
                                      .unit = "us",
                                      .goal = {.must = goal_us, .is_limit = true}});
}

/* Forget what was longest until now. */
static void begin(struct turns *turns)
{
    kvt_host_settle(&turns->host);
    (void)kvd_io_fake_longest_ns(turns->host.fake);
}

static struct kvt_answer call_with(struct turns *turns, unsigned type,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes)
{
    begin(turns);
    struct kvt_answer answer = kvt_peer_call(&turns->peer, type, message, payload, payload_bytes);
    if (answer.err != 0) {
        fprintf(stderr, "kvarn-bench turns: %s\n", answer.status->text);
        abort();
    }
    return answer;
}

static void call(struct turns *turns, unsigned type, const ProtobufCMessage *message)
{
    struct kvt_answer answer = call_with(turns, type, message, NULL, 0);

    kvt_answer_fini(&answer);
}

static uint64_t tokens_of(const struct turns *turns, uint64_t tokens)
{
    return tokens / turns->scale / GROUP * GROUP;
}

/* Open by a message that is filled in but for the mode; or what a lease holds. */
static struct opened open_with(struct turns *turns, Kvarnd__OpenSession *message)
{
    message->has_mode = 1;
    message->mode = KVARND__OPEN_MODE__EITHER;
    struct kvt_answer answer = call_with(turns, KVARN_FRAME_OPEN_SESSION, &message->base, NULL, 0);
    const Kvarnd__OpenSessionReply *reply = answer.message;
    struct opened opened = {.handle = reply->handle, .epoch = reply->epoch};
    kvt_answer_fini(&answer);
    return opened;
}

static struct opened open_named(
    struct turns *turns, const struct kvd_shape *shape, const char *name, bool is_shared)
{
    Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;

    message.name = (char *)(uintptr_t)name;
    message.has_shape_id = 1;
    message.shape_id = shape->id;
    message.has_share_prefix = 1;
    message.share_prefix = is_shared;
    return open_with(turns, &message);
}

/* A named session of so many tokens, all sealed, as far as tables can tell; then opened. */
static struct opened long_make(
    struct turns *turns, const struct kvd_shape *shape, const char *name, uint64_t tokens)
{
    struct kvd_session_options options = {.encoder = KVARN_ENCODER_DEFAULT};
    struct kvd_session *session = NULL;
    struct kvd_failure why = {0};

    KVARN_ASSERT(kvd_session_create(&turns->host.service, shape, name, &options, &session) == 0);
    KVARN_ASSERT(kvd_session_want_work(session) == 0);
    session->work->layers[0].pending_length = (uint32_t)tokens;
    for (uint64_t b = 0; b < tokens / GROUP; b++) {
        KVARN_ASSERT(kvd_session_add_block(session, KVD_RESERVE_TILES, &why) == 0);
    }
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        session->layers[i].length = session->work->layers[i].pending_length = (uint32_t)tokens;
        session->layers[i].sealed_blocks = (uint32_t)(tokens / GROUP);
    }
    kvd_session_table_insert(&turns->host.service.sessions, session);
    kvd_lifetime_touch(session);
    kvd_session_unref(session);
    return open_named(turns, shape, name, false);
}

static void drop_named(struct turns *turns, const char *name)
{
    Kvarnd__DropSession message = KVARND__DROP_SESSION__INIT;

    message.name = (char *)(uintptr_t)name;
    call(turns, KVARN_FRAME_DROP_SESSION, &message.base);
}

static Kvarnd__Append append_of(
    const struct opened *opened, uint32_t layer_count, uint64_t token_count)
{
    Kvarnd__Append message = KVARND__APPEND__INIT;

    message.handle = opened->handle;
    message.epoch = opened->epoch;
    message.has_layer_count = 1;
    message.layer_count = layer_count;
    message.token_count = (uint32_t)token_count;
    return message;
}

/* Token ids or block hashes of a million tokens come with them; then they are looked for. */
static void named_append_rows(struct turns *turns, bool is_hashes)
{
    const char *name = is_hashes ? "hashes" : "ids";
    uint64_t tokens = tokens_of(turns, TOKENS_LONG);
    struct opened opened = open_named(turns, turns->thin, name, true);
    Kvarnd__Append message = append_of(&opened, 1, tokens);
    size_t said = (size_t)(is_hashes ? tokens / GROUP * 32 : tokens * sizeof(uint32_t));

    message.has_token_ids = message.has_block_hashes = 1;
    message.token_ids = !is_hashes;
    message.block_hashes = is_hashes;
    struct kvt_answer answer = call_with(
        turns, KVARN_FRAME_APPEND, &message.base, turns->payload, said + (size_t)tokens * 32);
    kvt_answer_fini(&answer);
    row(turns, is_hashes ? "Append with hashes" : "Append with ids", "1M tokens, 1 layer",
        TURN_US_MAX);
}

static void prefix_rows(struct turns *turns)
{
    uint64_t tokens = tokens_of(turns, TOKENS_LONG);
    Kvarnd__MatchPrefix match = KVARND__MATCH_PREFIX__INIT;
    Kvarnd__OpenSession open = KVARND__OPEN_SESSION__INIT;

    match.shape_id = turns->thin->id;
    match.has_token_count = 1;
    match.token_count = (uint32_t)tokens;
    match.has_lease_ms = 1;
    match.lease_ms = 60000;
    for (int i = 0; i < 2; i++) {
        struct kvt_answer answer = call_with(turns, KVARN_FRAME_MATCH_PREFIX, &match.base,
            turns->payload, (size_t)tokens * sizeof(uint32_t));
        const Kvarnd__MatchPrefixReply *reply = answer.message;
        KVARN_ASSERT(reply->tokens == tokens && reply->has_lease);
        open.lease = reply->lease;
        kvt_answer_fini(&answer);
        if (i == 0) {
            row(turns, "MatchPrefix", "1M ids", TURN_US_MAX);
        }
    }
    open.name = (char *)(uintptr_t) "leased";
    open.has_shape_id = open.has_lease = 1;
    open.shape_id = turns->thin->id;
    (void)open_with(turns, &open);
    row(turns, "OpenSession with a lease", "1M tokens", TURN_US_MAX);
    begin(turns);
    kvd_io_fake_advance_ms(turns->host.fake, 2 * 60000);
    kvt_host_settle(&turns->host);
    row(turns, "a lease ends", "1M tokens", TURN_US_MAX);
    drop_named(turns, "leased");
    row(turns, "DropSession", "1M tokens, 1 layer, shared", TURN_US_MAX);
    drop_named(turns, "ids");
    drop_named(turns, "hashes");
    begin(turns);
    while (kvd_prefix_index_shrink(&turns->host.service.prefixes, UINT64_MAX) > 0) {
        kvt_host_settle(&turns->host);
    }
    row(turns, "prefix index lets go", "31k blocks", TURN_US_MAX);
}

/* What was read of one session is stored in another, as it is. */
static void tiles_row(struct turns *turns, const struct opened *from, uint64_t tokens)
{
    static Kvarnd__Run runs[LAYERS_MANY];
    static Kvarnd__Run *run_list[LAYERS_MANY];
    Kvarnd__ReadBlocks read = KVARND__READ_BLOCKS__INIT;
    Kvarnd__AppendTiles tiles = KVARND__APPEND_TILES__INIT;

    read.handle = from->handle;
    read.has_layer_count = read.has_stored = 1;
    read.layer_count = LAYERS_MANY;
    read.token_last = tokens;
    read.stored = 1;
    struct kvt_answer answer = call_with(turns, KVARN_FRAME_READ_BLOCKS, &read.base, NULL, 0);
    row(turns, "ReadBlocks of records", "60k tokens, 128 layers", TURN_US_MAX);
    struct opened to = open_named(turns, turns->many, "tiles", false);
    for (uint32_t i = 0; i < LAYERS_MANY; i++) {
        kvarnd__run__init(&runs[i]);
        runs[i].layer = i;
        runs[i].token_count = tokens;
        runs[i].form = KVARND__RUN_FORM__RECORDS;
        run_list[i] = &runs[i];
    }
    tiles.handle = to.handle;
    tiles.epoch = to.epoch;
    tiles.n_runs = LAYERS_MANY;
    tiles.runs = run_list;
    struct kvt_answer stored = call_with(
        turns, KVARN_FRAME_APPEND_TILES, &tiles.base, answer.payload, answer.payload_bytes);
    row(turns, "AppendTiles", "60k tokens, 128 layers", TURN_US_MAX);
    kvt_answer_fini(&stored);
    kvt_answer_fini(&answer);
}

static void verify_row(struct turns *turns, const char *name)
{
    Kvarnd__Verify message = KVARND__VERIFY__INIT;

    message.name = (char *)(uintptr_t)name;
    call(turns, KVARN_FRAME_VERIFY, &message.base);
    row(turns, "Verify", "60k tokens, 128 layers", TURN_US_MAX);
}

static void wide_rows(struct turns *turns)
{
    uint64_t tokens = tokens_of(turns, TOKENS_WIDE);
    struct opened opened = open_named(turns, turns->many, "wide", false);
    Kvarnd__Append message = append_of(&opened, LAYERS_MANY, tokens);
    struct kvt_answer answer = call_with(turns, KVARN_FRAME_APPEND, &message.base, turns->payload,
        (size_t)tokens * 32 * LAYERS_MANY);

    kvt_answer_fini(&answer);
    row(turns, "Append", "60k tokens, 128 layers", TURN_US_MAX);
    verify_row(turns, "wide");
    tiles_row(turns, &opened, tokens);
    drop_named(turns, "wide");
    row(turns, "DropSession", "60k tokens, 128 layers", TURN_US_MAX);
    drop_named(turns, "tiles");
}

static void truncate_row(
    struct turns *turns, struct opened *opened, uint64_t length, const char *what)
{
    Kvarnd__Truncate message = KVARND__TRUNCATE__INIT;

    message.handle = opened->handle;
    message.epoch = opened->epoch;
    message.length = length;
    struct kvt_answer answer = call_with(turns, KVARN_FRAME_TRUNCATE, &message.base, NULL, 0);
    opened->epoch = ((const Kvarnd__TruncateReply *)answer.message)->epoch;
    kvt_answer_fini(&answer);
    row(turns, what, "1M tokens, 128 layers", TURN_US_MAX);
}

static void fork_call(struct turns *turns, uint64_t handle, const char *name)
{
    Kvarnd__Fork fork = KVARND__FORK__INIT;
    Kvarnd__ForkItem item = KVARND__FORK_ITEM__INIT, *items[] = {&item};

    item.handle = handle;
    item.name = (char *)(uintptr_t)name;
    fork.n_items = 1;
    fork.items = items;
    call(turns, KVARN_FRAME_FORK, &fork.base);
}

/* As many forks as one item of Reorder takes become copies of each other. */
static void reorder_row(struct turns *turns, uint64_t handle)
{
    static uint64_t handles[KVARN_REORDER_SESSIONS_MAX], epochs[KVARN_REORDER_SESSIONS_MAX];
    static uint32_t sources[KVARN_REORDER_SESSIONS_MAX];
    Kvarnd__Reorder reorder = KVARND__REORDER__INIT;
    Kvarnd__ReorderItem item = KVARND__REORDER_ITEM__INIT, *items[] = {&item};
    char name[32];

    for (uint32_t i = 0; i < KVARN_REORDER_SESSIONS_MAX; i++) {
        (void)snprintf(name, sizeof(name), "beam-%03u", (unsigned)i);
        fork_call(turns, handle, name);
        struct opened opened = open_named(turns, turns->many, name, false);
        handles[i] = opened.handle;
        epochs[i] = opened.epoch;
        sources[i] = (i + 1) % KVARN_REORDER_SESSIONS_MAX;
    }
    item.n_handles = item.n_epochs = item.n_sources = KVARN_REORDER_SESSIONS_MAX;
    item.handles = handles;
    item.epochs = epochs;
    item.sources = sources;
    reorder.n_items = 1;
    reorder.items = items;
    call(turns, KVARN_FRAME_REORDER, &reorder.base);
    row(turns, "Reorder", "128 sessions of 1M tokens, 128 layers", TURN_US_MAX);
}

static void look_rows(struct turns *turns)
{
    Kvarnd__InspectSession inspect = KVARND__INSPECT_SESSION__INIT;
    Kvarnd__ListSessions list = KVARND__LIST_SESSIONS__INIT;
    Kvarnd__Pin pin = KVARND__PIN__INIT;

    inspect.name = (char *)(uintptr_t) "long";
    call(turns, KVARN_FRAME_INSPECT_SESSION, &inspect.base);
    row(turns, "InspectSession", "1M tokens, 128 layers, all shared", TURN_US_MAX);
    list.has_limit = 1;
    list.limit = KVARN_LIST_PAGE_MAX;
    call(turns, KVARN_FRAME_LIST_SESSIONS, &list.base);
    row(turns, "ListSessions", "129 sessions of 128 layers", TURN_US_MAX);
    pin.name = (char *)(uintptr_t) "beam-000";
    call(turns, KVARN_FRAME_PIN, &pin.base);
    row(turns, "Pin", "1M tokens, 128 layers", TURN_US_MAX);
    pin.has_unpin = 1;
    pin.unpin = 1;
    call(turns, KVARN_FRAME_PIN, &pin.base);
}

/* One query token over all of a layer: its pages are taken in one step. */
static void attend_row(struct turns *turns, const struct opened *opened)
{
    static uint8_t q[8 * sizeof(uint16_t)];
    Kvarnd__Attend attend = KVARND__ATTEND__INIT;
    Kvarnd__AttendParams params = KVARND__ATTEND_PARAMS__INIT;
    Kvarnd__AttendItem item = KVARND__ATTEND_ITEM__INIT, *items[] = {&item};

    params.layer = 0;
    params.q_heads = 1;
    item.handle = opened->handle;
    attend.params = &params;
    attend.n_items = 1;
    attend.items = items;
    struct kvt_answer answer = call_with(turns, KVARN_FRAME_ATTEND, &attend.base, q, sizeof(q));
    kvt_answer_fini(&answer);
    row(turns, "Attend", "1M tokens, 1 layer", TURN_US_MAX);
}

static void long_rows(struct turns *turns)
{
    uint64_t tokens = tokens_of(turns, TOKENS_LONG);
    struct opened opened = long_make(turns, turns->many, "long", tokens);
    char name[32];

    attend_row(turns, &opened);
    fork_call(turns, opened.handle, "fork");
    row(turns, "Fork", "1M tokens, 128 layers", TURN_US_MAX);
    drop_named(turns, "fork");
    reorder_row(turns, opened.handle);
    look_rows(turns);
    for (uint32_t i = 0; i < KVARN_REORDER_SESSIONS_MAX; i++) {
        (void)snprintf(name, sizeof(name), "beam-%03u", (unsigned)i);
        drop_named(turns, name);
    }
    truncate_row(turns, &opened, tokens - 5, "Truncate into the last block");
    truncate_row(turns, &opened, 0, "Truncate to nothing");
    drop_named(turns, "long");
    (void)long_make(turns, turns->many, "long", tokens);
    drop_named(turns, "long");
    row(turns, "DropSession", "1M tokens, 128 layers", TURN_US_MAX);
}

/* A reservation wants what a session of a million tokens holds; then slices go on. */
static void evict_rows(struct turns *turns)
{
    struct kvd_service *service = &turns->host.service;
    uint64_t tokens = tokens_of(turns, TOKENS_LONG);

    (void)long_make(turns, turns->many, "victim", tokens);
    (void)long_make(turns, turns->thin, "last used", GROUP); /* is spared */
    begin(turns);
    kvd_io_fake__callback_begin(turns->host.fake);
    KVARN_ASSERT(kvd_evictor_make_room(service, NULL, UINT64_C(1) << 28));
    kvd_io_fake__callback_end(turns->host.fake);
    row(turns, "evict for a reservation", "256 MiB of 128 layers", TURN_US_MAX);
    begin(turns);
    KVARN_ASSERT(kvd_evictor_want(service, UINT64_C(1) << 40));
    kvt_host_settle(&turns->host);
    row(turns, "evict in slices", "all of 1M tokens, 128 layers", TURN_US_MAX);
    drop_named(turns, "victim");
    drop_named(turns, "last used");
}

/* Every other block of many sessions is gone: the compactor moves what is left. */
static void compact_row(struct turns *turns)
{
    char name[32];

    for (uint32_t i = 0; i < 256 / turns->scale; i++) {
        (void)snprintf(name, sizeof(name), "short-%03u", (unsigned)i);
        (void)long_make(turns, turns->many, name, (uint64_t)16 * GROUP);
    }
    for (uint32_t i = 0; i < 256 / turns->scale; i++) {
        if (i % 8 != 0) {
            (void)snprintf(name, sizeof(name), "short-%03u", (unsigned)i);
            drop_named(turns, name);
        }
    }
    begin(turns);
    for (int i = 0; i < 64; i++) {
        kvd_io_fake_advance_ms(turns->host.fake, 1000);
        kvt_host_settle(&turns->host);
    }
    row(turns, "compactor", "32 sessions left of 256", TURN_US_MAX);
}

static const struct kvd_shape *shape_register(
    struct turns *turns, const struct kvd_shape_desc *desc)
{
    const struct kvd_shape *shape = NULL;
    char text[192];

    KVARN_ASSERT(kvd_shape_register(&turns->host.service.shapes, KVD_TENANT_DEFAULT, desc, &shape,
                     text, sizeof(text)) == 0);
    return shape;
}

int kvb_turns(struct kvb_report *report, int argc, char **argv)
{
    static struct turns turns;
    struct kvt_host_options options = {
        .memory_limit = MEMORY_LIMIT, .payload_max = KVARN_PAYLOAD_BYTES_MAX, .workers = 1};

    if (argc > 0) {
        fprintf(stderr, "kvarn-bench turns: unknown argument %s\n", argv[0]);
        return 2;
    }
    turns = (struct turns){.report = report, .scale = report->is_quick ? 64 : 1};
    kvt_host_init(&turns.host, &options);
    turns.host.service.lifetimes.pin_bytes_max = MEMORY_LIMIT;
    turns.thin = shape_register(&turns, &thin_shape);
    turns.many = shape_register(&turns, &many_shape);
    turns.payload = calloc(1, KVARN_PAYLOAD_BYTES_MAX);
    KVARN_ASSERT(turns.payload != NULL);
    kvt_peer_open(&turns.peer, &turns.host);
    kvt_peer_hello(&turns.peer);
    kvd_io_fake_run_clock(turns.host.fake);
    kvb_report_table(report, "turns: the longest callback of the loop, processor time");
    named_append_rows(&turns, false);
    named_append_rows(&turns, true);
    prefix_rows(&turns);
    wide_rows(&turns);
    long_rows(&turns);
    evict_rows(&turns);
    compact_row(&turns);
    kvt_peer_close(&turns.peer);
    kvt_host_fini(&turns.host);
    free(turns.payload);
    return 0;
}

/*
 * kvarn-bench server: what goes through sockets. The daemon is a child process; beside it, sample
 * by sample, stand a raw sender of the same bytes, redis-server, and the kernels in this process.
 *
 * Thread: one. Ratios are of the clock, of samples that follow each other, each the median of all:
 * other programs of the machine disturb both. The processor time of both ends together, by which
 * they do not count, is in the note.
 */
#include "tests/bench/bench_server.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/src/exchange.h"
#include "lib/base/assert.h"
#include "tests/support/tiles.h"

#define HEADS        8
#define SAMPLE_TIMES 4 /* the usual sample */
#define READ_DEPTH   8
#define SMALL_DEPTH  32
#define APPEND_DEPTH 4
#define NOISY        0.15 /* quartiles this far from the median are said to be noise */

/* What a row compares. */
struct contest {
    const char *what, *rival, *params;
    struct kvb_goal goal;
    double request_bytes; /* that count, in either direction */
};

/* Samples of one side. */
struct side {
    double clock_s[KVB_SAMPLES], busy_s; /* busy_s: of both ends, of all samples */
};

static void side_take(struct side *side, unsigned sample, const struct kvb_run *run)
{
    side->clock_s[sample] = run->clock_s;
    side->busy_s += run->peer_s + run->self_s;
}

/* Ratios of neighbours: how many times as fast as the rival the daemon is. */
static void contest_row(struct kvb_server *server, const struct contest *contest,
    struct side *daemon, struct side *rival, size_t requests, bool is_busy_known)
{
    double ratios[KVB_SAMPLES];
    struct kvb_stats ratio, own, other;
    char note[160], busy[64] = "";

    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        ratios[s] = rival->clock_s[s] / daemon->clock_s[s];
    }
    kvb_stats_take(ratios, &ratio);
    kvb_stats_take(daemon->clock_s, &own);
    kvb_stats_take(rival->clock_s, &other);
    if (is_busy_known) {
        (void)snprintf(
            busy, sizeof(busy), "; by processor time %.2f", rival->busy_s / daemon->busy_s);
    }
    double bytes = contest->request_bytes * (double)requests / 1e9;
    bool is_noisy =
        fmax(ratio.median - ratio.low, ratio.high - ratio.median) > NOISY * ratio.median;
    (void)snprintf(note, sizeof(note), "%.2f against %.2f GB/s%s%s", bytes / own.median,
        bytes / other.median, busy, is_noisy ? "; noisy" : "");
    kvb_report_row(server->report, &(struct kvb_row){.what = contest->what,
                                       .variant = contest->rival,
                                       .params = contest->params,
                                       .value = ratio.median,
                                       .low = ratio.low,
                                       .high = ratio.high,
                                       .unit = "x",
                                       .goal = contest->goal,
                                       .note = note});
}

/* ---- Sessions ---- */

void kvb_server_connect(struct kvb_server *server, struct kvb_link *link, bool is_tcp)
{
    const char *address = is_tcp ? server->daemon.tcp_address : server->daemon.unix_address;
    const struct kvarn_hello_args hello = {.client = "kvarn-bench"};
    struct kvarn_hello_result result;

    kvb_link_open(link, address, KVB_SPEECH_KVARN, server->daemon.pid);
    kvb_link_call(link, KVARN_FRAME_HELLO, &hello, &result);
}

void kvb_server_open(
    struct kvb_link *link, const struct kvb_server_shape *shape, struct kvarn_session *ret)
{
    const struct kvarn_layer_group layers = {
        .layers = 1, .kv_heads = shape->kv_heads, .k_dim = KVB_SERVER_DIM};
    const struct kvarn_shape model = {.model = "bench",
        .layer_groups = &layers,
        .layer_group_count = 1,
        .group = KVB_SERVER_GROUP,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = shape->sink_tokens};
    const struct kvarn_register_metric_args metric = {.shape = &model};
    struct kvarn_register_shape_result registered;
    struct kvarn_open_session_result opened;

    kvb_link_call(link, KVARN_FRAME_REGISTER_SHAPE, &metric, &registered);
    const struct kvarn_open_session_args open = {.shape_id = registered.shape_id};
    kvb_link_call(link, KVARN_FRAME_OPEN_SESSION, &open, &opened);
    *ret = (struct kvarn_session){.handle = opened.handle, .epoch = opened.epoch};
}

void kvb_server_drop(struct kvb_link *link, const struct kvarn_session *session)
{
    const struct kvarn_drop_session_args args = {.session = session};

    kvb_link_call(link, KVARN_FRAME_DROP_SESSION, &args, NULL);
}

/* One AppendTiles: a run of sink rows and a run of records, either may be empty. */
struct append {
    struct kvarn_run runs[2];
    struct kvarn_span spans[2];
    struct kvarn_append_tiles_args args;
};

static void append_init(struct append *append, const struct kvb_server *server,
    const struct kvb_server_shape *shape, const struct kvarn_session *session, uint64_t start,
    uint32_t blocks)
{
    size_t bytes = (size_t)blocks * shape->kv_heads * server->record_bytes;
    size_t room = server->record_count * server->record_bytes;
    size_t at = (size_t)(start / KVB_SERVER_GROUP) * shape->kv_heads * server->record_bytes;
    uint32_t sink = start == 0 ? shape->sink_tokens : 0;
    size_t runs = 0;

    KVARN_ASSERT(bytes <= room && sink <= KVB_SERVER_GROUP);
    if (sink > 0) {
        append->runs[runs] = (struct kvarn_run){
            .first_token = start, .token_count = sink, .form = KVARN_RUN_ROWS_STORED};
        append->spans[runs++] = (struct kvarn_span){
            server->rows, (size_t)sink * shape->kv_heads * 2 * KVB_SERVER_DIM * sizeof(uint16_t)};
    }
    if (blocks > 0) {
        at %= room - bytes + server->record_bytes;
        at -= at % server->record_bytes;
        append->runs[runs] = (struct kvarn_run){.first_token = start + sink,
            .token_count = (uint64_t)blocks * KVB_SERVER_GROUP,
            .form = KVARN_RUN_RECORDS};
        append->spans[runs++] = (struct kvarn_span){server->records + at, bytes};
    }
    append->args = (struct kvarn_append_tiles_args){.session = session,
        .runs = append->runs,
        .run_count = runs,
        .payload = append->spans,
        .payload_count = runs};
}

void kvb_server_fill(struct kvb_server *server, struct kvb_link *link,
    const struct kvb_server_shape *shape, const struct kvarn_session *session, uint32_t blocks)
{
    const uint32_t most = 64; /* in one request: 5 MB of 8 heads */
    uint64_t start = 0;

    while (blocks > 0) {
        struct kvarn_append_tiles_result result;
        struct append append;
        uint32_t now = blocks < most ? blocks : most;
        append_init(&append, server, shape, session, start, now);
        kvb_link_call(link, KVARN_FRAME_APPEND_TILES, &append.args, &result);
        start += (uint64_t)now * KVB_SERVER_GROUP + (start == 0 ? shape->sink_tokens : 0);
        blocks -= now;
    }
}

uint64_t kvb_server_cut(struct kvb_link *link, struct kvarn_session *session, uint64_t length)
{
    const struct kvarn_truncate_args args = {.session = session, .length = length};
    struct kvarn_truncate_result result;
    struct kvarn_call *call = NULL;
    struct kvarn_reply reply;
    uint64_t now = 0;

    if (kvarn_call_truncate(&args, KVARN_DEADLINE_NONE, &call) != 0) {
        kvb_die("truncate", "the call cannot be built");
    }
    kvb_link_exchange(link, call, &reply);
    if (kvarn_reply_truncate(&reply, &result) != 0) {
        kvb_die("truncate", reply.status.text);
    }
    session->epoch = result.epoch;
    now = result.layer_lengths[0];
    kvarn__reply_reset(&reply);
    return now;
}

void kvb_server_rival(
    struct kvb_server *server, const struct kvarn_reply *reply, bool is_tcp, struct kvb_link *ret)
{
    size_t head_bytes = KVARN_FRAME_HEADER_BYTES + reply->header.message_bytes;
    char address[KVB_ADDRESS_BYTES];
    uint8_t *head = kvb_alloc(head_bytes);

    memcpy(head, reply->head, KVARN_FRAME_HEADER_BYTES);
    memcpy(head + KVARN_FRAME_HEADER_BYTES, reply->message_bytes, reply->header.message_bytes);
    const struct kvb_raw raw = {.head = head,
        .head_bytes = head_bytes,
        .payload = server->records,
        .payload_bytes = (size_t)reply->header.payload_bytes,
        .arena_bytes = server->record_count * server->record_bytes,
        .is_tcp = is_tcp};
    pid_t pid = kvb_raw_start(&raw, address);
    kvb_link_open(ret, address, KVB_SPEECH_KVARN, pid);
    free(head);
}

static void rival_end(struct kvb_link *link)
{
    pid_t pid = link->peer;

    kvb_link_close(link);
    kvb_raw_stop(pid);
}

/* ---- Streams ---- */

/* A stream and the calls whose bytes it borrows. */
struct requests {
    struct kvarn_call **calls; /* owned */
    struct kvb_stream stream;
};

static void requests_init(struct requests *requests, size_t count, size_t parts, size_t depth)
{
    *requests = (struct requests){
        .stream = {.count = count, .parts_each = parts, .depth = depth < count ? depth : count}};
    requests->calls = kvb_alloc(count * sizeof(*requests->calls));
    requests->stream.parts = kvb_alloc(count * parts * sizeof(*requests->stream.parts));
}

/* Take a call as request i; its id is its place. */
static void requests_put(struct requests *requests, size_t i, struct kvarn_call *call)
{
    struct kvarn_span *parts = requests->stream.parts + i * requests->stream.parts_each;

    KVARN_ASSERT(call->span_count + 1 == requests->stream.parts_each);
    kvarn__call_stamp(call, i + 1, false);
    parts[0] = (struct kvarn_span){call->head, call->head_bytes};
    for (size_t p = 0; p < call->span_count; p++) {
        parts[p + 1] = call->spans[p];
    }
    requests->calls[i] = call;
}

static void requests_fini(struct requests *requests)
{
    for (size_t i = 0; i < requests->stream.count; i++) {
        kvarn_call_destroy(requests->calls[i]);
    }
    free(requests->calls);
    free(requests->stream.parts);
}

static struct kvarn_call *read_call(
    const struct kvarn_session *session, uint64_t first, uint64_t tokens)
{
    const struct kvarn_read_blocks_args args = {.session = session,
        .layer_count = 1,
        .token_first = first,
        .token_last = first + tokens,
        .stored = true};
    struct kvarn_call *call = NULL;

    if (kvarn_call_read_blocks(&args, KVARN_DEADLINE_NONE, &call) != 0) {
        kvb_die("read_blocks", "the call cannot be built");
    }
    return call;
}

/* Requests that read a session from end to end, `blocks` at a time. */
static void reads_init(struct requests *requests, const struct kvarn_session *session,
    uint32_t session_blocks, uint32_t blocks, size_t depth)
{
    uint64_t tokens = (uint64_t)blocks * KVB_SERVER_GROUP;

    requests_init(requests, session_blocks / blocks, 1, depth);
    for (size_t i = 0; i < requests->stream.count; i++) {
        requests_put(requests, i, read_call(session, i * tokens, tokens));
    }
}

/* Requests of one sample. */
static size_t sample_requests(
    struct kvb_server *server, struct kvb_link *link, struct kvb_stream *stream)
{
    double sample_s = SAMPLE_TIMES * 1e-3 * server->report->sample_ms;
    size_t count = 2 * stream->depth;
    struct kvb_run run;

    kvb_stream_run(link, stream, count, &run);
    kvb_stream_run(link, stream, count, &run);
    double wanted = ceil((double)count * sample_s / run.clock_s);
    return wanted > (double)count ? (size_t)wanted : count;
}

/* Daemon and rival in turn, who is first changes. */
static void streams_contest(struct kvb_server *server, const struct contest *contest,
    struct kvb_link *links[2], struct kvb_stream *streams[2])
{
    static struct side sides[2];
    struct kvb_run run;

    memset(sides, 0, sizeof(sides));
    size_t count = sample_requests(server, links[0], streams[0]);
    (void)sample_requests(server, links[1], streams[1]);
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        for (unsigned turn = 0; turn < 2; turn++) {
            unsigned who = (turn + s) % 2;
            kvb_stream_run(links[who], streams[who], count, &run);
            side_take(&sides[who], s, &run);
        }
    }
    contest_row(server, contest, &sides[0], &sides[1], count, links[0]->peer != 0);
}

static void read_row(struct kvb_server *server, struct kvb_link *link,
    const struct kvarn_session *session, uint32_t session_blocks, uint32_t blocks, bool is_tcp)
{
    struct requests requests;
    struct kvarn_reply reply;
    struct kvb_link rival;
    char params[48];

    reads_init(&requests, session, session_blocks, blocks, READ_DEPTH);
    size_t bytes = blocks * HEADS * server->record_bytes;
    requests.stream.reply_bytes = bytes;
    kvb_link_exchange(link, read_call(session, 0, (uint64_t)blocks * KVB_SERVER_GROUP), &reply);
    if (reply.header.payload_bytes != bytes) {
        kvb_die("read_blocks", "records of another size than expected");
    }
    kvb_server_rival(server, &reply, is_tcp, &rival);
    kvarn__reply_reset(&reply);
    struct kvb_stream same = requests.stream;
    (void)snprintf(params, sizeof(params), "%s, %zu KiB, %d in flight", is_tcp ? "TCP" : "unix",
        bytes >> 10, READ_DEPTH);
    const struct contest contest = {"ReadBlocks of records", "raw sender", params,
        {.must = 0.85, .stretch = 0.97}, (double)bytes};
    streams_contest(server, &contest, (struct kvb_link *[2]){link, &rival},
        (struct kvb_stream *[2]){&requests.stream, &same});
    rival_end(&rival);
    requests_fini(&requests);
}

static void read_rows(struct kvb_server *server, bool is_tcp)
{
    static const uint32_t sizes[] = {1, 4, 16, 54}; /* 76 KiB to 4 MiB */
    const struct kvb_server_shape shape = {.kv_heads = HEADS};
    const uint32_t blocks = server->report->is_quick ? 432 : 540; /* 34 or 42 MB */
    struct kvarn_session session;
    struct kvb_link link;

    kvb_server_connect(server, &link, is_tcp);
    kvb_server_open(&link, &shape, &session);
    kvb_server_fill(server, &link, &shape, &session, blocks);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        read_row(server, &link, &session, blocks, sizes[i], is_tcp);
    }
    kvb_server_drop(&link, &session);
    kvb_link_close(&link);
}

/* ---- Appends ---- */

static void appends_init(struct requests *requests, struct kvb_server *server,
    const struct kvb_server_shape *shape, const struct kvarn_session *session, uint32_t blocks,
    size_t count)
{
    requests_init(requests, count, 2, APPEND_DEPTH);
    requests->stream.is_once = true;
    for (size_t i = 0; i < count; i++) {
        struct append append;
        struct kvarn_call *call = NULL;
        uint64_t start = (uint64_t)i * blocks * KVB_SERVER_GROUP;
        append_init(&append, server, shape, session, start, blocks);
        if (kvarn_call_append_tiles(&append.args, KVARN_DEADLINE_NONE, &call) != 0) {
            kvb_die("append_tiles", "the call cannot be built");
        }
        requests_put(requests, i, call);
    }
}

/* Fill a session of its own, and send the same to the rival. */
static void append_sample(struct kvb_server *server, struct kvb_link *links[2], uint32_t blocks,
    size_t count, unsigned first, struct kvb_run ret[2])
{
    const struct kvb_server_shape shape = {.kv_heads = HEADS};
    uint64_t expected = (uint64_t)count * blocks * KVB_SERVER_GROUP;
    struct kvarn_session session;
    struct requests requests;

    kvb_server_open(links[0], &shape, &session);
    appends_init(&requests, server, &shape, &session, blocks, count);
    for (unsigned turn = 0; turn < 2; turn++) {
        unsigned who = (turn + first) % 2;
        requests.stream.next = 0;
        kvb_stream_run(links[who], &requests.stream, count, &ret[who]);
    }
    if (kvb_server_cut(links[0], &session, expected + 1) != expected) {
        kvb_die("append_tiles", "not all of the records were stored");
    }
    requests_fini(&requests);
    kvb_server_drop(links[0], &session);
}

/* Append blocks at the end of a session, by one call. */
static void append_once(struct kvb_server *server, struct kvb_link *link,
    const struct kvarn_session *session, uint64_t start, uint32_t blocks)
{
    const struct kvb_server_shape shape = {.kv_heads = HEADS};
    struct kvarn_append_tiles_result result;
    struct append append;

    append_init(&append, server, &shape, session, start, blocks);
    kvb_link_call(link, KVARN_FRAME_APPEND_TILES, &append.args, &result);
}

/*
 * Memory for `count` times `blocks` blocks that has been touched: the daemon gives chunks without a
 * page back to the kernel at once, so a second session, which stays, gets pages in all of them.
 */
static void pages_touch(
    struct kvb_server *server, struct kvb_link *link, uint32_t blocks, size_t count)
{
    const struct kvb_server_shape shape = {.kv_heads = HEADS};
    const uint32_t kept = blocks / 2;
    struct kvarn_session filler, keeper;

    kvb_server_open(link, &shape, &filler);
    kvb_server_open(link, &shape, &keeper);
    for (size_t i = 0; i < count; i++) {
        append_once(server, link, &filler, i * blocks * KVB_SERVER_GROUP, blocks);
        append_once(server, link, &keeper, i * kept * KVB_SERVER_GROUP, kept);
    }
    kvb_server_drop(link, &filler);
}

static void append_row(struct kvb_server *server, bool is_tcp)
{
    static struct side sides[2];
    const struct kvb_server_shape shape = {.kv_heads = HEADS};
    const uint32_t blocks = 14; /* 1 MiB */
    const size_t count = server->report->is_quick ? 8 : 96;
    struct kvarn_append_tiles_result result;
    struct kvarn_session session;
    struct kvb_link link, rival;
    struct kvarn_reply reply;
    struct kvb_run runs[2];
    struct append append;
    struct kvarn_call *call = NULL;
    char params[48];

    kvb_server_connect(server, &link, is_tcp);
    kvb_server_open(&link, &shape, &session);
    append_init(&append, server, &shape, &session, 0, blocks);
    if (kvarn_call_append_tiles(&append.args, KVARN_DEADLINE_NONE, &call) != 0) {
        kvb_die("append_tiles", "the call cannot be built");
    }
    kvb_link_exchange(&link, call, &reply);
    if (kvarn_reply_append_tiles(&reply, &result) != 0) {
        kvb_die("append_tiles", reply.status.text);
    }
    kvb_server_drop(&link, &session);
    kvb_server_rival(server, &reply, is_tcp, &rival);
    kvarn__reply_reset(&reply);
    memset(sides, 0, sizeof(sides));
    pages_touch(server, &link, blocks, count + count / 8);
    append_sample(server, (struct kvb_link *[2]){&link, &rival}, blocks, count, 0, runs);
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        append_sample(server, (struct kvb_link *[2]){&link, &rival}, blocks, count, s % 2, runs);
        side_take(&sides[0], s, &runs[0]);
        side_take(&sides[1], s, &runs[1]);
    }
    size_t bytes = blocks * HEADS * server->record_bytes;
    (void)snprintf(params, sizeof(params), "%s, %zu KiB, %d in flight", is_tcp ? "TCP" : "unix",
        bytes >> 10, APPEND_DEPTH);
    const struct contest contest = {"AppendTiles of records", "raw sender", params,
        {.must = 0.8, .stretch = 0.95}, (double)bytes};
    contest_row(server, &contest, &sides[0], &sides[1], count, link.peer != 0);
    rival_end(&rival);
    kvb_link_close(&link);
}

/* ---- redis ---- */

/* Store `value` under the key of i, and make request i one that gets it. */
static void redis_put(
    struct kvb_link *link, struct requests *requests, size_t i, const uint8_t *value, size_t bytes)
{
    char head[96], answer[8], *get = kvb_alloc(64);
    int length =
        snprintf(head, sizeof(head), "*3\r\n$3\r\nSET\r\n$6\r\nk%05zu\r\n$%zu\r\n", i, bytes);

    if (send(link->fd, head, (size_t)length, 0) != length ||
        send(link->fd, value, bytes, 0) != (ssize_t)bytes || send(link->fd, "\r\n", 2, 0) != 2 ||
        recv(link->fd, answer, 5, MSG_WAITALL) != 5 || memcmp(answer, "+OK\r\n", 5) != 0) {
        kvb_die("redis", "it does not store");
    }
    length = snprintf(get, 64, "*2\r\n$3\r\nGET\r\n$6\r\nk%05zu\r\n", i);
    requests->stream.parts[i] = (struct kvarn_span){get, (size_t)length};
}

static void redis_row(struct kvb_server *server)
{
    const struct kvb_server_shape shape = {.kv_heads = 1};
    const uint32_t blocks = server->report->is_quick ? 512 : 4096; /* 5 or 40 MB */
    char params[48];
    struct kvb_redis redis;
    struct requests reads, gets;
    struct kvarn_session session;
    struct kvb_link link, rival;

    if (!kvb_redis_start(&redis)) {
        printf("reads of 9.7 KB against redis: left out, redis-server is not installed\n");
        return;
    }
    kvb_link_open(&rival, redis.address, KVB_SPEECH_REDIS, redis.pid);
    kvb_server_connect(server, &link, true);
    kvb_server_open(&link, &shape, &session);
    kvb_server_fill(server, &link, &shape, &session, blocks);
    reads_init(&reads, &session, blocks, 1, SMALL_DEPTH);
    requests_init(&gets, blocks, 1, SMALL_DEPTH);
    reads.stream.reply_bytes = gets.stream.reply_bytes = server->record_bytes;
    for (size_t i = 0; i < blocks; i++) {
        redis_put(&rival, &gets, i,
            server->records + i % server->record_count * server->record_bytes,
            server->record_bytes);
    }
    (void)snprintf(params, sizeof(params), "TCP, 9.5 KiB, %d in flight", SMALL_DEPTH);
    const struct contest contest = {"ReadBlocks of one record", "redis GET", params,
        {.must = 1.4, .stretch = 2.5}, (double)server->record_bytes};
    streams_contest(server, &contest, (struct kvb_link *[2]){&link, &rival},
        (struct kvb_stream *[2]){&reads.stream, &gets.stream});
    for (size_t i = 0; i < blocks; i++) {
        free((void *)(uintptr_t)gets.stream.parts[i].data);
    }
    requests_fini(&reads);
    requests_fini(&gets);
    kvb_server_drop(&link, &session);
    kvb_link_close(&link);
    kvb_link_close(&rival);
    kvb_redis_stop(&redis);
}

/* ---- The command ---- */

static void server_init(struct kvb_server *server)
{
    const size_t arena = server->report->is_quick ? (size_t)16 << 20 : (size_t)64 << 20;
    const size_t values = (size_t)KVB_SERVER_GROUP * KVB_SERVER_DIM;
    struct kvt_rng rng = {.state = 7};
    float *rows = kvb_alloc(2 * values * sizeof(float));

    server->spec = (struct kvarn_tile_spec){.k_dim = KVB_SERVER_DIM,
        .v_dim = KVB_SERVER_DIM,
        .group = KVB_SERVER_GROUP,
        .k_bits = 2,
        .v_bits = 2};
    server->record_bytes = kvarn_record_bytes(&server->spec);
    server->tile_bytes = kvarn_tile_bytes(&server->spec);
    server->tiles = kvb_alloc(KVB_SERVER_PATTERNS * server->tile_bytes);
    uint8_t *record = kvb_alloc(server->record_bytes);
    server->record_count = arena / server->record_bytes;
    server->records = kvb_alloc(server->record_count * server->record_bytes);
    server->rows = kvb_alloc(HEADS * 2 * values * sizeof(uint16_t));
    for (size_t i = 0; i < KVB_SERVER_PATTERNS; i++) {
        kvt_rows_fill(&rng, rows, 2 * (size_t)KVB_SERVER_GROUP, KVB_SERVER_DIM, 1.0);
        void *tile = kvt_tile_make(&server->spec, KVARN_ENCODER_REFERENCE, rows, rows + values);
        memcpy(server->tiles + i * server->tile_bytes, tile, server->tile_bytes);
        kvarn_tile_to_record(&server->spec, tile, record);
        for (size_t at = i; at < server->record_count; at += KVB_SERVER_PATTERNS) {
            memcpy(server->records + at * server->record_bytes, record, server->record_bytes);
        }
        free(tile);
    }
    free(record);
    for (size_t h = 0; h < HEADS; h++) {
        kvarn_from_f32(server->rows + h * 2 * values, KVARN_F16, rows, 2 * values);
    }
    free(rows);
}

enum part {
    PART_ROUND_TRIP,
    PART_BATCH,
    PART_READS,
    PART_REDIS,
    PART_APPENDS,
    PART_COUNT,
};

static const char *const part_names[PART_COUNT] = {
    "round-trip", "batch", "reads", "redis", "appends"};

static void part_run(struct kvb_server *server, enum part part)
{
    bool has_unix = server->daemon.unix_address[0] != '\0';
    bool has_tcp = server->daemon.tcp_address[0] != '\0';

    switch (part) {
    case PART_ROUND_TRIP:
        if (has_unix) {
            kvb_server_round_trip(server);
        }
        break;
    case PART_BATCH:
        kvb_server_batch(server);
        break;
    case PART_READS:
        for (int is_tcp = !has_unix; is_tcp <= has_tcp; is_tcp++) {
            read_rows(server, is_tcp != 0);
        }
        break;
    case PART_REDIS:
        if (has_tcp) {
            redis_row(server);
        }
        break;
    case PART_APPENDS:
        for (int is_tcp = !has_unix; is_tcp <= has_tcp; is_tcp++) {
            append_row(server, is_tcp != 0);
        }
        break;
    case PART_COUNT:
        break;
    }
}

struct options {
    const char *address; /* NULL: a daemon of our own */
    const char *daemon_path;
    bool wanted[PART_COUNT];
};

static int options_parse(struct options *options, int argc, char **argv)
{
    bool is_any = false;

    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--address") == 0) {
            options->address = argv[i + 1];
        } else if (strcmp(argv[i], "--kvarnd") == 0) {
            options->daemon_path = argv[i + 1];
        } else if (strcmp(argv[i], "--only") == 0) {
            int part = 0;
            while (part < PART_COUNT && strcmp(argv[i + 1], part_names[part]) != 0) {
                part++;
            }
            if (part == PART_COUNT) {
                return -1;
            }
            options->wanted[part] = is_any = true;
        } else {
            return -1;
        }
    }
    for (int part = 0; part < PART_COUNT && !is_any; part++) {
        options->wanted[part] = true;
    }
    return argc % 2 == 0 ? 0 : -1;
}

int kvb_server(struct kvb_report *report, int argc, char **argv)
{
    struct options options = {.daemon_path = KVB_KVARND};
    struct kvb_server server = {.report = report};

    if (options_parse(&options, argc, argv) != 0) {
        fputs("kvarn-bench server: expected --address ADDRESS, --kvarnd PATH, "
              "--only round-trip|batch|reads|redis|appends\n",
            stderr);
        return 2;
    }
    server_init(&server);
    if (options.address == NULL) {
        kvb_daemon_start(&server.daemon, options.daemon_path, "2GiB");
    } else {
        bool is_tcp = strncmp(options.address, "tcp:", 4) == 0;
        (void)snprintf(is_tcp ? server.daemon.tcp_address : server.daemon.unix_address,
            KVB_ADDRESS_BYTES, "%s", options.address);
    }
    kvb_report_table(report, "Server: through sockets, times as fast as (us: time)");
    for (int part = 0; part < PART_COUNT; part++) {
        if (options.wanted[part]) {
            part_run(&server, (enum part)part);
        }
    }
    if (options.address == NULL) {
        kvb_daemon_stop(&server.daemon);
    }
    free(server.records);
    free(server.tiles);
    free(server.rows);
    return 0;
}

/*
 * kvarn-bench server, attention: AppendAttend beside the same rows attended to in this process.
 *
 * One session: the time of a round trip over that of an empty echo, both by the clock. Many: the
 * processor time of the daemon, all its threads, beside that of the kernels alone.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvarn/attention.h"
#include "lib/base/assert.h"
#include "tests/bench/bench_server.h"
#include "tests/support/rng.h"

#define DIM         KVB_SERVER_DIM
#define GROUP       KVB_SERVER_GROUP
#define HEADS       8
#define GQA         4
#define SESSIONS    64
#define TILES_MAX   63 /* of a session; with the sink 8k tokens */
#define TRIPS       31 /* round trips of a sample: the median counts */
#define TRIPS_QUICK 5
#define SLACK_US    15.0 /* what a round trip may cost besides, must and stretch */
#define SLACK_BEST  5.0

#define Q_BYTES   ((size_t)HEADS * GQA * DIM * sizeof(uint16_t))
#define KV_BYTES  ((size_t)2 * HEADS * DIM * sizeof(uint16_t))
#define ROWS_EACH ((size_t)2 * GROUP * DIM) /* halves of K and V of a block */

/* The caches of some sessions as the daemon has them, for the kernels alone. */
struct bare {
    struct kvb_server *server; /* borrowed */
    uint32_t sessions, tiles;
    uint8_t *packed; /* owned: [session][head][tile] */
    uint16_t *rows;  /* owned: [session][head][sink, tail] of ROWS_EACH */
    uint16_t *q;     /* owned: [head][GQA][DIM] */
    uint16_t *out;
    float *q_floats, *out_floats, *lse, *partial, *scratch; /* owned */
};

static struct kvarn_attention_params params_of(const struct bare *bare, uint64_t length)
{
    return (struct kvarn_attention_params){.spec = bare->server->spec,
        .q_heads = GQA,
        .q_tokens = 1,
        .position = length - 1,
        .last = length,
        .scale = 1.0f / sqrtf(DIM),
        .causal = true,
        .accuracy = KVARN_ACCURACY_FAST};
}

static void bare_init(
    struct bare *bare, struct kvb_server *server, uint32_t sessions, uint32_t tiles)
{
    const size_t heads = (size_t)sessions * HEADS;
    const size_t bytes = heads * tiles * server->tile_bytes;
    const size_t pattern = KVB_SERVER_PATTERNS * server->tile_bytes;
    struct kvt_rng rng = {.state = 9};

    *bare = (struct bare){.server = server, .sessions = sessions, .tiles = tiles};
    const struct kvarn_attention_params params = params_of(bare, 1);
    bare->packed = kvb_alloc(bytes);
    for (size_t at = 0; at < bytes; at += pattern) {
        memcpy(bare->packed + at, server->tiles, bytes - at < pattern ? bytes - at : pattern);
    }
    bare->rows = kvb_alloc(heads * 2 * ROWS_EACH * sizeof(uint16_t));
    for (size_t i = 0; i < heads * 2; i++) {
        memcpy(bare->rows + i * ROWS_EACH, server->rows + i % HEADS * ROWS_EACH,
            ROWS_EACH * sizeof(uint16_t));
    }
    bare->q = kvb_alloc(Q_BYTES);
    for (size_t i = 0; i < Q_BYTES / sizeof(uint16_t); i++) {
        bare->q[i] = kvarn_half_from_f32((float)kvt_rng_normal(&rng));
    }
    bare->out = kvb_alloc(Q_BYTES);
    bare->q_floats = kvb_alloc(GQA * DIM * sizeof(float));
    bare->out_floats = kvb_alloc(GQA * DIM * sizeof(float));
    bare->lse = kvb_alloc(GQA * sizeof(float));
    bare->partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    bare->scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));
}

static void bare_fini(struct bare *bare)
{
    free(bare->packed);
    free(bare->rows);
    free(bare->q);
    free(bare->out);
    free(bare->q_floats);
    free(bare->out_floats);
    free(bare->lse);
    free(bare->partial);
    free(bare->scratch);
}

/* Attend with the query heads of one KV head: sink, tiles, `tail` rows. */
static void bare_head(struct bare *bare, size_t session, size_t head, uint32_t tail)
{
    const uint64_t tail_first = (uint64_t)(bare->tiles + 1) * GROUP;
    const struct kvarn_attention_params params = params_of(bare, tail_first + tail);
    const size_t at = session * HEADS + head;
    const uint16_t *rows = bare->rows + at * 2 * ROWS_EACH;
    struct kvarn_attention_span spans[TILES_MAX + 2];
    struct kvarn_rows_out to = {.dst = bare->out + head * GQA * DIM,
        .dtype = KVARN_F16,
        .dst_stride = DIM,
        .rows = GQA,
        .head_dim = DIM};
    size_t bad_row = 0;

    spans[0] = (struct kvarn_attention_span){.form = KVARN_SPAN_HALF,
        .token_count = GROUP,
        .k_rows = rows,
        .v_rows = rows + ROWS_EACH / 2};
    for (uint32_t i = 0; i < bare->tiles; i++) {
        spans[i + 1] = (struct kvarn_attention_span){.form = KVARN_SPAN_TILE,
            .first_token = (uint64_t)(i + 1) * GROUP,
            .token_count = GROUP,
            .tile = bare->packed + (at * bare->tiles + i) * bare->server->tile_bytes};
    }
    spans[bare->tiles + 1] = (struct kvarn_attention_span){.form = KVARN_SPAN_HALF,
        .first_token = tail_first,
        .token_count = tail,
        .k_rows = rows + ROWS_EACH,
        .v_rows = rows + ROWS_EACH + ROWS_EACH / 2};
    kvarn_to_f32(bare->q_floats, bare->q + head * GQA * DIM, KVARN_F16, GQA * DIM);
    kvarn_rotate(bare->q_floats, GQA, DIM);
    kvarn_attention_partial_init(&params, bare->partial);
    kvarn_attention_walk(
        &params, bare->q_floats, spans, bare->tiles + 2, bare->partial, bare->scratch);
    kvarn_attention_finish(&params, bare->partial, bare->out_floats, bare->lse);
    if (kvarn_rows_from_f32(bare->out_floats, &to, &bad_row) != 0) {
        kvb_die("the kernels", "a result that is not finite");
    }
}

static void bare_run(struct bare *bare, uint32_t tail)
{
    for (size_t session = 0; session < bare->sessions; session++) {
        for (size_t head = 0; head < HEADS; head++) {
            bare_head(bare, session, head, tail);
        }
    }
}

/* One token more for each of `count` sessions, all of `length` tokens, and its query. */
static struct kvarn_call *attend_call(struct kvb_server *server, const struct bare *bare,
    const struct kvarn_session *sessions, uint32_t count, uint64_t length)
{
    static struct kvarn_append_attend_item items[SESSIONS];
    static struct kvarn_span spans[2 * SESSIONS];
    struct kvarn_call *call = NULL;

    for (uint32_t i = 0; i < count; i++) {
        items[i] = (struct kvarn_append_attend_item){.session = &sessions[i],
            .start = length,
            .token_count = 1,
            .query_tokens = 1,
            .position = KVARN_TOKEN_DEFAULT,
            .token_last = KVARN_TOKEN_DEFAULT};
        spans[i] = (struct kvarn_span){server->rows, KV_BYTES};
        spans[count + i] = (struct kvarn_span){bare->q, Q_BYTES};
    }
    const struct kvarn_append_attend_args args = {.params = {.q_heads = HEADS * GQA},
        .items = items,
        .item_count = count,
        .payload = spans,
        .payload_count = (size_t)2 * count};
    if (kvarn_call_append_attend(&args, KVARN_DEADLINE_NONE, &call) != 0) {
        kvb_die("append_attend", "the call cannot be built");
    }
    return call;
}

/* Each item's status must be good. */
static void attend_check(struct kvarn_reply *reply, uint32_t count)
{
    struct kvarn_attend_result result;

    if (kvarn_reply_attend(reply, &result) != 0) {
        kvb_die("append_attend", reply->status.text);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (result.items[i].status.err != 0) {
            kvb_die("append_attend", result.items[i].status.text);
        }
    }
    kvarn__reply_reset(reply);
}

/* ---- One session ---- */

struct trip {
    struct kvb_server *server; /* borrowed */
    struct kvb_link link, echo;
    struct kvarn_session session;
    struct bare bare;
    uint64_t length_low, length;
};

/* Seconds of one sample: medians of its round trips. */
struct trip_times {
    double daemon_s, echo_s, bare_s;
};

static double trip_daemon(struct trip *trip)
{
    struct kvarn_reply reply;
    struct kvarn_call *call =
        attend_call(trip->server, &trip->bare, &trip->session, 1, trip->length);

    double began_s = kvb_clock();
    kvb_link_exchange(&trip->link, call, &reply);
    double took_s = kvb_clock() - began_s;
    attend_check(&reply, 1);
    trip->length++;
    return took_s;
}

static double trip_echo(struct trip *trip)
{
    struct kvarn_reply reply;
    struct kvarn_call *call =
        attend_call(trip->server, &trip->bare, &trip->session, 1, trip->length);

    double began_s = kvb_clock();
    kvb_link_exchange(&trip->echo, call, &reply);
    double took_s = kvb_clock() - began_s;
    kvarn__reply_reset(&reply);
    return took_s;
}

static double trip_bare(struct trip *trip)
{
    double began_s = kvb_clock();

    bare_run(&trip->bare, (uint32_t)(trip->length - trip->length_low));
    return kvb_clock() - began_s;
}

static int double_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median_of(double *values, size_t count)
{
    qsort(values, count, sizeof(double), double_compare);
    return values[count / 2];
}

static struct trip_times trip_sample(struct trip *trip, unsigned trips)
{
    double daemon_s[TRIPS], echo_s[TRIPS], bare_s[TRIPS];

    for (unsigned i = 0; i < trips; i++) {
        if (trip->length == trip->length_low + GROUP) {
            trip->length = kvb_server_cut(&trip->link, &trip->session, trip->length_low);
        }
        daemon_s[i] = trip_daemon(trip);
        echo_s[i] = trip_echo(trip);
        bare_s[i] = trip_bare(trip);
    }
    return (struct trip_times){.daemon_s = median_of(daemon_s, trips),
        .echo_s = median_of(echo_s, trips),
        .bare_s = median_of(bare_s, trips)};
}

static void trip_init(struct trip *trip, struct kvb_server *server)
{
    const struct kvb_server_shape shape = {.kv_heads = HEADS, .sink_tokens = GROUP};
    const uint32_t tiles = 7; /* with the sink 1,024 tokens */
    struct kvarn_reply reply;

    *trip = (struct trip){.server = server};
    bare_init(&trip->bare, server, 1, tiles);
    kvb_server_connect(server, &trip->link, false);
    kvb_server_open(&trip->link, &shape, &trip->session);
    kvb_server_fill(server, &trip->link, &shape, &trip->session, tiles);
    trip->length_low = trip->length = (uint64_t)(tiles + 1) * GROUP;
    kvb_link_exchange(
        &trip->link, attend_call(server, &trip->bare, &trip->session, 1, trip->length), &reply);
    trip->length++;
    kvb_server_rival(server, &reply, false, &trip->echo);
    attend_check(&reply, 1);
}

static void trip_fini(struct trip *trip)
{
    pid_t echo = trip->echo.peer;

    kvb_link_close(&trip->echo);
    kvb_raw_stop(echo);
    kvb_link_close(&trip->link);
    bare_fini(&trip->bare);
}

void kvb_server_round_trip(struct kvb_server *server)
{
    const unsigned trips = server->report->is_quick ? TRIPS_QUICK : TRIPS;
    double over_us[KVB_SAMPLES], bare_us[KVB_SAMPLES], echo_us[KVB_SAMPLES];
    struct kvb_stats over, bare, echo;
    struct trip trip;
    char note[128];

    trip_init(&trip, server);
    (void)trip_sample(&trip, trips);
    double busy_s = kvb_process_seconds(server->daemon.pid);
    double echo_busy_s = kvb_process_seconds(trip.echo.peer);
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        struct trip_times times = trip_sample(&trip, trips);
        over_us[s] = 1e6 * (times.daemon_s - times.echo_s);
        bare_us[s] = 1e6 * times.bare_s;
        echo_us[s] = 1e6 * times.echo_s;
    }
    double per_us = 1e6 / (KVB_SAMPLES * trips);
    busy_s = kvb_process_seconds(server->daemon.pid) - busy_s;
    echo_busy_s = kvb_process_seconds(trip.echo.peer) - echo_busy_s;
    kvb_stats_take(over_us, &over);
    kvb_stats_take(bare_us, &bare);
    kvb_stats_take(echo_us, &echo);
    (void)snprintf(note, sizeof(note),
        "kernels %.0f us, echo %.0f us; processor time %.0f us, of the echo's %.0f us", bare.median,
        echo.median, busy_s * per_us, echo_busy_s * per_us);
    kvb_report_row(server->report, &(struct kvb_row){.what = "AppendAttend over an empty echo",
                                       .variant = "kvarnd",
                                       .params = "unix, 1k tokens, 8 heads",
                                       .value = over.median,
                                       .low = over.low,
                                       .high = over.high,
                                       .unit = "us",
                                       .goal = {.must = 1.3 * bare.median + SLACK_US,
                                           .stretch = 1.1 * bare.median + SLACK_BEST,
                                           .is_limit = true},
                                       .note = note});
    trip_fini(&trip);
}

/* ---- Many sessions ---- */

struct batch {
    struct kvb_link link;
    struct kvarn_session sessions[SESSIONS];
    struct bare bare;
    uint64_t length_low, length;
};

/* Seconds of one request for all sessions. */
struct batch_times {
    double daemon_s, clock_s, bare_s;
};

static struct batch_times batch_sample(struct kvb_server *server, struct batch *batch)
{
    uint32_t count = batch->bare.sessions;
    struct kvarn_reply reply;
    struct kvarn_call *call =
        attend_call(server, &batch->bare, batch->sessions, count, batch->length);
    double busy_s = kvb_process_seconds(batch->link.peer), began_s = kvb_clock();

    kvb_link_exchange(&batch->link, call, &reply);
    struct batch_times times = {.clock_s = kvb_clock() - began_s,
        .daemon_s = kvb_process_seconds(batch->link.peer) - busy_s};
    attend_check(&reply, count);
    batch->length++;
    double bare_s = kvb_process_seconds(getpid());
    bare_run(&batch->bare, (uint32_t)(batch->length - batch->length_low));
    times.bare_s = kvb_process_seconds(getpid()) - bare_s;
    return times;
}

static void batch_init(struct batch *batch, struct kvb_server *server)
{
    const struct kvb_server_shape shape = {.kv_heads = HEADS, .sink_tokens = GROUP};
    const uint32_t sessions = server->report->is_quick ? 8 : SESSIONS;
    const uint32_t tiles = server->report->is_quick ? 15 : TILES_MAX;

    bare_init(&batch->bare, server, sessions, tiles);
    kvb_server_connect(server, &batch->link, server->daemon.unix_address[0] == '\0');
    for (uint32_t i = 0; i < sessions; i++) {
        kvb_server_open(&batch->link, &shape, &batch->sessions[i]);
        kvb_server_fill(server, &batch->link, &shape, &batch->sessions[i], tiles);
    }
    batch->length_low = batch->length = (uint64_t)(tiles + 1) * GROUP;
}

void kvb_server_batch(struct kvb_server *server)
{
    double ratios[KVB_SAMPLES], by_clock[KVB_SAMPLES], bare_s[KVB_SAMPLES];
    struct kvb_stats ratio, clock, bare;
    struct batch batch = {0};
    char params[48], note[96];
    bool is_busy_known = server->daemon.pid != 0;

    batch_init(&batch, server);
    (void)batch_sample(server, &batch);
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        struct batch_times times = batch_sample(server, &batch);
        by_clock[s] = times.bare_s / times.clock_s;
        ratios[s] = is_busy_known ? times.bare_s / times.daemon_s : by_clock[s];
        bare_s[s] = times.bare_s;
    }
    kvb_stats_take(ratios, &ratio);
    kvb_stats_take(by_clock, &clock);
    kvb_stats_take(bare_s, &bare);
    double tokens = (double)batch.bare.sessions * HEADS * (double)batch.length_low;
    (void)snprintf(params, sizeof(params), "%u sessions, %uk tokens", batch.bare.sessions,
        (unsigned)(batch.length_low >> 10));
    (void)snprintf(note, sizeof(note), "processor time; by the clock %.2f; kernels %.0f Mtoken/s",
        clock.median, tokens / bare.median / 1e6);
    kvb_report_row(server->report, &(struct kvb_row){.what = "AppendAttend batched, rate",
                                       .variant = "kernels alone",
                                       .params = params,
                                       .value = ratio.median,
                                       .low = ratio.low,
                                       .high = ratio.high,
                                       .unit = "x",
                                       .goal = {.must = 0.85, .stretch = 0.95},
                                       .note = note});
    for (uint32_t i = 0; i < batch.bare.sessions; i++) {
        kvb_server_drop(&batch.link, &batch.sessions[i]);
    }
    kvb_link_close(&batch.link);
    bare_fini(&batch.bare);
}

/*
 * Requests that name a session: from their bytes to the queued reply, in the loop's processor time,
 * while 1k, 10k and 100k sessions are there.
 *
 * In process, on a service over the fake io; the client's packing is counted as well, and is the
 * same for each row. Names and handles are drawn all over, so that what is looked up is not in a
 * cache when there are many.
 */
#include "tests/bench/bench_lookup.h"

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/session/session_table.h"
#include "tests/support/wire_peer.h"

#define SAMPLES        2001
#define SESSIONS_MAX   100000
#define HANDLES_MAX    60000 /* of a connection there are 65,536 */
#define REQUEST_US_MAX 20.0
#define NS_PER_US      1000.0
#define NAME_BYTES_MAX 32

static const struct kvd_layer_group groups[] = {
    {.layers = 32, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_shape_desc shape_desc = {.model = "bench",
    .group = 128,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 128,
    .layer_groups = groups,
    .layer_group_count = 1};

struct lookup {
    struct kvt_host host;
    struct kvt_peer peer;
    const struct kvd_shape *shape;
    uint32_t made;
    uint32_t handle_count;
    uint64_t handles[HANDLES_MAX];
};

static uint64_t cpu_ns(void)
{
    struct timespec now;

    KVARN_ASSERT(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int u64_compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

/* Neighbours in the order of names are far from each other in memory. */
static void name_of(char name[NAME_BYTES_MAX], uint32_t i)
{
    (void)snprintf(name, NAME_BYTES_MAX, "session/%08" PRIx32, i * UINT32_C(2654435761));
}

static void session_add(struct lookup *lookup)
{
    struct kvd_session_options options = {.encoder = KVARN_ENCODER_DEFAULT};
    struct kvd_session *session = NULL;
    char name[NAME_BYTES_MAX];

    name_of(name, lookup->made++);
    int err = kvd_session_create(&lookup->host.service, lookup->shape, name, &options, &session);
    KVARN_ASSERT(err == 0);
    kvd_session_table_insert(&lookup->host.service.sessions, session);
    kvd_session_unref(session);
}

/* Send, and take the answer, which is there at once. Returns the time until it was queued. */
static uint64_t timed_call(
    struct lookup *lookup, unsigned type, const ProtobufCMessage *message, struct kvt_answer *ret)
{
    uint64_t start_ns = cpu_ns();
    uint64_t id = kvt_peer_send(&lookup->peer, type, message, NULL, 0);
    uint64_t took_ns = cpu_ns() - start_ns;

    KVARN_ASSERT(id != 0);
    bool has_answer = kvt_peer_take(&lookup->peer, ret);
    if (!has_answer) { /* its output waits for a turn */
        kvt_host_settle(&lookup->host);
        has_answer = kvt_peer_take(&lookup->peer, ret);
    }
    KVARN_ASSERT(has_answer && ret->err == 0);
    return took_ns;
}

/* OpenSession of a session that is there. */
static uint64_t open_existing(struct lookup *lookup, uint32_t i, uint64_t *ret_handle)
{
    Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;
    struct kvt_answer answer;
    char name[NAME_BYTES_MAX];

    name_of(name, i);
    message.name = name;
    message.has_mode = 1;
    message.mode = KVARND__OPEN_MODE__EXISTING;
    uint64_t took_ns = timed_call(lookup, KVARN_FRAME_OPEN_SESSION, &message.base, &answer);
    *ret_handle = ((const Kvarnd__OpenSessionReply *)answer.message)->handle;
    kvt_answer_fini(&answer);
    return took_ns;
}

static void handle_close(struct lookup *lookup, uint64_t handle)
{
    Kvarnd__CloseSession message = KVARND__CLOSE_SESSION__INIT;
    struct kvt_answer answer;

    message.handle = handle;
    (void)timed_call(lookup, KVARN_FRAME_CLOSE_SESSION, &message.base, &answer);
    kvt_answer_fini(&answer);
}

static uint64_t touch_by_handle(struct lookup *lookup, uint64_t handle)
{
    Kvarnd__Touch message = KVARND__TOUCH__INIT;
    struct kvt_answer answer;

    message.has_handle = 1;
    message.handle = handle;
    uint64_t took_ns = timed_call(lookup, KVARN_FRAME_TOUCH, &message.base, &answer);
    kvt_answer_fini(&answer);
    return took_ns;
}

static void row_add(
    struct kvb_report *report, const char *what, const char *params, uint64_t *samples_ns)
{
    struct kvb_row row = {.what = what,
        .variant = "a request",
        .params = params,
        .unit = "us",
        .goal = {.must = REQUEST_US_MAX, .is_limit = true}};

    const size_t median = SAMPLES / 2, quarter = SAMPLES / 4;

    qsort(samples_ns, SAMPLES, sizeof(samples_ns[0]), u64_compare);
    row.value = (double)samples_ns[median] / NS_PER_US;
    row.low = (double)samples_ns[quarter] / NS_PER_US;
    row.high = (double)samples_ns[median + quarter] / NS_PER_US;
    kvb_report_row(report, &row);
}

static void rows_add(struct kvb_report *report, struct lookup *lookup, const char *params)
{
    static uint64_t opens_ns[SAMPLES], touches_ns[SAMPLES];

    for (uint32_t n = 0; n < SAMPLES; n++) {
        uint64_t handle = 0;
        opens_ns[n] = open_existing(lookup, n * UINT32_C(7919) % lookup->made, &handle);
        handle_close(lookup, handle);
        handle = lookup->handles[n * UINT32_C(7919) % lookup->handle_count];
        touches_ns[n] = touch_by_handle(lookup, handle);
    }
    row_add(report, "open by name", params, opens_ns);
    row_add(report, "touch by handle", params, touches_ns);
}

void kvb_lookup_rows(struct kvb_report *report)
{
    static const uint32_t counts[] = {1000, 10000, SESSIONS_MAX};
    static const char *const params[] = {"1k sessions", "10k sessions", "100k sessions"};
    static struct lookup lookup;
    char why[200] = "";

    kvt_host_init(&lookup.host, &(struct kvt_host_options){.memory_limit = (uint64_t)16 << 30,
                                    .sessions_max = SESSIONS_MAX + 1});
    int err = kvd_shape_register(&lookup.host.service.shapes, KVD_TENANT_DEFAULT, &shape_desc,
        &lookup.shape, why, sizeof(why));
    KVARN_ASSERT(err == 0);
    kvt_peer_open(&lookup.peer, &lookup.host);
    kvt_peer_hello(&lookup.peer);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        while (lookup.made < counts[i]) {
            session_add(&lookup);
            if (lookup.handle_count < HANDLES_MAX) {
                uint64_t *handle = &lookup.handles[lookup.handle_count++];
                (void)open_existing(&lookup, lookup.made - 1, handle);
            }
        }
        rows_add(report, &lookup, params[i]);
    }
    kvt_peer_close(&lookup.peer);
    kvt_host_fini(&lookup.host);
}

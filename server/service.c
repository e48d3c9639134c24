/*
 * Service: builds and frees what handlers work with; its tick; its gauges.
 *
 * Owner: daemon. Thread: loop only.
 */
#include "server/service.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "lib/base/xxh3.h"
#include "server/conn/conn.h"

#define NS_PER_MS 1000000

/* Deadlines of requests are kept to within this, at a cost of 100 wake-ups a second under load. */
#define TICK_BUSY_MS 10
/* Deadlines of connections are seconds long. */
#define TICK_OPEN_MS 250

/* Resident set of the process, measured by the kernel; 0 when it cannot be read. */
static uint64_t resident_bytes(void)
{
    char text[64] = "";
    unsigned long pages_resident = 0;
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return 0;
    }
    ssize_t bytes = read(fd, text, sizeof(text) - 1);
    (void)close(fd);
    const char *second = bytes > 0 ? strchr(text, ' ') : NULL;
    if (second != NULL) {
        pages_resident = strtoul(second, NULL, 10);
    }
    return (uint64_t)pages_resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void tick_cb(void *ctx)
{
    struct kvd_service *service = ctx;
    uint64_t now_ns = service->io->ops->now_ns(service->io);
    uint64_t *lag_us_max = &service->metrics.values[KVD_METRIC_loop_lag_us_max];

    /* How late the tick is, is how long something else has held the loop. */
    uint64_t lag_us = now_ns > service->tick_due_ns ? (now_ns - service->tick_due_ns) / 1000 : 0;
    if (lag_us > *lag_us_max) {
        *lag_us_max = lag_us;
    }
    service->tick_due_ns = 0;
    kvd_conn_tick_all(service, now_ns);
    kvd_compactor_tick(&service->compactor, now_ns);
    kvd_prefix_index_tick(&service->prefixes);
    kvd_session_work_tick(&service->sessions, now_ns);
    if (service->is_measuring && kvd_evictor_wants_measure(service, now_ns)) {
        kvd_evictor_measured(service, resident_bytes(), now_ns);
    }
    kvd_service_tick_arm(service);
}

void kvd_service_tick_arm(struct kvd_service *service)
{
    const struct kvd_io_ops *ops = service->io->ops;
    uint64_t ms = service->request_count > 0 ? TICK_BUSY_MS : TICK_OPEN_MS;

    if (service->conn_count == 0) {
        ops->timer_stop(service->tick);
        service->tick_due_ns = 0;
        return;
    }
    uint64_t due_ns = ops->now_ns(service->io) + ms * NS_PER_MS;
    if (service->tick_due_ns == 0 || due_ns < service->tick_due_ns) {
        service->tick_due_ns = due_ns;
        ops->timer_start(service->tick, ms, 0);
    }
}

static uint64_t env_number(const char *name)
{
    const char *text = getenv(name);

    return text == NULL ? 0 : strtoull(text, NULL, 10);
}

/* Have XXH3 choose its vectors while there is one thread (lib/base/xxh3.h). */
static void hash_settle(void)
{
    static const uint8_t bytes[1024];
    volatile uint64_t hash = XXH3_64bits(bytes, sizeof(bytes)); /* else it is left out as pure */

    (void)hash;
}

static int workers_init(struct kvd_service *service)
{
    struct kvd_workers_options options = {.thread_count = (unsigned)service->config->workers,
        .jitter_us_max = (unsigned)env_number("KVARND_TEST_JITTER_US"),
        .jitter_seed = env_number("KVARND_TEST_JITTER_SEED")};

    hash_settle();
    int err = kvd_workers_create(service->io, &options, &service->workers);
    service->query_metrics.workers = service->workers;
    return err;
}

/* Query metrics may not crowd out what they are for. */
static uint64_t query_metric_bytes_max(const struct kvd_config *config)
{
    uint64_t quarter = config->memory_limit / 4;

    return config->metric_memory < quarter ? config->metric_memory : quarter;
}

/* The page store has empty chunks to give back. */
static void chunk_dying_cb(void *ctx)
{
    struct kvd_service *service = ctx;

    kvd_session_table_reap(&service->sessions);
}

int kvd_service_init(
    struct kvd_service *service, const struct kvd_config *config, struct kvd_io *io)
{
    memset(service, 0, sizeof(*service));
    service->config = config;
    service->io = io;
    service->start_ns = io->ops->now_ns(io);
    LIST_INIT(&service->conns);
    kvd_budget_init(&service->budget, config->memory_limit);
    kvd_shape_registry_init(&service->shapes);
    int err = kvd_chunk_source_default_create(&service->chunk_source);
    if (err != 0) {
        goto fail;
    }
    kvd_page_store_init(&service->pages, &service->budget, service->chunk_source);
    kvd_metric_store_init(&service->query_metrics, &service->budget, &service->metrics,
        query_metric_bytes_max(config));
    kvd_compactor_init(&service->compactor, service);
    err = kvd_session_table_init(&service->sessions, service);
    service->pages.dying_cb = chunk_dying_cb;
    service->pages.dying_ctx = service;
    kvd_large_init(&service->large, &service->budget, &service->sessions.slices);
    if (err == 0) {
        err = kvd_prefix_index_init(&service->prefixes, service);
    }
    if (err == 0) {
        err = kvd_lifetimes_init(&service->lifetimes, service);
    }
    if (err == 0) {
        err = kvd_evictor_init(&service->evictor, service);
    }
    if (err == 0) {
        err = io->ops->random(io, &service->server_id, sizeof(service->server_id));
    }
    if (err == 0) {
        err = workers_init(service);
    }
    kvd_prefetches_init(&service->prefetches, service);
    if (err == 0) {
        err = kvd_cold_sessions_init(&service->cold, service);
    }
    if (err != 0) {
        goto fail;
    }
    service->read_buffer = malloc(KVD_READ_BUFFER_BYTES);
    service->tick = io->ops->timer_create(io, tick_cb, service);
    if (service->read_buffer == NULL || service->tick == NULL) {
        err = KVARN_ENOMEM;
        goto fail;
    }
    return 0;
fail:
    kvd_service_fini(service);
    return err;
}

void kvd_service_fini(struct kvd_service *service)
{
    if (service->io == NULL) {
        return;
    }
    KVARN_ASSERT(service->conn_count == 0 && service->request_count == 0);
    service->io->ops->timer_destroy(service->tick);
    kvd_prefetches_fini(&service->prefetches);
    kvd_cold_sessions_fini(&service->cold);
    kvd_workers_destroy(service->workers);
    kvd_prefix_index_fini(&service->prefixes);
    kvd_session_table_fini(&service->sessions);
    service->pages.dying_cb = NULL; /* nobody takes steps any more */
    kvd_lifetimes_fini(&service->lifetimes);
    kvd_evictor_fini(&service->evictor);
    kvd_metric_store_fini(&service->query_metrics);
    if (service->chunk_source != NULL) {
        kvd_page_store_fini(&service->pages);
        service->chunk_source->destroy(service->chunk_source);
    }
    kvd_shape_registry_fini(&service->shapes);
    free(service->read_buffer);
    memset(service, 0, sizeof(*service));
}

bool kvd_service_is_idle(const struct kvd_service *service)
{
    return service->request_count == 0 && service->suspect_count == 0 && service->cold.loads == 0 &&
           kvd_workers_backlog(service->workers) == 0;
}

static void page_gauges_set(struct kvd_service *service)
{
    static const enum kvd_metric counts[KVD_PAGE_CLASS_COUNT] = {
        [KVD_PAGE_TILES] = KVD_METRIC_pages_tiles,
        [KVD_PAGE_SINK] = KVD_METRIC_pages_sink,
        [KVD_PAGE_TAIL] = KVD_METRIC_pages_tail};
    static const enum kvd_metric bytes[KVD_PAGE_CLASS_COUNT] = {
        [KVD_PAGE_TILES] = KVD_METRIC_pages_tiles_bytes,
        [KVD_PAGE_SINK] = KVD_METRIC_pages_sink_bytes,
        [KVD_PAGE_TAIL] = KVD_METRIC_pages_tail_bytes};

    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        const struct kvd_page_class_stats *stats = &service->pages.classes[i];
        kvd_metrics_set(&service->metrics, counts[i], stats->pages);
        kvd_metrics_set(&service->metrics, bytes[i], stats->bytes);
    }
}

static void cold_gauges_set(struct kvd_service *service)
{
    struct kvd_metrics *metrics = &service->metrics;
    struct kvd_cold_stats stats = {0};

    if (service->cold.tier != NULL) {
        service->cold.tier->ops->stats(service->cold.tier, &stats);
    }
    kvd_metrics_set(metrics, KVD_METRIC_cold_limit_bytes, stats.limit_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_used_bytes, stats.used_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_live_bytes, stats.live_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_queued_bytes, stats.queued_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_written_bytes, stats.written_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_read_bytes, stats.got_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_cold_corrupt, stats.corrupt);
    kvd_metrics_set(metrics, KVD_METRIC_cold_quarantined, stats.quarantined);
    kvd_metrics_set(metrics, KVD_METRIC_cold_resting, stats.is_resting ? 1 : 0);
    kvd_metrics_set(metrics, KVD_METRIC_prefetch_jobs_running, service->prefetches.running_count);
}

void kvd_service_gauges_set(struct kvd_service *service)
{
    struct kvd_metrics *metrics = &service->metrics;
    const struct kvd_budget *budget = &service->budget;
    const uint64_t *kind_bytes = budget->kind_bytes;

    page_gauges_set(service);
    cold_gauges_set(service);
    kvd_metrics_set(metrics, KVD_METRIC_connections_open, service->conn_count);
    kvd_metrics_set(metrics, KVD_METRIC_requests_in_flight, service->request_count);
    kvd_metrics_set(metrics, KVD_METRIC_sessions_open, service->sessions.count);
    kvd_metrics_set(metrics, KVD_METRIC_shapes, service->shapes.count);
    kvd_metrics_set(metrics, KVD_METRIC_prefix_blocks, service->prefixes.count);
    kvd_metrics_set(metrics, KVD_METRIC_memory_limit_bytes, budget->limit_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_memory_used_bytes, budget->used_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_memory_chunk_bytes, kind_bytes[KVD_BUDGET_CHUNKS]);
    kvd_metrics_set(metrics, KVD_METRIC_memory_staging_bytes, kind_bytes[KVD_BUDGET_STAGING]);
    kvd_metrics_set(metrics, KVD_METRIC_memory_reply_bytes, kind_bytes[KVD_BUDGET_REPLIES]);
    kvd_metrics_set(metrics, KVD_METRIC_memory_session_bytes, kind_bytes[KVD_BUDGET_SESSIONS]);
    kvd_metrics_set(metrics, KVD_METRIC_memory_query_metric_bytes, kind_bytes[KVD_BUDGET_QUERIES]);
    kvd_metrics_set(metrics, KVD_METRIC_memory_policy_bytes, kind_bytes[KVD_BUDGET_POLICIES]);
    kvd_metrics_set(metrics, KVD_METRIC_sessions_pinned, service->lifetimes.pinned_count);
    kvd_metrics_set(metrics, KVD_METRIC_pinned_bytes, service->lifetimes.pinned_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_resident_bytes, resident_bytes());
    kvd_metrics_set(metrics, KVD_METRIC_evict_lowered_bytes, service->evictor.lowered_bytes);
    kvd_metrics_set(metrics, KVD_METRIC_workers_backlog, kvd_workers_backlog(service->workers));
}

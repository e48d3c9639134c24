/*
 * Service: what handlers of requests work with. The daemon adds listeners and signals around it;
 * tests and the dispatch fuzzer run a service on a fake io.
 *
 * Owner: daemon. Thread: loop only.
 */
#ifndef KVD_SERVICE_H
#define KVD_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "server/append/metric_store.h"
#include "server/base/budget.h"
#include "server/base/log_gate.h"
#include "server/base/metrics.h"
#include "server/cold/cold_sessions.h"
#include "server/cold/prefetch.h"
#include "server/config/config.h"
#include "server/evict/evict.h"
#include "server/io/io.h"
#include "server/io/large.h"
#include "server/io/workers.h"
#include "server/prefix/prefix_index.h"
#include "server/session/lifetime.h"
#include "server/session/session_table.h"
#include "server/session/shape.h"
#include "server/store/chunk_source.h"
#include "server/store/compact.h"
#include "server/store/page_store.h"

/* The tenant of every principal until authentication comes; part of every identity from the start.
 */
#define KVD_TENANT_DEFAULT      1
#define KVD_TENANT_DEFAULT_NAME "default"

/* What one read takes at most while frames are small. */
#define KVD_READ_BUFFER_BYTES (64 * 1024)

LIST_HEAD(kvd_conn_list, kvd_conn);

struct kvd_service {
    const struct kvd_config *config; /* borrowed */
    struct kvd_io *io;               /* borrowed */
    struct kvd_budget budget;
    struct kvd_chunk_source *chunk_source; /* owned */
    struct kvd_page_store pages;
    struct kvd_workers *workers; /* owned */
    struct kvd_shape_registry shapes;
    struct kvd_metric_store query_metrics;
    struct kvd_session_table sessions;
    struct kvd_large large;
    struct kvd_prefix_index prefixes;
    struct kvd_lifetimes lifetimes;
    struct kvd_evictor evictor;
    struct kvd_compactor compactor;
    struct kvd_cold_sessions cold;
    struct kvd_prefetches prefetches;
    struct kvd_metrics metrics;
    struct kvd_log_gate log_gates[KVD_LOG_GATE_COUNT];
    struct kvd_conn_list conns; /* each owns itself; listed from accept to close */
    struct kvd_timer *tick;     /* owned: deadlines of requests and connections */
    uint64_t tick_due_ns;       /* when it fires; 0: not armed */
    uint8_t *read_buffer;       /* owned: KVD_READ_BUFFER_BYTES, used within one read callback */
    uint64_t server_id;         /* random, new at each start */
    uint64_t start_ns;
    uint32_t conn_count;
    uint32_t request_count; /* received and not answered */
    uint32_t verify_count;  /* Verify calls at work */
    uint32_t suspect_count; /* blocks being verified because a reader found them wrong */
    bool is_measuring;      /* of the daemon: what the process holds is held to the limit */
    bool is_draining;       /* new requests are answered SHUTTING_DOWN */
};

/*
 * Build everything but listeners on an io. Returns 0 or KVARN_E...; `service` is zeroed first.
 * Tests may set KVARND_TEST_JITTER_US and KVARND_TEST_JITTER_SEED in the environment: completions
 * of jobs are then delayed at random (server/io/workers.h).
 */
int kvd_service_init(struct kvd_service *service, const struct kvd_config *config,
    struct kvd_io *io) KVARN_MUST_CHECK;

/*
 * Free all. No connection may be open and no job in flight; sessions are dropped whole here.
 * Accepts a half-built service.
 */
void kvd_service_fini(struct kvd_service *service);

/*
 * See that the tick comes soon enough for what is in flight now: often while requests may run into
 * a deadline, seldom while connections are open, never otherwise.
 */
void kvd_service_tick_arm(struct kvd_service *service);

/* Set every gauge of metrics.def from its subsystem. For Stats. */
void kvd_service_gauges_set(struct kvd_service *service);

/* True when nothing is in flight: no request, repair, job or load. What a drain waits for. */
bool kvd_service_is_idle(const struct kvd_service *service);

#endif

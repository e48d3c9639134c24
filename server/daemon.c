/*
 * Daemon: listeners and signals around a service; its start and its end.
 *
 * Owner: main. Thread: loop only.
 *
 * Stopping: the first signal closes the listeners and answers new requests with SHUTTING_DOWN; when
 * nothing is in flight, connections close once their replies are sent; at drain_timeout they close
 * as they are; when none is left sessions go to the cold tier, if there is one, for at most
 * flush_timeout more, and the loop stops. A second signal ends the process at once.
 */
#include "server/daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/base/sd_notify.h"
#include "server/conn/conn.h"
#include "server/service.h"

/* How often a drain looks whether it is over. */
#define DRAIN_POLL_MS 5

#define NS_PER_MS 1000000

/* Descriptors besides connections: listeners, loop, log, files of Stats, a reserve. */
#define OTHER_FDS 64

enum drain_phase {
    DRAIN_NONE,
    DRAIN_REQUESTS, /* what is in flight finishes */
    DRAIN_FLUSH,    /* replies leave, connections close */
    DRAIN_JOBS,     /* connections are closed, jobs come back */
    DRAIN_COLD,     /* sessions are written to the cold tier */
};

struct kvd_daemon {
    const struct kvd_config *config; /* borrowed */
    struct kvd_io *io;               /* owned */
    struct kvd_service service;
    bool has_service;
    struct kvd_listener *unix_listener; /* owned */
    struct kvd_listener *tcp_listener;  /* owned */
    struct kvd_timer *drain_timer;      /* owned */
    enum drain_phase phase;
    uint64_t drain_end_ns; /* when connections close whatever they still wait for */
    uint64_t flush_end_ns; /* when the cold tier is left as it is */
};

static uint64_t now_ns(const struct kvd_daemon *daemon)
{
    return daemon->io->ops->now_ns(daemon->io);
}

static void listeners_close(struct kvd_daemon *daemon)
{
    if (daemon->unix_listener != NULL) {
        daemon->io->ops->listener_destroy(daemon->unix_listener);
        daemon->unix_listener = NULL;
    }
    if (daemon->tcp_listener != NULL) {
        daemon->io->ops->listener_destroy(daemon->tcp_listener);
        daemon->tcp_listener = NULL;
    }
}

static void drained_cb(void *ctx)
{
    struct kvd_daemon *daemon = ctx;

    daemon->io->ops->stop(daemon->io);
}

/*
 * A disk that is slow or hangs keeps us no longer: what is not durable yet is lost, as by kill -9,
 * and the next start finds what is.
 */
static void flush_give_up(struct kvd_daemon *daemon)
{
    struct kvd_cold *tier = daemon->service.cold.tier;
    struct kvd_cold_stats stats;

    tier->ops->stats(tier, &stats);
    kvd_log(KVD_LOG_ERROR, "flush_timeout", "cold_dir=%s queued_bytes=%" PRIu64,
        daemon->config->cold_dir, stats.queued_bytes);
    _exit(1); /* file operations may be stuck: nothing that they use can be freed */
}

static void drain_timer_cb(void *ctx)
{
    struct kvd_daemon *daemon = ctx;
    struct kvd_service *service = &daemon->service;
    bool is_late = now_ns(daemon) >= daemon->drain_end_ns;

    if (daemon->phase == DRAIN_REQUESTS && (is_late || kvd_service_is_idle(service))) {
        if (service->request_count > 0) {
            kvd_log(KVD_LOG_WARN, "drain_timeout", "unanswered=%" PRIu32, service->request_count);
        }
        kvd_conn_close_all(service, !is_late);
        daemon->phase = DRAIN_FLUSH; /* until the same end: who stops us has no more patience */
        return;
    }
    if (daemon->phase == DRAIN_FLUSH && (is_late || service->conn_count == 0)) {
        kvd_conn_close_all(service, false);
        daemon->phase = DRAIN_JOBS;
        return;
    }
    /* Jobs that nobody waits for any more are short; they own memory that must be whole. */
    if (daemon->phase == DRAIN_JOBS && service->conn_count == 0 && kvd_service_is_idle(service)) {
        daemon->phase = DRAIN_COLD;
        if (service->cold.tier == NULL) {
            drained_cb(daemon);
        } else {
            kvd_cold_flush(&service->cold, drained_cb, daemon);
        }
    }
    if (daemon->phase >= DRAIN_JOBS && service->cold.tier != NULL &&
        now_ns(daemon) >= daemon->flush_end_ns) {
        flush_give_up(daemon);
    }
}

static void signal_cb(void *ctx, int signum)
{
    struct kvd_daemon *daemon = ctx;

    if (daemon->phase != DRAIN_NONE) {
        kvd_log(KVD_LOG_WARN, "stopped_at_once", "signal=%d unanswered=%" PRIu32, signum,
            daemon->service.request_count);
        _exit(0); /* memory holds nothing that a restart could use; the socket's file is gone */
    }
    kvd_log(KVD_LOG_INFO, "draining", "signal=%d requests=%" PRIu32 " connections=%" PRIu32, signum,
        daemon->service.request_count, daemon->service.conn_count);
    kvd_sd_notify_stopping("finishing requests in flight");
    listeners_close(daemon);
    daemon->service.is_draining = true;
    daemon->phase = DRAIN_REQUESTS;
    daemon->drain_end_ns = now_ns(daemon) + daemon->config->drain_timeout * NS_PER_MS;
    daemon->flush_end_ns = daemon->drain_end_ns + daemon->config->flush_timeout * NS_PER_MS;
    daemon->io->ops->timer_start(daemon->drain_timer, DRAIN_POLL_MS, DRAIN_POLL_MS);
}

/* As many descriptors as the connections need, or as many as we may have. */
static void descriptors_raise(const struct kvd_config *config)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)config->connections_max + OTHER_FDS;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) {
        return;
    }
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < wanted) {
        kvd_log(KVD_LOG_WARN, "few_descriptors",
            "allowed=%llu wanted=%llu connections_max=%" PRIu64, (unsigned long long)limit.rlim_cur,
            (unsigned long long)wanted, config->connections_max);
    }
}

/*
 * Other users are let in by SO_PEERCRED (SEMANTICS.md 25); a file that only its owner may open
 * would keep them from getting that far. Until here, and without --allow-uids, it is 0600.
 */
static int socket_share(const struct kvd_config *config)
{
    if (config->allow_uids[0] == '\0' || chmod(config->listen_unix, 0666) == 0) {
        return 0;
    }
    kvd_log(KVD_LOG_ERROR, "socket_not_shared", "path=%s error=%s", config->listen_unix,
        strerror(errno));
    return KVARN_EIO;
}

static int listeners_open(struct kvd_daemon *daemon)
{
    const struct kvd_config *config = daemon->config;
    const struct kvd_io_ops *ops = daemon->io->ops;
    int err = 0;

    if (config->listen_unix[0] != '\0') {
        err = ops->listen_unix(daemon->io, config->listen_unix, kvd_conn_accept, &daemon->service,
            &daemon->unix_listener);
        err = err == 0 ? socket_share(config) : err;
    }
    if (err == 0 && config->listen_tcp[0] != '\0') {
        err = ops->listen_tcp(daemon->io, config->listen_tcp, kvd_conn_accept, &daemon->service,
            &daemon->tcp_listener);
    }
    return err;
}

static int daemon_start(struct kvd_daemon *daemon)
{
    descriptors_raise(daemon->config);
    daemon->io = kvd_io_uv_create();
    if (daemon->io == NULL) {
        return KVARN_ENOMEM;
    }
    int err = kvd_service_init(&daemon->service, daemon->config, daemon->io);
    if (err != 0) {
        return err;
    }
    daemon->has_service = true;
    daemon->service.is_measuring = true;
    daemon->drain_timer = daemon->io->ops->timer_create(daemon->io, drain_timer_cb, daemon);
    if (daemon->drain_timer == NULL) {
        return KVARN_ENOMEM;
    }
    err = daemon->io->ops->signal_start(daemon->io, SIGTERM, signal_cb, daemon);
    if (err == 0) {
        err = daemon->io->ops->signal_start(daemon->io, SIGINT, signal_cb, daemon);
    }
    return err != 0 ? err : listeners_open(daemon);
}

static const char *address_of(const struct kvd_daemon *daemon, const struct kvd_listener *listener)
{
    return listener == NULL ? "" : daemon->io->ops->listener_address(listener);
}

/* The one line that scripts and the service manager wait for. */
static void ready_say(const struct kvd_daemon *daemon)
{
    const char *unix_address = address_of(daemon, daemon->unix_listener);
    const char *tcp_address = address_of(daemon, daemon->tcp_listener);
    const char *gap = unix_address[0] != '\0' && tcp_address[0] != '\0' ? " " : "";
    char status[320];

    (void)printf("kvarnd ready %s%s%s\n", unix_address, gap, tcp_address);
    (void)fflush(stdout);
    (void)snprintf(status, sizeof(status), "serving on %s%s%s", unix_address, gap, tcp_address);
    kvd_sd_notify_ready(status);
    kvd_log(KVD_LOG_INFO, "ready", "unix=%s tcp=%s memory_limit=%" PRIu64 " workers=%" PRIu64,
        unix_address, tcp_address, daemon->config->memory_limit, daemon->config->workers);
}

static void daemon_fini(struct kvd_daemon *daemon)
{
    if (daemon->io == NULL) {
        return;
    }
    listeners_close(daemon);
    daemon->io->ops->timer_destroy(daemon->drain_timer);
    if (daemon->has_service) {
        kvd_service_fini(&daemon->service);
    }
    daemon->io->ops->destroy(daemon->io);
}

int kvd_daemon_run(const struct kvd_config *config)
{
    struct kvd_daemon daemon = {.config = config};
    int err = daemon_start(&daemon);

    if (err == 0) {
        ready_say(&daemon);
        err = daemon.io->ops->run(daemon.io);
        kvd_log(KVD_LOG_INFO, "stopped", "error=%s", kvarn_err_label(err));
    } else {
        kvd_log(KVD_LOG_ERROR, "start_failed", "error=%s", kvarn_err_text(err));
    }
    daemon_fini(&daemon);
    return err == 0 ? 0 : 1;
}

/* kvarnctl ping, sessions, inspect, truncate, fork, drop. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/printable.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

int cmd_ping(struct ctl *ctl)
{
    const struct kvarn_hello_result *server = kvarn_client_server(ctl->client);
    struct kvarn_ping_result result;
    uint64_t begin_us = ctl_now_us();
    int err = kvarn_client_ping(ctl->client, &result);
    uint64_t took_us = ctl_now_us() - begin_us;
    char version[PRINTABLE_MAX];
    char tenant[PRINTABLE_MAX];

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        printf("kvarnd %s answers in %" PRIu64 " us; up %.1f s, tenant %s\n",
            printable_text(server->server_version, version, sizeof version), took_us,
            (double)result.uptime_ms / 1000.0,
            printable_text(server->tenant, tenant, sizeof tenant));
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "server_version", server->server_version);
    json_u64(&ctl->json, "server_id", server->server_id);
    json_text(&ctl->json, "tenant", server->tenant);
    json_u64(&ctl->json, "round_trip_us", took_us);
    json_u64(&ctl->json, "uptime_ms", result.uptime_ms);
    json_u64(&ctl->json, "message_bytes_max", server->message_bytes_max);
    json_u64(&ctl->json, "payload_bytes_max", server->payload_bytes_max);
    json_u64(&ctl->json, "credit_requests", server->credit_requests);
    json_u64(&ctl->json, "credit_bytes", server->credit_bytes);
    json_object_close(&ctl->json);
    return CTL_OK;
}

static void summary_fields(struct json *json, const struct kvarn_session_summary *s)
{
    json_text(json, "name", s->name);
    json_text(json, "model", s->model);
    json_u64(json, "length", s->length);
    json_u64(json, "epoch", s->epoch);
    json_u64(json, "bytes", s->bytes);
    json_u64(json, "handles", s->handles);
    json_u64(json, "idle_ms", s->idle_ms);
    json_u64(json, "ttl_left_ms", s->ttl_left_ms);
    json_u64(json, "priority", s->priority);
    json_u64(json, "pin_left_ms", s->pin_left_ms);
    json_u64(json, "missing_tokens", s->missing_tokens);
    json_u64(json, "away_blocks", s->away_blocks);
    json_u64(json, "restart_tokens", s->restart_tokens);
    json_bool(json, "tail_cold", s->tail_cold);
}

static void summary_print(struct ctl *ctl, const struct kvarn_session_summary *s)
{
    char text[CTL_BYTES_TEXT_MAX];
    char name[PRINTABLE_MAX];
    char model[PRINTABLE_MAX];

    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        summary_fields(&ctl->json, s);
        json_object_close(&ctl->json);
        return;
    }
    printf("%-32s %-24s %10" PRIu64 " %12s %8" PRIu64 " %10" PRIu64 " %8" PRIu32 " %9.1f s\n",
        printable_text(s->name, name, sizeof name), printable_text(s->model, model, sizeof model),
        s->length, ctl_bytes_text(s->bytes, text), s->away_blocks, s->restart_tokens, s->handles,
        (double)s->idle_ms / 1000.0);
}

int cmd_sessions(struct ctl *ctl)
{
    struct kvarn_list_sessions_args args = {.prefix = ctl_text(ctl, "prefix")};
    char after[KVARN_SESSION_NAME_MAX + 1];
    struct kvarn_list_sessions_result page;

    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        json_array_open(&ctl->json, "sessions");
    } else {
        printf("%-32s %-24s %10s %12s %8s %10s %8s %11s\n", "SESSION", "MODEL", "TOKENS", "BYTES",
            "AWAY", "RESTART", "HANDLES", "IDLE");
    }
    do {
        int err = kvarn_client_list_sessions(ctl->client, &args, &page);
        const char *last;

        if (err != 0) {
            return ctl_refused(ctl, err);
        }
        for (size_t i = 0; i < page.session_count; i++) {
            summary_print(ctl, &page.sessions[i]);
        }
        if (page.session_count == 0) {
            break;
        }
        last = page.sessions[page.session_count - 1].name;
        if (strlen(last) >= sizeof after || (args.after != NULL && strcmp(last, after) <= 0)) {
            return ctl_fail(ctl, KVARN_EPROTOCOL, "the server's pages do not ascend");
        }
        memcpy(after, last, strlen(last) + 1);
        args.after = after;
    } while (page.more);
    if (ctl->is_json) {
        json_array_close(&ctl->json);
        json_object_close(&ctl->json);
    }
    return CTL_OK;
}

static uint32_t shape_sink(const struct kvarn_shape *shape)
{
    return shape->sink_tokens == KVARN_SINK_DEFAULT ? shape->group : shape->sink_tokens;
}

static void shape_json(struct json *json, const struct kvarn_shape *shape)
{
    json_object_open(json, "shape");
    json_text(json, "model", shape->model);
    if (shape->revision != NULL && shape->revision[0] != '\0') {
        json_text(json, "revision", shape->revision);
    }
    json_u64(json, "group", shape->group);
    json_u64(json, "k_bits", shape->k_bits);
    json_u64(json, "v_bits", shape->v_bits);
    json_u64(json, "sink_tokens", shape_sink(shape));
    json_array_open(json, "layer_groups");
    for (size_t i = 0; i < shape->layer_group_count; i++) {
        const struct kvarn_layer_group *g = &shape->layer_groups[i];

        json_object_open(json, NULL);
        json_u64(json, "layers", g->layers);
        json_u64(json, "kv_heads", g->kv_heads);
        json_u64(json, "k_dim", g->k_dim);
        json_u64(json, "v_dim", g->v_dim);
        json_u64(json, "window", g->window);
        json_object_close(json);
    }
    json_array_close(json);
    json_object_close(json);
}

static void inspect_json(struct json *json, const struct kvarn_inspect_session_result *r)
{
    json_object_open(json, NULL);
    summary_fields(json, &r->summary);
    shape_json(json, &r->shape);
    json_hex(json, "fingerprint", r->fingerprint, sizeof r->fingerprint);
    json_u64_array(json, "layer_lengths", r->layer_lengths, r->layer_count);
    json_u64_array(json, "layer_sealed", r->layer_sealed, r->layer_count);
    json_u64(json, "tile_pages", r->tile_pages);
    json_u64(json, "tile_bytes", r->tile_bytes);
    json_u64(json, "sink_pages", r->sink_pages);
    json_u64(json, "sink_bytes", r->sink_bytes);
    json_u64(json, "tail_pages", r->tail_pages);
    json_u64(json, "tail_bytes", r->tail_bytes);
    json_u64(json, "reserved_bytes", r->reserved_bytes);
    json_u64(json, "pages_reference", r->pages_reference);
    json_u64(json, "pages_refined", r->pages_refined);
    json_u64(json, "pages_aware", r->pages_aware);
    json_u64(json, "metric_version", r->metric_version);
    json_text(json, "encoder", ctl_encoder_name(r->encoder));
    json_u64(json, "seal_lag", r->seal_lag);
    json_u64(json, "ttl_ms", r->ttl_ms);
    json_u64(json, "pinned_bytes", r->pinned_bytes);
    json_u64(json, "missing_first", r->missing_first);
    json_u64(json, "missing_last", r->missing_last);
    json_u64(json, "shared_pages", r->shared_pages);
    json_u64(json, "shared_bytes", r->shared_bytes);
    json_u64(json, "prefix_tokens", r->prefix_tokens);
    json_u64(json, "adopted_blocks", r->adopted_blocks);
    json_bool(json, "share_prefix", r->share_prefix);
    json_u64(json, "cold_blocks", r->cold_blocks);
    json_u64(json, "cold_bytes", r->cold_bytes);
    json_u64(json, "loading_blocks", r->loading_blocks);
    json_u64(json, "loading_bytes", r->loading_bytes);
    json_u64(json, "missing_blocks", r->missing_blocks);
    json_u64(json, "missing_bytes", r->missing_bytes);
    json_u64(json, "stored_blocks", r->stored_blocks);
    json_u64(json, "stored_bytes", r->stored_bytes);
    json_object_close(json);
}

static void class_print(const char *name, uint64_t pages, uint64_t bytes)
{
    char text[CTL_BYTES_TEXT_MAX];

    printf("%-12s %8" PRIu64 " pages %14s\n", name, pages, ctl_bytes_text(bytes, text));
}

/* What is not in memory, and what of it is on disk. */
static void cold_print(const struct kvarn_inspect_session_result *r)
{
    char text[CTL_BYTES_TEXT_MAX];

    printf("on disk      %8" PRIu64 " blocks %13s; a restart after a crash now finds %" PRIu64
           " tokens\n",
        r->stored_blocks, ctl_bytes_text(r->stored_bytes, text), r->summary.restart_tokens);
    printf("cold         %8" PRIu64 " blocks %13s%s\n", r->cold_blocks,
        ctl_bytes_text(r->cold_bytes, text), r->summary.tail_cold ? ", the tail too" : "");
    printf("loading      %8" PRIu64 " blocks %13s\n", r->loading_blocks,
        ctl_bytes_text(r->loading_bytes, text));
    printf("missing      %8" PRIu64 " blocks %13s\n", r->missing_blocks,
        ctl_bytes_text(r->missing_bytes, text));
}

static void inspect_print(const struct kvarn_inspect_session_result *r)
{
    char text[CTL_BYTES_TEXT_MAX];
    char name[PRINTABLE_MAX];
    char model[PRINTABLE_MAX];
    char revision[PRINTABLE_MAX];

    printable_text(r->shape.revision, revision, sizeof revision);
    printf("session      %s\nmodel        %s%s%s\nepoch        %" PRIu64 "\nlength       %" PRIu64
           " tokens\n",
        printable_text(r->summary.name, name, sizeof name),
        printable_text(r->shape.model, model, sizeof model), revision[0] != '\0' ? " " : "",
        revision, r->summary.epoch, r->summary.length);
    printf("preset       k%uv%u, group %" PRIu32 ", sink %" PRIu32 " tokens, encoder %s, seal lag "
           "%" PRIu32 " tokens\n",
        r->shape.k_bits, r->shape.v_bits, r->shape.group, shape_sink(&r->shape),
        ctl_encoder_name(r->encoder), r->seal_lag);
    for (size_t i = 0; i < r->shape.layer_group_count; i++) {
        const struct kvarn_layer_group *g = &r->shape.layer_groups[i];

        printf("layers       %" PRIu32 " of %" PRIu32 " KV heads, head_dim %" PRIu32 " / %" PRIu32
               ", window %" PRIu64 "\n",
            g->layers, g->kv_heads, g->k_dim, g->v_dim, g->window);
    }
    class_print("tiles", r->tile_pages, r->tile_bytes);
    class_print("sink", r->sink_pages, r->sink_bytes);
    class_print("tail", r->tail_pages, r->tail_bytes);
    printf("%-12s %14s %14s\n", "reserved", "", ctl_bytes_text(r->reserved_bytes, text));
    printf("sealed by    reference %" PRIu64 ", refined %" PRIu64 ", aware %" PRIu64
           " pages; query metric version %" PRIu32 "\n",
        r->pages_reference, r->pages_refined, r->pages_aware, r->metric_version);
    printf("lifetime     TTL %" PRIu64 " of %" PRIu64 " ms left, priority %" PRIu32 ", %" PRIu64
           " bytes pinned for %" PRIu64 " ms\n",
        r->summary.ttl_left_ms, r->ttl_ms, r->summary.priority, r->pinned_bytes,
        r->summary.pin_left_ms);
    cold_print(r);
    if (r->summary.missing_tokens > 0) {
        printf("evicted      tokens %" PRIu64 " to %" PRIu64 "\n", r->missing_first,
            r->missing_last - 1);
    }
    printf("%-12s %8s %12s\n", "layer", "length", "sealed");
    for (size_t i = 0; i < r->layer_count; i++) {
        printf("%-12zu %8" PRIu64 " %12" PRIu64 "\n", i, r->layer_lengths[i], r->layer_sealed[i]);
    }
}

int cmd_inspect(struct ctl *ctl)
{
    const struct kvarn_inspect_session_args args = {.name = ctl->args.positions[0]};
    struct kvarn_inspect_session_result result;
    int err = kvarn_client_inspect_session(ctl->client, &args, &result);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        inspect_json(&ctl->json, &result);
    } else {
        inspect_print(&result);
    }
    return CTL_OK;
}

int cmd_truncate(struct ctl *ctl)
{
    const struct kvarn_open_session_args open_args = {
        .name = ctl->args.positions[0],
        .mode = KVARN_OPEN_EXISTING,
    };
    struct kvarn_session *session = NULL;
    struct kvarn_truncate_result result;
    int err = kvarn_client_open_session(ctl->client, &open_args, &session, NULL);

    if (err == 0) {
        err = kvarn_client_truncate(ctl->client, session, ctl_number(ctl, "length"), &result);
    }
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        /* Layers that were shorter stay as they are. */
        printf("%s: at most %" PRIu64 " tokens a layer; layer 0 has %" PRIu64 "%s; epoch %" PRIu64
               "\n",
            ctl->args.positions[0], ctl_number(ctl, "length"),
            result.layer_count != 0 ? result.layer_lengths[0] : 0,
            result.lossy_tail ? "; a sealed block was re-opened from its decoded rows" : "",
            result.epoch);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", ctl->args.positions[0]);
    json_u64(&ctl->json, "epoch", result.epoch);
    json_u64_array(&ctl->json, "layer_lengths", result.layer_lengths, result.layer_count);
    json_bool(&ctl->json, "lossy_tail", result.lossy_tail);
    json_object_close(&ctl->json);
    return CTL_OK;
}

int cmd_fork(struct ctl *ctl)
{
    const struct kvarn_open_session_args open_args = {
        .name = ctl->args.positions[0],
        .mode = KVARN_OPEN_EXISTING,
    };
    struct kvarn_fork_item item = {
        .name = ctl->args.positions[1],
        .length = ctl_is_set(ctl, "length") ? ctl_number(ctl, "length") : KVARN_TOKEN_DEFAULT,
        .mode = ctl_is_set(ctl, "or-open") ? KVARN_OPEN_EITHER : KVARN_OPEN_CREATE,
    };
    const struct kvarn_fork_args args = {&item, 1};
    struct kvarn_session *session = NULL;
    struct kvarn_session *copy = NULL;
    struct kvarn_fork_result result;
    int err = kvarn_client_open_session(ctl->client, &open_args, &session, NULL);

    item.session = session;
    if (err == 0) {
        err = kvarn_client_fork(ctl->client, &args, &copy, &result);
    }
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (result.items[0].status.err != 0) {
        return ctl_fail(ctl, result.items[0].status.err, result.items[0].status.text);
    }
    if (!ctl->is_json) {
        printf("%s: %" PRIu64 " tokens, %s%s; epoch %" PRIu64 "\n", item.name,
            result.items[0].length, result.items[0].created ? "shared with " : "was there already",
            result.items[0].created ? ctl->args.positions[0] : "", result.items[0].epoch);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", item.name);
    json_u64(&ctl->json, "epoch", result.items[0].epoch);
    json_u64(&ctl->json, "length", result.items[0].length);
    json_bool(&ctl->json, "created", result.items[0].created);
    json_bool(&ctl->json, "lossy_tail", result.items[0].lossy_tail);
    json_object_close(&ctl->json);
    return CTL_OK;
}

int cmd_drop(struct ctl *ctl)
{
    int err = kvarn_client_drop_name(ctl->client, ctl->args.positions[0]);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    KVARN_ASSERT(ctl->args.position_count == 1);
    if (!ctl->is_json) {
        printf("%s: dropped\n", ctl->args.positions[0]);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", ctl->args.positions[0]);
    json_bool(&ctl->json, "dropped", true);
    json_object_close(&ctl->json);
    return CTL_OK;
}

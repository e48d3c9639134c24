/*
 * The typed calls of the blocking client, and what it remembers of shapes and sessions.
 */
#include <stdlib.h>
#include <string.h>

#include "client/src/client.h"
#include "client/src/shape_copy.h"
#include "lib/base/assert.h"

/* A call that names no session. */
static int plain_perform(
    struct kvarn_client *client, enum kvarn_frame_type type, const void *args, void *result)
{
    const struct client_exchange exchange = {
        .type = type,
        .args = args,
        .result = result,
        .is_repeatable = true,
    };

    return kvarn__client_perform(client, &exchange);
}

static bool session_is_named(const struct kvarn_session *session)
{
    return session != NULL && kvarn__client_session_of(session)->name != NULL;
}

/* Replies carry the epoch that holds now. */
static void session_epoch_set(const struct kvarn_session *session, uint64_t epoch)
{
    kvarn__client_session_of(session)->pub.epoch = epoch;
}

int kvarn_client_ping(struct kvarn_client *client, struct kvarn_ping_result *ret)
{
    struct kvarn_ping_result result;
    int err = plain_perform(client, KVARN_FRAME_PING, NULL, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

static struct client_shape *shape_find(const struct kvarn_client *client, uint32_t local_id)
{
    struct client_shape *shape;

    TAILQ_FOREACH(shape, &client->shapes, link)
    {
        if (shape->local_id == local_id) {
            return shape;
        }
    }
    return NULL;
}

int kvarn_client_register_shape(struct kvarn_client *client, const struct kvarn_shape *shape,
    struct kvarn_register_shape_result *ret)
{
    struct kvarn_register_shape_result result;
    struct client_shape *kept = calloc(1, sizeof *kept);
    int err = KVARN_ENOMEM;

    if (kept != NULL) {
        err = kvarn__shape_copy_init(&kept->shape, shape);
    }
    if (err != 0) {
        free(kept);
        return kvarn__client_fail(client, KVARN_FRAME_REGISTER_SHAPE, err, NULL);
    }
    err = plain_perform(client, KVARN_FRAME_REGISTER_SHAPE,
        &(struct kvarn_register_metric_args){.shape = &kept->shape}, &result);
    if (err != 0) {
        kvarn__shape_copy_fini(&kept->shape);
        free(kept);
        return err;
    }
    kept->local_id = ++client->shape_count;
    kept->server_id = result.shape_id;
    kept->serial = client->serial;
    TAILQ_INSERT_TAIL(&client->shapes, kept, link);
    result.shape_id = kept->local_id;
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_register_metric(struct kvarn_client *client,
    const struct kvarn_register_metric_args *args, struct kvarn_register_shape_result *ret)
{
    struct kvarn_register_shape_result result;
    int err = plain_perform(client, KVARN_FRAME_REGISTER_SHAPE, args, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
        ret->shape_id = 0; /* the daemon's, which means nothing to this client */
    }
    return err;
}

int kvarn_client_read_metric(struct kvarn_client *client, const struct kvarn_read_metric_args *args,
    struct kvarn_read_metric_result *ret)
{
    struct kvarn_read_metric_result result;
    int err = plain_perform(client, KVARN_FRAME_READ_METRIC, args, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

/* The daemon's id of a shape, registered again where the connection is a new one. */
static int shape_ready(struct kvarn_client *client, uint32_t local_id, uint32_t *ret_server_id)
{
    struct client_shape *shape = shape_find(client, local_id);
    struct kvarn_register_shape_result result;
    int err;

    if (shape == NULL) {
        return kvarn__client_fail(client, KVARN_FRAME_OPEN_SESSION, KVARN_ENOT_FOUND,
            "no such shape_id; register the shape with this client");
    }
    if (shape->serial != client->serial || client->fd < 0) {
        err = plain_perform(client, KVARN_FRAME_REGISTER_SHAPE,
            &(struct kvarn_register_metric_args){.shape = &shape->shape}, &result);
        if (err != 0) {
            return err;
        }
        shape->server_id = result.shape_id;
        shape->serial = client->serial;
    }
    *ret_server_id = shape->server_id;
    return 0;
}

static uint32_t shape_local_id(const struct kvarn_client *client, uint32_t server_id)
{
    const struct client_shape *shape;

    TAILQ_FOREACH(shape, &client->shapes, link)
    {
        if (shape->serial == client->serial && shape->server_id == server_id) {
            return shape->local_id;
        }
    }
    return 0;
}

/*
 * Open, with the shape's present id. A connection that broke in between may have reached another
 * run of the daemon, where the id means something else: the open is then not repeated by itself but
 * from here, with the id asked for anew.
 */
static int open_perform(struct kvarn_client *client, const struct kvarn_open_session_args *args,
    struct kvarn_open_session_result *result)
{
    bool is_repeatable = !args->takeover && (args->name == NULL || args->mode != KVARN_OPEN_CREATE);
    int err = KVARN_EIO;

    for (int attempt = 0; attempt < 3; attempt++) {
        struct kvarn_open_session_args now = *args;
        struct client_exchange exchange = {
            .type = KVARN_FRAME_OPEN_SESSION,
            .args = &now,
            .result = result,
            .is_repeatable = is_repeatable,
            .is_bound = args->shape_id != 0 || args->lease != 0,
        };

        if (args->shape_id != 0) {
            err = shape_ready(client, args->shape_id, &now.shape_id);
            if (err != 0) {
                return err;
            }
        }
        err = kvarn__client_perform(client, &exchange);
        if (err != KVARN_EIO || client->options.reconnect_off || !exchange.is_bound) {
            return err;
        }
        if (!is_repeatable && client->was_begun) {
            return err;
        }
    }
    return err;
}

int kvarn_client_open_session(struct kvarn_client *client,
    const struct kvarn_open_session_args *args, struct kvarn_session **ret_session,
    struct kvarn_open_session_result *ret)
{
    struct kvarn_open_session_result result;
    struct client_session *session = calloc(1, sizeof *session);
    int err = KVARN_ENOMEM;

    if (session == NULL || (args->name != NULL && (session->name = strdup(args->name)) == NULL)) {
        free(session);
        return kvarn__client_fail(client, KVARN_FRAME_OPEN_SESSION, err, NULL);
    }
    err = open_perform(client, args, &result);
    if (err != 0) {
        free(session->name);
        free(session);
        return err;
    }
    session->pub.handle = result.handle;
    session->pub.epoch = result.epoch;
    session->serial = client->serial;
    TAILQ_INSERT_TAIL(&client->sessions, session, link);
    result.shape_id = shape_local_id(client, result.shape_id);
    *ret_session = &session->pub;
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_refresh_session(
    struct kvarn_client *client, struct kvarn_session *pub, struct kvarn_open_session_result *ret)
{
    struct client_session *session = kvarn__client_session_of(pub);
    struct kvarn_open_session_args args = {.name = session->name, .mode = KVARN_OPEN_EXISTING};
    struct kvarn_open_session_result result;
    int err;

    if (session->name == NULL) {
        return kvarn__client_fail(client, KVARN_FRAME_OPEN_SESSION, KVARN_EINVALID,
            "a session without a name cannot be opened again");
    }
    /* Closed first: results point into the last reply. A handle that is gone is as good. */
    if (client->fd >= 0 && session->serial == client->serial) {
        const struct kvarn_close_session_args close_args = {pub};
        const struct client_exchange close_old = {
            .type = KVARN_FRAME_CLOSE_SESSION,
            .args = &close_args,
            .is_bound = true,
        };

        err = kvarn__client_perform(client, &close_old);
        (void)err;
        session->serial = 0;
    }
    err = open_perform(client, &args, &result);
    if (err != 0) {
        return err;
    }
    session->pub.handle = result.handle;
    session->pub.epoch = result.epoch;
    session->serial = client->serial;
    session->is_stale = false;
    result.shape_id = shape_local_id(client, result.shape_id);
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_append(struct kvarn_client *client, const struct kvarn_append_args *args,
    struct kvarn_append_result *ret)
{
    struct kvarn_append_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_APPEND,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = session_is_named(args->session),
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err != 0) {
        return err;
    }
    session_epoch_set(args->session, result.epoch);
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_append_tiles(struct kvarn_client *client,
    const struct kvarn_append_tiles_args *args, struct kvarn_append_tiles_result *ret)
{
    struct kvarn_append_tiles_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_APPEND_TILES,
        .args = args,
        .result = &result,
        .session = args->session,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err != 0) {
        return err;
    }
    session_epoch_set(args->session, result.epoch);
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_read_blocks(struct kvarn_client *client, const struct kvarn_read_blocks_args *args,
    struct kvarn_read_blocks_result *ret)
{
    struct kvarn_read_blocks_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_READ_BLOCKS,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_attend(struct kvarn_client *client, const struct kvarn_attend_args *args,
    struct kvarn_attend_result *ret)
{
    struct kvarn_attend_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_ATTEND,
        .args = args,
        .result = &result,
        .items = args->items,
        .item_count = args->item_count,
        .item_bytes = sizeof args->items[0],
        .is_repeatable = true,
    };
    int err;

    _Static_assert(offsetof(struct kvarn_attend_item, session) == 0, "sessions are found there");
    err = kvarn__client_perform(client, &exchange);
    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_append_attend(struct kvarn_client *client,
    const struct kvarn_append_attend_args *args, struct kvarn_attend_result *ret)
{
    struct kvarn_attend_result result;
    struct client_exchange exchange = {
        .type = KVARN_FRAME_APPEND_ATTEND,
        .args = args,
        .result = &result,
        .items = args->items,
        .item_count = args->item_count,
        .item_bytes = sizeof args->items[0],
        .is_repeatable = true,
    };
    int err;

    _Static_assert(
        offsetof(struct kvarn_append_attend_item, session) == 0, "sessions are found there");
    for (size_t i = 0; i < args->item_count; i++) {
        exchange.is_repeatable = exchange.is_repeatable && session_is_named(args->items[i].session);
    }
    err = kvarn__client_perform(client, &exchange);
    if (err != 0) {
        return err;
    }
    for (size_t i = 0; i < result.item_count && i < args->item_count; i++) {
        if (result.items[i].appended && result.items[i].has_epoch) {
            session_epoch_set(args->items[i].session, result.items[i].epoch);
        }
    }
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_truncate(struct kvarn_client *client, struct kvarn_session *session,
    uint64_t length, struct kvarn_truncate_result *ret)
{
    const struct kvarn_truncate_args args = {session, length};
    struct kvarn_truncate_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_TRUNCATE,
        .args = &args,
        .result = &result,
        .session = session,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err != 0) {
        return err;
    }
    session_epoch_set(session, result.epoch);
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

/* Objects for the copies that a Fork may make; all or none. */
static int fork_prepare(const struct kvarn_fork_args *args, struct client_session **sessions)
{
    for (size_t i = 0; i < args->item_count; i++) {
        const char *name = args->items[i].name;

        sessions[i] = calloc(1, sizeof *sessions[i]);
        if (sessions[i] == NULL || (name != NULL && (sessions[i]->name = strdup(name)) == NULL)) {
            return KVARN_ENOMEM;
        }
    }
    return 0;
}

/* Keep the objects whose items succeeded. */
static void fork_adopt(struct kvarn_client *client, const struct kvarn_fork_result *result,
    struct client_session **sessions, struct kvarn_session **ret_sessions)
{
    for (size_t i = 0; i < result->item_count; i++) {
        ret_sessions[i] = NULL;
        if (result->items[i].status.err != 0 || sessions[i] == NULL) {
            continue;
        }
        sessions[i]->pub.handle = result->items[i].handle;
        sessions[i]->pub.epoch = result->items[i].epoch;
        sessions[i]->serial = client->serial;
        TAILQ_INSERT_TAIL(&client->sessions, sessions[i], link);
        ret_sessions[i] = &sessions[i]->pub;
        sessions[i] = NULL;
    }
}

int kvarn_client_fork(struct kvarn_client *client, const struct kvarn_fork_args *args,
    struct kvarn_session **ret_sessions, struct kvarn_fork_result *ret)
{
    struct kvarn_fork_result result;
    struct client_exchange exchange = {
        .type = KVARN_FRAME_FORK,
        .args = args,
        .result = &result,
        .items = args->items,
        .item_count = args->item_count,
        .item_bytes = sizeof args->items[0],
        .is_repeatable = true,
    };
    struct client_session **sessions =
        calloc(args->item_count + 1, sizeof(struct client_session *));
    int err = sessions == NULL ? KVARN_ENOMEM : fork_prepare(args, sessions);

    _Static_assert(offsetof(struct kvarn_fork_item, session) == 0, "sessions are found there");
    if (err != 0) {
        (void)kvarn__client_fail(client, KVARN_FRAME_FORK, err, NULL);
        goto out;
    }
    for (size_t i = 0; i < args->item_count; i++) {
        exchange.is_repeatable = exchange.is_repeatable && args->items[i].name != NULL &&
                                 args->items[i].mode == KVARN_OPEN_EITHER;
    }
    err = kvarn__client_perform(client, &exchange);
    if (err == 0 && result.item_count != args->item_count) {
        err = kvarn__client_fail(
            client, KVARN_FRAME_FORK, KVARN_EPROTOCOL, "the reply has another number of items");
    }
    if (err == 0) {
        fork_adopt(client, &result, sessions, ret_sessions);
        if (ret != NULL) {
            *ret = result;
        }
    }
out:
    for (size_t i = 0; sessions != NULL && i < args->item_count; i++) {
        if (sessions[i] != NULL) {
            free(sessions[i]->name);
        }
        free(sessions[i]);
    }
    free(sessions);
    return err;
}

int kvarn_client_reorder(struct kvarn_client *client, const struct kvarn_reorder_args *args,
    struct kvarn_reorder_result *ret)
{
    struct kvarn_reorder_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_REORDER,
        .args = args,
        .result = &result,
        .items = args->members,
        .item_count = args->member_count,
        .item_bytes = sizeof args->members[0],
    };
    size_t member = 0;
    int err;

    _Static_assert(offsetof(struct kvarn_reorder_member, session) == 0, "sessions are found there");
    err = kvarn__client_perform(client, &exchange);
    if (err != 0) {
        return err;
    }
    for (size_t i = 0; i < result.item_count && member < args->member_count; i++) {
        const struct kvarn_reorder_item_result *item = &result.items[i];
        size_t count = args->item_members == NULL ? args->member_count : args->item_members[i];

        for (size_t j = 0; j < count && item->status.err == 0 && j < item->session_count; j++) {
            session_epoch_set(args->members[member + j].session, item->epochs[j]);
        }
        member += count;
    }
    if (ret != NULL) {
        *ret = result;
    }
    return 0;
}

int kvarn_client_match_prefix(struct kvarn_client *client,
    const struct kvarn_match_prefix_args *args, struct kvarn_match_prefix_result *ret)
{
    struct kvarn_match_prefix_args now = *args;
    struct kvarn_match_prefix_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_MATCH_PREFIX,
        .args = &now,
        .result = &result,
        .is_bound = true,
    };
    int err = shape_ready(client, args->shape_id, &now.shape_id);

    if (err == 0) {
        err = kvarn__client_perform(client, &exchange);
    }
    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

static void session_forget(struct kvarn_client *client, struct kvarn_session *pub)
{
    struct client_session *session = kvarn__client_session_of(pub);

    TAILQ_REMOVE(&client->sessions, session, link);
    free(session->name);
    free(session);
}

int kvarn_client_close_session(struct kvarn_client *client, struct kvarn_session *pub)
{
    const struct kvarn_close_session_args args = {pub};
    const struct client_session *session = kvarn__client_session_of(pub);
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_CLOSE_SESSION,
        .args = &args,
        .is_bound = true,
    };
    int err = 0;

    /* Handles end with their connection: where that is gone there is nothing left to close. */
    if (client->fd >= 0 && session->serial == client->serial) {
        err = kvarn__client_perform(client, &exchange);
    }
    session_forget(client, pub);
    return client->fd < 0 ? 0 : err;
}

int kvarn_client_drop_session(struct kvarn_client *client, struct kvarn_session *pub)
{
    const struct kvarn_drop_session_args args = {.session = pub};
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_DROP_SESSION,
        .args = &args,
        .session = pub,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0) {
        session_forget(client, pub);
    }
    return err;
}

int kvarn_client_drop_name(struct kvarn_client *client, const char *name)
{
    const struct kvarn_drop_session_args args = {.name = name};
    const struct client_exchange exchange = {.type = KVARN_FRAME_DROP_SESSION, .args = &args};

    return kvarn__client_perform(client, &exchange);
}

int kvarn_client_touch(struct kvarn_client *client, const struct kvarn_touch_args *args,
    struct kvarn_touch_result *ret)
{
    struct kvarn_touch_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_TOUCH,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_pin(
    struct kvarn_client *client, const struct kvarn_pin_args *args, struct kvarn_pin_result *ret)
{
    struct kvarn_pin_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_PIN,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_evict(struct kvarn_client *client, const struct kvarn_evict_args *args,
    struct kvarn_evict_result *ret)
{
    struct kvarn_evict_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_EVICT,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_prefetch(struct kvarn_client *client, const struct kvarn_prefetch_args *args,
    struct kvarn_prefetch_result *ret)
{
    struct kvarn_prefetch_args now = *args;
    struct kvarn_match_prefix_args prefix;
    struct kvarn_prefetch_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_PREFETCH,
        .args = &now,
        .result = &result,
        .session = args->session,
        .is_bound = args->prefix != NULL, /* shape ids are a connection's */
        .is_repeatable = args->prefix == NULL,
    };
    int err = 0;

    if (args->prefix != NULL) {
        prefix = *args->prefix;
        now.prefix = &prefix;
        err = shape_ready(client, prefix.shape_id, &prefix.shape_id);
    }
    if (err == 0) {
        err = kvarn__client_perform(client, &exchange);
    }
    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_list_jobs(struct kvarn_client *client, struct kvarn_list_jobs_result *ret)
{
    struct kvarn_list_jobs_result result;
    int err = plain_perform(client, KVARN_FRAME_LIST_JOBS, NULL, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_verify(struct kvarn_client *client, const struct kvarn_verify_args *args,
    struct kvarn_verify_result *ret)
{
    struct kvarn_verify_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_VERIFY,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_list_sessions(struct kvarn_client *client,
    const struct kvarn_list_sessions_args *args, struct kvarn_list_sessions_result *ret)
{
    struct kvarn_list_sessions_result result;
    int err = plain_perform(client, KVARN_FRAME_LIST_SESSIONS, args, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_inspect_session(struct kvarn_client *client,
    const struct kvarn_inspect_session_args *args, struct kvarn_inspect_session_result *ret)
{
    struct kvarn_inspect_session_result result;
    const struct client_exchange exchange = {
        .type = KVARN_FRAME_INSPECT_SESSION,
        .args = args,
        .result = &result,
        .session = args->session,
        .is_repeatable = true,
    };
    int err = kvarn__client_perform(client, &exchange);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_stats(struct kvarn_client *client, struct kvarn_stats_result *ret)
{
    struct kvarn_stats_result result;
    int err = plain_perform(client, KVARN_FRAME_STATS, NULL, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

int kvarn_client_cancel(
    struct kvarn_client *client, uint64_t request_id, struct kvarn_cancel_result *ret)
{
    const struct kvarn_cancel_args args = {request_id};
    struct kvarn_cancel_result result;
    int err = plain_perform(client, KVARN_FRAME_CANCEL, &args, &result);

    if (err == 0 && ret != NULL) {
        *ret = result;
    }
    return err;
}

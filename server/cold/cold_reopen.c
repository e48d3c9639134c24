/*
 * What a restart finds: shapes, and sessions whose blocks are all cold.
 *
 * Owner: service. Thread: loop only, before it runs.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/cold/cold_spill.h"
#include "server/service.h"

/* A record that was found. */
struct found_record {
    struct kvd_cold_info info;
    struct kvd_cold_record *record; /* owned until somebody takes it */
    struct kvd_cold_copy *copy;     /* ref: of a page that a map names */
};

struct reopening {
    struct kvd_cold_sessions *cold; /* borrowed */
    struct found_record *list;      /* owned; sorted by id, then type */
    size_t count, room;
    uint64_t sessions, lost, missing_blocks;
    int err;
};

static void each_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    struct reopening *reopening = ctx;

    if (reopening->count == reopening->room) {
        size_t room = reopening->room == 0 ? 1024 : 2 * reopening->room;
        struct found_record *list = realloc(reopening->list, room * sizeof(*list));
        if (list == NULL) {
            reopening->err = KVARN_ENOMEM;
            return;
        }
        reopening->list = list;
        reopening->room = room;
    }
    reopening->list[reopening->count++] = (struct found_record){.info = *info, .record = record};
}

static int id_compare(struct kvd_cold_id a, struct kvd_cold_id b)
{
    if (a.hi != b.hi) {
        return a.hi < b.hi ? -1 : 1;
    }
    return a.lo < b.lo ? -1 : a.lo > b.lo;
}

static int by_id(const void *a, const void *b)
{
    const struct kvd_cold_info *x = &((const struct found_record *)a)->info;
    const struct kvd_cold_info *y = &((const struct found_record *)b)->info;
    int order = id_compare(x->id, y->id);

    return order != 0 ? order : (int)x->type - (int)y->type;
}

/* The record of a type and id, if it is this tenant's (SEMANTICS.md 14); NULL: none. */
static struct found_record *find(const struct reopening *reopening, uint32_t tenant_id,
    struct kvd_cold_id id, enum kvd_cold_type type)
{
    struct found_record key = {.info = {.id = id, .type = type}};
    struct found_record *found = reopening->count == 0 ? NULL
                                                       : bsearch(&key, reopening->list,
                                                             reopening->count, sizeof(key), by_id);

    return found != NULL && found->info.tenant_id == tenant_id ? found : NULL;
}

static struct kvd_cold_record *record_of(struct found_record *found)
{
    struct kvd_cold_record *record = found == NULL ? NULL : found->record;

    if (found != NULL) {
        found->record = NULL; /* somebody's now */
    }
    return record;
}

/* Head and body of a small record; *ret_head is the caller's to free, the body lies behind it. */
static int record_read(
    const struct reopening *reopening, const struct found_record *found, uint8_t **ret_head)
{
    struct kvd_cold *tier = reopening->cold->tier;
    uint8_t *memory = malloc(found->info.head_bytes + found->info.body_bytes + 1);

    if (memory == NULL) {
        return KVARN_ENOMEM;
    }
    struct iovec vec = {memory + found->info.head_bytes, found->info.body_bytes};
    struct kvd_cold_get get = {.record = found->record,
        .head = memory,
        .vecs = found->info.body_bytes > 0 ? &vec : NULL,
        .vec_count = found->info.body_bytes > 0 ? 1 : 0};
    int err = tier->ops->get_now(tier, &get);
    if (err != 0) {
        free(memory);
        return err;
    }
    *ret_head = memory;
    return 0;
}

/* Shapes. */

static void shape_reopen(struct reopening *reopening, struct found_record *found)
{
    struct kvd_cold_sessions *cold = reopening->cold;
    struct kvd_shape_desc desc;
    const struct kvd_shape *shape;
    void *memory = NULL;
    uint8_t *head = NULL;
    char why[200];

    int err = record_read(reopening, found, &head);
    if (err == 0) {
        err = kvd_cold_shape_decode(head, found->info.head_bytes, &desc, &memory);
    }
    if (err == 0) {
        err = kvd_shape_register(
            &cold->service->shapes, found->info.tenant_id, &desc, &shape, why, sizeof(why));
    }
    if (err == 0) {
        cold->shape_is_put[shape->id / 8] |= (uint8_t)(1u << shape->id % 8);
        (void)record_of(found); /* kept for good */
    }
    free(memory);
    free(head);
}

/* Sessions. */

/* The copy of a block that a map names, shared by all maps that do; NULL: it is not there. */
static struct kvd_cold_copy *copy_of(
    const struct reopening *reopening, uint32_t tenant_id, struct kvd_cold_id id)
{
    struct found_record *found = find(reopening, tenant_id, id, KVD_COLD_PAGE);

    if (found == NULL) {
        return NULL;
    }
    if (found->copy == NULL) {
        found->copy = kvd_cold_copy_create(reopening->cold->service, id);
        if (found->copy == NULL) {
            return NULL;
        }
        found->copy->record = record_of(found);
    }
    return kvd_cold_copy_ref(found->copy);
}

static bool is_dropped_by_all(const struct kvd_session *session, uint32_t block_idx)
{
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (block_idx >= session->layers[i].dropped_blocks) {
            return false;
        }
    }
    return true;
}

static int block_add(struct reopening *reopening, struct kvd_session *session,
    const struct kvd_cold_id *id, bool has_tail)
{
    struct kvd_service *service = session->service;
    uint32_t block_idx = session->table.count;
    int err = kvd_block_table_reserve(service, &session->table);
    struct kvd_block *block =
        err != 0 ? NULL : kvd_block_create(service, session->shape->layer_count);

    if (block == NULL) {
        return KVARN_ENOMEM;
    }
    for (uint32_t i = 0; i < block->layer_count; i++) {
        if (block_idx < session->layers[i].dropped_blocks) {
            block->layers_kept--;
        }
    }
    block->cold = id == NULL ? NULL : copy_of(reopening, session->tenant_id, *id);
    bool is_there = block->cold != NULL || (id == NULL && has_tail);
    block->state = is_there ? KVD_BLOCK_COLD : KVD_BLOCK_MISSING;
    block->miss_reason = KVARND__MISS_REASON__MISS_RESTART;
    reopening->missing_blocks += is_there ? 0 : 1;
    kvd_block_table_push(&session->table, block);
    if (is_dropped_by_all(session, block_idx)) {
        kvd_block_unref(service, kvd_block_table_swap(&session->table, block_idx, NULL));
    }
    return 0;
}

/* Lengths and blocks as the map says. Returns 0, KVARN_ECORRUPT or KVARN_ENOMEM. */
static int session_fill(struct reopening *reopening, struct kvd_session *session,
    const struct kvd_cold_map_head *map, const uint8_t *ids)
{
    uint32_t group = session->shape->group;
    uint64_t blocks = map->block_count;
    bool has_tail = map->tail_id.hi != 0 || map->tail_id.lo != 0;

    if (map->layer_count != session->shape->layer_count) {
        return KVARN_ECORRUPT;
    }
    for (uint32_t i = 0; i < map->layer_count; i++) {
        const struct kvd_cold_map_layer *from = &map->layers[i];
        uint64_t held = (from->length + group - 1) / group;
        if (from->sealed_blocks > held || from->dropped_blocks > held ||
            (!has_tail && held > map->block_count)) {
            return KVARN_ECORRUPT;
        }
        session->layers[i].length = (uint32_t)from->length;
        session->layers[i].sealed_blocks = from->sealed_blocks;
        session->layers[i].dropped_blocks = from->dropped_blocks;
        blocks = held > blocks ? held : blocks;
    }
    int err = 0;
    for (uint32_t b = 0; b < blocks && err == 0; b++) {
        bool is_stored = b < map->block_count;
        struct kvd_cold_id id = {0};
        if (is_stored) {
            id = kvd_cold_id_decode(ids + (size_t)b * 16);
        }
        err = block_add(reopening, session, is_stored ? &id : NULL, has_tail);
    }
    session->missing_first = 0;
    session->missing_last = session->table.count;
    return err;
}

/*
 * Leading blocks of a map that are on disk and that no append changes: one may be missing, and the
 * last may be a sink that was cut.
 */
static uint32_t whole_blocks(const struct kvd_session *session, uint32_t block_count)
{
    uint64_t whole = kvd_session_length(session) / session->shape->group;
    uint32_t count = 0;

    while (count < whole && count < block_count) {
        const struct kvd_block *block = kvd_session_block(session, count);
        if (block != NULL && block->cold == NULL) {
            break;
        }
        count++;
    }
    return count;
}

static void cold_fill(struct reopening *reopening, struct kvd_session *session,
    struct found_record *found, struct found_record *map_found, const struct kvd_cold_map_head *map)
{
    struct kvd_session_cold *sc = &session->cold;
    struct found_record *tail = find(reopening, session->tenant_id, map->tail_id, KVD_COLD_TAIL);
    bool has_tail = map->tail_id.hi != 0 || map->tail_id.lo != 0;

    sc->uid = found->info.id;
    sc->session_rec = record_of(found);
    sc->map_rec = record_of(map_found);
    sc->is_session_put = true;
    sc->next_block = whole_blocks(session, map->block_count);
    sc->mapped_blocks = sc->next_block;
    sc->tail_id = map->tail_id;
    for (uint32_t i = 0; i < map->layer_count; i++) {
        uint64_t length = map->layers[i].length;
        if (length > sc->mapped_tokens) {
            sc->mapped_tokens = (uint32_t)length;
        }
        if (i == 0 || length < sc->durable_tokens) {
            sc->durable_tokens = (uint32_t)length;
        }
    }
    sc->tail_first = map->block_count;
    sc->tail_epoch = session->epoch;
    sc->tail_token_sum = kvd_tail_token_sum(session);
    if (has_tail && tail != NULL) {
        sc->tail_rec = record_of(tail);
        sc->is_tail_cold = true;
        sc->is_tail_named = true;
    } else if (has_tail) {
        for (uint32_t b = map->block_count; b < session->table.count; b++) {
            struct kvd_block *block = kvd_block_table_at(&session->table, b);
            if (block != NULL) {
                block->state = KVD_BLOCK_MISSING;
                reopening->missing_blocks++;
            }
        }
    }
}

static int session_make(struct reopening *reopening, struct found_record *found,
    const struct kvd_cold_session_head *head, struct kvd_session **ret)
{
    struct kvd_service *service = reopening->cold->service;
    const struct kvd_shape *shape =
        kvd_shape_find_fingerprint(&service->shapes, found->info.tenant_id, head->fingerprint);
    struct kvd_session_options options = {
        .encoder = (enum kvarn_encoder)head->encoder, .seal_lag = head->seal_lag};

    if (shape == NULL || head->seal_lag > shape->group || head->encoder > KVARN_ENCODER_AWARE ||
        kvd_session_table_find(&service->sessions, shape->tenant_id, head->name) != NULL ||
        service->sessions.count >= service->sessions.count_max) {
        return KVARN_ECORRUPT;
    }
    return kvd_session_create(service, shape, head->name, &options, ret);
}

/*
 * Whether what was found is what a clean stop left, so that a session that is all there keeps its
 * epoch (SEMANTICS.md 7). Of a record that is damaged nobody knows whose newest map it was.
 */
static bool keeps_epochs(const struct kvd_cold_sessions *cold)
{
    return cold->found.is_clean && cold->found.damaged == 0;
}

static int session_reopen(struct reopening *reopening, struct found_record *found)
{
    uint64_t missing_before = reopening->missing_blocks;
    struct found_record *map_found =
        find(reopening, found->info.tenant_id, found->info.id, KVD_COLD_MAP);
    struct kvd_cold_map_head *map = calloc(1, sizeof(*map));
    struct kvd_cold_session_head head;
    struct kvd_session *session = NULL;
    uint8_t *session_bytes = NULL;
    uint8_t *map_bytes = NULL;
    uint64_t round;

    int err = map == NULL ? KVARN_ENOMEM : map_found == NULL ? KVARN_ENOT_FOUND : 0;
    err = err != 0 ? err : record_read(reopening, found, &session_bytes);
    err = err != 0 ? err : kvd_cold_session_decode(session_bytes, found->info.head_bytes, &head);
    err = err != 0 ? err : record_read(reopening, map_found, &map_bytes);
    err = err != 0 ? err : kvd_cold_map_decode(map_bytes, map_found->info.head_bytes, map);
    if (err == 0 && map_found->info.body_bytes != (uint64_t)map->block_count * 16) {
        err = KVARN_ECORRUPT;
    }
    err = err != 0 ? err : session_make(reopening, found, &head, &session);
    if (err == 0) {
        err = session_fill(reopening, session, map, map_bytes + map_found->info.head_bytes);
        if (err == 0) {
            cold_fill(reopening, session, found, map_found, map);
            err = kvd_cold_named_set(session, map->block_count, &round);
        }
        if (err == 0) {
            bool is_whole = reopening->missing_blocks == missing_before;
            session->epoch =
                is_whole && keeps_epochs(reopening->cold) ? map->epoch : session->epoch;
            kvd_session_table_insert(&session->service->sessions, session);
        }
        kvd_session_unref(session);
    }
    free(session_bytes);
    free(map_bytes);
    free(map);
    return err;
}

/* A session that cannot come back must not do so at a later start either. */
static void session_give_up(struct reopening *reopening, const struct found_record *found)
{
    reopening->lost++;
    kvd_cold_bury_id(reopening->cold, found->info.id, found->info.tenant_id);
}

static void rest_forget(struct reopening *reopening)
{
    struct kvd_cold *tier = reopening->cold->tier;

    for (size_t i = 0; i < reopening->count; i++) {
        struct found_record *found = &reopening->list[i];
        kvd_cold_copy_unref(reopening->cold->service, found->copy);
        if (found->record != NULL) {
            tier->ops->forget(tier, found->record);
        }
    }
}

/* Of two sessions with one name the one that was made later is meant. */
static int by_age(const void *a, const void *b)
{
    const struct found_record *x = *(struct found_record *const *)a;
    const struct found_record *y = *(struct found_record *const *)b;

    return x->info.sequence > y->info.sequence ? -1 : x->info.sequence < y->info.sequence;
}

/* Returns 0, or KVARN_ENOMEM where sessions would be lost for want of memory. */
static int sessions_reopen(struct reopening *reopening)
{
    struct found_record **list = calloc(reopening->count + 1, sizeof(list[0]));
    size_t count = 0;
    int err = 0;

    if (list == NULL) {
        return KVARN_ENOMEM;
    }
    for (size_t i = 0; i < reopening->count; i++) {
        if (reopening->list[i].info.type == KVD_COLD_SESSION) {
            list[count++] = &reopening->list[i];
        }
    }
    qsort(list, count, sizeof(list[0]), by_age);
    for (size_t i = 0; i < count && err == 0; i++) {
        int why = session_reopen(reopening, list[i]);
        if (why == KVARN_ENOMEM || why == KVARN_ENOSPC) {
            err = KVARN_ENOMEM;
        } else if (why == 0) {
            reopening->sessions++;
        } else {
            session_give_up(reopening, list[i]);
        }
    }
    free(list);
    return err;
}

int kvd_cold_reopen(struct kvd_cold_sessions *cold)
{
    struct reopening reopening = {.cold = cold, .lost = cold->found.sessions_lost};

    cold->tier->ops->each(cold->tier, each_cb, &reopening);
    if (reopening.err != 0) {
        free(reopening.list);
        return reopening.err;
    }
    if (reopening.count > 0) {
        qsort(reopening.list, reopening.count, sizeof(*reopening.list), by_id);
    }
    for (size_t i = 0; i < reopening.count; i++) {
        if (reopening.list[i].info.type == KVD_COLD_SHAPE) {
            shape_reopen(&reopening, &reopening.list[i]);
        }
    }
    int err = sessions_reopen(&reopening);
    rest_forget(&reopening);
    free(reopening.list);
    if (err != 0) {
        const struct kvd_budget *budget = &cold->service->budget;
        kvd_log(KVD_LOG_ERROR, "cold_failed",
            "error=%s used=%" PRIu64 " memory_limit=%" PRIu64
            ": too little memory for the sessions in the folder, which stay there",
            kvarn_err_label(err), budget->used_bytes, budget->limit_bytes);
        return err;
    }
    kvd_log(KVD_LOG_INFO, "cold_sessions",
        "sessions=%" PRIu64 " lost=%" PRIu64 " missing_blocks=%" PRIu64, reopening.sessions,
        reopening.lost, reopening.missing_blocks);
    return 0;
}

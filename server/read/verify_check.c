/*
 * One step of a verification.
 *
 * Owner: the verification. Thread: loop; pages_run() and record_run() on a worker.
 */
#include "server/read/verify_check.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/xxh3.h"
#include "server/cold/cold_catalog.h"
#include "server/service.h"

/* Hashed in one job: some 60 us, so that jobs of others wait no longer than that for it. */
#define JOB_BYTES_MAX (512 * 1024)

static struct kvd_verify_check *check_create(
    struct kvd_session *session, enum kvd_verify_part part, uint32_t unit_room)
{
    struct kvd_service *service = session->service;
    size_t bytes = sizeof(struct kvd_verify_check) + unit_room * sizeof(struct kvd_verify_unit);

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        return NULL;
    }
    struct kvd_verify_check *check = calloc(1, bytes);
    if (check == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, bytes);
        return NULL;
    }
    check->charged_bytes = bytes;
    check->service = service;
    check->session = session;
    check->part = part;
    return check;
}

/* Pages that do not change any more and have a checksum; those that have none are counted. */
static void pages_gather(struct kvd_verify_check *check, const struct kvd_block *block)
{
    const struct kvd_session *session = check->session;
    bool is_sink = check->block_idx < kvd_session_sink_blocks(session);

    for (uint32_t i = 0; i < block->layer_count; i++) {
        const struct kvd_page *rows = kvd_block_rows(&check->service->pages, block, i);
        struct kvd_page *tiles = kvd_block_tiles(&check->service->pages, block, i);
        bool is_sealed = !is_sink && check->block_idx < session->layers[i].sealed_blocks &&
                         tiles != NULL && rows == NULL;
        check->rows_pages += rows != NULL ? 1 : 0;
        if (is_sealed) {
            check->units[check->unit_count++] =
                (struct kvd_verify_unit){.page = kvd_page_ref(tiles),
                    .bytes = session->shape->layers[i].tile_page_bytes,
                    .checksum = kvd_page_checksum(tiles),
                    .layer = i};
        }
    }
}

struct kvd_verify_check *kvd_verify_check_block(struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    struct kvd_verify_check *check =
        check_create(session, KVD_VERIFY_BLOCK, session->shape->layer_count);

    if (check == NULL || block == NULL) {
        return check;
    }
    check->block_idx = block_idx;
    if (block->state == KVD_BLOCK_RESIDENT) {
        pages_gather(check, block);
    }
    bool is_held = block->state == KVD_BLOCK_RESIDENT || block->state == KVD_BLOCK_COLD;
    if (kvd_cold_copy_is_durable(block->cold) && is_held) {
        check->copy = kvd_cold_copy_ref(block->cold);
        check->record = block->cold->record;
    }
    return check;
}

struct kvd_verify_check *kvd_verify_check_record(
    struct kvd_session *session, enum kvd_verify_part part, struct kvd_cold_record *record)
{
    struct kvd_verify_check *check = check_create(session, part, 0);

    if (check != NULL) {
        check->record = record;
    }
    return check;
}

void kvd_verify_check_free(struct kvd_verify_check *check)
{
    struct kvd_service *service = check->service;

    for (uint32_t i = 0; i < check->unit_count; i++) {
        kvd_page_unref(&service->pages, check->units[i].page);
    }
    kvd_cold_copy_unref(service, check->copy);
    free(check->head);
    free(check->body);
    kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, check->charged_bytes);
    free(check);
}

/* Pages. */

static void pages_run(struct kvd_job *job, void *scratch)
{
    struct kvd_verify_check *check = (void *)job;

    (void)scratch;
    for (uint32_t i = check->unit_first; i < check->unit_last; i++) {
        struct kvd_verify_unit *unit = &check->units[i];
        unit->is_wrong = !kvd_page_checksum_matches(
            XXH3_64bits(kvd_page_data(unit->page), unit->bytes), unit->checksum);
    }
}

static void check_go_on(struct kvd_verify_check *check);

static void pages_done(struct kvd_job *job)
{
    struct kvd_verify_check *check = (void *)job;

    for (uint32_t i = check->unit_first; i < check->unit_last; i++) {
        check->wrong_pages += check->units[i].is_wrong ? 1 : 0;
    }
    check_go_on(check);
}

static void pages_start(struct kvd_verify_check *check)
{
    size_t bytes = 0;

    check->unit_first = check->unit_last;
    do {
        bytes += check->units[check->unit_last++].bytes;
    } while (check->unit_last < check->unit_count &&
             bytes + check->units[check->unit_last].bytes <= JOB_BYTES_MAX);
    check->job.run = pages_run;
    check->job.done = pages_done;
    kvd_workers_submit(check->service->workers, &check->job);
}

/* Records. */

/*
 * The tier gave back what was put: was that what the block is to have (SEMANTICS.md 14)? Pages may
 * have been wrong when they were written.
 */
static int content_check(const struct kvd_verify_check *check)
{
    const struct kvd_shape *shape = check->session->shape;
    struct kvd_cold_page_head head;
    size_t offset = 0;

    if (kvd_cold_page_decode(check->head, check->info.head_bytes, &head) != 0 ||
        memcmp(head.fingerprint, shape->fingerprint, sizeof(head.fingerprint)) != 0 ||
        head.block_idx != check->block_idx || head.layer_count != shape->layer_count) {
        return KVARN_ECORRUPT;
    }
    for (uint32_t i = 0; i < head.layer_count; i++) {
        const struct kvd_cold_page_layer *layer = &head.layers[i];
        const struct kvd_layer_shape *ls = &shape->layers[i];
        size_t bytes = layer->kind == KVD_COLD_PAGE_TILES  ? ls->tile_page_bytes
                       : layer->kind == KVD_COLD_PAGE_ROWS ? ls->rows_page_bytes
                                                           : 0;
        if (bytes > check->info.body_bytes - offset ||
            (layer->kind == KVD_COLD_PAGE_TILES &&
                !kvd_page_checksum_matches(
                    XXH3_64bits(check->body + offset, bytes), layer->checksum))) {
            return KVARN_ECORRUPT;
        }
        offset += bytes;
    }
    return offset == check->info.body_bytes ? 0 : KVARN_ECORRUPT;
}

static void content_run(struct kvd_job *job, void *scratch)
{
    struct kvd_verify_check *check = (void *)job;

    (void)scratch;
    check->record_err = content_check(check);
}

static void content_done(struct kvd_job *job)
{
    check_go_on((void *)job);
}

static void record_cb(struct kvd_cold_get *get, int err)
{
    struct kvd_verify_check *check =
        (void *)((uint8_t *)get - offsetof(struct kvd_verify_check, get));

    check->record_err = err;
    if (err != 0 || check->part != KVD_VERIFY_BLOCK) {
        check_go_on(check);
        return;
    }
    check->job.run = content_run;
    check->job.done = content_done;
    kvd_workers_submit(check->service->workers, &check->job);
}

/* Room for the record, which is given back when the check is done. */
static int record_room(struct kvd_verify_check *check)
{
    size_t bytes = check->info.head_bytes + check->info.body_bytes + 2;

    if (kvd_budget_charge(&check->service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    check->charged_bytes += bytes;
    check->head = malloc(check->info.head_bytes + 1);
    check->body = malloc(check->info.body_bytes + 1);
    return check->head == NULL || check->body == NULL ? KVARN_ENOMEM : 0;
}

static void record_start(struct kvd_verify_check *check)
{
    struct kvd_cold *tier = check->service->cold.tier;

    check->is_record_read = true;
    tier->ops->info(check->record, &check->info);
    int err = record_room(check);
    if (err == 0) {
        check->body_vec = (struct iovec){check->body, check->info.body_bytes};
        check->get =
            (struct kvd_cold_get){.record = check->record, .head = check->head, .done = record_cb};
        check->get.vecs = check->info.body_bytes > 0 ? &check->body_vec : NULL;
        check->get.vec_count = check->info.body_bytes > 0 ? 1 : 0;
        err = tier->ops->get(tier, &check->get);
    }
    if (err != 0) {
        check->record_err = err;
        check_go_on(check);
    }
}

static void check_go_on(struct kvd_verify_check *check)
{
    if (check->unit_last < check->unit_count) {
        pages_start(check);
    } else if (check->record != NULL && !check->is_record_read) {
        record_start(check);
    } else {
        check->done_cb(check);
    }
}

void kvd_verify_check_start(struct kvd_verify_check *check)
{
    KVARN_ASSERT(check->done_cb != NULL && check->unit_last == 0);
    check_go_on(check);
}

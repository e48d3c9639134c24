/*
 * What the maps of a session on disk name.
 *
 * Owner: session. Thread: loop only.
 *
 * Maps of one session differ little, so that `held` is that of the newest one, and a new one only
 * moves what it names no more to `leaving`, with its round.
 */
#include "server/cold/cold_named.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"

/* Named by an earlier map than that of `round`. */
struct leaving {
    struct kvd_cold_copy *copy; /* ref */
    uint64_t round;
};

struct kvd_cold_named {
    struct kvd_cold_copy **held;  /* owned array; refs; NULL: a block that all layers dropped */
    struct leaving *leaving;      /* owned; by rising round */
    struct kvd_cold_named *older; /* owned: goes with the next map */
    uint64_t round;
    uint32_t held_count, held_room;
    uint32_t leaving_count, leaving_room;
};

static struct kvd_cold_copy *copy_of(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    return block == NULL ? NULL : block->cold;
}

/* Let an array of `*room` items have `count`, charged. Returns NULL without memory. */
static void *array_grow(
    struct kvd_service *service, void *array, size_t item_bytes, uint32_t *room, uint32_t count)
{
    uint32_t wanted = count + count / 2;

    if (count <= *room) {
        return array;
    }
    size_t more = (size_t)(wanted - *room) * item_bytes;
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_COLD, more) != 0) {
        return NULL;
    }
    void *grown = realloc(array, wanted * item_bytes);
    if (grown == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_COLD, more);
        return NULL;
    }
    *room = wanted;
    return grown;
}

static struct kvd_cold_named *named_create(struct kvd_service *service)
{
    struct kvd_cold_named *named = NULL;

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_COLD, sizeof(*named)) == 0) {
        named = calloc(1, sizeof(*named));
        if (named == NULL) {
            kvd_budget_release(&service->budget, KVD_BUDGET_COLD, sizeof(*named));
        }
    }
    return named;
}

/* Copies that a map of `count` blocks names no more. */
static uint32_t displaced_count(const struct kvd_session *session, uint32_t count)
{
    const struct kvd_cold_named *named = session->cold.named;
    uint32_t displaced = 0;

    for (uint32_t i = 0; i < named->held_count; i++) {
        bool is_kept = i < count && copy_of(session, i) == named->held[i];
        displaced += named->held[i] != NULL && !is_kept ? 1 : 0;
    }
    return displaced;
}

static int room_make(struct kvd_session *session, uint32_t count)
{
    struct kvd_service *service = session->service;
    struct kvd_session_cold *sc = &session->cold;

    if (sc->named == NULL) {
        sc->named = named_create(service);
    }
    if (sc->named == NULL) {
        return KVARN_ENOSPC;
    }
    struct kvd_cold_named *named = sc->named;
    uint32_t leaving_count = named->leaving_count + displaced_count(session, count);
    void *held = array_grow(service, named->held, sizeof(named->held[0]), &named->held_room, count);
    named->held = held != NULL ? held : named->held;
    void *leaving = array_grow(
        service, named->leaving, sizeof(named->leaving[0]), &named->leaving_room, leaving_count);
    named->leaving = leaving != NULL ? leaving : named->leaving;
    return count > named->held_room || leaving_count > named->leaving_room ? KVARN_ENOSPC : 0;
}

int kvd_cold_named_set(struct kvd_session *session, uint32_t count, uint64_t *ret_round)
{
    int err = room_make(session, count);

    if (err != 0) {
        return err;
    }
    struct kvd_cold_named *named = session->cold.named;
    uint32_t most = count > named->held_count ? count : named->held_count;
    named->round++;
    for (uint32_t i = 0; i < most; i++) {
        struct kvd_cold_copy *before = i < named->held_count ? named->held[i] : NULL;
        struct kvd_cold_copy *after = i < count ? copy_of(session, i) : NULL;
        if (before != after && before != NULL) {
            named->leaving[named->leaving_count++] = (struct leaving){before, named->round};
        }
        if (before != after && after != NULL) {
            (void)kvd_cold_copy_ref(after);
        }
        if (i < count) {
            named->held[i] = after;
        }
    }
    named->held_count = count;
    *ret_round = named->round;
    return 0;
}

void kvd_cold_named_settle(struct kvd_session *session, uint64_t round)
{
    struct kvd_cold_named *named = session->cold.named;
    uint32_t count = 0;

    if (named == NULL) {
        return;
    }
    while (count < named->leaving_count && named->leaving[count].round <= round) {
        kvd_cold_copy_unref(session->service, named->leaving[count].copy);
        count++;
    }
    named->leaving_count -= count;
    if (count > 0 && named->leaving_count > 0) {
        memmove(named->leaving, named->leaving + count,
            named->leaving_count * sizeof(named->leaving[0]));
    }
    kvd_cold_named_free(session->service, named->older);
    named->older = NULL;
}

bool kvd_cold_named_is_stale(const struct kvd_session *session)
{
    const struct kvd_cold_named *named = session->cold.named;

    return named != NULL && (named->leaving_count > 0 || named->older != NULL ||
                                displaced_count(session, kvd_session_block_count(session)) > 0);
}

void kvd_cold_named_restore(struct kvd_session *session, struct kvd_cold_named *named)
{
    struct kvd_session_cold *sc = &session->cold;

    if (sc->named == NULL) {
        sc->named = named;
    } else {
        KVARN_ASSERT(sc->named->older == NULL);
        sc->named->older = named;
    }
}

void kvd_cold_named_free(struct kvd_service *service, struct kvd_cold_named *named)
{
    while (named != NULL) {
        struct kvd_cold_named *older = named->older;
        for (uint32_t i = 0; i < named->held_count; i++) {
            kvd_cold_copy_unref(service, named->held[i]);
        }
        for (uint32_t i = 0; i < named->leaving_count; i++) {
            kvd_cold_copy_unref(service, named->leaving[i].copy);
        }
        kvd_budget_release(&service->budget, KVD_BUDGET_COLD,
            sizeof(*named) + named->held_room * sizeof(named->held[0]) +
                named->leaving_room * sizeof(named->leaving[0]));
        free(named->held);
        free(named->leaving);
        free(named);
        named = older;
    }
}

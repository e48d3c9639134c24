/*
 * Handles of a connection: 64-bit numbers that are never reused, found by their low bits.
 *
 * Owner: conn. Thread: loop only.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/conn/conn_impl.h"

/* A handle is serial << SLOT_BITS | slot. */
#define SLOT_BITS 16
#define ROOM_MIN  8

static int table_grow(struct kvd_conn *conn)
{
    struct kvd_handle_table *table = &conn->handles;
    struct kvd_budget *budget = &conn->service->budget;

    if (table->room >= KVD_CONN_HANDLES_MAX) {
        return KVARN_ETOO_LARGE;
    }
    uint32_t room = table->room == 0 ? ROOM_MIN : table->room * 2;
    size_t more = (room - table->room) * sizeof(table->slots[0]);
    if (kvd_budget_charge(budget, KVD_BUDGET_CONNS, more) != 0) {
        return KVARN_ENOMEM;
    }
    void *slots = realloc(table->slots, room * sizeof(table->slots[0]));
    if (slots == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_CONNS, more);
        return KVARN_ENOMEM;
    }
    table->slots = slots;
    memset(&table->slots[table->room], 0, more);
    table->room = room;
    return 0;
}

int kvd_conn_handle_add(struct kvd_conn *conn, struct kvd_session *session, uint64_t *ret_handle)
{
    struct kvd_handle_table *table = &conn->handles;

    KVARN_ASSERT((uint64_t)KVD_CONN_HANDLES_MAX == UINT64_C(1) << SLOT_BITS);
    if (table->count == table->room) {
        int err = table_grow(conn);
        if (err != 0) {
            return err;
        }
    }
    uint32_t slot = table->search_from;
    while (table->slots[slot].handle != 0) {
        slot++;
        KVARN_ASSERT(slot < table->room);
    }
    table->serial++;
    table->slots[slot] = (struct kvd_handle_slot){
        .handle = table->serial << SLOT_BITS | slot, .session = kvd_session_ref(session)};
    table->search_from = slot + 1;
    table->count++;
    session->handle_count++;
    *ret_handle = table->slots[slot].handle;
    return 0;
}

static struct kvd_handle_slot *slot_find(const struct kvd_conn *conn, uint64_t handle)
{
    const struct kvd_handle_table *table = &conn->handles;
    uint32_t slot = (uint32_t)(handle & (KVD_CONN_HANDLES_MAX - 1));

    if (handle == 0 || slot >= table->room || table->slots[slot].handle != handle) {
        return NULL;
    }
    return &table->slots[slot];
}

struct kvd_session *kvd_conn_handle_find(const struct kvd_conn *conn, uint64_t handle)
{
    struct kvd_handle_slot *slot = slot_find(conn, handle);

    return slot == NULL ? NULL : slot->session;
}

static void slot_clear(struct kvd_conn *conn, struct kvd_handle_slot *slot)
{
    struct kvd_session *session = slot->session;

    KVARN_ASSERT(session->handle_count > 0 && conn->handles.count > 0);
    *slot = (struct kvd_handle_slot){0};
    conn->handles.count--;
    session->handle_count--;
    if (session->name == NULL && session->handle_count == 0) {
        kvd_session_table_drop(&conn->service->sessions, session);
    }
    kvd_session_unref(session);
}

bool kvd_conn_handle_remove(struct kvd_conn *conn, uint64_t handle)
{
    struct kvd_handle_slot *slot = slot_find(conn, handle);

    if (slot == NULL) {
        return false;
    }
    uint32_t idx = (uint32_t)(slot - conn->handles.slots);
    slot_clear(conn, slot);
    if (idx < conn->handles.search_from) {
        conn->handles.search_from = idx;
    }
    return true;
}

void kvd_conn_handles_fini(struct kvd_conn *conn)
{
    struct kvd_handle_table *table = &conn->handles;

    for (uint32_t i = 0; i < table->room; i++) {
        if (table->slots[i].handle != 0) {
            slot_clear(conn, &table->slots[i]);
        }
    }
    kvd_budget_release(
        &conn->service->budget, KVD_BUDGET_CONNS, table->room * sizeof(table->slots[0]));
    free(table->slots);
    *table = (struct kvd_handle_table){0};
}

struct kvd_prefix_lease_table *kvd_conn_leases(struct kvd_conn *conn)
{
    return &conn->leases;
}

/* Traces: a reader of the Mooncake format. */
#include "tests/bench/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/bench/trace_build.h"

#define ID_SLOTS_MIN 1024
#define ID_MAX       (UINT64_C(1) << 40)
#define TOKENS_MAX   (UINT64_C(1) << 30)

static void *grown(void *items, size_t *room, size_t count, size_t item_bytes)
{
    if (count < *room) {
        return items;
    }
    *room = *room == 0 ? 1024 : 2 * *room;
    void *more = realloc(items, *room * item_bytes);
    KVARN_ASSERT(more != NULL);
    return more;
}

void kvb_trace_add_request(struct kvb_trace *trace, uint64_t time_ns)
{
    trace->requests = grown(
        trace->requests, &trace->request_room, trace->request_count, sizeof(*trace->requests));
    trace->requests[trace->request_count++] =
        (struct kvb_trace_request){.time_ns = time_ns, .block_first = trace->block_count};
}

void kvb_trace_add_block(struct kvb_trace *trace, uint32_t id, uint32_t tokens)
{
    KVARN_ASSERT(trace->request_count > 0);
    trace->blocks =
        grown(trace->blocks, &trace->block_room, trace->block_count, sizeof(*trace->blocks));
    trace->blocks[trace->block_count++] = (struct kvb_trace_block){.id = id, .tokens = tokens};
    trace->requests[trace->request_count - 1].block_count++;
    trace->id_count = id >= trace->id_count ? id + 1 : trace->id_count;
}

/* Ids of the file -> 0, 1, ...: open addressing. */
struct id_table {
    uint64_t *names; /* owned: name + 1; 0: free */
    uint32_t *ids;   /* owned */
    size_t slots, count;
};

static uint32_t *id_slot(struct id_table *table, uint64_t name)
{
    size_t i = (size_t)(name * UINT64_C(0x9e3779b97f4a7c15) >> 20) % table->slots;

    while (table->names[i] != 0 && table->names[i] != name + 1) {
        i = (i + 1) % table->slots;
    }
    if (table->names[i] == 0) {
        table->names[i] = name + 1;
        table->ids[i] = (uint32_t)table->count++;
    }
    return &table->ids[i];
}

static void id_table_grow(struct id_table *table)
{
    struct id_table old = *table;

    table->slots = old.slots == 0 ? ID_SLOTS_MIN : 2 * old.slots;
    table->count = 0;
    table->names = calloc(table->slots, sizeof(*table->names));
    table->ids = calloc(table->slots, sizeof(*table->ids));
    KVARN_ASSERT(table->names != NULL && table->ids != NULL);
    for (size_t i = 0; i < old.slots; i++) {
        if (old.names[i] != 0) {
            *id_slot(table, old.names[i] - 1) = old.ids[i];
        }
    }
    free(old.names);
    free(old.ids);
}

static uint32_t id_of(struct id_table *table, uint64_t name)
{
    if (2 * table->count >= table->slots) {
        id_table_grow(table);
    }
    return *id_slot(table, name);
}

/* The value behind "name": in a line, or NULL. */
static const char *field_find(const char *line, const char *name)
{
    char quoted[32];

    (void)snprintf(quoted, sizeof(quoted), "\"%s\"", name);
    const char *at = strstr(line, quoted);
    at = at == NULL ? NULL : strchr(at + strlen(quoted), ':');
    return at == NULL ? NULL : at + 1;
}

static int number_take(const char **at, uint64_t max, uint64_t *ret)
{
    char *end;

    errno = 0;
    *ret = strtoull(*at, &end, 10);
    if (end == *at || errno != 0 || *ret > max) {
        return -1;
    }
    *at = end;
    return 0;
}

static uint32_t tokens_of(uint64_t tokens, size_t block_idx)
{
    uint64_t before = (uint64_t)block_idx * KVB_TRACE_BLOCK_TOKENS;
    uint64_t left = tokens > before ? tokens - before : 1;

    return (uint32_t)(left < KVB_TRACE_BLOCK_TOKENS ? left : KVB_TRACE_BLOCK_TOKENS);
}

/* Returns NULL, or what the line lacks. */
static const char *line_take(struct kvb_trace *trace, struct id_table *table, const char *line)
{
    const char *time_at = field_find(line, "timestamp");
    const char *tokens_at = field_find(line, "input_length");
    const char *ids_at = field_find(line, "hash_ids");
    uint64_t time_ms, tokens, name;

    if (time_at == NULL || number_take(&time_at, UINT64_MAX / 1000000, &time_ms) != 0) {
        return "a timestamp in ms";
    }
    if (tokens_at == NULL || number_take(&tokens_at, TOKENS_MAX, &tokens) != 0) {
        return "an input_length in tokens";
    }
    ids_at = ids_at == NULL ? NULL : strchr(ids_at, '[');
    if (ids_at == NULL) {
        return "a list hash_ids";
    }
    size_t request_idx = trace->request_count;
    uint64_t last_ns = request_idx == 0 ? 0 : trace->requests[request_idx - 1].time_ns;
    if (time_ms * 1000000 < last_ns) {
        return "timestamps that never fall";
    }
    kvb_trace_add_request(trace, time_ms * 1000000);
    for (ids_at++; number_take(&ids_at, ID_MAX, &name) == 0;) {
        size_t block_idx = trace->requests[request_idx].block_count;
        kvb_trace_add_block(trace, id_of(table, name), tokens_of(tokens, block_idx));
        ids_at += strspn(ids_at, ", ");
    }
    return *ids_at == ']' ? NULL : "a list of numbers as hash_ids";
}

int kvb_trace_read(const char *path, struct kvb_trace *ret)
{
    struct id_table table = {0};
    FILE *file = fopen(path, "re");
    const char *missing = NULL;
    char *line = NULL;
    size_t line_room = 0, line_idx = 0;

    if (file == NULL) {
        fprintf(stderr, "kvarn-bench: %s: %s\n", path, strerror(errno));
        return -1;
    }
    *ret = (struct kvb_trace){0};
    while (missing == NULL && getline(&line, &line_room, file) > 0) {
        line_idx++;
        missing = line_take(ret, &table, line);
    }
    if (missing != NULL) {
        fprintf(stderr, "kvarn-bench: %s:%zu: expected %s\n", path, line_idx, missing);
    } else if (ret->block_count == 0) {
        fprintf(stderr, "kvarn-bench: %s: expected requests, got none\n", path);
        missing = "requests";
    }
    free(line);
    free(table.names);
    free(table.ids);
    (void)fclose(file);
    if (missing != NULL) {
        kvb_trace_fini(ret);
        return -1;
    }
    return 0;
}

void kvb_trace_fini(struct kvb_trace *trace)
{
    free(trace->requests);
    free(trace->blocks);
    *trace = (struct kvb_trace){0};
}

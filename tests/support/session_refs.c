/* Who holds what, counted anew. */
#include "tests/support/session_refs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/base/assert.h"

#define PRINTED_MAX 5

enum ref_kind {
    REF_SPAN,
    REF_BLOCK,
    REF_PAGE,
};

/* One reference that somebody holds. */
struct kvt_ref {
    const void *object;
    enum ref_kind kind;
    uint32_t counted; /* by the daemon */
};

void kvt_refs_init(struct kvt_refs *refs)
{
    *refs = (struct kvt_refs){0};
}

void kvt_refs_fini(struct kvt_refs *refs)
{
    free(refs->refs);
}

static void add(struct kvt_refs *refs, const void *object, enum ref_kind kind, uint32_t counted)
{
    if (refs->count == refs->room) {
        refs->room = refs->room == 0 ? 1024 : 2 * refs->room;
        refs->refs = realloc(refs->refs, refs->room * sizeof(refs->refs[0]));
        KVARN_ASSERT(refs->refs != NULL);
    }
    refs->refs[refs->count++] =
        (struct kvt_ref){.object = object, .kind = kind, .counted = counted};
}

void kvt_refs_add_page(struct kvt_refs *refs, const struct kvd_page *page)
{
    if (page != NULL) {
        add(refs, page, REF_PAGE, page->refs);
    }
}

void kvt_refs_add_block(struct kvt_refs *refs, const struct kvd_block *block)
{
    if (block != NULL) {
        add(refs, block, REF_BLOCK, block->refs);
    }
}

void kvt_refs_add_session(struct kvt_refs *refs, const struct kvd_session *session)
{
    for (uint32_t i = 0; i < session->table.span_room; i++) {
        if (session->table.spans[i] != NULL) {
            add(refs, session->table.spans[i], REF_SPAN, session->table.spans[i]->refs);
        }
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint32_t spare = session->work == NULL ? 0 : session->work->layers[i].spare_rows;
        kvt_refs_add_page(refs, kvd_page_at(&session->service->pages, spare));
    }
}

static void index_walk_cb(void *ctx, const struct kvd_block *block)
{
    kvt_refs_add_block(ctx, block);
}

void kvt_refs_add_index(struct kvt_refs *refs, const struct kvd_prefix_index *index)
{
    kvd_prefix_index_walk(index, index_walk_cb, refs);
}

static int ref_compare(const void *a, const void *b)
{
    const struct kvt_ref *left = a, *right = b;
    uintptr_t l = (uintptr_t)left->object, r = (uintptr_t)right->object;

    if (left->kind != right->kind) {
        return left->kind < right->kind ? -1 : 1;
    }
    return l < r ? -1 : l > r;
}

/* What an object holds itself, once for each object. */
static void expand(struct kvt_refs *refs, const struct kvd_service *service, const void *object,
    enum ref_kind kind)
{
    if (kind == REF_SPAN) {
        const struct kvd_span *span = object;
        for (uint32_t i = 0; i < span->room; i++) {
            kvt_refs_add_block(refs, span->blocks[i]);
        }
    }
    if (kind == REF_BLOCK) {
        const struct kvd_block *block = object;
        for (uint32_t i = 0; i < block->layer_count; i++) {
            kvt_refs_add_page(refs, kvd_block_rows(&service->pages, block, i));
            kvt_refs_add_page(refs, kvd_block_tiles(&service->pages, block, i));
        }
    }
}

/* Count the references to each object of a kind; returns how many objects have another count. */
static unsigned check_kind(struct kvt_refs *refs, const struct kvd_service *service,
    enum ref_kind kind, size_t *ret_distinct)
{
    static const char *const names[] = {"span", "block", "page"};
    unsigned wrong = 0;
    size_t distinct = 0;

    if (refs->count > 0) {
        qsort(refs->refs, refs->count, sizeof(refs->refs[0]), ref_compare);
    }
    for (size_t i = 0, next, count = refs->count; i < count; i = next) {
        struct kvt_ref ref = refs->refs[i];
        for (next = i; next < count && refs->refs[next].object == ref.object; next++) {
        }
        if (ref.kind != kind) {
            continue;
        }
        distinct++;
        if (next - i != ref.counted && wrong++ < PRINTED_MAX) {
            printf("a %s has %zu references and counts %" PRIu32 "\n", names[kind], next - i,
                ref.counted);
        }
        expand(refs, service, ref.object, kind); /* added behind `count` */
    }
    *ret_distinct = distinct;
    return wrong;
}

unsigned kvt_refs_check(struct kvt_refs *refs, const struct kvd_service *service)
{
    size_t distinct;
    uint64_t pages = 0;
    unsigned wrong = check_kind(refs, service, REF_SPAN, &distinct);

    wrong += check_kind(refs, service, REF_BLOCK, &distinct);
    wrong += check_kind(refs, service, REF_PAGE, &refs->distinct_pages);
    for (size_t i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        pages += service->pages.classes[i].pages;
    }
    if (pages != refs->distinct_pages) {
        printf(
            "the store holds %" PRIu64 " pages, sessions hold %zu\n", pages, refs->distinct_pages);
        wrong++;
    }
    return wrong;
}

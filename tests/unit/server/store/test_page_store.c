/*
 * Tests of server/store/page_store.c: chunk sizes, order of filling, accounting, and a property
 * test that holds the store against a model of itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/store/page_store.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* A source that counts, and that says no when told to. */
struct fake_source {
    struct kvd_chunk_source base;
    size_t chunk_count;
    size_t chunk_bytes;
    uint32_t tenant_last;
    bool is_empty;
};

static void *fake_alloc(struct kvd_chunk_source *source, size_t bytes, uint32_t tenant_id)
{
    struct fake_source *self = (struct fake_source *)(void *)source;
    void *chunk = NULL;
    if (self->is_empty || posix_memalign(&chunk, bytes, bytes) != 0) {
        return NULL;
    }
    self->chunk_count++;
    self->chunk_bytes += bytes;
    self->tenant_last = tenant_id;
    return chunk;
}

static void fake_free(
    struct kvd_chunk_source *source, void *chunk, size_t bytes, uint32_t tenant_id)
{
    struct fake_source *self = (struct fake_source *)(void *)source;
    (void)tenant_id;
    assert_true(self->chunk_count > 0);
    self->chunk_count--;
    self->chunk_bytes -= bytes;
    free(chunk);
}

static void fake_destroy(struct kvd_chunk_source *source)
{
    (void)source;
}

struct fixture {
    struct kvd_budget budget;
    struct fake_source source;
    struct kvd_page_store store;
};

static void fixture_init(struct fixture *fx, uint64_t limit_bytes)
{
    memset(fx, 0, sizeof(*fx));
    kvd_budget_init(&fx->budget, limit_bytes);
    fx->source.base.chunk_alloc = fake_alloc;
    fx->source.base.chunk_free = fake_free;
    fx->source.base.destroy = fake_destroy;
    kvd_page_store_init(&fx->store, &fx->budget, &fx->source.base);
}

/* Nothing may be left behind anywhere. */
static void fixture_fini(struct fixture *fx)
{
    kvd_page_store_fini(&fx->store);
    assert_int_equal(fx->source.chunk_count, 0);
    assert_int_equal(fx->source.chunk_bytes, 0);
    assert_int_equal(fx->budget.used_bytes, 0);
}

static struct kvd_page *take(struct fixture *fx, uint32_t tenant_id, size_t bytes)
{
    struct kvd_page *page = NULL;
    assert_int_equal(kvd_page_take(&fx->store, tenant_id, bytes, KVD_PAGE_TILES, &page), 0);
    assert_non_null(page);
    return page;
}

/* Steps that are asked for, and the bytes that the source was told to give back before. */
struct steps {
    unsigned asked;
    size_t purged_bytes;
};
static struct steps steps;

static void steps_asked_cb(void *ctx)
{
    struct steps *self = ctx;
    self->asked++;
}

static void fake_purge(struct kvd_chunk_source *source, void *part, size_t bytes)
{
    (void)source;
    memset(part, 0, bytes);
    steps.purged_bytes += bytes;
}

/* Empty chunks go back in parts; one that its slab needs again meanwhile is used again. */
static void semantics_18_chunks_go_back_in_steps(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *pages[12];
    fixture_init(&fx, 64 * MIB);
    steps = (struct steps){0};
    fx.source.base.chunk_purge = fake_purge;
    fx.store.dying_cb = steps_asked_cb;
    fx.store.dying_ctx = &steps;
    for (unsigned i = 0; i < 12; i++) { /* three chunks of four pages */
        pages[i] = take(&fx, 1, 512 * KIB);
    }
    for (unsigned i = 0; i < 12; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    assert_int_equal(steps.asked, 2); /* a slab keeps one */
    assert_int_equal(fx.source.chunk_count, 3);
    assert_int_equal(fx.store.dying_bytes, 4 * MIB);
    for (unsigned i = 0; i < 4; i++) {
        kvd_page_store_purge_some(&fx.store);
        assert_int_equal(steps.purged_bytes, (i + 1) * 512 * KIB);
        assert_int_equal(fx.source.chunk_count, 3);
    }
    kvd_page_store_purge_some(&fx.store); /* the rest of it */
    assert_int_equal(fx.source.chunk_count, 2);
    for (unsigned i = 0; i < 5; i++) { /* the one that was kept, and the one on its way out */
        pages[i] = take(&fx, 1, 512 * KIB);
        memset(kvd_page_data(pages[i]), 1, 512 * KIB);
    }
    assert_false(kvd_page_store_has_dying(&fx.store));
    assert_int_equal(fx.source.chunk_count, 2);
    for (unsigned i = 0; i < 5; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    assert_true(kvd_page_store_has_dying(&fx.store));
    assert_int_equal(
        kvd_page_store_reclaim(&fx.store, 1) / MIB, 2); /* who needs it waits for none */
    assert_false(kvd_page_store_has_dying(&fx.store));
    fixture_fini(&fx);
}

static void semantics_06_chunk_size_wastes_one_percent(void **state)
{
    (void)state;
    /* An exact divisor needs no more than the smallest. */
    assert_int_equal(kvd_chunk_bytes_for(512 * KIB), 2 * MIB);
    assert_int_equal(kvd_chunk_bytes_for(64), 2 * MIB);
    /* 77,824 B (8 heads of 9,728 B): 3.5 % of 2 MiB, 1.6 % of 4 MiB, 0.7 % of 8 MiB. */
    assert_int_equal(kvd_chunk_bytes_for(77824), 8 * MIB);
    /* 3 MiB: 33 %, 25 %, 25 %, 6 %: the best is not good, but it is the best. */
    assert_int_equal(kvd_chunk_bytes_for(3 * MIB), 16 * MIB);
    assert_int_equal(kvd_chunk_bytes_for(16 * MIB), 16 * MIB);
    /* Larger pages have a chunk each. */
    assert_int_equal(kvd_chunk_bytes_for(16 * MIB + 1), 32 * MIB);
    assert_int_equal(kvd_chunk_bytes_for(64 * MIB), 64 * MIB);
}

static void semantics_06_chunk_size_is_the_smallest_that_fits(void **state)
{
    (void)state;
    for (size_t page = 64; page <= 4 * MIB; page = page * 9 / 8 / 64 * 64 + 64) {
        size_t got = kvd_chunk_bytes_for(page);
        double got_waste = (double)(got % page) / (double)got;
        for (size_t bytes = 2 * MIB; bytes <= 16 * MIB; bytes *= 2) {
            if (bytes < page) {
                continue;
            }
            double waste = (double)(bytes % page) / (double)bytes;
            if (bytes < got) {
                assert_true(waste > 0.01 - 1e-6);
            }
            if (got_waste > 0.01) {
                assert_true(got_waste <= waste + 1e-12);
            }
        }
    }
}

static void pages_are_counted_by_class(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *tiles = NULL;
    struct kvd_page *tail = NULL;
    fixture_init(&fx, 64 * MIB);
    assert_int_equal(kvd_page_take(&fx.store, 1, 1000, KVD_PAGE_TILES, &tiles), 0);
    assert_int_equal(kvd_page_take(&fx.store, 1, 4096, KVD_PAGE_TAIL, &tail), 0);
    assert_int_equal(kvd_page_bytes(tiles), 1000);
    assert_int_equal(tiles->refs, 1);
    assert_int_equal(fx.store.classes[KVD_PAGE_TILES].pages, 1);
    assert_int_equal(fx.store.classes[KVD_PAGE_TILES].bytes, 1000);
    assert_int_equal(fx.store.classes[KVD_PAGE_TAIL].bytes, 4096);
    assert_int_equal(fx.store.classes[KVD_PAGE_SINK].pages, 0);

    assert_ptr_equal(kvd_page_ref(tiles), tiles);
    kvd_page_unref(&fx.store, tiles);
    assert_int_equal(fx.store.classes[KVD_PAGE_TILES].pages, 1);
    kvd_page_unref(&fx.store, tiles);
    assert_int_equal(fx.store.classes[KVD_PAGE_TILES].pages, 0);
    assert_int_equal(fx.store.classes[KVD_PAGE_TILES].bytes, 0);
    kvd_page_unref(&fx.store, NULL);
    kvd_page_unref(&fx.store, tail);
    fixture_fini(&fx);
}

static void semantics_26_a_taken_page_looks_new(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, 64 * MIB);
    struct kvd_page *page = take(&fx, 1, 4096);
    kvd_page_set_checksum(page, UINT64_MAX);
    kvd_page_set_encoder(page, KVARN_ENCODER_REFINED);
    assert_int_equal(kvd_page_want_version(&fx.store, page), 0);
    kvd_page_set_version(page, 9);
    assert_true(kvd_page_checksum(page) == KVD_PAGE_CHECK_MASK);
    assert_int_equal(page->encoder, KVARN_ENCODER_REFINED);
    assert_int_equal(page->refs, 1);
    assert_int_equal(kvd_page_version(page), 9);
    kvd_page_unref(&fx.store, page);
    struct kvd_page *again = take(&fx, 1, 4096);
    assert_ptr_equal(again, page);
    assert_int_equal(kvd_page_checksum(again), 0);
    assert_int_equal(kvd_page_filled(again), 0);
    assert_int_equal(again->encoder, 0);
    assert_int_equal(kvd_page_version(again), 0);
    kvd_page_unref(&fx.store, again);
    fixture_fini(&fx);
}

#ifdef HAS_ASAN
static void free_slots_are_poisoned(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, 64 * MIB);
    struct kvd_page *a = take(&fx, 1, 1000);
    struct kvd_page *b = take(&fx, 1, 1000);
    char *data = kvd_page_data(b);
    assert_null(__asan_region_is_poisoned(data, 1000));
    assert_ptr_equal(__asan_region_is_poisoned(data, 1001), data + 1000); /* past the page */
    kvd_page_unref(&fx.store, b);
    assert_ptr_equal(__asan_region_is_poisoned(data, 1000), data);
    assert_null(__asan_region_is_poisoned(kvd_page_data(a), 1000));
    kvd_page_unref(&fx.store, a);
    fixture_fini(&fx);
}
#endif

static void semantics_26_tenants_never_share_a_chunk(void **state)
{
    (void)state;
    /* More tenants than there are buckets, so that some meet in one. */
    enum { TENANTS = KVD_SLAB_BUCKETS + 16 };
    struct fixture fx;
    struct kvd_page *pages[TENANTS];
    fixture_init(&fx, 256 * MIB);
    for (uint32_t i = 0; i < TENANTS; i++) {
        pages[i] = take(&fx, i, 4096);
        assert_int_equal(fx.source.tenant_last, i);
        assert_int_equal(fx.source.chunk_count, i + 1);
    }
    for (size_t i = 0; i < TENANTS; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    fixture_fini(&fx);
}

static void lowest_slot_is_taken_first(void **state)
{
    (void)state;
    enum { SLOTS = 2048 }; /* of 1 KiB: one chunk, 32 words of its bitmap */
    static struct kvd_page *pages[SLOTS];
    static const uint32_t holes[] = {2047, 1000, 64, 63, 3};
    struct fixture fx;
    fixture_init(&fx, 64 * MIB);
    for (uint32_t i = 0; i < SLOTS; i++) {
        pages[i] = take(&fx, 1, KIB);
        assert_int_equal(
            (uintptr_t)kvd_page_data(pages[i]) - (uintptr_t)kvd_page_data(pages[0]), i * KIB);
    }
    assert_int_equal(fx.source.chunk_count, 1);
    for (size_t i = 0; i < 5; i++) {
        kvd_page_unref(&fx.store, pages[holes[i]]);
    }
    for (size_t i = 5; i-- > 0;) {
        assert_ptr_equal(take(&fx, 1, KIB), pages[holes[i]]);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    fixture_fini(&fx);
}

static void semantics_05_limit_refuses_and_leaves_no_trace(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *page = NULL;
    fixture_init(&fx, 2 * MIB); /* a chunk, but not its descriptors */
    assert_int_equal(kvd_page_take(&fx.store, 1, MIB, KVD_PAGE_TAIL, &page), KVARN_ENOSPC);
    assert_null(page);
    assert_int_equal(fx.budget.used_bytes, 0);
    fixture_fini(&fx);

    fixture_init(&fx, 3 * MIB);
    fx.source.is_empty = true; /* the system says no */
    assert_int_equal(kvd_page_take(&fx.store, 1, MIB, KVD_PAGE_TAIL, &page), KVARN_ENOSPC);
    assert_null(page);
    assert_int_equal(fx.budget.used_bytes, 0);
    fx.source.is_empty = false;
    struct kvd_page *a = take(&fx, 1, MIB);
    struct kvd_page *b = take(&fx, 1, MIB);
    assert_int_equal(kvd_page_take(&fx.store, 1, MIB, KVD_PAGE_TAIL, &page), KVARN_ENOSPC);
    assert_null(page);
    assert_int_equal(fx.store.chunk_count, 1);
    kvd_page_unref(&fx.store, a);
    kvd_page_unref(&fx.store, b);
    fixture_fini(&fx);
}

static void semantics_27_chunks_come_from_and_return_to_the_source(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *pages[6];
    fixture_init(&fx, 64 * MIB);
    for (size_t i = 0; i < 6; i++) {
        pages[i] = take(&fx, 1, MIB); /* two a chunk */
    }
    assert_int_equal(fx.source.chunk_count, 3);
    assert_int_equal(fx.store.chunk_bytes, 6 * MIB);
    assert_int_equal(fx.budget.kind_bytes[KVD_BUDGET_CHUNKS], 6 * MIB);
    for (size_t i = 0; i < 6; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    /* One is kept, charged, and nobody is refused because of it. */
    assert_int_equal(fx.source.chunk_count, 1);
    assert_int_equal(fx.budget.kind_bytes[KVD_BUDGET_CHUNKS], 2 * MIB);
    assert_int_equal(kvd_budget_charge(&fx.budget, KVD_BUDGET_STAGING, 64 * MIB), 0);
    assert_int_equal(fx.source.chunk_count, 0);
    assert_int_equal(fx.store.chunk_count, 0);
    kvd_budget_release(&fx.budget, KVD_BUDGET_STAGING, 64 * MIB);
    fixture_fini(&fx);
}

static void a_kept_chunk_makes_room_for_another_size(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, 4 * MIB); /* a chunk of 64-byte pages has 1.5 MiB of descriptors */
    for (uint32_t i = 1; i <= 200; i++) {
        struct kvd_page *page = take(&fx, i % 3, 64 * i);
        assert_int_equal(fx.source.chunk_count, 1);
        kvd_page_unref(&fx.store, page);
    }
    fixture_fini(&fx);
}

static void lowest_chunk_is_filled_first(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *pages[8];
    fixture_init(&fx, 64 * MIB);
    for (size_t i = 0; i < 8; i++) {
        pages[i] = take(&fx, 1, MIB);
    }
    /* Free one page of every chunk, then the next takes go upwards. */
    uintptr_t data_last = 0;
    for (size_t i = 0; i < 8; i += 2) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    for (size_t i = 0; i < 8; i += 2) {
        pages[i] = take(&fx, 1, MIB);
        assert_true((uintptr_t)kvd_page_data(pages[i]) > data_last);
        data_last = (uintptr_t)kvd_page_data(pages[i]);
    }
    assert_int_equal(fx.source.chunk_count, 4);
    for (size_t i = 0; i < 8; i++) {
        kvd_page_unref(&fx.store, pages[i]);
    }
    fixture_fini(&fx);
}

/* A page that is moved is the same one but for its place; without room for its version it stays. */
static void a_moved_page_keeps_what_is_said_of_it(void **state)
{
    (void)state;
    struct fixture fx;
    struct kvd_page *pages[4];
    fixture_init(&fx, 64 * MIB);
    for (size_t i = 0; i < 4; i++) {
        pages[i] = take(&fx, 1, MIB); /* two a chunk */
    }
    kvd_page_unref(&fx.store, pages[1]);
    kvd_page_unref(&fx.store, pages[3]);
    assert_true(kvd_page_store_thin(&fx.store));
    struct kvd_page *page = kvd_page_is_leaving(pages[0]) ? pages[0] : pages[2];
    struct kvd_page *other = page == pages[0] ? pages[2] : pages[0];
    assert_true(kvd_page_is_leaving(page) && !kvd_page_is_leaving(other));
    memset(kvd_page_data(page), 7, MIB);
    kvd_page_set_checksum(page, UINT64_C(0x123456789));
    kvd_page_set_encoder(page, KVARN_ENCODER_AWARE);
    assert_int_equal(kvd_page_want_version(&fx.store, page), 0);
    kvd_page_set_version(page, 41);
    uint32_t id = kvd_page_id(page);
    uint64_t limit = fx.budget.limit_bytes;
    fx.budget.limit_bytes = fx.budget.used_bytes;
    assert_null(kvd_page_move(&fx.store, page));
    assert_ptr_equal(kvd_page_at(&fx.store, id), page);
    fx.budget.limit_bytes = limit;
    struct kvd_page *to = kvd_page_move(&fx.store, page);
    assert_non_null(to);
    assert_int_not_equal(kvd_page_id(to), id);
    assert_true(kvd_page_checksum(to) == UINT64_C(0x123456789));
    assert_int_equal(to->encoder, KVARN_ENCODER_AWARE);
    assert_int_equal(to->refs, 1);
    assert_int_equal(kvd_page_version(to), 41);
    assert_int_equal(kvd_page_version(other), 0);
    assert_int_equal(((uint8_t *)kvd_page_data(to))[MIB - 1], 7);
    assert_int_equal(fx.source.chunk_count, 1);
    kvd_page_unref(&fx.store, to);
    kvd_page_unref(&fx.store, other);
    fixture_fini(&fx);
}

/* The model: what is taken, with a mark of its own in the first and last bytes of every page. */
enum { MODEL_PAGES = 600, MODEL_SIZES = 6, MODEL_STEPS = 60000 };
struct model_page {
    struct kvd_page *page; /* NULL: none here */
    uint32_t refs;
    uint32_t version;
    uint32_t mark;
};
struct model {
    struct fixture fx;
    struct model_page pages[MODEL_PAGES];
    struct kvd_page_class_stats classes[KVD_PAGE_CLASS_COUNT];
    uint64_t rng;
    uint32_t mark_last;
    uint32_t refused_count;
};
static const size_t model_sizes[MODEL_SIZES] = {64, 1000, 9728, 77824, 524288, 3145728};

static uint32_t model_random(struct model *model, uint32_t below)
{
    model->rng = model->rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(model->rng >> 33) % below;
}

static void mark_write(const struct model_page *mp)
{
    size_t bytes = kvd_page_bytes(mp->page);
    memcpy(kvd_page_data(mp->page), &mp->mark, sizeof(mp->mark));
    memcpy((char *)kvd_page_data(mp->page) + bytes - sizeof(mp->mark), &mp->mark, sizeof(mp->mark));
}

static void mark_check(const struct model *model, const struct model_page *mp)
{
    size_t bytes = kvd_page_bytes(mp->page);
    assert_memory_equal(kvd_page_data(mp->page), &mp->mark, sizeof(mp->mark));
    assert_memory_equal(
        (char *)kvd_page_data(mp->page) + bytes - sizeof(mp->mark), &mp->mark, sizeof(mp->mark));
    assert_int_equal(mp->page->refs, mp->refs);
    assert_ptr_equal(kvd_page_at(&model->fx.store, kvd_page_id(mp->page)), mp->page);
    assert_int_equal(kvd_page_version(mp->page), mp->version);
    if (mp->page->page_class == KVD_PAGE_TILES) {
        assert_true(
            kvd_page_checksum_matches(kvd_page_checksum(mp->page), (uint64_t)mp->mark << 20));
    } else {
        assert_int_equal(kvd_page_filled(mp->page), (uint32_t)mp->mark);
    }
}

/* What the descriptor says of a page, and for one in three the version of a metric. */
static void model_describe(struct model *model, struct model_page *mp)
{
    if (mp->page->page_class == KVD_PAGE_TILES) {
        kvd_page_set_checksum(mp->page, (uint64_t)mp->mark << 20);
    } else {
        kvd_page_set_filled(mp->page, (uint32_t)mp->mark);
    }
    mp->version = 0;
    if (model_random(model, 3) == 0 && kvd_page_want_version(&model->fx.store, mp->page) == 0) {
        mp->version = (uint32_t)mp->mark;
        kvd_page_set_version(mp->page, mp->version);
    }
}

static void model_take(struct model *model, struct model_page *mp)
{
    size_t bytes = model_sizes[model_random(model, MODEL_SIZES)];
    uint32_t tenant_id = 1 + model_random(model, 2);
    enum kvd_page_class page_class = model_random(model, KVD_PAGE_CLASS_COUNT);
    uint64_t used_before = model->fx.budget.used_bytes;
    int err = kvd_page_take(&model->fx.store, tenant_id, bytes, page_class, &mp->page);
    if (err != 0) {
        assert_int_equal(err, KVARN_ENOSPC);
        assert_null(mp->page);
        assert_true(model->fx.budget.used_bytes <= used_before);
        model->refused_count++;
        return;
    }
    assert_int_equal((uintptr_t)kvd_page_data(mp->page) % 64, 0);
    assert_int_equal(kvd_page_bytes(mp->page), bytes);
    mp->refs = 1;
    mp->mark = ++model->mark_last;
    mark_write(mp);
    model_describe(model, mp);
    model->classes[page_class].pages++;
    model->classes[page_class].bytes += bytes;
}

static void model_unref(struct model *model, struct model_page *mp)
{
    mark_check(model, mp);
    if (--mp->refs == 0) {
        model->classes[mp->page->page_class].pages--;
        model->classes[mp->page->page_class].bytes -= kvd_page_bytes(mp->page);
    }
    kvd_page_unref(&model->fx.store, mp->page);
    if (mp->refs == 0) {
        mp->page = NULL;
    }
}

static void model_check(const struct model *model)
{
    const struct kvd_budget *budget = &model->fx.budget;
    uint64_t sum = 0;
    assert_memory_equal(model->fx.store.classes, model->classes, sizeof(model->classes));
    assert_int_equal(model->fx.store.chunk_bytes, model->fx.source.chunk_bytes);
    assert_int_equal(model->fx.store.chunk_count, model->fx.source.chunk_count);
    assert_int_equal(budget->kind_bytes[KVD_BUDGET_CHUNKS], model->fx.source.chunk_bytes);
    for (size_t i = 0; i < KVD_BUDGET_KIND_COUNT; i++) {
        sum += budget->kind_bytes[i];
    }
    assert_int_equal(sum, budget->used_bytes);
    assert_true(budget->used_bytes <= budget->limit_bytes);
}

/* No two pages overlap: sort by address, then look at neighbours. */
static int page_compare(const void *a, const void *b)
{
    const struct model_page *pa = a;
    const struct model_page *pb = b;
    uintptr_t da = pa->page != NULL ? (uintptr_t)kvd_page_data(pa->page) : UINTPTR_MAX;
    uintptr_t db = pb->page != NULL ? (uintptr_t)kvd_page_data(pb->page) : UINTPTR_MAX;
    return (da > db) - (da < db);
}

static void model_check_overlap(const struct model *model)
{
    static struct model_page sorted[MODEL_PAGES];
    memcpy(sorted, model->pages, sizeof(sorted));
    qsort(sorted, MODEL_PAGES, sizeof(sorted[0]), page_compare);
    for (size_t i = 0; i + 1 < MODEL_PAGES && sorted[i + 1].page != NULL; i++) {
        uintptr_t end = (uintptr_t)kvd_page_data(sorted[i].page) + kvd_page_bytes(sorted[i].page);
        assert_true(end <= (uintptr_t)kvd_page_data(sorted[i + 1].page));
    }
}

static void property_store_agrees_with_a_model(void **state)
{
    (void)state;
    static struct model model;
    memset(&model, 0, sizeof(model));
    fixture_init(&model.fx, 160 * MIB);
    model.rng = 20261124;
    for (uint32_t step = 0; step < MODEL_STEPS; step++) {
        /* Tides: the store fills up to its limit and runs empty again, several times. */
        uint32_t take_percent = (step / 10000) % 2 == 0 ? 70 : 30;
        struct model_page *mp = &model.pages[model_random(&model, MODEL_PAGES)];
        if (mp->page == NULL) {
            if (model_random(&model, 100) < take_percent) {
                model_take(&model, mp);
            }
        } else if (model_random(&model, 100) < take_percent / 2) {
            assert_ptr_equal(kvd_page_ref(mp->page), mp->page);
            mp->refs++;
        } else {
            model_unref(&model, mp);
        }
        model_check(&model);
        if (step % 1000 == 0) {
            model_check_overlap(&model);
        }
    }
    assert_true(model.refused_count > 0); /* the limit was met */
    for (size_t i = 0; i < MODEL_PAGES; i++) {
        while (model.pages[i].page != NULL) {
            model_unref(&model, &model.pages[i]);
        }
    }
    model_check(&model);
    /* At most one kept chunk per slab. */
    assert_true(model.fx.source.chunk_count <= MODEL_SIZES * 2);
    fixture_fini(&model.fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_18_chunks_go_back_in_steps),
        cmocka_unit_test(semantics_06_chunk_size_wastes_one_percent),
        cmocka_unit_test(semantics_06_chunk_size_is_the_smallest_that_fits),
        cmocka_unit_test(pages_are_counted_by_class),
        cmocka_unit_test(semantics_26_a_taken_page_looks_new),
#ifdef HAS_ASAN
        cmocka_unit_test(free_slots_are_poisoned),
#endif
        cmocka_unit_test(semantics_26_tenants_never_share_a_chunk),
        cmocka_unit_test(semantics_05_limit_refuses_and_leaves_no_trace),
        cmocka_unit_test(semantics_27_chunks_come_from_and_return_to_the_source),
        cmocka_unit_test(a_kept_chunk_makes_room_for_another_size),
        cmocka_unit_test(lowest_chunk_is_filled_first),
        cmocka_unit_test(lowest_slot_is_taken_first),
        cmocka_unit_test(a_moved_page_keeps_what_is_said_of_it),
        cmocka_unit_test(property_store_agrees_with_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

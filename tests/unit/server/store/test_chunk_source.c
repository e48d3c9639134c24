/*
 * Tests of server/store/chunk_source.c: alignment, no core dumps of user text, memory that goes
 * back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/malloc_conf.h"
#include "server/store/chunk_source.h"

#if defined(KVARND_JEMALLOC) && KVARND_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

#define MIB ((size_t)1 << 20)

/* What /proc/self/smaps says of the mapping that holds `addr`: is it left out of core dumps? */
static bool is_dontdump(const void *addr)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    assert_non_null(maps);
    char line[512];
    bool is_here = false;
    bool seen = false;
    bool result = false;
    while (!seen && fgets(line, sizeof(line), maps) != NULL) {
        unsigned long first = 0;
        unsigned long last = 0;
        if (sscanf(line, "%lx-%lx ", &first, &last) == 2) {
            is_here = (uintptr_t)addr >= first && (uintptr_t)addr < last;
        } else if (is_here && strncmp(line, "VmFlags:", 8) == 0) {
            seen = true;
            result = strstr(line, " dd") != NULL;
        }
    }
    (void)fclose(maps);
    assert_true(seen);
    return result;
}

static void semantics_26_chunks_stay_out_of_core_dumps(void **state)
{
    (void)state;
    struct kvd_chunk_source *source = NULL;
    assert_int_equal(kvd_chunk_source_default_create(&source), 0);
    unsigned char *chunk = source->chunk_alloc(source, 2 * MIB, 1);
    assert_non_null(chunk);
    assert_true(is_dontdump(chunk));
    assert_true(is_dontdump(chunk + 2 * MIB - 1));
    int on_stack = 0;
    assert_false(is_dontdump(&on_stack)); /* the check can fail */
    source->chunk_free(source, chunk, 2 * MIB, 1);
    source->destroy(source);
}

static void semantics_27_chunks_are_aligned_to_their_size(void **state)
{
    (void)state;
    struct kvd_chunk_source *source = NULL;
    unsigned char *chunks[12];
    assert_int_equal(kvd_chunk_source_default_create(&source), 0);
    for (size_t i = 0; i < 12; i++) {
        size_t bytes = (2 * MIB) << (i % 4);
        chunks[i] = source->chunk_alloc(source, bytes, (uint32_t)i);
        assert_non_null(chunks[i]);
        assert_int_equal((uintptr_t)chunks[i] % bytes, 0);
        chunks[i][0] = (unsigned char)i;
        chunks[i][bytes - 1] = (unsigned char)i;
    }
    for (size_t i = 0; i < 12; i++) {
        size_t bytes = (2 * MIB) << (i % 4);
        assert_int_equal(chunks[i][0], i);
        assert_int_equal(chunks[i][bytes - 1], i);
        source->chunk_free(source, chunks[i], bytes, (uint32_t)i);
    }
    source->destroy(source);
}

#if defined(KVARND_JEMALLOC) && KVARND_JEMALLOC
static size_t read_size(const char *name)
{
    size_t value = 0;
    size_t bytes = sizeof(value);
    assert_int_equal(mallctl(name, &value, &bytes, NULL, 0), 0);
    return value;
}

static ssize_t read_ssize(const char *name)
{
    ssize_t value = 0;
    size_t bytes = sizeof(value);
    assert_int_equal(mallctl(name, &value, &bytes, NULL, 0), 0);
    return value;
}

static void jemalloc_reads_the_settings(void **state)
{
    (void)state;
    if (getenv("MALLOC_CONF") != NULL) {
        skip();
    }
    assert_non_null(strstr(kvd_malloc_conf_text(), "background_thread:true"));
    assert_int_equal(read_size("opt.lg_extent_max_active_fit"), 20);
    assert_int_equal(read_ssize("opt.dirty_decay_ms"), 1000);
    assert_int_equal(read_ssize("opt.muzzy_decay_ms"), 0);
    bool value = false;
    size_t bytes = sizeof(value);
    assert_int_equal(mallctl("opt.background_thread", &value, &bytes, NULL, 0), 0);
    assert_true(value);
    value = false;
    assert_int_equal(mallctl("opt.abort_conf", &value, &bytes, NULL, 0), 0);
    assert_true(value);
}

/* More than the address space of a process. Not for sanitizers' malloc, which aborts at it. */
static void no_memory_is_not_a_crash(void **state)
{
    (void)state;
    struct kvd_chunk_source *source = NULL;
    assert_int_equal(kvd_chunk_source_default_create(&source), 0);
    assert_null(source->chunk_alloc(source, (size_t)1 << 50, 1));
    source->destroy(source);
}

static size_t mapping_count(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    size_t count = 0;
    int c;
    while ((c = fgetc(maps)) != EOF) {
        count += c == '\n';
    }
    (void)fclose(maps);
    return count;
}

/* The system limits mappings, so their number must not grow with the number of chunks. */
static void semantics_26_marks_do_not_cost_a_mapping_a_chunk(void **state)
{
    (void)state;
    enum { COUNT = 256 };
    struct kvd_chunk_source *source = NULL;
    static void *chunks[COUNT];
    assert_int_equal(kvd_chunk_source_default_create(&source), 0);
    size_t count_before = mapping_count();
    for (size_t i = 0; i < COUNT; i++) {
        chunks[i] = source->chunk_alloc(source, 2 * MIB, 1);
        assert_non_null(chunks[i]);
        assert_true(is_dontdump(chunks[i]));
    }
    for (size_t i = 0; i < COUNT; i += 2) {
        source->chunk_free(source, chunks[i], 2 * MIB, 1);
    }
    assert_true(mapping_count() < count_before + COUNT / 4);
    for (size_t i = 1; i < COUNT; i += 2) {
        source->chunk_free(source, chunks[i], 2 * MIB, 1);
    }
    source->destroy(source);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_26_chunks_stay_out_of_core_dumps),
        cmocka_unit_test(semantics_27_chunks_are_aligned_to_their_size),
#if defined(KVARND_JEMALLOC) && KVARND_JEMALLOC
        cmocka_unit_test(jemalloc_reads_the_settings),
        cmocka_unit_test(no_memory_is_not_a_crash),
        cmocka_unit_test(semantics_26_marks_do_not_cost_a_mapping_a_chunk),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

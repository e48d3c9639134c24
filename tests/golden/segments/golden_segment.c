/*
 * Golden segments: files of each layout version, as the daemon of that version wrote them, are read
 * exactly (PROMISES.md P18).
 *
 * usage: golden_segment FOLDER         opens a tier on the files of the folder and checks all of it
 *        golden_segment FOLDER --make  writes them: for a new layout version, never for an old one
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment_format.h"
#include "tests/support/cold_rig.h"

#define FILE_BYTES_MAX 65536

/* What the files hold: two pages, a map that was replaced, one that holds, one that was buried. */
static const struct {
    enum kvd_cold_type type;
    uint64_t id, version;
    size_t bytes;
    bool is_found;
} RECORDS[] = {
    {KVD_COLD_SHAPE, 11, 1, 40, true},
    {KVD_COLD_SESSION, 21, 1, 60, true},
    {KVD_COLD_PAGE, 31, 1, 5000, true},
    {KVD_COLD_PAGE, 32, 1, 100, true},
    {KVD_COLD_MAP, 21, 1, 80, false},
    {KVD_COLD_MAP, 21, 2, 90, true},
    {KVD_COLD_MAP, 22, 1, 80, false},
    {KVD_COLD_TOMBSTONE, 22, 1, 0, false},
};

enum { RECORD_COUNT = sizeof(RECORDS) / sizeof(RECORDS[0]) };

static void file_write(const char *folder, const char *name, const uint8_t *data, size_t bytes)
{
    char path[512];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    KVARN_ASSERT(file != NULL && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0);
}

/* The first half sealed by a clean stop, the rest in an open segment. */
static int make(const char *folder)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    size_t bytes = 0;

    for (unsigned half = 0; half < 2; half++) {
        kvt_cold_start(&rig, disk, &options, half + 1);
        KVARN_ASSERT(rig.err == 0);
        for (unsigned i = half * RECORD_COUNT / 2; i < (half + 1) * RECORD_COUNT / 2; i++) {
            struct kvd_cold_record *record;
            int err = kvt_cold_put_wait(&rig, RECORDS[i].type, RECORDS[i].id, RECORDS[i].version,
                RECORDS[i].bytes, &record);
            KVARN_ASSERT(err == 0);
        }
        if (half == 0) {
            kvt_cold_stop(&rig);
        }
    }
    const uint8_t *sealed = kvd_fake_disk_data(disk, "/cold/0000000000000001.kvs", &bytes);
    KVARN_ASSERT(sealed != NULL);
    file_write(folder, "0000000000000001.kvs", sealed, bytes);
    const uint8_t *open = kvd_fake_disk_data(disk, "/cold/0000000000000002.kvs", &bytes);
    KVARN_ASSERT(open != NULL);
    file_write(folder, "0000000000000002.kvs", open, bytes);
    kvt_cold_crash(&rig);
    kvd_fake_disk_destroy(disk);
    return 0;
}

struct look {
    struct kvt_cold_rig rig;
    unsigned found[RECORD_COUNT];
    unsigned wrong;
};

static void each_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    struct look *look = ctx;
    struct kvt_cold_head head;

    if (kvt_cold_check(&look->rig, record, &head) != 0) {
        look->wrong++;
        return;
    }
    for (unsigned i = 0; i < RECORD_COUNT; i++) {
        if (RECORDS[i].type == info->type && RECORDS[i].id == head.id &&
            RECORDS[i].version == head.version && RECORDS[i].bytes == head.bytes) {
            look->found[i]++;
        }
    }
}

static void file_load(struct kvd_fake_disk *disk, const char *folder, const char *name)
{
    static uint8_t data[FILE_BYTES_MAX + 1];
    char path[512];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    KVARN_ASSERT(file != NULL);
    size_t bytes = fread(data, 1, sizeof(data), file);
    KVARN_ASSERT(bytes > 0 && bytes <= FILE_BYTES_MAX && fclose(file) == 0);
    (void)snprintf(path, sizeof(path), "/cold/%s", name);
    kvd_fake_disk_put(disk, path, data, bytes);
}

static int check(const char *folder)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct look look = {0};

    file_load(disk, folder, "0000000000000001.kvs");
    file_load(disk, folder, "0000000000000002.kvs");
    kvt_cold_start(&look.rig, disk, &options, 9);
    KVARN_ASSERT(look.rig.err == 0);
    bool is_good = look.rig.found.segments == 2 && look.rig.found.scanned_segments == 1 &&
                   look.rig.found.damaged == 0 && !look.rig.found.is_suspect;
    look.rig.cold->ops->each(look.rig.cold, each_cb, &look);
    for (unsigned i = 0; i < RECORD_COUNT; i++) {
        look.wrong += look.found[i] == (RECORDS[i].is_found ? 1u : 0u) ? 0 : 1;
    }
    kvt_cold_crash(&look.rig);
    kvd_fake_disk_destroy(disk);
    printf("golden segments %s: %d records expected, wrong = %u\n", folder, (int)RECORD_COUNT,
        look.wrong);
    return is_good && look.wrong == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: golden_segment FOLDER [--make]\n");
        return 2;
    }
    return argc > 2 && strcmp(argv[2], "--make") == 0 ? make(argv[1]) : check(argv[1]);
}

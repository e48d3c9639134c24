/*
 * The cold tier against an oracle: power cuts at every operation with unsynced blocks lost in any
 * mixture, torn tails, every bit of a segment flipped, sectors zeroed, a disk that fails.
 *
 * usage: sim_cold [cuts|tails|bits|sectors|faults] [SEED] [ROUNDS] [log]
 *
 * Prints what it tried; exit 1 unless nothing was wrong and nothing came back.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/sim/cold_oracle.h"
#include "tests/support/rng.h"

#define STEPS 400
/* Enough for a segment and the start of another. */
#define DAMAGE_STEPS 70
/* Each bit of each byte has its turn somewhere; scan_bits tries them all on the scan alone. */
#define BIT_STEP 97

/* A workload that ran on a disk of its own. */
struct run {
    struct kvd_fake_disk *disk;
    struct kvt_cold_rig rig;
    struct kvt_oracle oracle;
};

static struct run *run_create(uint64_t seed, unsigned steps, unsigned fault_permille)
{
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct run *run = calloc(1, sizeof(*run));
    struct kvt_rng rng = {seed};

    KVARN_ASSERT(run != NULL);
    run->disk = kvd_fake_disk_create();
    kvt_cold_start(&run->rig, run->disk, &options, seed);
    KVARN_ASSERT(run->rig.err == 0);
    kvd_io_fake_shuffle_files(run->rig.fake, seed);
    if (fault_permille > 0) {
        int err = seed % 2 == 0 ? KVARN_EIO : KVARN_ENOSPC;
        kvd_fake_disk_fail_rate(run->disk, fault_permille, err, seed);
    }
    kvt_oracle_init(&run->oracle, &run->rig);
    for (unsigned i = 0; i < steps; i++) {
        kvt_oracle_step(&run->oracle, &rng);
    }
    return run;
}

static void run_destroy(struct run *run)
{
    kvt_cold_crash(&run->rig);
    kvd_fake_disk_destroy(run->disk);
    free(run);
}

static bool verdict_say(const char *what, uint64_t tried, const struct kvt_verdict *verdict)
{
    printf("%s: %" PRIu64 " tried, %" PRIu64 " records compared, unreadable = %" PRIu64
           ", lost = %" PRIu64 ", alarms = %" PRIu64 ", resurrected = %" PRIu64
           ", suspect = %" PRIu64 ", wrong = %" PRIu64 "\n",
        what, tried, verdict->checked, verdict->unreadable, verdict->lost, verdict->alarms,
        verdict->resurrected, verdict->suspects, verdict->wrong);
    return tried > 0 && verdict->checked > 0 && verdict->wrong == 0 && verdict->resurrected == 0 &&
           verdict->unreadable == 0 && verdict->lost == 0 && verdict->alarms == 0 &&
           verdict->suspects == 0;
}

/* P2, P3: the power fails after each operation; blocks not synced are lost, kept, or mixed. */
static bool try_cuts(uint64_t seed, unsigned rounds)
{
    struct kvt_verdict verdict = {0};
    uint64_t tried = 0;

    for (unsigned round = 0; round < rounds; round++) {
        struct run *run = run_create(seed + round, STEPS, 0);
        size_t count = kvd_fake_disk_op_count(run->disk);
        for (size_t at = 0; at <= count; at++) {
            for (uint64_t mix = 0; mix < 4; mix++) {
                struct kvd_fake_disk *disk = kvd_fake_disk_cut(run->disk, at, 4 * at + mix);
                kvt_oracle_judge(&run->oracle, disk, at, false, &verdict);
                kvd_fake_disk_destroy(disk);
                tried++;
            }
        }
        run_destroy(run);
    }
    return verdict_say("power cuts", tried, &verdict);
}

#define SEGMENTS_MAX 32

struct segments {
    char paths[SEGMENTS_MAX][128];
    unsigned count;
};

static void segments_cb(void *ctx, const char *path)
{
    struct segments *segments = ctx;
    const char *dot = strrchr(path, '.');

    if (dot != NULL && strcmp(dot, ".kvs") == 0) {
        KVARN_ASSERT(segments->count < SEGMENTS_MAX);
        (void)snprintf(segments->paths[segments->count++], sizeof(segments->paths[0]), "%s", path);
    }
}

/* P3: the power fails within a write: its first blocks are there, then zeros or noise. */
static bool try_tails(uint64_t seed, unsigned rounds)
{
    struct kvt_verdict verdict = {0};
    uint64_t tried = 0;

    for (unsigned round = 0; round < rounds; round++) {
        struct run *run = run_create(seed + round, STEPS, 0);
        size_t count = kvd_fake_disk_op_count(run->disk);
        for (size_t at = 0; at < count; at++) {
            struct kvd_fake_disk *disk;
            for (size_t blocks = 0;
                 (disk = kvd_fake_disk_tear(run->disk, at, blocks, at + blocks)) != NULL;
                 blocks++) {
                kvt_oracle_judge(&run->oracle, disk, at, false, &verdict);
                kvd_fake_disk_destroy(disk);
                tried++;
            }
        }
        run_destroy(run);
    }
    return verdict_say("torn tails", tried, &verdict);
}

/* One segment of a disk damaged in one place after the other. Returns how many. */
static uint64_t segment_damage(const struct run *run, struct kvd_fake_disk *disk, const char *path,
    bool is_sector, struct kvt_verdict *verdict)
{
    size_t count = kvd_fake_disk_op_count(run->disk);
    size_t step = is_sector ? 512 * 8 : BIT_STEP;
    size_t bytes = 0;
    uint64_t tried = 0;
    const uint8_t *data = kvd_fake_disk_data(disk, path, &bytes);
    uint8_t *bad = malloc(bytes);

    KVARN_ASSERT(data != NULL && bad != NULL);
    for (size_t bit = 0; bit < 8 * bytes; bit += step) {
        memcpy(bad, data, bytes);
        if (is_sector) {
            memset(bad + bit / 8, 0, 512);
        } else {
            bad[bit / 8] = (uint8_t)(bad[bit / 8] ^ (1u << bit % 8));
        }
        struct kvd_fake_disk *copy = kvd_fake_disk_cut(disk, 0, 1);
        kvd_fake_disk_put(copy, path, bad, bytes);
        kvt_oracle_judge(&run->oracle, copy, count, true, verdict);
        kvd_fake_disk_destroy(copy);
        tried++;
    }
    free(bad);
    return tried;
}

/* P4: damage of one place, found or harmless; of each segment, sealed or not. */
static bool try_damage(uint64_t seed, unsigned rounds, bool is_sector)
{
    struct kvt_verdict verdict = {0};
    uint64_t tried = 0;

    for (unsigned round = 0; round < rounds; round++) {
        struct run *run = run_create(seed + round, DAMAGE_STEPS, 0);
        struct kvd_fake_disk *disk =
            kvd_fake_disk_cut(run->disk, kvd_fake_disk_op_count(run->disk), 1);
        struct segments segments = {.count = 0};
        (void)kvd_fake_disk_names(disk, segments_cb, &segments);
        for (unsigned i = 0; i < segments.count; i++) {
            tried += segment_damage(run, disk, segments.paths[i], is_sector, &verdict);
        }
        kvd_fake_disk_destroy(disk);
        run_destroy(run);
    }
    return verdict_say(is_sector ? "zeroed sectors" : "bits flipped", tried, &verdict);
}

/* P5, P6: 5 % of writes, syncs and allocations fail; then the power does, too. */
static bool try_faults(uint64_t seed, unsigned rounds)
{
    struct kvt_verdict verdict = {0};
    uint64_t tried = 0;
    uint64_t faults = 0;
    uint64_t failures = 0;

    for (unsigned round = 0; round < rounds; round++) {
        struct run *run = run_create(seed + round, STEPS, 50);
        size_t count = kvd_fake_disk_op_count(run->disk);
        for (size_t at = round % 7; at <= count; at += 7) {
            struct kvd_fake_disk *disk = kvd_fake_disk_cut(run->disk, at, at);
            kvt_oracle_judge(&run->oracle, disk, at, false, &verdict);
            kvd_fake_disk_destroy(disk);
            tried++;
        }
        faults += kvd_fake_disk_fault_count(run->disk);
        failures += run->oracle.failures;
        kvd_fake_disk_fail_rate(run->disk, 0, 0, 0);
        run_destroy(run);
    }
    printf(
        "faults: %" PRIu64 " injected, %" PRIu64 " puts told that they failed\n", faults, failures);
    return verdict_say("faults", tried, &verdict) && faults > 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "cuts";
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    unsigned rounds = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 1;
    bool is_good = false;

    if (argc <= 4 && freopen("/dev/null", "w", stderr) == NULL) {
        return 2; /* thousands of lines of log are of no use; a fourth argument keeps them */
    }
    if (strcmp(what, "cuts") == 0) {
        is_good = try_cuts(seed, rounds);
    } else if (strcmp(what, "tails") == 0) {
        is_good = try_tails(seed, rounds);
    } else if (strcmp(what, "bits") == 0) {
        is_good = try_damage(seed, rounds, false);
    } else if (strcmp(what, "sectors") == 0) {
        is_good = try_damage(seed, rounds, true);
    } else if (strcmp(what, "faults") == 0) {
        is_good = try_faults(seed, rounds);
    } else {
        printf("sim_cold: cuts, tails, bits, sectors or faults, not '%s'\n", what);
        return 2;
    }
    return is_good ? 0 : 1;
}

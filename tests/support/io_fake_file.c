/*
 * Files of the fake io: operations wait for a turn and are done on a fake disk.
 *
 * Thread: one.
 */
#include <stdlib.h>

#include "lib/base/assert.h"
#include "tests/support/io_fake_impl.h"

/* What the fake keeps in an operation's room. */
struct fake_file_op {
    TAILQ_ENTRY(fake_file_op) link;
    struct kvd_file_op *op; /* borrowed */
    uint64_t turn;
};

static struct kvd_io_fake *fake_of(struct kvd_io *io)
{
    return (struct kvd_io_fake *)(void *)io;
}

void kvd_io_fake__file_submit(struct kvd_io *io, struct kvd_file_op *op)
{
    struct kvd_io_fake *fake = fake_of(io);
    struct fake_file_op *entry = (struct fake_file_op *)(void *)op->room;

    _Static_assert(sizeof(*entry) <= KVD_FILE_OP_ROOM, "an operation has room for its link");
    KVARN_ASSERT(fake->disk != NULL && op->done != NULL);
    entry->op = op;
    entry->turn = fake->turn;
    TAILQ_INSERT_TAIL(&fake->file_ops, entry, link);
    fake->file_op_count++;
}

int64_t kvd_io_fake__file_run(struct kvd_io *io, struct kvd_file_op *op)
{
    KVARN_ASSERT(fake_of(io)->disk != NULL);
    return kvd_fake_disk_perform(fake_of(io)->disk, op);
}

/* The next one to be done: the first that this turn may serve, or with a shuffle one of four. */
static struct fake_file_op *op_next(struct kvd_io_fake *fake)
{
    struct fake_file_op *entry = TAILQ_FIRST(&fake->file_ops);

    if (entry == NULL || entry->turn >= fake->turn) {
        return NULL;
    }
    if (fake->file_shuffle != 0) {
        fake->file_shuffle =
            fake->file_shuffle * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint64_t skip = (fake->file_shuffle >> 60) % 4;
        struct fake_file_op *later;
        while (
            skip-- > 0 && (later = TAILQ_NEXT(entry, link)) != NULL && later->turn < fake->turn) {
            entry = later;
        }
    }
    return entry;
}

static void op_finish(struct kvd_io_fake *fake, struct fake_file_op *entry)
{
    struct kvd_file_op *op = entry->op;

    TAILQ_REMOVE(&fake->file_ops, entry, link);
    fake->file_op_count--;
    (void)kvd_fake_disk_perform(fake->disk, op);
    kvd_io_fake__callback_begin(fake);
    op->done(op);
    kvd_io_fake__callback_end(fake);
}

bool kvd_io_fake__files_turn(struct kvd_io_fake *fake)
{
    struct fake_file_op *entry;
    bool did_something = false;

    while (!fake->file_hold && (entry = op_next(fake)) != NULL) {
        op_finish(fake, entry);
        did_something = true;
    }
    return did_something;
}

void kvd_io_fake__files_drain(struct kvd_io_fake *fake)
{
    while (!TAILQ_EMPTY(&fake->file_ops)) {
        op_finish(fake, TAILQ_FIRST(&fake->file_ops));
    }
}

void kvd_io_fake_set_disk(struct kvd_io_fake *fake, struct kvd_fake_disk *disk)
{
    fake->disk = disk;
}

void kvd_io_fake_shuffle_files(struct kvd_io_fake *fake, uint64_t seed)
{
    fake->file_shuffle = seed;
}

void kvd_io_fake_hold_files(struct kvd_io_fake *fake, bool is_held)
{
    fake->file_hold = is_held;
}

unsigned kvd_io_fake_file_ops(const struct kvd_io_fake *fake)
{
    return fake->file_op_count;
}

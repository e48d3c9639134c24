/*
 * Work of the loop that is cut into slices.
 *
 * Owner: session table. Thread: loop only.
 */
#include "server/io/slices.h"

#include "lib/base/assert.h"

/*
 * The clock is asked between steps of some tens of microseconds: the last of a turn ends before its
 * 100 us are over.
 */
#define BURST_NS_MAX UINT64_C(60000)

/* The pause that ends a burst: about what a turn costs besides its callbacks. */
#define BURST_GAP_NS UINT64_C(20000)

static uint64_t now_ns(const struct kvd_slices *slices)
{
    return slices->io->ops->now_ns(slices->io);
}

static void arm(struct kvd_slices *slices)
{
    slices->io->ops->timer_start(slices->timer, 0, 0);
}

static void run_first(struct kvd_slices *slices)
{
    struct kvd_slice *slice = TAILQ_FIRST(&slices->list);

    TAILQ_REMOVE(&slices->list, slice, link);
    slice->is_listed = false;
    slice->run(slice); /* it may be gone now */
}

static void timer_cb(void *ctx)
{
    struct kvd_slices *slices = ctx;

    slices->burst_start_ns = slices->burst_end_ns = now_ns(slices); /* a new turn for sure */
    while (!TAILQ_EMPTY(&slices->list) && kvd_slices_has_time(slices)) {
        run_first(slices);
    }
    if (!TAILQ_EMPTY(&slices->list)) {
        arm(slices);
    }
}

int kvd_slices_init(struct kvd_slices *slices, struct kvd_io *io)
{
    *slices = (struct kvd_slices){.io = io};
    TAILQ_INIT(&slices->list);
    slices->timer = io->ops->timer_create(io, timer_cb, slices);
    return slices->timer == NULL ? KVARN_ENOMEM : 0;
}

void kvd_slices_fini(struct kvd_slices *slices)
{
    if (slices->timer == NULL) {
        return;
    }
    while (!TAILQ_EMPTY(&slices->list)) {
        run_first(slices);
    }
    slices->io->ops->timer_destroy(slices->timer);
    slices->timer = NULL;
}

void kvd_slices_add(struct kvd_slices *slices, struct kvd_slice *slice)
{
    KVARN_ASSERT(!slice->is_listed && slice->run != NULL);
    slice->is_listed = true;
    TAILQ_INSERT_TAIL(&slices->list, slice, link);
    arm(slices);
}

void kvd_slices_remove(struct kvd_slices *slices, struct kvd_slice *slice)
{
    if (slice->is_listed) {
        TAILQ_REMOVE(&slices->list, slice, link);
        slice->is_listed = false;
    }
}

void kvd_slices_begin(struct kvd_slices *slices)
{
    uint64_t now = now_ns(slices);

    if (now - slices->burst_end_ns > BURST_GAP_NS) {
        slices->burst_start_ns = now;
    }
    slices->burst_end_ns = now;
}

bool kvd_slices_has_time(struct kvd_slices *slices)
{
    slices->burst_end_ns = now_ns(slices);
    return slices->burst_end_ns - slices->burst_start_ns <= BURST_NS_MAX;
}

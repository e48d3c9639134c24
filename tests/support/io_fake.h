/*
 * An io in memory: the clock moves by hand, random bytes follow a seed, peers are played by the
 * test. Nothing happens but in the calls below, so a test or fuzzer replays exactly.
 *
 * Thread: one, except wake_send(). The struct kvd_io is destroyed by its own ops->destroy, which
 * frees the fake; peers are freed by the test, before or after.
 */
#ifndef TESTS_IO_FAKE_H
#define TESTS_IO_FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/io/io.h"
#include "tests/support/fake_disk.h"

struct kvd_io_fake;
struct kvd_fake_peer; /* the far end of a stream */

/* NULL when out of memory. The clock starts at one second. */
struct kvd_io_fake *kvd_io_fake_create(uint64_t seed);
struct kvd_io *kvd_io_fake_io(struct kvd_io_fake *fake);

/*
 * One turn of the loop: wakes that are pending, then timers that are due, then operations on files,
 * then writes, then closes.
 * What these start belongs to the next turn. Returns whether any callback ran or bytes moved.
 */
bool kvd_io_fake_turn(struct kvd_io_fake *fake);

/* Turns until one does nothing; a loop that never rests is an assertion. */
void kvd_io_fake_settle(struct kvd_io_fake *fake);

/* Move the clock, firing each timer at its time, in order. Does nothing else of a turn. */
void kvd_io_fake_advance_ms(struct kvd_io_fake *fake, uint64_t ms);

/* From now on each look at the clock moves it by this: work takes time. 0: as at first. */
void kvd_io_fake_set_tick(struct kvd_io_fake *fake, uint64_t ns);

/* From now on the clock runs with the calling thread's processor time: for benches. */
void kvd_io_fake_run_clock(struct kvd_io_fake *fake);

/* With a clock that runs: the longest callback since this was last asked. */
uint64_t kvd_io_fake_longest_ns(struct kvd_io_fake *fake);

/* Wait in real time for another thread's wake_send(). Returns whether one is pending. */
bool kvd_io_fake_wait(struct kvd_io_fake *fake, unsigned timeout_ms);

/* Call the callbacks of a signal, now. Returns how many there were. */
unsigned kvd_io_fake_raise(struct kvd_io_fake *fake, int signum);

/* Where file operations go: borrowed, and outlives the fake. None can be made before. */
void kvd_io_fake_set_disk(struct kvd_io_fake *fake, struct kvd_fake_disk *disk);

/* From now on operations of one turn end in an order that the seed decides; 0: as they came. */
void kvd_io_fake_shuffle_files(struct kvd_io_fake *fake, uint64_t seed);

/* While held no operation on a file is done: a disk that hangs. */
void kvd_io_fake_hold_files(struct kvd_io_fake *fake, bool is_held);

/* Operations on files that wait. */
unsigned kvd_io_fake_file_ops(const struct kvd_io_fake *fake);

/* True once ops->stop was called. */
bool kvd_io_fake_is_stopped(const struct kvd_io_fake *fake);

/*
 * Connect to the listener at `address` ("unix:PATH", NULL: any). `who` NULL: unix, our own uid.
 * NULL when nobody listens. The accept callback runs inside.
 */
struct kvd_fake_peer *kvd_io_fake_connect(
    struct kvd_io_fake *fake, const char *address, const struct kvd_peer *who);

/* A connected stream without a listener, for code that takes streams over. */
struct kvd_fake_peer *kvd_io_fake_open(struct kvd_io_fake *fake, struct kvd_stream **ret_stream);

/* What connect gives a peer without `who`. */
struct kvd_peer kvd_io_fake_who(void);

/*
 * Send: the stream's callbacks run inside, in pieces of what its buffer takes. Returns the bytes
 * that were taken; less than asked once the other side stops reading or closes.
 */
size_t kvd_fake_peer_send(struct kvd_fake_peer *peer, const void *data, size_t bytes);

/* Largest piece of later sends; 0: no limit. */
void kvd_fake_peer_set_piece(struct kvd_fake_peer *peer, size_t bytes);

/* Say that nothing more comes. Returns false when the other side is not reading. */
bool kvd_fake_peer_end(struct kvd_fake_peer *peer);

/* The connection breaks: a read error if the other side reads, and its writes fail from now on. */
void kvd_fake_peer_break(struct kvd_fake_peer *peer);

/* Bytes taken from a write on each turn: SIZE_MAX (as at first) all, 0 none: a slow reader. */
void kvd_fake_peer_set_rate(struct kvd_fake_peer *peer, size_t bytes_per_turn);

/* What has arrived and was not dropped yet; valid until the next turn. */
const uint8_t *kvd_fake_peer_received(const struct kvd_fake_peer *peer, size_t *ret_bytes);
void kvd_fake_peer_drop(struct kvd_fake_peer *peer, size_t bytes);

bool kvd_fake_peer_is_closed(const struct kvd_fake_peer *peer); /* by the other side, freed */
bool kvd_fake_peer_is_read(const struct kvd_fake_peer *peer);   /* the other side reads */
void kvd_fake_peer_free(struct kvd_fake_peer *peer);            /* accepts NULL */

#endif

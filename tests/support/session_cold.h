/*
 * Lives of a service over one fake disk: each ends cleanly or by a crash, and the next finds what
 * the last left.
 *
 * Thread: one. Each life has sessions of its own making; a test keeps models of what they hold.
 */
#ifndef TESTS_SESSION_COLD_H
#define TESTS_SESSION_COLD_H

#include "tests/support/session_model.h"
#include "tests/support/session_rig.h"

/* Write all that is due behind: turns, with the clock moved on, until nothing is in flight. */
void kvt_cold_spill(struct kvt_rig *rig);

/*
 * Stop as the daemon does and free the rig; its disk stays. The caller has let go of all sessions.
 * Fails the test when the stop does not come to an end.
 */
void kvt_cold_life_stop(struct kvt_rig *rig);

/*
 * Die now: what is in flight comes to its end on the old disk, which is freed, and the new one,
 * returned, has what the kernel had been given. The rig is freed.
 */
struct kvd_fake_disk *kvt_cold_life_kill(struct kvt_rig *rig, struct kvd_fake_disk *disk);

/* The session of a name that came back, with a reference; NULL: there is none. */
struct kvd_session *kvt_cold_find(struct kvt_rig *rig, const char *name);

/* Bring all that a session holds into memory, by attention over each layer. Returns 0 or the first
 * error. */
int kvt_cold_load(struct kvt_rig *rig, struct kvd_session *session);

/* From now on the model is of a session of this life: of the shape that it came back with. */
void kvt_cold_adopt(struct kvt_model *model, const struct kvd_session *session);

/* Append to all layers, to the model as well (NULL: none); fails the test where that fails. */
void kvt_cold_append(struct kvt_rig *rig, struct kvd_session *session, struct kvt_model *model,
    uint32_t token_count, uint64_t values_seed);

#endif

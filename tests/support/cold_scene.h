/*
 * What tests of the way back from the cold tier start with: a service over a fake disk, and a named
 * session of whole blocks and ten tokens more, whose sealed blocks are on disk only.
 *
 * Thread: one.
 */
#ifndef TESTS_COLD_SCENE_H
#define TESTS_COLD_SCENE_H

#include "tests/support/session_cold.h"

#define KVT_SCENE_GROUP 64u

struct kvt_scene {
    struct kvd_fake_disk *disk; /* owned */
    struct kvt_rig rig;
    struct kvd_session *session; /* ref; NULL: the test has let go of it */
    uint32_t blocks;
};

/* Two layers of 2 KV heads of 16, no window, group 64, a sink of one block. */
extern const struct kvd_shape_desc kvt_scene_shape;

void kvt_scene_init(struct kvt_scene *scene, uint32_t blocks);
void kvt_scene_fini(struct kvt_scene *scene);

/* Take all whole blocks from memory again. */
void kvt_scene_evict(struct kvt_scene *scene);

uint64_t kvt_scene_metric(const struct kvt_scene *scene, enum kvd_metric which);

/* Blocks of the session that are in a state. */
uint32_t kvt_scene_count(const struct kvt_scene *scene, enum kvd_block_state state);

/* An attention over whole blocks of a layer, which names them as what it needs. */
struct kvt_attend kvt_scene_attend_of(
    const struct kvt_scene *scene, uint32_t block_first, uint32_t block_last);

/* The same, to its end. Returns its error. */
int kvt_scene_attend(struct kvt_scene *scene, uint32_t block_first, uint32_t block_last);

#endif

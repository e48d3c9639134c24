/* A session whose blocks are on disk. */
#include "tests/support/cold_scene.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"

static const struct kvd_layer_group groups[] = {
    {.layers = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 16, .window = 0}};
const struct kvd_shape_desc kvt_scene_shape = {.model = "two",
    .group = KVT_SCENE_GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = KVT_SCENE_GROUP,
    .layer_groups = groups,
    .layer_group_count = 1};

void kvt_scene_evict(struct kvt_scene *scene)
{
    uint64_t freed = 0;

    assert_int_equal(kvd_session_evict(scene->session, scene->blocks, &freed), scene->blocks);
    assert_true(freed > 0);
}

void kvt_scene_init(struct kvt_scene *scene, uint32_t blocks)
{
    scene->disk = kvd_fake_disk_create();
    scene->blocks = blocks;
    kvt_rig_init(
        &scene->rig, &(struct kvt_rig_options){.disk = scene->disk, .shape = &kvt_scene_shape});
    scene->session = kvt_session_open(&scene->rig, "s", 0);
    kvt_cold_append(&scene->rig, scene->session, NULL, blocks * KVT_SCENE_GROUP + 10, 1);
    kvt_cold_spill(&scene->rig);
    kvt_scene_evict(scene);
}

void kvt_scene_fini(struct kvt_scene *scene)
{
    if (scene->session != NULL) {
        kvt_session_drop(&scene->rig, scene->session);
    }
    kvt_cold_spill(&scene->rig);
    kvt_rig_fini(&scene->rig);
    kvd_fake_disk_destroy(scene->disk);
}

uint64_t kvt_scene_metric(const struct kvt_scene *scene, enum kvd_metric which)
{
    return scene->rig.service.metrics.values[which];
}

uint32_t kvt_scene_count(const struct kvt_scene *scene, enum kvd_block_state state)
{
    uint32_t count = 0;

    for (uint32_t b = 0; b < kvd_session_block_count(scene->session); b++) {
        const struct kvd_block *block = kvd_session_block(scene->session, b);
        count += block != NULL && block->state == state;
    }
    return count;
}

struct kvt_attend kvt_scene_attend_of(
    const struct kvt_scene *scene, uint32_t block_first, uint32_t block_last)
{
    struct kvt_attend attend = kvt_attend_of(scene->session, 0, 1, 3);

    attend.args.is_causal = false;
    attend.args.first = (uint64_t)block_first * KVT_SCENE_GROUP;
    attend.args.last = (uint64_t)block_last * KVT_SCENE_GROUP;
    attend.op.block_first = block_first;
    attend.op.block_last = block_last;
    return attend;
}

int kvt_scene_attend(struct kvt_scene *scene, uint32_t block_first, uint32_t block_last)
{
    struct kvt_attend attend = kvt_scene_attend_of(scene, block_first, block_last);
    int err = kvt_attend_now(&scene->rig, &attend);

    kvt_attend_fini(&attend);
    return err;
}

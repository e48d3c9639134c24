/* A rig, one session, and its model. */
#include "tests/support/session_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

void kvt_case_init(struct kvt_case *c, const struct kvt_rig_options *options, uint32_t seal_lag)
{
    kvt_rig_init(&c->rig, options == NULL ? &(struct kvt_rig_options){0} : options);
    c->session = kvt_session_open(&c->rig, NULL, seal_lag);
    kvt_model_init(&c->model, c->session, KVT_CASE_TOKENS_MAX);
}

void kvt_case_check(struct kvt_case *c)
{
    assert_int_equal(kvt_model_check(&c->model, c->session), 0);
}

void kvt_case_fini(struct kvt_case *c)
{
    kvt_rig_settle(&c->rig);
    kvt_case_check(c);
    kvt_model_fini(&c->model);
    kvt_session_drop(&c->rig, c->session);
    kvt_rig_settle(&c->rig);
    assert_int_equal(c->rig.service.sessions.count, 0);
    kvt_rig_fini(&c->rig);
}

void kvt_case_store(struct kvt_case *c, struct kvt_append append)
{
    if (append.payload == NULL) {
        kvt_append_fill(&append);
    }
    kvt_model_append(&c->model, &append);
    assert_int_equal(kvt_append_now(&c->rig, &append), 0);
    assert_false(append.outcome.is_flagged);
}

void kvt_case_grow(struct kvt_case *c, uint32_t token_count)
{
    kvt_case_store(c, kvt_append_of(c->session, token_count, c->session->layers[0].length + 1));
}

struct kvt_outcome kvt_case_refuse(struct kvt_case *c, struct kvt_append append, int err)
{
    assert_int_equal(kvt_append_now(&c->rig, &append), err);
    kvt_case_check(c);
    return append.outcome;
}

bool kvt_case_cut(struct kvt_case *c, uint64_t length)
{
    struct kvt_truncate truncate = {
        .session = c->session, .epoch = c->session->epoch, .length = length};
    bool is_lossy = kvt_model_truncate(&c->model, length);

    assert_int_equal(kvt_truncate_begin(&c->rig, &truncate), 0);
    kvt_rig_settle(&c->rig);
    assert_int_equal(truncate.outcome.done_count, 1);
    assert_int_equal(truncate.outcome.why.err, 0);
    assert_int_equal(truncate.outcome.is_flagged, is_lossy);
    return is_lossy;
}

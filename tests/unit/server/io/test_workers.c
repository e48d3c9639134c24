/*
 * Tests of server/io/workers.c on an io of their own: one pipe for wake-ups, waited for with
 * poll().
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/io/workers.h"

struct kvd_wake {
    int fds[2];
    kvd_io_cb cb;
    void *ctx;
    bool is_alive;
};

struct test_io {
    struct kvd_io base;
    struct kvd_wake wake; /* the pool makes one */
    bool is_refusing;
    uint64_t now_ns, tick_ns; /* each look at the clock moves it */
};

static uint64_t test_now_ns(struct kvd_io *io)
{
    struct test_io *self = (struct test_io *)(void *)io;
    self->now_ns += self->tick_ns;
    return self->now_ns;
}

static struct kvd_wake *test_wake_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    struct test_io *self = (struct test_io *)(void *)io;
    if (self->is_refusing || pipe(self->wake.fds) != 0) {
        return NULL;
    }
    self->wake.cb = cb;
    self->wake.ctx = ctx;
    self->wake.is_alive = true;
    return &self->wake;
}

static void test_wake_send(struct kvd_wake *wake)
{
    if (write(wake->fds[1], "w", 1) != 1) {
        abort(); /* on a worker, where cmocka cannot report */
    }
}

static void test_wake_destroy(struct kvd_wake *wake)
{
    wake->is_alive = false;
    (void)close(wake->fds[0]);
    (void)close(wake->fds[1]);
}

static const struct kvd_io_ops test_ops = {
    .now_ns = test_now_ns,
    .wake_create = test_wake_create,
    .wake_send = test_wake_send,
    .wake_destroy = test_wake_destroy,
};

/* One turn of the loop: wait for a wake-up (at most 20 s), merge all there are, call back once. */
static void turn(struct test_io *io)
{
    char bytes[64];
    struct pollfd pfd = {.fd = io->wake.fds[0], .events = POLLIN};
    assert_int_equal(poll(&pfd, 1, 20000), 1);
    assert_true(read(io->wake.fds[0], bytes, sizeof(bytes)) > 0);
    io->wake.cb(io->wake.ctx);
}

static bool has_wake(struct test_io *io)
{
    struct pollfd pfd = {.fd = io->wake.fds[0], .events = POLLIN};
    return poll(&pfd, 1, 0) == 1;
}

enum { JOBS = 400 };

/* What the jobs of one test share. */
struct bench {
    struct test_io io;
    struct kvd_workers *workers;
    pthread_t loop;
    unsigned done_count;
    unsigned done_order[JOBS * 2];
    unsigned resubmits; /* left: a done submits its job again */
    bool is_in_submit;
};

struct test_job {
    struct kvd_job job;
    struct bench *bench;
    unsigned idx;
    unsigned run_count; /* by the worker */
    unsigned done_count;
    pthread_t ran_on;
    bool signals_blocked;
    bool scratch_is_aligned;
    char thread_name[16];
};

static void job_run(struct kvd_job *job, void *scratch)
{
    struct test_job *self = (struct test_job *)(void *)job;
    sigset_t mask;
    self->run_count++;
    self->ran_on = pthread_self();
    self->scratch_is_aligned = (uintptr_t)scratch % 64 == 0;
    memset(scratch, (int)self->idx, 64);
    ((char *)scratch)[KVD_WORKER_SCRATCH_BYTES - 1] = (char)self->idx;
    self->signals_blocked = pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 &&
                            sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGINT) == 1;
    (void)pthread_getname_np(pthread_self(), self->thread_name, sizeof(self->thread_name));
}

static void job_done(struct kvd_job *job)
{
    struct test_job *self = (struct test_job *)(void *)job;
    struct bench *bench = self->bench;
    assert_true(pthread_equal(pthread_self(), bench->loop));
    assert_false(bench->is_in_submit);
    self->done_count++;
    assert_int_equal(self->run_count, self->done_count);
    bench->done_order[bench->done_count++] = self->idx;
    if (bench->resubmits > 0) {
        bench->resubmits--;
        kvd_workers_submit(bench->workers, job);
    }
}

static void bench_init(struct bench *bench, const struct kvd_workers_options *options)
{
    memset(bench, 0, sizeof(*bench));
    bench->io.base.ops = &test_ops;
    bench->loop = pthread_self();
    assert_int_equal(kvd_workers_create(&bench->io.base, options, &bench->workers), 0);
    assert_int_equal(kvd_workers_thread_count(bench->workers), options->thread_count);
    assert_int_equal(kvd_workers_backlog(bench->workers), 0);
}

static void bench_fini(struct bench *bench)
{
    assert_int_equal(kvd_workers_backlog(bench->workers), 0);
    kvd_workers_destroy(bench->workers);
    assert_false(bench->io.wake.is_alive);
}

static void job_submit(struct bench *bench, struct test_job *job, unsigned idx)
{
    *job = (struct test_job){
        .job = {.run = job_run, .done = job_done},
        .bench = bench,
        .idx = idx,
    };
    bench->is_in_submit = true;
    kvd_workers_submit(bench->workers, &job->job);
    bench->is_in_submit = false;
}

/* Submit JOBS jobs, turn until all are done, check each; the order is in bench->done_order. */
static void run_all(struct bench *bench, struct test_job *jobs, unsigned resubmits)
{
    bench->resubmits = resubmits;
    for (unsigned i = 0; i < JOBS; i++) {
        job_submit(bench, &jobs[i], i);
    }
    assert_int_equal(kvd_workers_backlog(bench->workers) + bench->done_count, JOBS);
    while (kvd_workers_backlog(bench->workers) > 0) {
        turn(&bench->io);
    }
    assert_int_equal(bench->done_count, JOBS + resubmits);
    unsigned sum = 0;
    for (unsigned i = 0; i < JOBS; i++) {
        assert_true(jobs[i].done_count >= 1);
        assert_true(jobs[i].scratch_is_aligned);
        sum += jobs[i].done_count;
    }
    assert_int_equal(sum, JOBS + resubmits);
    assert_false(has_wake(&bench->io));
}

static void every_job_is_done_once_on_the_loop(void **state)
{
    (void)state;
    static const unsigned thread_counts[] = {0, 1, 4};
    static struct test_job jobs[JOBS];
    for (size_t i = 0; i < 3; i++) {
        struct bench bench;
        bench_init(&bench, &(struct kvd_workers_options){.thread_count = thread_counts[i]});
        run_all(&bench, jobs, JOBS / 2);
        for (unsigned j = 0; j < JOBS; j++) {
            assert_int_equal(pthread_equal(jobs[j].ran_on, bench.loop) != 0, i == 0);
        }
        bench_fini(&bench);
    }
}

/* Many jobs end while the loop is away: it takes them back over several turns, in order. */
static void semantics_18_many_that_ended_share_turns(void **state)
{
    (void)state;
    static struct test_job jobs[JOBS];
    struct bench bench;
    bench_init(&bench, &(struct kvd_workers_options){.thread_count = 1});
    for (unsigned i = 0; i < JOBS; i++) {
        job_submit(&bench, &jobs[i], i);
    }
    bench.io.tick_ns = 10000;
    while (kvd_workers_backlog(bench.workers) > 0) {
        unsigned before = bench.done_count;
        turn(&bench.io);
        assert_true(bench.done_count - before <= 10);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        assert_int_equal(bench.done_order[i], i);
    }
    assert_false(has_wake(&bench.io));
    bench_fini(&bench);
}

static void semantics_18_without_threads_one_job_a_turn(void **state)
{
    (void)state;
    static struct test_job jobs[JOBS];
    struct bench bench;
    bench_init(&bench, &(struct kvd_workers_options){.thread_count = 0});
    for (unsigned i = 0; i < 10; i++) {
        job_submit(&bench, &jobs[i], i);
        assert_int_equal(jobs[i].run_count, 0); /* never inside its submit */
    }
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(kvd_workers_backlog(bench.workers), 10 - i);
        turn(&bench.io);
        assert_int_equal(bench.done_count, i + 1);
        assert_int_equal(bench.done_order[i], i); /* in order */
    }
    bench_fini(&bench);
}

static void threads_have_names_and_no_signals(void **state)
{
    (void)state;
    static struct test_job jobs[JOBS];
    struct bench bench;
    sigset_t before;
    sigset_t after;
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &before), 0);
    bench_init(&bench, &(struct kvd_workers_options){.thread_count = 1});
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &after), 0);
    assert_int_equal(sigismember(&before, SIGTERM), sigismember(&after, SIGTERM));
    run_all(&bench, jobs, 0);
    assert_true(jobs[JOBS - 1].signals_blocked);
    assert_string_equal(jobs[JOBS - 1].thread_name, "kvarnd-w0");
    bench_fini(&bench);
}

static bool is_in_order(const struct bench *bench)
{
    for (unsigned i = 0; i < bench->done_count; i++) {
        if (bench->done_order[i] != i) {
            return false;
        }
    }
    return true;
}

static void semantics_03_jitter_reorders_completions(void **state)
{
    (void)state;
    static struct test_job jobs[JOBS];
    static const unsigned thread_counts[] = {0, 4};
    for (size_t i = 0; i < 2; i++) {
        struct bench bench;
        bench_init(
            &bench, &(struct kvd_workers_options){
                        .thread_count = thread_counts[i], .jitter_us_max = 200, .jitter_seed = 7});
        run_all(&bench, jobs, 0);
        assert_false(is_in_order(&bench));
        bench_fini(&bench);
    }
}

static void semantics_03_jitter_without_threads_is_the_seeds(void **state)
{
    (void)state;
    static struct test_job jobs[JOBS];
    static struct bench benches[3];
    for (unsigned i = 0; i < 3; i++) {
        uint64_t seed = i < 2 ? 5 : 6;
        bench_init(
            &benches[i], &(struct kvd_workers_options){.jitter_us_max = 1, .jitter_seed = seed});
        run_all(&benches[i], jobs, 20);
        bench_fini(&benches[i]);
    }
    size_t bytes = sizeof(benches[0].done_order);
    assert_memory_equal(benches[0].done_order, benches[1].done_order, bytes);
    assert_memory_not_equal(benches[0].done_order, benches[2].done_order, bytes);
}

static void create_without_a_wake_fails_clean(void **state)
{
    (void)state;
    struct test_io io = {.base = {.ops = &test_ops}, .is_refusing = true};
    struct kvd_workers *workers = NULL;
    struct kvd_workers_options options = {.thread_count = 2};
    assert_int_equal(kvd_workers_create(&io.base, &options, &workers), KVARN_ENOMEM);
    assert_null(workers);
    kvd_workers_destroy(NULL);
}

/* Pools come and go with jobs behind them: what the last hand-back touches must still be there. */
static void destroy_right_after_the_last_job(void **state)
{
    (void)state;
    struct test_job job;
    for (unsigned i = 0; i < 50; i++) {
        struct bench bench;
        bench_init(&bench, &(struct kvd_workers_options){.thread_count = 1 + i % 3});
        job_submit(&bench, &job, 0);
        while (kvd_workers_backlog(bench.workers) > 0) {
            turn(&bench.io);
        }
        bench_fini(&bench);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_job_is_done_once_on_the_loop),
        cmocka_unit_test(semantics_18_many_that_ended_share_turns),
        cmocka_unit_test(semantics_18_without_threads_one_job_a_turn),
        cmocka_unit_test(threads_have_names_and_no_signals),
        cmocka_unit_test(semantics_03_jitter_reorders_completions),
        cmocka_unit_test(semantics_03_jitter_without_threads_is_the_seeds),
        cmocka_unit_test(create_without_a_wake_fails_clean),
        cmocka_unit_test(destroy_right_after_the_last_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

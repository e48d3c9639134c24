/*
 * Verification of a session: which blocks, how many at a time, what is told.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/read/verify.h"

#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/read/verify_repair.h"
#include "server/service.h"

/*
 * Blocks at a time: the disk is read while workers hash, and traffic finds at most so many jobs and
 * reads before its own.
 */
#define CHECKS_MAX 4

/* Blocks that readers complained of, at a time. */
#define SUSPECTS_MAX 4

struct kvd_verify {
    struct kvd_slice slice; /* first; listed while it waits for a turn */
    struct kvd_verify_args args;
    struct kvd_service *service;                 /* borrowed */
    struct kvd_session *session;                 /* ref */
    struct kvd_verify_check *checks[CHECKS_MAX]; /* owned; NULL: free */
    uint32_t running;
    enum kvd_verify_part next_record; /* KVD_VERIFY_BLOCK: all of them are begun */
    uint32_t next_block, end_block;   /* those before are begun; where this call ends */
    bool is_stopped;
    bool is_pumping;
};

static void verify_pump(struct kvd_verify *verify);

/* What came of it. */

static void finding_add(struct kvd_verify *verify, const struct kvd_verify_check *check,
    enum kvd_verify_outcome outcome)
{
    static const char *const parts[] = {"block", "session", "map", "tail"};
    static const char *const outcomes[] = {"left", "dropped", "lost", "rewrite"};
    struct kvd_verify_totals *totals = verify->args.totals;
    struct kvd_verify_finding finding = {.part = check->part,
        .block_idx = check->block_idx,
        .wrong_pages = check->wrong_pages,
        .record_err = check->record_err,
        .outcome = outcome};

    for (uint32_t i = 0; i < check->unit_count; i++) {
        if (check->units[i].is_wrong) {
            finding.layer = check->units[i].layer;
            break;
        }
    }
    KVARN_ASSERT(totals->finding_count < KVARN_VERIFY_FINDINGS_MAX);
    totals->findings[totals->finding_count++] = finding;
    struct kvd_service *service = verify->service;
    struct kvd_log_gate *gate = &service->log_gates[KVD_LOG_GATE_VERIFY_WRONG];
    uint64_t suppressed;
    if (!kvd_log_gate_pass(gate, service->io->ops->now_ns(service->io), &suppressed)) {
        return;
    }
    kvd_log(KVD_LOG_WARN, "verify_wrong",
        "session=%s part=%s block=%" PRIu32 " pages=%" PRIu32
        " record=%s outcome=%s suppressed=%" PRIu64,
        verify->session->name == NULL ? "" : verify->session->name, parts[check->part],
        check->block_idx, check->wrong_pages,
        check->record_err == 0 ? "" : kvarn_err_label(check->record_err), outcomes[outcome],
        suppressed);
}

static void totals_add(struct kvd_verify *verify, const struct kvd_verify_check *check)
{
    struct kvd_verify_totals *totals = verify->args.totals;
    struct kvd_metrics *metrics = &verify->service->metrics;
    bool is_record_wrong = check->record_err == KVARN_ECORRUPT;
    bool is_record_unread = check->record_err != 0 && !is_record_wrong;
    uint64_t page_bytes = 0, record_bytes = 0;

    for (uint32_t i = 0; i < check->unit_count; i++) {
        page_bytes += check->units[i].bytes;
    }
    if (check->record != NULL && !is_record_unread) {
        record_bytes = check->info.head_bytes + check->info.body_bytes;
        totals->records++;
    }
    totals->pages += check->unit_count;
    totals->page_bytes += page_bytes;
    totals->rows_pages += check->rows_pages;
    totals->record_bytes += record_bytes;
    totals->wrong_pages += check->wrong_pages;
    totals->wrong_records += is_record_wrong ? 1 : 0;
    totals->unread_records += is_record_unread ? 1 : 0;
    kvd_metrics_add(metrics, KVD_METRIC_verified_bytes, page_bytes + record_bytes);
    kvd_metrics_add(metrics, KVD_METRIC_verify_wrong_pages, check->wrong_pages);
    kvd_metrics_add(metrics, KVD_METRIC_verify_wrong_records, is_record_wrong ? 1 : 0);
}

static void check_end(struct kvd_verify_check *check)
{
    struct kvd_verify *verify = check->ctx;

    for (unsigned i = 0; i < CHECKS_MAX; i++) {
        verify->checks[i] = verify->checks[i] == check ? NULL : verify->checks[i];
    }
    verify->running--;
    kvd_verify_check_free(check);
    verify_pump(verify);
}

/* Its turn in the session: nothing is pending there. */
static void repair_admit_cb(struct kvd_session_op *op)
{
    struct kvd_verify_check *check =
        (void *)((uint8_t *)op - offsetof(struct kvd_verify_check, op));

    finding_add(check->ctx, check, kvd_verify_repair(check));
    check_end(check);
}

static void check_done_cb(struct kvd_verify_check *check)
{
    struct kvd_verify *verify = check->ctx;

    /* What was forgotten meanwhile may be anything. */
    if (check->record_err != 0 && !kvd_verify_is_current(check)) {
        check->record = NULL;
        check->record_err = 0;
    }
    totals_add(verify, check);
    bool is_wrong = check->wrong_pages > 0 || check->record_err == KVARN_ECORRUPT;
    if (is_wrong && !verify->is_stopped) {
        check->op.admit_cb = repair_admit_cb;
        check->op.layer_count = verify->session->shape->layer_count;
        kvd_session_enqueue(verify->session, &check->op);
        return;
    }
    if (is_wrong || check->record_err != 0) {
        finding_add(verify, check, KVD_VERIFY_LEFT);
    }
    check_end(check);
}

/* What is next. */

static void check_start(struct kvd_verify *verify, struct kvd_verify_check *check)
{
    unsigned slot = 0;

    while (verify->checks[slot] != NULL) {
        slot++;
    }
    KVARN_ASSERT(slot < CHECKS_MAX);
    verify->checks[slot] = check;
    verify->running++;
    check->done_cb = check_done_cb;
    check->ctx = verify;
    kvd_verify_check_start(check);
}

/* Without memory for a check there is nothing to be told of it: the call ends there. */
static void record_start(struct kvd_verify *verify)
{
    const struct kvd_session_cold *sc = &verify->session->cold;
    enum kvd_verify_part part = verify->next_record;
    struct kvd_cold_record *record = part == KVD_VERIFY_SESSION ? sc->session_rec
                                     : part == KVD_VERIFY_MAP   ? sc->map_rec
                                                                : sc->tail_rec;

    verify->next_record =
        part == KVD_VERIFY_TAIL ? KVD_VERIFY_BLOCK : (enum kvd_verify_part)(part + 1);
    if (record == NULL || verify->service->cold.tier == NULL) {
        return;
    }
    struct kvd_verify_check *check = kvd_verify_check_record(verify->session, part, record);
    if (check == NULL) {
        verify->is_stopped = true;
        return;
    }
    check_start(verify, check);
}

static void block_start(struct kvd_verify *verify)
{
    uint32_t block_idx = verify->next_block;

    if (kvd_session_block(verify->session, block_idx) == NULL) {
        verify->next_block++; /* all layers dropped it */
        return;
    }
    struct kvd_verify_check *check = kvd_verify_check_block(verify->session, block_idx);
    if (check == NULL) {
        verify->is_stopped = true;
        return;
    }
    verify->next_block++;
    verify->args.totals->blocks++;
    check_start(verify, check);
}

/* Blocks that there are to do in this call; the session may grow or shrink meanwhile. */
static bool is_at_end(const struct kvd_verify *verify)
{
    return verify->next_record == KVD_VERIFY_BLOCK &&
           (verify->next_block >= verify->end_block ||
               verify->next_block >= kvd_session_block_count(verify->session));
}

static bool may_start(const struct kvd_verify *verify)
{
    struct kvd_io *io = verify->service->io;
    bool has_begun = verify->next_block > verify->args.block_first;
    uint32_t findings = verify->args.totals->finding_count + verify->running;

    if (verify->is_stopped || verify->session->is_dropped || verify->service->is_draining ||
        is_at_end(verify) || findings >= KVARN_VERIFY_FINDINGS_MAX) {
        return false;
    }
    return !has_begun || io->ops->now_ns(io) < verify->args.end_ns;
}

static void verify_finish(struct kvd_verify *verify)
{
    const struct kvd_session *session = verify->session;
    bool is_whole =
        session->is_dropped || (verify->next_record == KVD_VERIFY_BLOCK &&
                                   verify->next_block >= kvd_session_block_count(session));
    uint32_t next_block = is_whole ? UINT32_MAX : verify->next_block;
    struct kvd_verify_args args = verify->args;

    kvd_session_unref(verify->session);
    free(verify);
    args.done_cb(args.ctx, next_block);
}

static void verify_pump(struct kvd_verify *verify)
{
    struct kvd_slices *slices = &verify->service->sessions.slices;

    if (verify->is_pumping || verify->slice.is_listed) {
        return;
    }
    verify->is_pumping = true;
    kvd_slices_begin(slices);
    while (verify->running < CHECKS_MAX && may_start(verify)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &verify->slice);
            break;
        }
        if (verify->next_record != KVD_VERIFY_BLOCK) {
            record_start(verify);
        } else {
            block_start(verify);
        }
    }
    verify->is_pumping = false;
    if (verify->running == 0 && !verify->slice.is_listed) {
        verify_finish(verify);
    }
}

static void slice_run(struct kvd_slice *slice)
{
    verify_pump((void *)slice);
}

int kvd_verify_start(const struct kvd_verify_args *args, struct kvd_verify **ret)
{
    struct kvd_verify *verify = calloc(1, sizeof(*verify));

    KVARN_ASSERT(args->blocks_max > 0);
    if (verify == NULL) {
        return KVARN_ENOMEM;
    }
    verify->args = *args;
    verify->session = kvd_session_ref(args->session);
    verify->service = args->session->service;
    verify->next_block = args->block_first;
    verify->end_block = args->blocks_max > UINT32_MAX - args->block_first
                            ? UINT32_MAX
                            : args->block_first + args->blocks_max;
    verify->next_record = args->block_first == 0 ? KVD_VERIFY_SESSION : KVD_VERIFY_BLOCK;
    verify->slice.run = slice_run;
    *ret = verify;
    kvd_slices_add(&verify->service->sessions.slices, &verify->slice);
    return 0;
}

/* One block that a reader found to be wrong. */
struct suspect {
    struct kvd_service *service; /* borrowed */
    struct kvd_verify *verify;
    struct kvd_verify_totals totals; /* logged, and told to nobody */
};

static void suspect_done_cb(void *ctx, uint32_t next_block)
{
    struct suspect *suspect = ctx;

    (void)next_block;
    suspect->service->suspect_count--;
    free(suspect);
}

void kvd_verify_suspect(struct kvd_session *session, uint32_t block_idx)
{
    struct kvd_service *service = session->service;
    const struct kvd_block *block =
        block_idx < kvd_session_block_count(session) ? kvd_session_block(session, block_idx) : NULL;
    bool is_stored = block != NULL && kvd_cold_copy_is_durable(block->cold);
    bool has_room = service->suspect_count < SUSPECTS_MAX && !service->is_draining;
    struct suspect *suspect = is_stored && has_room ? calloc(1, sizeof(*suspect)) : NULL;

    if (suspect == NULL) {
        return;
    }
    suspect->service = service;
    struct kvd_verify_args args = {.session = session,
        .block_first = block_idx,
        .blocks_max = 1,
        .end_ns = UINT64_MAX,
        .totals = &suspect->totals,
        .ctx = suspect,
        .done_cb = suspect_done_cb};
    if (kvd_verify_start(&args, &suspect->verify) != 0) {
        free(suspect);
        return;
    }
    service->suspect_count++;
}

void kvd_verify_stop(struct kvd_verify *verify)
{
    verify->is_stopped = true;
    verify->is_pumping = true; /* it ends in a later turn, not from in here */
    for (unsigned i = 0; i < CHECKS_MAX; i++) {
        struct kvd_verify_check *check = verify->checks[i];
        if (check != NULL && check->op.is_queued) {
            kvd_session_op_cancel(&check->op);
            finding_add(verify, check, KVD_VERIFY_LEFT);
            check_end(check);
        }
    }
    verify->is_pumping = false;
    if (verify->running == 0 && !verify->slice.is_listed) {
        kvd_slices_add(&verify->service->sessions.slices, &verify->slice);
    }
}

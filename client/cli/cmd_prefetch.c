/* kvarnctl prefetch, jobs. */
#include <inttypes.h>
#include <poll.h>
#include <unistd.h>

#include "client/cli/ctl.h"
#include "client/cli/printable.h"

/* Between two looks at a job that is waited for. */
#define LOOK_MS 100

static const char *state_name(enum kvarn_job_state state)
{
    static const char *const names[] = {"running", "done", "failed", "cancelled"};

    return (unsigned)state < sizeof names / sizeof names[0] ? names[state] : "unknown";
}

static void job_json(struct json *json, const struct kvarn_job *job)
{
    json_object_open(json, NULL);
    json_u64(json, "job", job->id);
    json_text(json, "session", job->session);
    json_text(json, "state", state_name(job->state));
    json_u64(json, "blocks_done", job->blocks_done);
    json_u64(json, "blocks", job->blocks);
    json_u64(json, "bytes_done", job->bytes_done);
    json_u64(json, "bytes", job->bytes);
    json_u64(json, "age_ms", job->age_ms);
    json_u64(json, "run_ms", job->run_ms);
    if (job->err != 0) {
        json_text(json, "error", kvarn_err_label(job->err));
    }
    json_object_close(json);
}

int cmd_jobs(struct ctl *ctl)
{
    struct kvarn_list_jobs_result list;
    char done[CTL_BYTES_TEXT_MAX];
    char all[CTL_BYTES_TEXT_MAX];
    char name[PRINTABLE_MAX];
    int err = kvarn_client_list_jobs(ctl->client, &list);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        json_array_open(&ctl->json, "jobs");
        for (size_t i = 0; i < list.job_count; i++) {
            job_json(&ctl->json, &list.jobs[i]);
        }
        json_array_close(&ctl->json);
        json_object_close(&ctl->json);
        return CTL_OK;
    }
    printf("%8s %-32s %-10s %15s %24s %10s %10s\n", "JOB", "SESSION", "STATE", "BLOCKS", "BYTES",
        "AGE", "RAN");
    for (size_t i = 0; i < list.job_count; i++) {
        const struct kvarn_job *job = &list.jobs[i];
        printf("%8" PRIu64 " %-32s %-10s %7" PRIu32 "/%7" PRIu32 " %11s/%12s %8.1f s %8.1f s%s%s\n",
            job->id, printable_text(job->session, name, sizeof name), state_name(job->state),
            job->blocks_done, job->blocks, ctl_bytes_text(job->bytes_done, done),
            ctl_bytes_text(job->bytes, all), (double)job->age_ms / 1000.0,
            (double)job->run_ms / 1000.0, job->err != 0 ? "  " : "",
            job->err != 0 ? kvarn_err_label(job->err) : "");
    }
    return CTL_OK;
}

/* The line that is written over while a job runs; on a terminal only. */
static void progress_show(const struct ctl *ctl, const struct kvarn_job *job)
{
    char done[CTL_BYTES_TEXT_MAX];
    char all[CTL_BYTES_TEXT_MAX];

    if (!ctl->is_json && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r%s: %" PRIu32 " of %" PRIu32 " blocks, %s of %s, %.1f s\033[K%s",
            ctl->args.positions[0], job->blocks_done, job->blocks,
            ctl_bytes_text(job->bytes_done, done), ctl_bytes_text(job->bytes, all),
            (double)job->run_ms / 1000.0, job->state == KVARN_JOB_RUNNING ? "" : "\n");
        fflush(stderr);
    }
}

/* Look for the job; its name is not copied. Returns 0, or what went wrong. */
static int job_find(struct ctl *ctl, uint64_t id, struct kvarn_job *ret)
{
    struct kvarn_list_jobs_result list;
    int err = kvarn_client_list_jobs(ctl->client, &list);

    for (size_t i = 0; err == 0 && i < list.job_count; i++) {
        if (list.jobs[i].id == id) {
            *ret = list.jobs[i];
            return 0;
        }
    }
    return err != 0 ? err : KVARN_ENOT_FOUND;
}

/* Stay until the job has ended, within the life of the connection. */
static int job_wait(struct ctl *ctl, uint64_t id, struct kvarn_job *ret)
{
    int err = job_find(ctl, id, ret);

    while (err == 0) {
        progress_show(ctl, ret);
        if (ret->state != KVARN_JOB_RUNNING) {
            break;
        }
        (void)poll(NULL, 0, LOOK_MS);
        err = job_find(ctl, id, ret);
    }
    return err;
}

static int ended_say(struct ctl *ctl, const struct kvarn_job *job)
{
    char text[CTL_BYTES_TEXT_MAX];

    if (ctl->is_json) {
        job_json(&ctl->json, job);
    } else {
        printf("%s: %s, %" PRIu32 " of %" PRIu32 " blocks, %s in %.1f s%s%s\n",
            ctl->args.positions[0], state_name(job->state), job->blocks_done, job->blocks,
            ctl_bytes_text(job->bytes_done, text), (double)job->run_ms / 1000.0,
            job->err != 0 ? ": " : "", job->err != 0 ? kvarn_err_text(job->err) : "");
    }
    return job->state == KVARN_JOB_DONE ? CTL_OK : CTL_FAILED;
}

int cmd_prefetch(struct ctl *ctl)
{
    uint64_t last = ctl_is_set(ctl, "last-blocks") ? ctl_number(ctl, "last-blocks") : UINT32_MAX;
    const struct kvarn_prefetch_args args = {.name = ctl->args.positions[0],
        .last_blocks = last > UINT32_MAX ? UINT32_MAX : (uint32_t)last};
    struct kvarn_prefetch_result result;
    char text[CTL_BYTES_TEXT_MAX];

    if (args.last_blocks == 0) {
        return ctl_usage(ctl, "--last-blocks: expected at least 1");
    }
    int err = kvarn_client_prefetch(ctl->client, &args, &result);
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (result.has_job && ctl_is_set(ctl, "wait")) {
        struct kvarn_job job;
        err = job_wait(ctl, result.job_id, &job);
        if (err != 0) {
            return err == KVARN_ENOT_FOUND ? ctl_fail(ctl, err, "the server lists the job no more")
                                           : ctl_refused(ctl, err);
        }
        job.session = args.name;
        return ended_say(ctl, &job);
    }
    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        json_text(&ctl->json, "session", args.name);
        if (result.has_job) {
            json_u64(&ctl->json, "job", result.job_id);
        }
        json_u64(&ctl->json, "blocks", result.blocks);
        json_u64(&ctl->json, "bytes", result.bytes);
        json_object_close(&ctl->json);
    } else if (result.has_job) {
        printf("%s: job %" PRIu64 " loads %" PRIu32 " blocks, %s\n", args.name, result.job_id,
            result.blocks, ctl_bytes_text(result.bytes, text));
    } else {
        printf("%s: nothing to load\n", args.name);
    }
    return CTL_OK;
}

/* kvarnctl verify: what the server holds against its checksums, part by part. */
#include <inttypes.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/printable.h"
#include "lib/base/limits.h"

/* Between two lines of progress. */
#define PROGRESS_US 500000

static const char *const part_names[] = {"block", "session record", "map record", "tail record"};
static const char *const outcome_names[] = {
    "left as it was",
    "dropped: it is read from disk when it is needed",
    "lost: a MISS from now on",
    "right in memory: it is written to disk once more",
};
static const char *const part_labels[] = {"block", "session", "map", "tail"};
static const char *const outcome_labels[] = {"left", "dropped", "lost", "rewrite"};

/* What all parts of one run come to. */
struct verify_run {
    struct ctl *ctl;
    uint64_t session_count; /* that there are; 0: not known */
    uint64_t begin_us, shown_us;
    uint64_t findings;
    bool is_shown;                  /* a line of progress is on the terminal */
    struct kvarn_verify_result sum; /* its counts */
};

static const char *name_at(const char *const *names, size_t count, unsigned number)
{
    return number < count ? names[number] : "unknown";
}
#define NAME_AT(names, number) name_at((names), sizeof(names) / sizeof((names)[0]), (number))

static void sum_add(struct verify_run *run, const struct kvarn_verify_result *part)
{
    struct kvarn_verify_result *sum = &run->sum;

    sum->sessions += part->sessions;
    sum->blocks += part->blocks;
    sum->pages += part->pages;
    sum->page_bytes += part->page_bytes;
    sum->rows_pages += part->rows_pages;
    sum->records += part->records;
    sum->record_bytes += part->record_bytes;
    sum->wrong_pages += part->wrong_pages;
    sum->wrong_records += part->wrong_records;
    sum->unread_records += part->unread_records;
    run->findings += part->finding_count;
}

/* Percent done: by sessions, and by blocks within the one that is next. */
static double percent(const struct verify_run *run, const struct kvarn_verify_result *part)
{
    double within = part->session_blocks > 0 && part->next_block < part->session_blocks
                        ? (double)part->next_block / part->session_blocks
                        : 0.0;
    double total = run->session_count > 0 ? (double)run->session_count : 1.0;
    double done = ((double)run->sum.sessions + within) / total;

    return 100.0 * (!part->more || done > 1.0 ? 1.0 : done);
}

static void progress_show(struct verify_run *run, const struct kvarn_verify_result *part)
{
    uint64_t now_us = ctl_now_us();
    char memory[CTL_BYTES_TEXT_MAX], disk[CTL_BYTES_TEXT_MAX], rate[CTL_BYTES_TEXT_MAX];
    uint64_t bytes = run->sum.page_bytes + run->sum.record_bytes;
    double seconds = (double)(now_us - run->begin_us) / 1e6;

    if (ctl_is_set(run->ctl, "quiet") || !part->more || now_us - run->shown_us < PROGRESS_US) {
        return;
    }
    run->shown_us = now_us;
    run->is_shown = true;
    fprintf(stderr,
        "\r%5.1f %%  %" PRIu64 " of %" PRIu64 " sessions, %s in memory, %s on disk, %s/s, %" PRIu64
        " wrong ",
        percent(run, part), run->sum.sessions, run->session_count,
        ctl_bytes_text(run->sum.page_bytes, memory), ctl_bytes_text(run->sum.record_bytes, disk),
        ctl_bytes_text((uint64_t)((double)bytes / (seconds > 0 ? seconds : 1)), rate),
        run->findings);
}

static void progress_end(struct verify_run *run)
{
    if (run->is_shown) {
        fputc('\n', stderr);
        run->is_shown = false;
    }
}

static void finding_json(struct json *json, const struct kvarn_verify_finding *f)
{
    json_object_open(json, NULL);
    json_text(json, "session", f->session);
    json_text(json, "part", NAME_AT(part_labels, f->part));
    json_u64(json, "block", f->block);
    json_u64(json, "wrong_pages", f->wrong_pages);
    json_u64(json, "layer", f->layer);
    json_text(json, "record_error", f->record_err == 0 ? "" : kvarn_err_label(f->record_err));
    json_text(json, "outcome", NAME_AT(outcome_labels, f->outcome));
    json_object_close(json);
}

static void finding_print(const struct kvarn_verify_finding *f)
{
    char name[PRINTABLE_MAX];

    printf("%s: %s", printable_text(f->session, name, sizeof name), NAME_AT(part_names, f->part));
    if (f->part == KVARN_VERIFY_BLOCK) {
        printf(" %" PRIu32, f->block);
    }
    if (f->wrong_pages > 0) {
        printf(", %" PRIu32 " wrong pages in memory from layer %" PRIu32 " on", f->wrong_pages,
            f->layer);
    }
    if (f->record_err == KVARN_ECORRUPT) {
        printf(", wrong on disk");
    } else if (f->record_err != 0) {
        printf(", not read from disk: %s", kvarn_err_text(f->record_err));
    }
    printf("; %s\n", NAME_AT(outcome_names, f->outcome));
}

static void findings_show(struct verify_run *run, const struct kvarn_verify_result *part)
{
    if (part->finding_count > 0) {
        progress_end(run);
    }
    for (size_t i = 0; i < part->finding_count; i++) {
        if (run->ctl->is_json) {
            finding_json(&run->ctl->json, &part->findings[i]);
        } else {
            finding_print(&part->findings[i]);
        }
    }
}

static void sum_json(struct json *json, const struct kvarn_verify_result *sum)
{
    json_u64(json, "sessions", sum->sessions);
    json_u64(json, "blocks", sum->blocks);
    json_u64(json, "pages", sum->pages);
    json_u64(json, "page_bytes", sum->page_bytes);
    json_u64(json, "rows_pages", sum->rows_pages);
    json_u64(json, "records", sum->records);
    json_u64(json, "record_bytes", sum->record_bytes);
    json_u64(json, "wrong_pages", sum->wrong_pages);
    json_u64(json, "wrong_records", sum->wrong_records);
    json_u64(json, "unread_records", sum->unread_records);
}

static void sum_print(const struct kvarn_verify_result *sum)
{
    char memory[CTL_BYTES_TEXT_MAX], disk[CTL_BYTES_TEXT_MAX];

    printf("%" PRIu64 " sessions, %" PRIu64 " blocks\n", sum->sessions, sum->blocks);
    printf("memory  %10" PRIu64 " pages   %12s, %" PRIu64 " wrong; %" PRIu64
           " pages of rows have no checksum\n",
        sum->pages, ctl_bytes_text(sum->page_bytes, memory), sum->wrong_pages, sum->rows_pages);
    printf("disk    %10" PRIu64 " records %12s, %" PRIu64 " wrong, %" PRIu64 " not read\n",
        sum->records, ctl_bytes_text(sum->record_bytes, disk), sum->wrong_records,
        sum->unread_records);
}

/* How many named sessions there are: what the percentage is of. */
static int sessions_count(struct ctl *ctl, uint64_t *ret)
{
    struct kvarn_list_sessions_args args = {.limit = KVARN_LIST_PAGE_MAX};
    char after[KVARN_SESSION_NAME_MAX + 1];
    struct kvarn_list_sessions_result page = {0};
    int err;

    do {
        err = kvarn_client_list_sessions(ctl->client, &args, &page);
        if (err != 0 || page.session_count == 0) {
            break;
        }
        const char *last = page.sessions[page.session_count - 1].name;
        if (strlen(last) >= sizeof after || (args.after != NULL && strcmp(last, after) <= 0)) {
            return KVARN_EPROTOCOL;
        }
        *ret += page.session_count;
        memcpy(after, last, strlen(last) + 1);
        args.after = after;
    } while (page.more);
    return err;
}

/* All parts, one after the other. */
static int parts_run(struct verify_run *run, const char *name)
{
    struct kvarn_verify_args args = {.name = name};
    char next_name[KVARN_SESSION_NAME_MAX + 1];
    struct kvarn_verify_result part;

    do {
        int err = kvarn_client_verify(run->ctl->client, &args, &part);

        if (err != 0) {
            return err;
        }
        sum_add(run, &part);
        findings_show(run, &part);
        progress_show(run, &part);
        if (!part.more) {
            break;
        }
        if (args.name == NULL) {
            if (part.next_name == NULL || strlen(part.next_name) >= sizeof next_name) {
                return KVARN_EPROTOCOL;
            }
            memcpy(next_name, part.next_name, strlen(part.next_name) + 1);
            args.name_first = next_name;
        }
        args.block_first = part.next_block;
    } while (true);
    return 0;
}

int cmd_verify(struct ctl *ctl)
{
    const char *name = ctl_text(ctl, "session");
    struct verify_run run = {.ctl = ctl, .begin_us = ctl_now_us()};
    int err = 0;

    run.session_count = name != NULL ? 1 : 0;
    if (name == NULL) {
        err = sessions_count(ctl, &run.session_count);
    }
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        json_array_open(&ctl->json, "findings");
    }
    err = parts_run(&run, name);
    progress_end(&run);
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        json_array_close(&ctl->json);
        sum_json(&ctl->json, &run.sum);
        json_object_close(&ctl->json);
    } else {
        sum_print(&run.sum);
    }
    return run.findings == 0 ? CTL_OK : CTL_FAILED;
}

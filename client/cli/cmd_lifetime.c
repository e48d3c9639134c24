/* kvarnctl touch, pin, unpin, evict. */
#include <inttypes.h>

#include "client/cli/ctl.h"

static uint64_t number_or(struct ctl *ctl, const char *option, uint64_t dflt)
{
    return ctl_is_set(ctl, option) ? ctl_number(ctl, option) : dflt;
}

int cmd_touch(struct ctl *ctl)
{
    const struct kvarn_touch_args args = {
        .name = ctl->args.positions[0],
        .ttl_ms = number_or(ctl, "ttl-ms", KVARN_TOUCH_KEEP),
        .priority = number_or(ctl, "priority", KVARN_TOUCH_KEEP),
    };
    struct kvarn_touch_result result;
    int err = kvarn_client_touch(ctl->client, &args, &result);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        printf("%s: TTL %" PRIu64 " ms, priority %" PRIu32 "\n", args.name, result.ttl_left_ms,
            result.priority);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", args.name);
    json_u64(&ctl->json, "ttl_left_ms", result.ttl_left_ms);
    json_u64(&ctl->json, "priority", result.priority);
    json_object_close(&ctl->json);
    return CTL_OK;
}

static int pin(struct ctl *ctl, const struct kvarn_pin_args *args)
{
    struct kvarn_pin_result result;
    int err = kvarn_client_pin(ctl->client, args, &result);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        printf("%s: %" PRIu64 " bytes pinned, %" PRIu64 " of the budget left\n", args->name,
            result.pinned_bytes, result.budget_left_bytes);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", args->name);
    json_u64(&ctl->json, "pinned_bytes", result.pinned_bytes);
    json_u64(&ctl->json, "budget_left_bytes", result.budget_left_bytes);
    json_object_close(&ctl->json);
    return CTL_OK;
}

int cmd_pin(struct ctl *ctl)
{
    const struct kvarn_pin_args args = {
        .name = ctl->args.positions[0], .pin_ms = ctl_number(ctl, "for-ms")};

    return pin(ctl, &args);
}

int cmd_unpin(struct ctl *ctl)
{
    const struct kvarn_pin_args args = {.name = ctl->args.positions[0], .unpin = true};

    return pin(ctl, &args);
}

int cmd_evict(struct ctl *ctl)
{
    uint64_t blocks = number_or(ctl, "blocks", 0);
    const struct kvarn_evict_args args = {.name = ctl->args.positions[0],
        .blocks = blocks > UINT32_MAX ? UINT32_MAX : (uint32_t)blocks};
    struct kvarn_evict_result result;
    int err = kvarn_client_evict(ctl->client, &args, &result);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        printf("%s: %" PRIu32 " blocks evicted, %" PRIu64 " bytes freed; tokens %" PRIu64
               " to %" PRIu64 " are missing\n",
            args.name, result.blocks, result.freed_bytes, result.missing_first,
            result.missing_last);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", args.name);
    json_u64(&ctl->json, "blocks", result.blocks);
    json_u64(&ctl->json, "freed_bytes", result.freed_bytes);
    json_u64(&ctl->json, "missing_first", result.missing_first);
    json_u64(&ctl->json, "missing_last", result.missing_last);
    json_object_close(&ctl->json);
    return CTL_OK;
}

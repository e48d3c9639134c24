/* kvarnctl size: the capacity calculator on the command line. */
#include <inttypes.h>

#include "client/cli/ctl.h"
#include "client/cli/size.h"
#include "lib/base/assert.h"

#define PRINTED_MAX 3

static int in_fill(struct ctl *ctl, struct size_in *in)
{
    uint64_t k_dim = ctl_number(ctl, "head-dim");
    uint64_t v_dim = ctl_is_set(ctl, "v-dim") ? ctl_number(ctl, "v-dim") : k_dim;
    uint64_t group = ctl_number(ctl, "group");

    if (kvarn_preset_parse(ctl_text(ctl, "preset"), &in->spec.k_bits, &in->spec.v_bits) != 0) {
        return ctl_usage(ctl, "--preset: expected k2v2, k4v2 or k4v4");
    }
    if (k_dim > UINT16_MAX || v_dim > UINT16_MAX || group > UINT16_MAX ||
        ctl_number(ctl, "layers") > UINT32_MAX || ctl_number(ctl, "kv-heads") > UINT32_MAX) {
        return ctl_usage(ctl, "a number is outside what a model can have");
    }
    in->spec.k_dim = (uint16_t)k_dim;
    in->spec.v_dim = (uint16_t)v_dim;
    in->spec.group = (uint16_t)group;
    in->layers = (uint32_t)ctl_number(ctl, "layers");
    in->kv_heads = (uint32_t)ctl_number(ctl, "kv-heads");
    in->sink_tokens = ctl_is_set(ctl, "sink-tokens") ? ctl_number(ctl, "sink-tokens") : group;
    in->seal_lag = ctl_number(ctl, "seal-lag");
    return CTL_OK;
}

static void out_json(struct json *json, uint64_t tokens, const struct size_out *out)
{
    json_object_open(json, NULL);
    json_u64(json, "tokens", tokens);
    json_u64(json, "fp16_bytes", out->fp16_bytes);
    json_u64(json, "format_bytes", out->format_bytes);
    json_u64(json, "sink_bytes", out->sink_bytes);
    json_u64(json, "tail_bytes", out->tail_bytes);
    json_u64(json, "reserved_bytes", out->reserved_bytes);
    json_u64(json, "total_bytes", out->total_bytes);
    json_f64(json, "ratio", out->ratio);
    json_object_close(json);
}

static void out_text(uint64_t tokens, const struct size_out *out)
{
    char t[6][CTL_BYTES_TEXT_MAX];

    printf("%9" PRIu64 " %12s %12s %12s %12s %12s %12s %7.2fx\n", tokens,
        ctl_bytes_text(out->fp16_bytes, t[0]), ctl_bytes_text(out->format_bytes, t[1]),
        ctl_bytes_text(out->sink_bytes, t[2]), ctl_bytes_text(out->tail_bytes, t[3]),
        ctl_bytes_text(out->reserved_bytes, t[4]), ctl_bytes_text(out->total_bytes, t[5]),
        out->ratio);
}

int cmd_size(struct ctl *ctl)
{
    uint64_t tokens[PRINTED_MAX] = {1024, 4096, 32768};
    size_t count = PRINTED_MAX;
    struct size_in in = {0};
    struct size_out outs[PRINTED_MAX];
    int code = in_fill(ctl, &in);

    if (code != CTL_OK) {
        return code;
    }
    if (ctl_is_set(ctl, "tokens")) {
        tokens[0] = ctl_number(ctl, "tokens");
        count = 1;
    }
    for (size_t i = 0; i < count; i++) {
        in.tokens = tokens[i];
        if (size_compute(&in, &outs[i]) != 0) {
            return ctl_usage(ctl, "no model has this shape: see the limits of head_dim, group, "
                                  "sink (a multiple of group), lag (at most group)");
        }
    }
    if (!ctl->is_json) {
        printf("format: %.4f bits a value, %.2fx smaller than fp16\n", outs[0].format_bits,
            outs[0].format_ratio);
        printf("%9s %12s %12s %12s %12s %12s %12s %8s\n", "tokens", "fp16", "format", "sink",
            "tail", "reserved", "total", "ratio");
        for (size_t i = 0; i < count; i++) {
            out_text(tokens[i], &outs[i]);
        }
        return CTL_OK;
    }
    KVARN_ASSERT(ctl->json.depth == 0);
    json_object_open(&ctl->json, NULL);
    json_f64(&ctl->json, "format_bits", outs[0].format_bits);
    json_f64(&ctl->json, "format_ratio", outs[0].format_ratio);
    json_array_open(&ctl->json, "sizes");
    for (size_t i = 0; i < count; i++) {
        out_json(&ctl->json, tokens[i], &outs[i]);
    }
    json_array_close(&ctl->json);
    json_object_close(&ctl->json);
    return CTL_OK;
}

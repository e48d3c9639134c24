/* The example of the README: store the keys and values of one layer, and attend to them. */
#include <stdio.h>
#include <stdlib.h>

#include "kvarn/client.h"

enum { HEADS = 2, TOKENS = 4, DIM = 64 };

int main(int argc, char **argv)
{
    static float k[HEADS * TOKENS * DIM], v[HEADS * TOKENS * DIM], q[HEADS * DIM];
    const struct kvarn_layer_group layers = {.layers = 1, .kv_heads = HEADS, .k_dim = DIM};
    const struct kvarn_shape model = {.model = "example",
        .layer_groups = &layers,
        .layer_group_count = 1,
        .group = 128,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = KVARN_SINK_DEFAULT};
    const struct kvarn_span kv[] = {{k, sizeof k}, {v, sizeof v}}, query = {q, sizeof q};
    struct kvarn_open_session_args open = {0}; /* without a name: it ends with the connection */
    struct kvarn_append_args append = {.layer_count = 1,
        .token_count = TOKENS,
        .dtype = KVARN_F32,
        .payload = kv,
        .payload_count = 2};
    struct kvarn_attend_item item = {
        .query_tokens = 1, .position = KVARN_TOKEN_DEFAULT, .token_last = KVARN_TOKEN_DEFAULT};
    const struct kvarn_attend_args attend = {
        .params = {.q_heads = HEADS, .q_dtype = KVARN_F32, .out_dtype = KVARN_F32},
        .items = &item,
        .item_count = 1,
        .payload = &query,
        .payload_count = 1};
    struct kvarn_register_shape_result shape;
    struct kvarn_attend_result result;
    struct kvarn_session *session;
    struct kvarn_client *client;
    char error[KVARN_CLIENT_ERROR_MAX];

    for (int i = 0; i < HEADS * TOKENS * DIM; i++) {
        v[i] = 1.0f; /* any weights give 1: K and Q are zero here */
    }
    if (kvarn_client_connect(
            argc > 1 ? argv[1] : "unix:/run/kvarnd/kvarnd.sock", NULL, &client, error) != 0) {
        return fprintf(stderr, "%s\n", error), EXIT_FAILURE;
    }
    if (kvarn_client_register_shape(client, &model, &shape) != 0) {
        goto fail;
    }
    open.shape_id = shape.shape_id;
    if (kvarn_client_open_session(client, &open, &session, NULL) != 0) {
        goto fail;
    }
    append.session = item.session = session;
    if (kvarn_client_append(client, &append, NULL) != 0 ||
        kvarn_client_attend(client, &attend, &result) != 0) {
        goto fail;
    }
    printf("out[0] = %.4f, lse[0] = %.4f\n", (double)((const float *)result.out)[0],
        (double)result.lse[0]); /* 1.0000 and log 4 = 1.3863 */
    kvarn_client_destroy(client);
    return EXIT_SUCCESS;
fail:
    fprintf(stderr, "%s\n", kvarn_client_error(client));
    kvarn_client_destroy(client);
    return EXIT_FAILURE;
}

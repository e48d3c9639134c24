/*
 * Uses installed libkvarn_client, blocking and on a loop: asks for a daemon that is not there.
 * Exits 3 when both flavours say so.
 */
#include <kvarn/client.h>
#include <kvarn/client_uv.h>

#include <stdio.h>
#include <uv.h>

static void state_cb(struct kvarn_uv_client *client, int err, void *ctx)
{
    *(int *)ctx = err;
    kvarn_uv_close(client, NULL, NULL);
}

int main(int argc, char **argv)
{
    char why[KVARN_CLIENT_ERROR_MAX] = "";
    struct kvarn_client *client = NULL;
    struct kvarn_uv_client *uv_client = NULL;
    uv_loop_t loop;
    int async_err = 0;

    if (argc != 2 || uv_loop_init(&loop) != 0) {
        return 2;
    }
    int err = kvarn_client_connect(argv[1], NULL, &client, why);
    (void)printf("%s: %s\n", kvarn_err_name(err), why);
    if (err == 0 || kvarn_uv_connect(&loop, argv[1], NULL, state_cb, &async_err, &uv_client) != 0) {
        return 1;
    }
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    (void)printf("on the loop: %s\n", kvarn_err_name(async_err));
    return uv_loop_close(&loop) == 0 && err == KVARN_EIO && async_err == KVARN_EIO ? 3 : 1;
}

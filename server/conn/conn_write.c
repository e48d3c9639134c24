/*
 * Output of a connection: replies queued, gathered, sent from where they lie.
 *
 * Owner: conn. Thread: loop only.
 */
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/conn/conn_impl.h"

/* One write takes at most about this much, so that pages are let go of as the peer reads. */
#define WRITE_BYTES_MAX (4u << 20)

/* What of a connection's replies may wait without a charge: a full daemon still says NO_SPACE. */
#define UNCHARGED_BYTES_MAX (64u << 10)

/* The next part of an outgoing reply; false behind its last. */
static bool part_at(const struct kvd_outgoing *out, unsigned part_idx, struct kvd_buf *ret)
{
    if (part_idx == 0) {
        *ret = (struct kvd_buf){out->head, out->head_bytes};
        return true;
    }
    if (part_idx <= out->payload.buf_count) {
        *ret = out->payload.bufs[part_idx - 1];
        return true;
    }
    if (part_idx == out->payload.buf_count + 1 && out->has_trailer) {
        *ret = (struct kvd_buf){&out->trailer, sizeof(out->trailer)};
        return true;
    }
    return false;
}

/* Collect what leaves in one write, and move on past it. Returns how many stretches. */
static unsigned parts_gather(struct kvd_conn_writer *writer, struct kvd_buf *bufs)
{
    unsigned count = 0;

    writer->writing_bytes = 0;
    while (
        writer->at != NULL && count < KVD_IO_BUFS_MAX && writer->writing_bytes < WRITE_BYTES_MAX) {
        if (!part_at(writer->at, writer->part_idx, &bufs[count])) {
            writer->at = STAILQ_NEXT(writer->at, link);
            writer->part_idx = 0;
            continue;
        }
        writer->part_idx++;
        if (bufs[count].bytes > 0) {
            writer->writing_bytes += bufs[count].bytes;
            count++;
        }
    }
    return count;
}

static size_t outgoing_bytes(const struct kvd_outgoing *out)
{
    return sizeof(*out) + out->head_bytes;
}

/* Charge the entry and its message; payload was charged by whoever made it. False: no room. */
static bool outgoing_charge(struct kvd_conn *conn, struct kvd_outgoing *out)
{
    struct kvd_conn_writer *writer = &conn->writer;
    size_t bytes = outgoing_bytes(out);

    out->is_charged = kvd_budget_charge(&conn->service->budget, KVD_BUDGET_REPLIES, bytes) == 0;
    if (out->is_charged) {
        return true;
    }
    if (writer->uncharged_bytes + bytes > UNCHARGED_BYTES_MAX) {
        return false;
    }
    writer->uncharged_bytes += bytes;
    return true;
}

static void outgoing_destroy(struct kvd_conn *conn, struct kvd_outgoing *out)
{
    struct kvd_conn_writer *writer = &conn->writer;
    size_t bytes = outgoing_bytes(out);

    KVARN_ASSERT(writer->queued_bytes >= out->total_bytes);
    writer->queued_bytes -= out->total_bytes;
    if (out->is_charged) {
        kvd_budget_release(&conn->service->budget, KVD_BUDGET_REPLIES, bytes);
    } else {
        KVARN_ASSERT(writer->uncharged_bytes >= bytes);
        writer->uncharged_bytes -= bytes;
    }
    if (out->payload.release_cb != NULL) {
        out->payload.release_cb(out->payload.ctx);
    }
    free(out->head);
    free(out);
}

/* Free the replies of which every part has been sent. */
static void sent_release(struct kvd_conn *conn)
{
    struct kvd_conn_writer *writer = &conn->writer;
    struct kvd_outgoing *out;
    struct kvd_buf part;

    while ((out = STAILQ_FIRST(&writer->queue)) != NULL) {
        if (out == writer->at && part_at(out, writer->part_idx, &part)) {
            return;
        }
        if (out == writer->at) {
            writer->at = STAILQ_NEXT(out, link);
            writer->part_idx = 0;
        }
        STAILQ_REMOVE_HEAD(&writer->queue, link);
        outgoing_destroy(conn, out);
    }
}

static void written_cb(void *ctx, int err)
{
    struct kvd_conn *conn = ctx;
    struct kvd_conn_writer *writer = &conn->writer;
    struct kvd_service *service = conn->service;

    if (err == 0) {
        kvd_metrics_add(&service->metrics, KVD_METRIC_bytes_out, writer->writing_bytes);
    }
    writer->writing_bytes = 0;
    writer->progress_ns = service->io->ops->now_ns(service->io);
    if (conn->is_closing) {
        return; /* the close frees what is queued */
    }
    if (err != 0) {
        kvd_conn_close(conn, "write failed");
        return;
    }
    sent_release(conn);
    kvd_conn_resume(conn);
    if (conn->is_closing) {
        return;
    }
    kvd_conn_flush(conn);
    kvd_conn_update_reading(conn);
    kvd_conn_try_finish(conn);
}

void kvd_conn_flush(struct kvd_conn *conn)
{
    struct kvd_conn_writer *writer = &conn->writer;
    struct kvd_io *io = conn->service->io;
    struct kvd_buf bufs[KVD_IO_BUFS_MAX];

    if (writer->writing_bytes > 0 || writer->at == NULL || conn->is_closing) {
        return;
    }
    unsigned count = parts_gather(writer, bufs);
    if (count == 0) {
        sent_release(conn); /* empty parts were all that was left: no write will come for them */
        return;
    }
    writer->left_bytes = writer->writing_bytes;
    writer->progress_ns = io->ops->now_ns(io);
    io->ops->stream_write(conn->stream, bufs, count, written_cb, conn);
}

void kvd_conn_send(struct kvd_conn *conn, void *head, size_t head_bytes,
    const struct kvd_reply_payload *payload, const uint64_t *trailer)
{
    struct kvd_conn_writer *writer = &conn->writer;
    struct kvd_outgoing *out = conn->is_closing ? NULL : calloc(1, sizeof(*out));

    if (out != NULL) {
        out->head_bytes = head_bytes;
    }
    if (out == NULL || !outgoing_charge(conn, out)) {
        free(out);
        free(head);
        if (payload->release_cb != NULL) {
            payload->release_cb(payload->ctx);
        }
        kvd_conn_close(conn, "no memory for a reply");
        return;
    }
    out->head = head;
    out->payload = *payload;
    out->has_trailer = trailer != NULL;
    out->trailer = trailer == NULL ? 0 : *trailer;
    /* The entry itself counts: many small replies must not go unseen. */
    out->total_bytes = sizeof(*out) + head_bytes + payload->bytes + sizeof(out->trailer);
    STAILQ_INSERT_TAIL(&writer->queue, out, link);
    writer->queued_bytes += out->total_bytes;
    if (writer->at == NULL) {
        writer->at = out;
        writer->part_idx = 0;
    }
    if (!conn->is_in_read) {
        kvd_conn_flush(conn);
        kvd_conn_update_reading(conn);
    }
}

void kvd_conn_writer_fini(struct kvd_conn *conn)
{
    struct kvd_conn_writer *writer = &conn->writer;
    struct kvd_outgoing *out;

    while ((out = STAILQ_FIRST(&writer->queue)) != NULL) {
        STAILQ_REMOVE_HEAD(&writer->queue, link);
        outgoing_destroy(conn, out);
    }
    writer->at = NULL;
    KVARN_ASSERT(writer->queued_bytes == 0 && writer->uncharged_bytes == 0);
}

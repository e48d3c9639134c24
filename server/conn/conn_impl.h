/*
 * What the files of a connection share: its struct, and the calls between reading and writing.
 *
 * Owner: conn.c. Thread: loop only. Included by conn*.c and nobody else.
 */
#ifndef KVD_CONN_IMPL_H
#define KVD_CONN_IMPL_H

#include "lib/base/xxh3.h"

#include "server/conn/conn.h"
#include "server/prefix/prefix_lease.h"

enum kvd_read_state {
    KVD_READ_HEADER,
    KVD_READ_MESSAGE,
    KVD_READ_PAYLOAD,
    KVD_READ_TRAILER,
    KVD_READ_SKIP, /* the rest of a frame that was refused by its header or message */
};

/* The frame being received. */
struct kvd_conn_reader {
    enum kvd_read_state state;
    bool is_direct; /* the next read goes straight into the payload's staging */
    uint8_t header_bytes[KVARN_FRAME_HEADER_BYTES];
    uint8_t trailer_bytes[KVARN_FRAME_TRAILER_BYTES];
    uint64_t got_bytes;          /* of the part that `state` says */
    uint64_t skip_bytes;         /* KVD_READ_SKIP: left to drop */
    uint8_t *message;            /* in request->alloc; NULL while nothing is copied */
    struct kvd_request *request; /* owned; NULL in KVD_READ_HEADER and KVD_READ_SKIP */
    uint64_t started_ns;         /* first byte of the frame; 0: between frames */
    uint64_t payload_bytes;      /* that the frame's header announced; 0 before it is there */
    XXH3_state_t *hash;          /* owned: of the payload; NULL until the first payload */
    /* Bytes read when there was too much output or no time left: to be parsed before others. */
    uint8_t *held; /* owned; NULL: none */
    size_t held_at, held_bytes;
    bool is_full; /* they wait for output to go down to half; else for their turn */
};

/* A packed reply on its way out. */
struct kvd_outgoing {
    STAILQ_ENTRY(kvd_outgoing) link;
    void *head; /* owned */
    size_t head_bytes;
    struct kvd_reply_payload payload; /* released when sent */
    uint64_t trailer;                 /* little-endian XXH3-64 of the payload */
    bool has_trailer;
    bool is_charged; /* this struct and head; else they count in uncharged_bytes */
    uint64_t total_bytes;
};
STAILQ_HEAD(kvd_outgoing_queue, kvd_outgoing);

/* What leaves next. */
struct kvd_conn_writer {
    struct kvd_outgoing_queue queue;
    struct kvd_outgoing *at; /* first entry with parts not handed to the stream; NULL: none */
    unsigned part_idx;       /* of `at`: 0 head, then its bufs, then the trailer */
    uint64_t queued_bytes;
    uint64_t uncharged_bytes; /* of it, for which the budget had no room */
    uint64_t writing_bytes;   /* in the write in flight; 0: none */
    uint64_t left_bytes;      /* of it, when progress was last seen */
    uint64_t progress_ns;     /* when bytes were last taken */
};

struct kvd_handle_slot {
    uint64_t handle;             /* 0: free */
    struct kvd_session *session; /* ref */
};

struct kvd_handle_table {
    struct kvd_handle_slot *slots; /* owned */
    uint32_t room;
    uint32_t count;
    uint32_t search_from; /* no free slot below it */
    uint64_t serial;      /* of the last handle given out */
};

struct kvd_conn {
    LIST_ENTRY(kvd_conn) link;
    struct kvd_service *service; /* borrowed */
    struct kvd_stream *stream;   /* owned until its close */
    struct kvd_peer peer;
    TAILQ_HEAD(kvd_conn_requests, kvd_request) requests; /* received, not answered */
    uint32_t request_count;                              /* of them and the one being received */
    uint64_t credit_bytes_used;
    uint64_t output_bytes_expected; /* payload of replies to requests in flight */
    struct kvd_conn_reader reader;
    struct kvd_conn_writer writer;
    struct kvd_handle_table handles;
    struct kvd_prefix_lease_table leases;
    struct kvd_slice slice; /* listed while held bytes wait for their turn */
    uint64_t opened_ns;
    uint64_t active_ns; /* last time a request arrived or was answered */
    bool is_ready;      /* Hello succeeded */
    bool wants_payload_xxh3;
    bool is_reading;    /* the stream is being read */
    bool is_in_read;    /* inside a read: replies are gathered until it ends */
    bool is_finishing;  /* no more requests; closes once all is answered and sent */
    bool is_closing;    /* the stream's close is on its way */
    const char *reason; /* why it finishes, for the log */
};

/* Callbacks of the stream: conn_read.c. */
extern const struct kvd_stream_handler kvd_conn_stream_handler;

/* Drop the frame being received. */
void kvd_conn_reader_fini(struct kvd_conn *conn);

/* Parse what was held back, for a turn's time, unless there is too much output still. */
void kvd_conn_resume(struct kvd_conn *conn);

/* `slice` of a connection: go on with what was held back. */
void kvd_conn_slice_run(struct kvd_slice *slice);

/* Free what was held back. */
void kvd_conn_held_fini(struct kvd_conn *conn);

/* Start or stop reading, as output and state ask. */
void kvd_conn_update_reading(struct kvd_conn *conn);

/* Hand what is queued to the stream, unless a write is in flight. */
void kvd_conn_flush(struct kvd_conn *conn);

/* Release everything queued; the stream no longer needs it. */
void kvd_conn_writer_fini(struct kvd_conn *conn);

/* Close now if a finishing connection has nothing left to answer or send. */
void kvd_conn_try_finish(struct kvd_conn *conn);

/* Let go of all handles. */
void kvd_conn_handles_fini(struct kvd_conn *conn);

#endif

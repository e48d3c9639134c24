/* The table of kvarnctl's commands and their options. */
#include "client/cli/ctl.h"

#define COUNT(rows) (sizeof(rows) / sizeof(rows)[0])

static const struct option_row global_rows[] = {
    {"server", OPTION_TEXT, "ADDRESS", NULL,
        "unix:PATH or tcp:HOST:PORT; else KVARN_SERVER, else the daemon's default socket", 's',
        false},
    {"json", OPTION_FLAG, NULL, NULL, "print one JSON object", 'j', false},
    {"deadline-ms", OPTION_UINT, "MS", NULL, "deadline of each request", 0, false},
    {"help", OPTION_FLAG, NULL, NULL, "print this help", 'h', false},
};
const struct option_set ctl_global_options = {global_rows, COUNT(global_rows)};

static const struct option_row sessions_rows[] = {
    {"prefix", OPTION_TEXT, "TEXT", NULL, "only names that begin with this", 0, false},
};

static const struct option_row append_rows[] = {
    {"k", OPTION_TEXT, "K.npy", NULL, "keys, fp16 or fp32 [kv_heads, tokens, head_dim]", 0, true},
    {"v", OPTION_TEXT, "V.npy", NULL, "values, likewise", 0, true},
    {"layer", OPTION_UINT, "L", NULL, "layer to append to", 0, true},
    {"model", OPTION_TEXT, "NAME", NULL,
        "model, where the session is not there yet; goes with --layers", 0, false},
    {"revision", OPTION_TEXT, "R", NULL, "revision of the model", 0, false},
    {"layers", OPTION_UINT, "N", NULL, "layers of the model", 0, false},
    {"preset", OPTION_TEXT, "PRESET", "k2v2", "bits of K and V: k2v2, k4v2 or k4v4", 0, false},
    {"group", OPTION_UINT, "G", "128", "tokens of a block: 128 or 64", 0, false},
    {"sink-tokens", OPTION_UINT, "N", NULL, "first tokens kept in fp16; default: one group", 0,
        false},
    {"encoder", OPTION_TEXT, "ENCODER", NULL, "reference, refined, aware; default: the daemon's", 0,
        false},
    {"seal-lag", OPTION_UINT, "N", "0", "newest tokens kept in fp16", 0, false},
    {"start", OPTION_UINT, "N", NULL, "position of the first token; default: the layer's length", 0,
        false},
};

static const struct option_row read_rows[] = {
    {"layer", OPTION_UINT, "L", NULL, "layer to read", 0, true},
    {"from", OPTION_UINT, "A", "0", "first token", 0, false},
    {"to", OPTION_UINT, "B", NULL, "token behind the last; default: the layer's length", 0, false},
    {"k", OPTION_TEXT, "K.npy", NULL, "where keys go, [kv_heads, tokens, head_dim]", 0, true},
    {"v", OPTION_TEXT, "V.npy", NULL, "where values go, likewise", 0, true},
    {"rotated", OPTION_FLAG, NULL, NULL, "leave them in the rotated frame", 0, false},
    {"dtype", OPTION_TEXT, "f16|f32", "f16", "type of the numbers", 0, false},
};

static const struct option_row attend_rows[] = {
    {"layer", OPTION_UINT, "L", NULL, "layer to attend to", 0, true},
    {"q", OPTION_TEXT, "Q.npy", NULL, "queries, fp16 or fp32 [q_heads, query_tokens, head_dim]", 0,
        true},
    {"position", OPTION_UINT, "P", NULL, "of the first query token; default: the newest tokens", 0,
        false},
    {"out", OPTION_TEXT, "OUT.npy", NULL,
        "where the output goes, fp32 [q_heads, query_tokens, v_dim]", 'o', true},
    {"lse", OPTION_TEXT, "LSE.npy", NULL,
        "where log-sum-exp goes, fp32 [q_heads, query_tokens]; default: nowhere", 0, false},
    {"scale", OPTION_REAL, "X", NULL, "of the logits; default: 1 / sqrt(head_dim)", 0, false},
    {"window", OPTION_UINT, "N", "0", "tokens a query sees; 0: the layer's own window", 0, false},
    {"softcap", OPTION_REAL, "X", NULL, "cap of the logits", 0, false},
    {"non-causal", OPTION_FLAG, NULL, NULL, "let every query see all tokens", 0, false},
};

static const struct option_row truncate_rows[] = {
    {"length", OPTION_UINT, "N", NULL, "tokens to keep", 0, true},
};

static const struct option_row fork_rows[] = {
    {"length", OPTION_UINT, "N", NULL, "tokens of the copy; default: all that are stored", 0,
        false},
    {"or-open", OPTION_FLAG, NULL, NULL, "if there is a session COPY already, that will do", 0,
        false},
};

static const struct option_row touch_rows[] = {
    {"ttl-ms", OPTION_UINT, "MS", NULL, "drop it when not used for so long; 0: never", 0, false},
    {"priority", OPTION_UINT, "N", NULL, "worth to eviction, 0 to 100; halves every 10 minutes", 0,
        false},
};

static const struct option_row pin_rows[] = {
    {"for-ms", OPTION_UINT, "MS", "60000", "how long the pin holds", 0, false},
};

static const struct option_row evict_rows[] = {
    {"blocks", OPTION_UINT, "N", NULL, "at most so many, the last ones first; default: all", 0,
        false},
};

static const struct option_row prefetch_rows[] = {
    {"last-blocks", OPTION_UINT, "N", NULL, "only so many blocks at the end; default: all", 0,
        false},
    {"wait", OPTION_FLAG, NULL, NULL, "stay until it has ended, and show how far it is", 0, false},
};

static const struct option_row verify_rows[] = {
    {"session", OPTION_TEXT, "NAME", NULL, "only this one; default: all that have a name", 0,
        false},
    {"quiet", OPTION_FLAG, NULL, NULL, "show no progress", 'q', false},
};

static const struct option_row top_rows[] = {
    {"once", OPTION_FLAG, NULL, NULL, "print one screen and end", 0, false},
    {"interval-ms", OPTION_UINT, "MS", "1000", "time between screens", 0, false},
};

static const struct option_row size_rows[] = {
    {"layers", OPTION_UINT, "N", NULL, "layers of the model", 0, true},
    {"kv-heads", OPTION_UINT, "N", NULL, "KV heads of a layer", 0, true},
    {"head-dim", OPTION_UINT, "D", NULL, "head_dim of K", 0, true},
    {"v-dim", OPTION_UINT, "D", NULL, "head_dim of V; default: as K", 0, false},
    {"preset", OPTION_TEXT, "PRESET", "k2v2", "bits of K and V: k2v2, k4v2 or k4v4", 0, false},
    {"group", OPTION_UINT, "G", "128", "tokens of a block: 128 or 64", 0, false},
    {"sink-tokens", OPTION_UINT, "N", NULL, "first tokens kept in fp16; default: one group", 0,
        false},
    {"seal-lag", OPTION_UINT, "N", "0", "newest tokens kept in fp16", 0, false},
    {"tokens", OPTION_UINT, "N", NULL, "tokens of a session; default: 1k, 4k and 32k", 0, false},
};

static const struct option_row evaluate_rows[] = {
    {"preset", OPTION_TEXT, "PRESET", "k2v2", "bits of K and V: k2v2, k4v2 or k4v4", 0, false},
    {"group", OPTION_UINT, "G", "128", "tokens of a block: 128 or 64", 0, false},
    {"sink-tokens", OPTION_UINT, "N", NULL, "first tokens kept in fp16; default: one group", 0,
        false},
    {"encoder", OPTION_TEXT, "ENCODER", NULL, "reference, refined, aware; default: the preset's", 0,
        false},
    {"seal-lag", OPTION_UINT, "N", "0", "newest tokens kept in fp16", 0, false},
    {"keep-session", OPTION_FLAG, NULL, NULL, "leave the session \"evaluate\" in the daemon", 0,
        false},
};

#define TILE_SHAPE_ROWS                                                                         \
    {"preset", OPTION_TEXT, "PRESET", "k2v2", "bits of K and V: k2v2, k4v2 or k4v4", 0, false}, \
    {                                                                                           \
        "group", OPTION_UINT, "G", "128", "tokens of the tile: 128 or 64", 0, false             \
    }

static const struct option_row tile_encode_rows[] = {
    {"k", OPTION_TEXT, "K.npy", NULL, "keys, fp16 or fp32 [group, head_dim], not rotated", 0, true},
    {"v", OPTION_TEXT, "V.npy", NULL, "values, likewise", 0, true},
    {"out", OPTION_TEXT, "REC.bin", NULL, "where the record goes", 'o', true},
    {"encoder", OPTION_TEXT, "ENCODER", NULL, "reference or refined; default: the preset's", 0,
        false},
    TILE_SHAPE_ROWS,
};

static const struct option_row tile_decode_rows[] = {
    {"head-dim", OPTION_UINT, "D", NULL, "head_dim of K", 0, true},
    {"v-dim", OPTION_UINT, "D", NULL, "head_dim of V; default: as K", 0, false},
    {"k", OPTION_TEXT, "K.npy", NULL, "where keys go, rotated fp32 [group, head_dim]", 0, true},
    {"v", OPTION_TEXT, "V.npy", NULL, "where values go, likewise", 0, true},
    TILE_SHAPE_ROWS,
};

static const struct option_row tile_inspect_rows[] = {
    {"head-dim", OPTION_UINT, "D", NULL, "head_dim of K", 0, true},
    {"v-dim", OPTION_UINT, "D", NULL, "head_dim of V; default: as K", 0, false},
    TILE_SHAPE_ROWS,
};

static const struct option_row shape_export_rows[] = {
    {"out", OPTION_TEXT, "FILE", NULL, "where the metric goes", 'o', true},
};

const struct ctl_command ctl_commands[] = {
    {"ping", NULL, "Say whether the server answers, and how fast", NULL, 0, 0, false, cmd_ping},
    {"stats", NULL, "Print the server's counters", NULL, 0, 0, false, cmd_stats},
    {"sessions", NULL, "List sessions", sessions_rows, COUNT(sessions_rows), 0, false,
        cmd_sessions},
    {"inspect", "SESSION", "Show a session's shape, lengths and bytes", NULL, 0, 1, false,
        cmd_inspect},
    {"append", "SESSION", "Append keys and values to one layer; opens the session if needed",
        append_rows, COUNT(append_rows), 1, false, cmd_append},
    {"read", "SESSION", "Read keys and values of one layer back", read_rows, COUNT(read_rows), 1,
        false, cmd_read},
    {"attend", "SESSION", "Attend to one layer with queries from a file", attend_rows,
        COUNT(attend_rows), 1, false, cmd_attend},
    {"truncate", "SESSION", "Forget the tokens behind a length", truncate_rows,
        COUNT(truncate_rows), 1, false, cmd_truncate},
    {"fork", "SESSION COPY", "Make a session that shares what another one holds", fork_rows,
        COUNT(fork_rows), 2, false, cmd_fork},
    {"touch", "SESSION", "Count as a use; set TTL and priority", touch_rows, COUNT(touch_rows), 1,
        false, cmd_touch},
    {"pin", "SESSION", "Keep what a session holds from eviction", pin_rows, COUNT(pin_rows), 1,
        false, cmd_pin},
    {"unpin", "SESSION", "End a pin", NULL, 0, 1, false, cmd_unpin},
    {"evict", "SESSION", "Take blocks of a session out of memory", evict_rows, COUNT(evict_rows), 1,
        false, cmd_evict},
    {"prefetch", "SESSION", "Bring a session back from the cold tier", prefetch_rows,
        COUNT(prefetch_rows), 1, false, cmd_prefetch},
    {"jobs", NULL, "List prefetches that run, and those that ended lately", NULL, 0, 0, false,
        cmd_jobs},
    {"verify", NULL, "Compare what is held, in memory and on disk, with its checksums", verify_rows,
        COUNT(verify_rows), 0, false, cmd_verify},
    {"drop", "SESSION", "Drop a session", NULL, 0, 1, false, cmd_drop},
    {"top", NULL, "Show what the server does, each second; q ends it", top_rows, COUNT(top_rows), 0,
        false, cmd_top},
    {"evaluate", "DIR",
        "Measure bytes, errors and speed on recorded tensors: layerNN_k.npy, _v, _q in DIR",
        evaluate_rows, COUNT(evaluate_rows), 1, false, cmd_evaluate},
    {"size", NULL, "Compute the bytes that sessions of a model need", size_rows, COUNT(size_rows),
        0, true, cmd_size},
    {"shape export", "SHAPE",
        "Write what is known of a model's queries; SHAPE: a session's name, or a fingerprint",
        shape_export_rows, COUNT(shape_export_rows), 1, false, cmd_shape_export},
    {"shape import", "FILE", "Give a server what another knows of a model's queries", NULL, 0, 1,
        false, cmd_shape_import},
    {"tile encode", NULL, "Quantise one tile to a record", tile_encode_rows,
        COUNT(tile_encode_rows), 0, true, cmd_tile_encode},
    {"tile decode", "REC.bin", "Dequantise a record", tile_decode_rows, COUNT(tile_decode_rows), 1,
        true, cmd_tile_decode},
    {"tile inspect", "REC.bin", "Show what is in a record", tile_inspect_rows,
        COUNT(tile_inspect_rows), 1, true, cmd_tile_inspect},
};
const size_t ctl_command_count = COUNT(ctl_commands);

"""Shapes and sessions on a connection: requests are built here, arrays go in and come out."""
import numpy as np

from support import codec, values
from support.frame import DTYPES, ENCODERS, LAYOUTS, pb

MODES = {"either": pb.EITHER, "create": pb.CREATE, "existing": pb.EXISTING}
WHATS = {"kv": pb.K_AND_V, "k": pb.K_ONLY, "v": pb.V_ONLY}


class Layer:
    """One layer of a shape."""

    def __init__(self, kv_heads, k_dim, v_dim=None, window=0):
        self.kv_heads, self.k_dim, self.window = kv_heads, k_dim, window
        self.v_dim = v_dim or k_dim

    def group_message(self, count):
        group = pb.LayerGroup(layers=count, kv_heads=self.kv_heads, k_dim=self.k_dim)
        if self.v_dim != self.k_dim:
            group.v_dim = self.v_dim
        if self.window:
            group.window = self.window
        return group


class Shape:
    """A model's cache. layers: a count of equal layers, or a list of Layer."""

    def __init__(self, layers=1, kv_heads=1, k_dim=8, v_dim=None, window=0, group=64, k_bits=2,
                 v_bits=2, sink=None, model="m"):
        if isinstance(layers, int):
            layers = [Layer(kv_heads, k_dim, v_dim, window)] * layers
        self.layers, self.group, self.model = layers, group, model
        self.k_bits, self.v_bits = k_bits, v_bits
        self.sink = group if sink is None else sink
        self.message = pb.Shape(model=model, group=group, k_bits=k_bits, v_bits=v_bits)
        self.message.layer_groups.extend(layer.group_message(1) for layer in layers)
        if sink is not None:
            self.message.sink_tokens = sink

    def record_bytes(self, layer):
        ls = self.layers[layer]
        return codec.record_bytes(ls.k_dim, ls.v_dim, self.group, self.k_bits, self.v_bits)

    def record(self, layer, data):
        ls = self.layers[layer]
        return codec.Record(data, ls.k_dim, ls.v_dim, self.group, self.k_bits, self.v_bits)


def register(conn, shape):
    """Shape id on this connection, registered once."""
    ids = conn.__dict__.setdefault("shape_ids", {})
    key = shape.message.SerializeToString()
    if key not in ids:
        ids[key] = conn.call(pb.RegisterShape(shape=shape.message)).message.shape_id
    return ids[key]


def open_message(conn, shape, name=None, mode="either", encoder="default", seal_lag=0,
                 takeover=False):
    message = pb.OpenSession(mode=MODES[mode], encoder=ENCODERS[encoder], seal_lag=seal_lag)
    if shape is not None:
        message.shape_id = register(conn, shape)
    if name is not None:
        message.name = name
    if takeover:
        message.takeover = True
    return message


class Run:
    """A stretch of a layer as ReadBlocks gave it, with its bytes."""

    def __init__(self, message, data):
        self.layer, self.first, self.count = message.layer, message.first_token, message.token_count
        self.form, self.data = message.form, data

    def message(self):
        return pb.Run(layer=self.layer, first_token=self.first, token_count=self.count,
                      form=self.form)


class Session:
    """A handle on a session. Methods named *_request build without sending."""

    def __init__(self, conn, shape, name=None, **options):
        self.conn, self.shape, self.name = conn, shape, name
        self.opened = conn.call(open_message(conn, shape, name, **options)).message
        self.handle, self.epoch = self.opened.handle, self.opened.epoch
        self.lengths = list(self.opened.layer_lengths)

    # Append.

    def append_request(self, kv, start, layer=0, dtype="f16", layout="head", rotated=False,
                       deadline_ms=None):
        """kv: [(k, v)] for consecutive layers from `layer` on, each [KV head, token, D]."""
        message = pb.Append(handle=self.handle, epoch=self.epoch, layer_first=layer,
                            layer_count=len(kv), start=start, token_count=kv[0][0].shape[1],
                            dtype=DTYPES[dtype], layout=LAYOUTS[layout])
        if rotated:
            message.rotated = True
        if deadline_ms is not None:
            message.deadline_ms = deadline_ms
        return message, values.kv_payload(kv, dtype, layout)

    def append(self, kv, start, **options):
        return self.conn.call(*self.append_request(kv, start, **options)).message

    def append_tiles_request(self, runs):
        message = pb.AppendTiles(handle=self.handle, epoch=self.epoch)
        message.runs.extend(run.message() for run in runs)
        return message, b"".join(run.data for run in runs)

    def append_tiles(self, runs):
        return self.conn.call(*self.append_tiles_request(runs)).message

    # ReadBlocks.

    def read_request(self, first, last, layer=0, layers=1, dtype="f16", rotated=False, what="kv",
                     layout="head", stored=False):
        message = pb.ReadBlocks(handle=self.handle, layer_first=layer, layer_count=layers,
                                token_first=first, token_last=last, dtype=DTYPES[dtype],
                                rotated=rotated, what=WHATS[what], layout=LAYOUTS[layout],
                                stored=stored)
        return message, b""

    def read(self, first, last, layer=0, layers=1, **options):
        """[(k, v)] a layer, each [KV head, token, D]; None for what was not asked."""
        reply = self.conn.call(*self.read_request(first, last, layer, layers, **options))
        return self.parse_rows(reply, first, last, layer, layers, **options)

    def parse_rows(self, reply, first, last, layer, layers, dtype="f16", what="kv", layout="head",
                   rotated=False):
        runs, at, out = list(reply.message.runs), 0, []
        assert [run.layer for run in runs] == list(range(layer, layer + layers)), runs
        for run in runs:
            assert (run.first_token, run.token_count, run.form) == (first, last - first, pb.ROWS)
            ls, pair = self.shape.layers[run.layer], []
            for letter, dim in (("k", ls.k_dim), ("v", ls.v_dim)):
                if letter not in what:
                    pair.append(None)
                    continue
                count = ls.kv_heads * (last - first) * dim * values.item_bytes(dtype)
                pair.append(values.rows_from(reply.payload[at:at + count], ls.kv_heads,
                                             last - first, dim, dtype, layout))
                at += count
            out.append(tuple(pair))
        assert at == len(reply.payload)
        return out

    def read_stored(self, first, last, layer=0, layers=1):
        """The runs as they lie in the daemon, with their bytes."""
        return self.parse_stored(
            self.conn.call(*self.read_request(first, last, layer, layers, stored=True)))

    def parse_stored(self, reply):
        runs, at = [], 0
        for message in reply.message.runs:
            size = self._run_bytes(message)
            runs.append(Run(message, reply.payload[at:at + size]))
            at += size
        assert at == len(reply.payload)
        return runs

    def _run_bytes(self, run):
        ls, group = self.shape.layers[run.layer], self.shape.group
        if run.form == pb.RECORDS:
            assert run.first_token % group == 0 and run.token_count % group == 0
            return run.token_count // group * ls.kv_heads * self.shape.record_bytes(run.layer)
        assert run.form == pb.ROWS_STORED, run
        return run.token_count * ls.kv_heads * (ls.k_dim + ls.v_dim) * 2

    def stored_rows(self, run):
        """(k, v) of a ROWS_STORED run: rotated float16 [KV head, token, D]."""
        ls = self.shape.layers[run.layer]
        cut = ls.kv_heads * run.count * ls.k_dim * 2
        return (values.rows_from(run.data[:cut], ls.kv_heads, run.count, ls.k_dim),
                values.rows_from(run.data[cut:], ls.kv_heads, run.count, ls.v_dim))

    def stored_records(self, run):
        """{block: [Record a head]} of a RECORDS run."""
        ls, size = self.shape.layers[run.layer], self.shape.record_bytes(run.layer)
        out, at = {}, 0
        for block in range(run.first // self.shape.group,
                           (run.first + run.count) // self.shape.group):
            out[block] = []
            for _ in range(ls.kv_heads):
                out[block].append(self.shape.record(run.layer, run.data[at:at + size]))
                at += size
        return out

    # The others.

    def truncate_request(self, length):
        return pb.Truncate(handle=self.handle, epoch=self.epoch, length=length), b""

    def truncate(self, length):
        reply = self.conn.call(*self.truncate_request(length)).message
        self.epoch = reply.epoch
        return reply

    def inspect(self):
        return self.conn.call(pb.InspectSession(handle=self.handle)).message

    def drop(self):
        return self.conn.call(pb.DropSession(handle=self.handle)).message

    def close(self):
        return self.conn.call(pb.CloseSession(handle=self.handle)).message

    def attend(self, q, layer=0, **options):
        """Attention of q [Hq, T, Dk] on one layer: an Attended. Options: attend_message()."""
        return attend(self.conn, [(self, q)], layer, **options)[0]


# Attend and AppendAttend, on one or many sessions.

PARAMS = {"scale", "non_causal", "window", "softcap", "q_rotated", "out_rotated", "accuracy"}
ITEM = {"position", "token_first", "token_last"}


class Attended:
    """One item's answer: out [Hq, T, Dv], lse [Hq, T], the item's reply."""

    def __init__(self, item, out, lse):
        self.item, self.out, self.lse = item, out, lse


def attend_params(q, layer, q_dtype="f16", out_dtype="f32", **options):
    """Exact unless told otherwise: the models compute in double precision."""
    params = pb.AttendParams(layer=layer, q_heads=q.shape[0], q_dtype=DTYPES[q_dtype],
                             out_dtype=DTYPES[out_dtype], accuracy=pb.EXACT)
    for name in PARAMS & options.keys():
        setattr(params, name, options[name])
    return params


def attend_request(items, layer=0, q_dtype="f16", deadline_ms=None, **options):
    """items: [(session, q [Hq, T, Dk])]; all q with as many heads."""
    message = pb.Attend(params=attend_params(items[0][1], layer, q_dtype, **options))
    if deadline_ms is not None:
        message.deadline_ms = deadline_ms
    for session, q in items:
        item = message.items.add(handle=session.handle, query_tokens=q.shape[1])
        for name in ITEM & options.keys():
            setattr(item, name, options[name])
    return message, b"".join(values.encode(q, q_dtype) for _, q in items)


def append_attend_request(items, layer=0, q_dtype="f16", kv_dtype="f16", layout="head",
                          rotated=False, **options):
    """items: [(session, start, (k, v), q)]."""
    message = pb.AppendAttend(params=attend_params(items[0][3], layer, q_dtype, **options),
                              kv_dtype=DTYPES[kv_dtype], kv_layout=LAYOUTS[layout],
                              kv_rotated=rotated)
    for session, start, kv, q in items:
        item = message.items.add(handle=session.handle, epoch=session.epoch, start=start,
                                 token_count=kv[0].shape[1], query_tokens=q.shape[1])
        for name in ITEM & options.keys():
            setattr(item, name, options[name])
    payload = b"".join(values.kv_payload([kv], kv_dtype, layout) for _, _, kv, _ in items)
    return message, payload + b"".join(values.encode(item[3], q_dtype) for item in items)


def parse_attended(reply, items, layer, out_dtype="f32", **_):
    """[Attended] of a reply; items: [(session, q)]."""
    out_size, at, parts = values.item_bytes(out_dtype), 0, []
    assert len(reply.message.items) == len(items)
    for session, q in items:
        shape = (*q.shape[:2], session.shape.layers[layer].v_dim)
        size = int(np.prod(shape)) * out_size
        parts.append(values.decode(reply.payload[at:at + size], out_dtype, shape))
        at += size
    out = []
    for item, part, (_, q) in zip(reply.message.items, parts, items):
        count = q.shape[0] * q.shape[1]
        lse = np.frombuffer(reply.payload[at:at + 4 * count], "<f4").reshape(q.shape[:2])
        at += 4 * count
        out.append(Attended(item, part, lse))
    assert at == len(reply.payload)
    return out


def attend(conn, items, layer=0, **options):
    reply = conn.call(*attend_request(items, layer, **options))
    return parse_attended(reply, items, layer, **options)


def append_attend(conn, items, layer=0, **options):
    reply = conn.call(*append_attend_request(items, layer, **options))
    return parse_attended(reply, [(item[0], item[3]) for item in items], layer, **options)

"""Disks that fail or are full, clients that die or dawdle: nothing is ever wrong, and it goes on.

libfiu (Debian: libfiu0, fiu-utils) makes calls fail in the daemon; a full disk is a small tmpfs,
which takes root. Where either is missing, or a sanitizer is in the way, the test says so.
"""
import errno
import pathlib
import shutil
import struct
import subprocess
import tempfile
import time

import numpy as np
import pytest

from oracle.lives import Life, has_option
from oracle.stage import Stage
from support.daemon import BAD_LOG, clean_environment
from support.frame import frame, pb
from support.session import Layer, Session, Shape
from support.settings import BIN, patience
from support.wire import Conn

FIU = next((path.parent for path in [*pathlib.Path("/usr/lib/fiu").glob("fiu_run_preload.so"),
                                    *pathlib.Path("/usr/lib").glob("*/fiu/fiu_run_preload.so")]),
           None)
SEGMENT = "1MiB"
cold_only = pytest.mark.skipif(not has_option("--cold-dir"), reason="kvarnd has no --cold-dir")


def is_sanitized():
    data = (BIN / "kvarnd").read_bytes()
    return b"__asan_init" in data or b"__tsan_init" in data


def faults(*points):
    """Environment in which calls fail now and then: [(libfiu's name, errno, probability)]."""
    if FIU is None:
        pytest.skip("no libfiu here (Debian: fiu-utils)")
    if is_sanitized():
        pytest.skip("libfiu and sanitizers both want to be loaded first")
    commands = "\n".join(f"enable_random name={name},probability={chance},failinfo={number}"
                         for name, number, chance in points)
    return {"LD_PRELOAD": f"{FIU}/fiu_run_preload.so {FIU}/fiu_posix_preload.so",
            "FIU_CTRL_FIFO": "", "FIU_ENABLE": commands}


@pytest.fixture
def stage():
    """stage(**allowed): a Stage that is closed at the end."""
    stages = []

    def make(**allowed):
        stages.append(Stage(11, **allowed))
        return stages[-1]

    yield make
    for one in stages:
        one.close()


@pytest.fixture
def start():
    """start(*flags, env=None): a Life; all are ended, and their logs hold nothing bad."""
    lives, faulty = [], []

    def make(*flags, env=None):
        lives.append(Life("--memory-limit", "256MiB", *flags, env=env))
        assert lives[-1].is_up, "the daemon did not start"
        return lives[-1]

    yield make
    for life in lives:
        fault = life.end()
        faulty += [fault] if fault else []
    assert not faulty, faulty


@pytest.fixture
def folder():
    path = pathlib.Path(tempfile.mkdtemp(prefix="kvarn-faults-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def verdict(stage):
    """What the last line of the other loops says."""
    t = stage.tally
    print(f"{stage.counts(['answered'])}\ntried = {t['answered']}, wrong = {t['wrong']}, "
          f"resurrected = {t['resurrected']}")
    assert t.is_clean and t["tokens_checked"] > 1000, t.notes


def counters(life):
    with Conn(life.address) as conn:
        return conn.stats()[1]


def traffic_until(stage, is_done):
    """Rounds until something is seen; fails when it is not in a while."""
    end = time.monotonic() + patience(40)
    while time.monotonic() < end:
        stage.round(6)
        if is_done():
            return
    pytest.fail("it did not come to pass")


def kill_and_settle(stage, life, start, flags):
    """kill -9, a start without faults, everything that came back compared, traffic again."""
    stage.disconnect()
    assert not BAD_LOG.search(life.log())
    assert life.end() is None
    again = start(*flags)
    stage.settle_all(again.address, was_clean=False, has_cold=True)
    stage.connect(again.address)
    for _ in range(10):
        stage.round(6)
    stage.check_all()
    return again


@cold_only
@pytest.mark.deadline(90)
@pytest.mark.parametrize("points", [
    [("posix/io/rw/pwritev", errno.ENOSPC, 0.05)],
    [("posix/io/rw/pwritev", errno.EIO, 0.05), ("posix/io/rw/preadv", errno.EIO, 0.02)],
    [("posix/io/sync/fdatasync", errno.EIO, 0.1)],
], ids=["write_enospc", "read_write_eio", "p6_sync_eio"])
def test_p5_disk_errors(stage, start, folder, points):
    """Writes, reads and syncs that fail: the tier sheds, memory goes on, what is read is right."""
    flags = ["--cold-dir", folder / "cold", "--cold-segment", SEGMENT]
    one = stage(may_fail=True, may_evict=True)
    life = start(*flags, env=faults(*points))
    one.connect(life.address)

    def has_failed_and_gone_on():
        seen = counters(life)
        return "cold_failed" in life.log() and seen["cold_blocks_written"] > 20

    traffic_until(one, has_failed_and_gone_on)
    one.check_all()
    kill_and_settle(one, life, start, flags)
    verdict(one)


class SmallDisk:
    """A tmpfs of some MiB, for root; fill() leaves no room, free() gives it back."""

    def __init__(self, path, mib):
        self.path, self.filler = path, path / "filler"
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none",
                               str(path)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no small disk here: {done.stderr.strip() or 'mount failed'}")

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self):
        self.filler.unlink()

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)


@pytest.fixture
def small_disk(folder):
    disk = None
    try:
        disk = SmallDisk(folder / "disk", 12)
        yield disk
    finally:
        if disk is not None:
            disk.unmount()


@cold_only
@pytest.mark.deadline(90)
def test_p5_full_disk_recovers_by_itself(stage, start, small_disk):
    """No room: the tier rests, memory goes on; room again: it writes again, nobody told it."""
    flags = ["--cold-dir", small_disk.path / "cold", "--cold-segment", SEGMENT]
    one = stage(may_fail=True)
    life = start(*flags)
    one.connect(life.address)
    traffic_until(one, lambda: counters(life)["cold_blocks_written"] > 20)
    small_disk.fill()
    traffic_until(one, lambda: counters(life)["cold_resting"] == 1)
    one.check_all()
    before = counters(life)["cold_blocks_written"]
    small_disk.free()
    traffic_until(one, lambda: counters(life)["cold_blocks_written"] > before)
    one.check_all()
    kill_and_settle(one, life, start, flags)
    verdict(one)


@cold_only
@pytest.mark.deadline(90)
def test_p12_clock_jumps_change_nothing_on_disk(stage, start, folder):
    """The wall clock goes days ahead and back, within lives and between them: by kill and by stop,
    what comes back is what was there, and nothing that was dropped or had expired."""
    if is_sanitized():
        pytest.skip("a sanitizer wants to be the first library")
    wall = folder / "wall"
    env = {"LD_PRELOAD": str(BIN / "libkvt_clock_jump.so"), "KVT_CLOCK_JUMP": str(wall)}
    flags = ["--cold-dir", folder / "cold", "--cold-segment", SEGMENT]
    one = stage()
    was_clean = False
    for life_idx, days in enumerate([(0, 10), (-20, 400), (-1, 0), (3, -3)]):
        wall.write_bytes(struct.pack("<q", days[0] * 86400))
        life = start(*flags, env=env)
        one.settle_all(life.address, was_clean, has_cold=True)
        one.connect(life.address)
        for jump in days:
            with open(wall, "r+b") as file:  # mapped by the daemon
                file.write(struct.pack("<q", jump * 86400))
            for _ in range(8):
                one.round(6)
        one.check_all()
        one.disconnect()
        was_clean = life_idx % 2 == 1
        assert (life.end_cleanly() if was_clean else life.end()) is None
    verdict(one)
    assert one.tally["sessions_survived"] > 10


@pytest.mark.deadline(60)
def test_clients_that_die_in_the_middle_of_forks(stage, start):
    """Forks, evictions and cuts are asked for, and the client is gone before it hears of them."""
    one = stage()
    life = start()
    one.connect(life.address)
    for _ in range(10):
        one.round(6)
    parents = [known for actor in one.actors for known in actor.live() if known.state.committed]
    for turn in range(20):
        with Conn(life.address) as conn:
            for known in parents[:4]:
                handle = conn.call(pb.OpenSession(name=known.name, mode=pb.EXISTING)).message
                message = pb.Fork()
                for i in range(50):
                    message.items.add(handle=handle.handle, name=f"orphan-{known.name}-{turn}-{i}")
                conn.send(message)
                conn.send(pb.Evict(name=f"orphan-{known.name}-{turn}-0", blocks=1))
            # Half a request, then nothing more; or gone before any of it was looked at.
            if turn % 2:
                conn.ping()
                conn.send_bytes(frame(pb.Ping(), 99)[:20])
    for _ in range(10):
        one.round(6)
    one.check_all()
    orphans = 0
    with Conn(life.address) as conn:
        page = conn.call(pb.ListSessions(prefix="orphan-", limit=256)).message
        while page.sessions:
            for summary in page.sessions:
                conn.call(pb.DropSession(name=summary.name))
                orphans += 1
            page = conn.call(pb.ListSessions(prefix="orphan-", limit=256)).message
    assert orphans > 100
    one.check_all()
    verdict(one)


@pytest.mark.deadline(60)
def test_a_client_that_does_not_read_while_its_session_is_evicted(stage, start):
    """Replies that wait hold what they were made of; others evict, cut and fork meanwhile."""
    one = stage()
    life = start()
    one.connect(life.address)
    for _ in range(15):
        one.round(6)
    slow = []
    for known in [k for actor in one.actors for k in actor.live()]:
        if known.state.committed and known.is_whole and not known.state.shape.layers[-1].window:
            conn = Conn(life.address)
            handle = conn.call(pb.OpenSession(name=known.name, mode=pb.EXISTING)).message.handle
            message = pb.ReadBlocks(handle=handle, layer_first=0, token_first=0,
                                    token_last=known.state.lengths[0], stored=True)
            slow.append((known, known.state, conn, [conn.send(message) for _ in range(8)]))
            conn.ping()  # what was sent before it was admitted before it
    for _ in range(20):
        one.round(6)
    for known, state, conn, ids in slow:
        for request_id in ids:
            reply = conn.recv(request_id)
            runs = state.forms(0, 0, state.lengths[0])
            want = b"".join(state.stored_bytes(one.codec, 0, *run) for run in runs)
            assert reply.code == "OK" and reply.payload == want, (known.name, reply)
        conn.close()
    assert slow
    one.check_all()
    verdict(one)


@cold_only
@pytest.mark.deadline(60)
def test_dropped_sessions_leave_nothing_behind(start, folder):
    """Writing behind holds a session for a while, and lets go of it."""
    life = start("--cold-dir", folder / "cold")
    shape = Shape([Layer(2, 16)] * 3, group=64, model="even")
    kv = tuple(np.ones((2, 70, 16), np.float16) for _ in "kv")

    def drop_many(count, left_max):
        with Conn(life.address) as conn:  # its handles keep what is left of a dropped session
            for i in range(count):
                Session(conn, shape, f"s{i}").append([kv] * 3, 0)
            for i in range(count):
                conn.call(pb.DropSession(name=f"s{i}"))
        end = time.monotonic() + patience(20)
        with Conn(life.address) as conn:
            while (left := conn.counter("memory_session_bytes")) > left_max:
                assert time.monotonic() < end, f"{left} bytes of sessions, at most {left_max} due"
        return left

    # A page store keeps an empty chunk of each kind, with its pages' descriptors: that is what one
    # session leaves, and fifty leave no more.
    with Conn(life.address) as conn:
        none = conn.counter("memory_session_bytes")
    one = drop_many(1, none + (64 << 10))
    drop_many(50, one)


@cold_only
def test_s07_what_a_clean_stop_could_not_write_has_a_new_epoch(start, folder):
    """A sink that fits no segment is lost; the epoch that clients know is lost with it."""
    flags = ["--cold-dir", folder / "cold", "--cold-segment", "64KiB"]
    life = start(*flags)
    shape = Shape([Layer(8, 64)] * 3, group=64, model="fat")
    with Conn(life.address) as conn:
        session = Session(conn, shape, "s")
        kv = tuple(np.ones((8, 100, 64), np.float16) for _ in "kv")
        session.append([kv] * 3, 0)
    assert life.end_cleanly() is None
    again = start(*flags)
    with Conn(again.address) as conn:
        back = Session(conn, None, "s", mode="existing")
        assert back.lengths == [0, 0, 0] and back.epoch != session.epoch


@cold_only
@pytest.mark.parametrize("mode, name, told", [
    (0o755, None, "mode=0755"), (0o700, "letter", "found=letter"), (0o700, None, None),
    (0o700, "lock", None)], ids=["others_may_read", "not_empty", "empty", "of_a_daemon"])
def test_s26_a_folder_that_was_there(folder, mode, name, told):
    """Nothing that the daemon did not make is changed; why it is refused is told."""
    cold = folder / "cold"
    cold.mkdir()
    if name:
        (cold / name).write_text("dear")
    cold.chmod(mode)
    if told is None:
        assert Life("--cold-dir", cold).end_cleanly() is None
    else:
        done = refused_start(folder, cold)
        assert "cold_failed" in done.stderr and told in done.stderr
        assert [path.name for path in cold.iterdir()] == ([name] if name else [])
    assert cold.stat().st_mode & 0o777 == mode


def refused_start(folder, cold):
    """A daemon that does not start, with what it said."""
    done = subprocess.run([str(BIN / "kvarnd"), "--listen-unix", str(folder / "x" / "k.sock"),
                           "--cold-dir", str(cold)], capture_output=True, text=True,
                          timeout=patience(20), check=False, env=clean_environment())
    assert done.returncode == 1, done
    return done


def test_many_daemons_one_folder(start, folder):
    """The second daemon on a folder is refused; the first goes on."""
    if not has_option("--cold-dir"):
        pytest.skip("kvarnd has no --cold-dir")
    life = start("--cold-dir", folder / "cold")
    assert "another daemon" in refused_start(folder, folder / "cold").stderr
    with Conn(life.address) as conn:
        conn.ping()

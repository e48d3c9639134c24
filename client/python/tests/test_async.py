"""kvarn.AsyncClient against the real daemon."""
import asyncio

import numpy as np
import pytest
from attention import attend, rows, small_shape

import kvarn


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_append_attend_read(daemon, transport):
    async def body():
        k, v, q = rows(20)
        async with kvarn.AsyncClient(getattr(daemon, transport)) as client:
            assert await client.ping() >= 0 and client.server.version
            async with await client.open(shape=small_shape()) as session:
                await session.append(k, v)
                result = await session.attend(q)
                assert np.abs(result.out - attend(q, k, v, 0)[0]).max() < 2e-2
                k2, v2 = await session.read()
                assert np.abs(k2 - k).max() < 5e-3
                result = await session.append_attend(k, v, q, layer=1)
                assert result.appended and session.lengths == (20, 20)
                await session.truncate(4)
                assert (await session.inspect()).lengths == (4, 4)
                stored = await session.read_stored()
                copy = await client.open(shape=small_shape())
                assert await copy.append_tiles(stored) == (4, 4)

    run(body())


def test_tasks_pipeline(daemon):
    """Requests of one gather() take effect in its order, beyond the daemon's credit."""
    async def body():
        k, v, q = rows(1)
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open(shape=small_shape())
            calls = []
            for _ in range(300):
                calls += [session.append(k, v), session.attend(q)]
            results = await asyncio.gather(*calls)
            assert [r.length for r in results] == [i // 2 + 1 for i in range(600)]

    run(body())


def test_many_sessions_at_once(daemon):
    async def one(client, seed):
        k, v, q = rows(8, seed)
        session = await client.open(f"python-async-{seed}", small_shape())
        for i in range(8):
            result = await session.append_attend(k[:, i:i + 1], v[:, i:i + 1], q[:, i:i + 1])
        assert np.abs(result.out - attend(q[:, 7:], k, v, 7)[0]).max() < 2e-2
        await session.drop()

    async def body():
        async with kvarn.AsyncClient(daemon.unix) as client:
            await asyncio.gather(*(one(client, i) for i in range(20)))
            assert await client.sessions("python-async-") == []

    run(body())


def test_batch_and_errors(daemon):
    async def body():
        k, v, q = rows(4)
        async with kvarn.AsyncClient(daemon.unix) as client:
            one = await client.open(shape=small_shape())
            two = await client.open(shape=small_shape())
            results = await client.append_attend(
                [kvarn.AppendAttendItem(s, k, v, q) for s in (one, two)], 0)
            assert all(r.appended for r in results)
            assert len(await client.attend([kvarn.AttendItem(one, q)], 0)) == 1
            with pytest.raises(kvarn.Conflict):
                await one.append(k, v, start=1)
            with pytest.raises(kvarn.NotFound):
                await client.drop("no-such-session")
            with pytest.raises(kvarn.DeadlineExceeded):
                await one.attend(q, deadline=0)
            assert (await client.stats()).ops["append_attend"].count >= 1

    run(body())


def test_cancelled_task_leaves_the_client_usable(daemon):
    async def body():
        k, v, q = rows(2000)
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open("python-cancel", small_shape())
            task = asyncio.ensure_future(session.append(k, v))
            while not client._core._link._waiting:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.refresh()
            assert session.lengths == (2000, 0)
            assert (await session.append(k, v)).length == 4000
            await session.drop()

    run(body())


def test_fork_and_reorder(daemon):
    async def body():
        k, v, q = rows(150)
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open(shape=small_shape())
            await session.append_layers([(k, v), (k, v)])
            copy = await session.fork()
            assert copy.lengths == (150, 150) and copy.shape == session.shape
            outs = [(await s.attend(q, 1)).out for s in (session, copy)]
            assert (outs[0] == outs[1]).all()
            await copy.truncate(3)
            await client.reorder([([session, copy], [1, 1])])
            assert session.lengths == copy.lengths == (3, 3)
            assert [s.length for s in await client.fork([session, copy])] == [3, 3]

    run(body())


def test_prefix(daemon):
    async def body():
        k, v, _ = rows(300)
        shape, ids = small_shape(model="python-async-prefix"), range(300)
        async with kvarn.AsyncClient(daemon.unix) as client:
            first = await client.open(shape=shape, share_prefix=True)
            await first.append(k, v, 0, token_ids=ids)
            await first.append_layers([(k, v)], 1)
            await first.read_layers()
            found = await client.match_prefix(shape, ids)
            assert found.tokens == 256
            second = await client.open(shape=shape, share_prefix=True, lease=found)
            assert second.lengths == (256, 256)

    run(body())


def test_lives(daemon):
    async def body():
        k, v, _ = rows(300)
        name = "python-async-lives"
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open(name, small_shape(sink_tokens=0), ttl=100, priority=5)
            await session.append_layers([(k, v), (k, v)])
            assert 90 < (await session.touch()).ttl_left <= 100
            assert (await client.touch(name, priority=1)).priority == 1
            assert (await session.pin()).pinned_bytes == (await client.pin(name)).pinned_bytes > 0
            await session.unpin()
            await client.unpin(name)
            assert (await session.evict(1)).missing == (128, 256)
            assert (await client.evict(name)).missing == (0, 300)
            await session.drop()

    run(body())


def test_prefetch(start, tmp_path):
    async def body():
        k, v, q = rows(64 * 5)
        async with kvarn.AsyncClient(start("--cold-dir", tmp_path / "cold").unix) as client:
            session = await client.open("python-async-cold", small_shape(group=64))
            await session.append_layers([(k, v), (k, v)])
            while (await client.stats()).counters["cold_blocks_written"] < 5:
                pass
            await session.evict(5)
            begun = await session.prefetch()
            job = (await client.jobs())[0]
            assert (job.id, job.blocks, job.session) == (begun.job, 5, "python-async-cold")
            while (await client.jobs())[0].running:
                pass
            assert (await client.jobs())[0].state == "done"
            assert await client.prefetch("python-async-cold") == kvarn.Prefetched(None, 0, 0)
            assert (await client.prefetch_prefix(small_shape(group=64), range(64))).tokens == 0
            await session.attend(q[:, -1:])
            assert (await client.stats()).counters["cold_blocks_loaded"] == 5

    run(body())


def test_verify(daemon):
    async def body():
        k, v, _ = rows(300)
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open("python-async-verify", small_shape(group=64))
            await session.append_layers([(k, v), (k, v)])
            await session.read_layers()
            seen = []
            for found in (await session.verify(),
                          await client.verify("python-async-verify", progress=seen.append)):
                assert (found.findings, found.blocks, found.pages) == ((), 5, 6)
            assert seen == [found] and (await client.verify()).blocks >= 5
            await session.drop()

    run(body())


def test_reconnects_after_a_restart(start):
    async def body():
        daemon = start()
        k, v, _ = rows(3)
        async with kvarn.AsyncClient(daemon.unix) as client:
            session = await client.open("python-restart", small_shape())
            await session.append(k, v)
            daemon.kill()
            daemon.start()
            assert await client.ping() >= 0 and client.reconnects == 1
            with pytest.raises(kvarn.NotFound):
                await session.append(k, v)
            again = await client.open("python-restart", small_shape())
            assert again.created and (await again.append(k, v)).length == 3

    run(body())


def test_closed_client_says_so(daemon):
    async def body():
        client = kvarn.AsyncClient(daemon.unix)
        await client.ping()
        await client.close()
        with pytest.raises(kvarn.ConnectionLost, match="closed"):
            await client.ping()

    run(body())

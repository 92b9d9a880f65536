"""What a worker makes ready when it starts is all that it ever needs compiled: else it would stand for seconds in the middle of its work."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import asyncio, tempfile
from pathlib import Path
from agents import worker
from schemas import compiled
from streams.blocks import Rows
from tests.bench import data
from tests.support.loopback import Loopback, Record
from tests.support.records import block_of

worker.load_loops()
before = {loop.py_func.__name__: loop.signatures for loop in compiled._loops}

async def work(directory):
    loop = Loopback(directory, partitions=1)
    loop.open()
    loop.apply(data.journey())
    await loop.settle()
    for kind in ("dense", "sparse"):
        log = [Record(n, 1, made.contact.encode(), made.value) for n, made in enumerate(data.activities(kind, 500, 50))]
        await loop.partitions[0].submit("activities", Rows(block_of(log)), lambda: None)
        await loop.partitions[0].submit("activities", Rows(block_of(log[:200]), block_of(log[200:])), lambda: None)
        await loop.partitions[0].drain()
    loop.apply({**data.journey(), "version": 2, "stages": data.journey()["stages"][:4]})
    await loop.settle()
    partition = loop.partitions[0]
    log = [Record(n, 1, key, value) for n, (key, value) in enumerate(partition.ledger.scan(b"e"))]
    partition.succession.recover(Rows(block_of(log)), len(log))
    partition.succession.recover(Rows(block_of(log[:9]), block_of(log[9:])), len(log))
    await loop.close()

with tempfile.TemporaryDirectory() as directory:
    asyncio.run(work(Path(directory)))
after = {loop.py_func.__name__: loop.signatures for loop in compiled._loops}
grown = {name: after[name] for name in after if len(after[name]) > len(before[name])}
assert not grown, f"compiled while at work: {grown}"
assert {"_pass", "_screen", "_read", "join", "stand", "_grouped", "_settled"} <= {name for name, made in after.items() if made}, after
"""


def test_nothing_is_compiled_while_a_worker_is_at_work() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

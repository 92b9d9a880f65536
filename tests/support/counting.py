"""A worker that counts records a contact: the smallest thing that can be right or wrong on the Faust side. Run it: `python -m
tests.support.counting '{...}'`.

The value of a key is (offset, count): the last source offset in it and how many records the contact had up to there. A contact's records lie in one
partition, so each offset has one right count, and joining two values is taking the later one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import rocksdict
from aiohttp import web

from streams.app import App, build_app, run_app
from streams.seam import Fenced

SOURCES = ("activities", "contact-merges", "contacts", "handoffs")
CHANGELOG = "evidence-changelog"
POSITION = b"\0position"
VALUE = struct.Struct(">qq")


def join(old: bytes | None, new: bytes | None) -> bytes | None:
    """The later of two values; values compare as their offsets do. Only an owner that knows nothing of a key writes None."""
    return new if old is None or new is None else max(old, new)


class Counting:
    """`streams.seam.Partitions`, counting. *stall*: chunks are taken and never done. *fail_at*: raises at the chunk with this many records before
    it."""

    def __init__(self, app: App, data_dir: Path, stall: bool = False, fail_at: int | None = None, depth: int = 4) -> None:
        self.app, self.data_dir, self.stall, self.fail_at, self.depth = app, data_dir, stall, fail_at, depth
        self.stores: dict[int, rocksdict.Rdict] = {}
        self.overlay: dict[int, dict[bytes, bytes]] = {}
        self.active: set[int] = set()
        self.stale: dict[int, set[bytes]] = {}
        self.tasks: dict[int, set[asyncio.Task[None]]] = {}
        self.last: dict[int, asyncio.Task[None] | None] = {}
        self.seen = 0
        self.wiped = 0

    def open(self, partition: int) -> None:
        self.stores[partition] = rocksdict.Rdict(str(self.data_dir / str(partition)), options=rocksdict.Options(raw_mode=True))
        self.overlay[partition], self.tasks[partition], self.last[partition] = {}, set(), None
        self.stale[partition] = set()

    def changelog_offset(self, partition: int) -> int | None:
        value = self.stores[partition].get(POSITION)
        return None if value is None else int(value)

    def recover(self, partition: int, records: list[Any], last_offset: int) -> None:
        store = self.stores[partition]
        joined: dict[bytes, bytes | None] = {}
        for record in records:
            old = joined[record.key] if record.key in joined else store.get(record.key)
            joined[record.key] = join(old, record.value)
        self._write(partition, joined.items(), last_offset)
        last = {record.key: record.value for record in records}
        self.stale[partition] |= {key for key, value in joined.items() if value != last[key]}

    def wipe(self, partition: int) -> None:
        self.stores.pop(partition).close()
        shutil.rmtree(self.data_dir / str(partition))
        self.wiped += 1
        self.open(partition)

    async def activate(self, partition: int) -> None:
        self.active.add(partition)
        stale, self.stale[partition] = self.stale[partition], set()
        await self.app.changelog.send(partition, self.changelog_values(partition, sorted(stale)))

    async def close(self, partition: int) -> None:
        self.active.discard(partition)
        for task in list(self.tasks[partition]):
            task.cancel()
        if self.tasks[partition]:
            await asyncio.wait(self.tasks[partition])
        self.stores.pop(partition).close()

    async def submit(self, partition: int, topic: str, records: list[Any], done: Callable[[], None]) -> None:
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise RuntimeError("told to fail")
        self.seen += len(records)
        if self.stall or partition not in self.active:
            return
        while len(self.tasks[partition]) >= self.depth:
            await asyncio.wait(self.tasks[partition], return_when=asyncio.FIRST_COMPLETED)
            if partition not in self.active:
                return
        store, overlay = self.stores[partition], self.overlay[partition]
        prefix = topic.rsplit(".", 1)[-1][:9].encode() + b"/"
        changed: dict[bytes, bytes] = {}
        for record in records:
            key = prefix + record.key
            value = changed.get(key) or overlay.get(key) or store.get(key)
            offset, count = (-1, 0) if value is None else VALUE.unpack(value)
            if record.offset > offset:
                changed[key] = VALUE.pack(record.offset, count + 1)
        overlay.update(changed)
        task = asyncio.ensure_future(self._finish(partition, changed, done, self.last[partition]))
        self.last[partition] = task
        self.tasks[partition].add(task)
        task.add_done_callback(self.tasks[partition].discard)

    async def _finish(
        self, partition: int, changed: dict[bytes, bytes], done: Callable[[], None], before: asyncio.Task[None] | None
    ) -> None:
        try:
            sent = await self.app.changelog.send(partition, list(changed.items()))
            offset = await sent
        except Fenced:
            return
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._write(partition, changed.items(), None if self.app.changelog.frozen(partition) else offset)
        for key, value in changed.items():
            if self.overlay[partition].get(key) == value:
                del self.overlay[partition][key]
        done()

    def _write(self, partition: int, items: Iterable[tuple[bytes, bytes | None]], offset: int | None) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in items:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if offset is not None:
            batch.put(POSITION, str(offset).encode())
        self.stores[partition].write(batch)

    async def keep_foreign(self, partition: int, items: list[tuple[bytes, bytes | None]]) -> None:
        """What others wrote is older than what the owner has."""

    def changelog_values(self, partition: int, keys: list[bytes]) -> list[tuple[bytes, bytes | None]]:
        return [(key, self.stores[partition].get(key)) for key in keys]

    def state(self) -> dict[str, Any]:
        """What tests ask for: positions, and what each open store counts."""
        return {
            "serving": self.app.serving,
            "active": sorted(self.active),
            "open": sorted(self.stores),
            "seen": self.seen,
            "wiped": self.wiped,
            "foreign": self.app.changelog.foreign_records,
            "frozen": [p for p in sorted(self.active) if self.app.changelog.frozen(p)],
            "recovered": self.app.tables.recovery.recovered_records,
            "positions": {
                name: {p: self.app.reflected(self.app.prefix + name, p) for p in sorted(self.active)} for name in SOURCES
            },
        }

    def counts(self) -> dict[str, int]:
        found = {}
        for partition in self.stores:
            for key, value in self.stores[partition].items():
                if key != POSITION:
                    found[key.decode()] = VALUE.unpack(value)[1]
        return found


def make(options: dict[str, Any]) -> App:
    """The app of a counting worker. Options: bootstrap, prefix, data_dir, and those of `build_app` and `Counting`."""
    prefix, data_dir = options["prefix"], Path(options["data_dir"])
    data_dir.mkdir(parents=True, exist_ok=True)
    app = build_app(
        kafka_options={"bootstrap_servers": options["bootstrap"]},
        group=prefix + "workers",
        sources=[prefix + name for name in SOURCES],
        changelog=prefix + CHANGELOG,
        partition_count=options.get("partitions", 4),
        url=f"http://127.0.0.1:{options.get('port', 1)}",
        data_dir=data_dir / "faust",
        instance_id=options.get("instance_id"),
        standby_replicas=options.get("standby_replicas", 0),
    )
    app.prefix = prefix
    app.partitions = Counting(app, data_dir, **options.get("counting", {}))
    return app


async def run(options: dict[str, Any]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    app = make(options)
    server = web.Application()
    server.add_routes(
        [
            web.get("/state", lambda _: _json(app.partitions.state())),
            web.get("/counts", lambda _: _json(app.partitions.counts())),
        ]
    )
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options["port"]).start()
    try:
        await run_app(app, stop, loop.create_future())
    finally:
        await runner.cleanup()


async def _json(value: Any) -> web.Response:
    return web.json_response(value)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(run(json.loads(sys.argv[1])))

"""The seam between the Faust side and what a partition does: the protocol that the worker's partitions implement. Contains no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from streams.blocks import Records


class Fenced(Exception):
    """The assignment under which something was to be written is over: drop the work, acknowledge nothing. The new owner repeats it."""


class Partitions(Protocol):
    """What the partitions of this worker do. Every call comes from the main event loop; calls for one partition never overlap, except `submit`."""

    def open(self, partition: int) -> None:
        """Opens (or makes) the partition's RocksDB. The partition was assigned, as owner or as standby."""

    def changelog_offset(self, partition: int) -> int | None:
        """The last changelog offset whose effect is durably in the RocksDB, None for nothing."""

    def recover(self, partition: int, records: list[Any], last_offset: int) -> None:
        """Joins changelog records (.offset .key .value; None is a tombstone) into the RocksDB, in one WriteBatch with *last_offset*.

        Where a key's state is now greater than the last record of its own in *records*, a stale value was written after a newer one. As soon as it
        is activated, the partition has to send it again, since compaction keeps the last value.
        """

    def wipe(self, partition: int) -> None:
        """Deletes the RocksDB, which is ahead of its changelog (the topic was made anew), and opens an empty one."""

    async def activate(self, partition: int) -> None:
        """Recovery is done and this worker is the owner: start serving."""

    async def close(self, partition: int) -> None:
        """Revoked, or the worker stops: end the pipelines, drop what is in flight, close the RocksDB so that its lock is free. No `done()`
        afterwards."""

    async def submit(self, partition: int, topic: str, records: Records, done: Callable[[], None]) -> None:
        """Takes one chunk of one source partition, in order. Waits while the pipeline is full.
        Calls *done* exactly once, when everything that follows from the chunk is durable. May raise `Fenced`."""

    async def keep_foreign(self, partition: int, items: list[tuple[bytes, bytes | None]]) -> None:
        """Somebody else wrote *items* to the changelog of *partition*, which is active. Others who read the changelog join them; so must whoever
        opens this RocksDB again, since its position will lie behind them."""

    def changelog_values(self, partition: int, keys: list[bytes]) -> list[tuple[bytes, bytes | None]]:
        """The values of *keys* as of the last acknowledged `Changelog.send`: never one that was not sent yet, since stage changes go first (design,
        section 6)."""

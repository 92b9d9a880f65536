"""Damaged files under a worker: found at the start and while it runs, set aside, read again from the changelog; the worker goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console.shop import JOURNEY
from tests.support.group import Group

CONTACTS = 4000  # of several blocks a partition: RocksDB keeps the first and the last at hand


def visits(number: int) -> list[tuple[str, bytes]]:
    """One visit of the shop of each contact, the *number*-th."""
    found = []
    for n in range(CONTACTS):
        act = {"id": f"{n}-{number}", "contact_id": f"c{n}", "type": "pagevisit", "page": "/"}
        at_ms = 1_700_000_000_000 + number
        found.append((f"c{n}", json.dumps({**act, "at": at_ms}).encode()))
    return found


def flip(directory: Path) -> int:
    """Flip bytes in the data blocks of all files of records; return how many files there are."""
    files = [*directory.glob("partition-*/*.sst")]
    for file in files:
        with file.open("r+b") as opened:
            for at in range(0, file.stat().st_size * 2 // 3, 256):
                opened.seek(at)
                byte = opened.read(1)
                opened.seek(at)
                opened.write(bytes((byte[0] ^ 0xFF,)))
    return len(files)


def aside(directory: Path) -> list[Path]:
    return [*directory.glob("damaged-*")]


@pytest.mark.kafka
def test_damage_is_set_aside_and_the_worker_goes_on(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    journey = {
        **JOURNEY,
        "stages": [{"name": "Came", "condition": {"any": [{"rule": "visited_page", "page": "/"}]}}],
    }
    data = tmp_path / "data-a"
    with Group(
        kafka, prefix, tmp_path, session_timeout_seconds=6, heartbeat_seconds=1, partitions=4
    ) as group:
        group.start()
        group.open_console()
        group.apply(journey)
        group.send("activities", visits(0))
        group.verify()
        group.workers["a"].stop()
        for file in data.glob("partition-0/CURRENT"):
            file.write_bytes(b"")

        worker = (
            group.start()
        )  # one partition cannot be opened; the log of the others becomes files
        group.settled()  # reads no record of a contact: RocksDB would keep its block at hand
        assert len(aside(data)) == 1
        log = (tmp_path / "worker-a.log").read_text(errors="replace")
        assert f"the RocksDB in {data / 'partition-0'} is damaged: Corruption" in log
        assert f"delete it with: rm -r {aside(data)[0]}" in log

        assert flip(data) >= 3
        group.send("activities", visits(1))
        group.until(lambda: len(aside(data)) >= 2, "for the damage to be found while it runs")
        group.verify()
        assert worker.alive
        assert (
            group.http.get(f"/api/journeys/{journey['id']}/results").json()["stages"][0][
                "converted"
            ]
            == CONTACTS
        )

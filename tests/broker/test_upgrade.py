"""What an operator does to a Waypost that goes on: workers started anew one after the other, a state of another format, a backup put back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import rocksdict

from state.ledger import FORMAT_KEY
from tests.broker.test_faults import TIMING, opened
from tests.broker.test_kills import FACTS, Stream, serving
from tests.broker.test_recalculation import converted
from tests.support import PATIENCE_SECONDS
from tests.support.group import Group
from tests.support.terminal import ROOT, blocks


@pytest.fixture
def group(kafka: str, prefix: str, tmp_path: Path) -> Iterator[Group]:
    with Group(kafka, prefix, tmp_path / "group", **TIMING) as group:
        opened(group)
        yield group


def told(group: Group, facts: Sequence[tuple[str, str | None, bytes | None]]) -> None:
    """Sends *facts* and waits until they are in the numbers."""
    for source, key, value in facts:
        group.send(source, [(key, value)], flush=False)
    group.send("activities", [])
    group.settled()


class Watch(threading.Thread):
    """Asks for the numbers all the time; `wrong` are those that were not *shown*."""

    def __init__(self, group: Group) -> None:
        super().__init__(daemon=True)
        self.group, self.shown = group, converted(group)
        self.wrong: list[object] = []
        self.asked = self.away = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            try:
                found = converted(self.group)
            except (httpx.TransportError, KeyError):  # the console is one of those that are started anew
                found = None
            self.asked += 1
            self.away += found is None
            if found not in (self.shown, None):
                self.wrong.append(found)

    def looks(self) -> None:
        """Waits until it has had ten more answers."""
        answered = self.asked - self.away
        self.group.until(lambda: self.asked - self.away >= answered + 10, "for the numbers to be there")

    def end(self) -> None:
        self.over.set()
        self.join()


def renew(group: Group, name: str) -> None:
    """Ends a worker politely and starts it again, as a rolling update does; waits until it is ready."""
    began = time.monotonic()
    group.workers[name].stop(10.0)
    assert group.workers[name].exit_code == 0, group.workers[name].tail()
    print(f"worker {name} ended within {time.monotonic() - began:.1f} s")
    group.start(name)
    group.until(lambda: httpx.get(f"http://127.0.0.1:{group.ports[name]}/readyz", timeout=2).status_code == 200, f"for {name} to be ready")


def renew_all(group: Group, looks: Callable[[], None]) -> None:
    """Workers, then the recalculator, then the console (docs/operations.md, upgrade); *looks* is called between."""
    for name in ("a", "b"):
        renew(group, name)
        looks()
    group.jobs["a"].stop()
    assert group.jobs["a"].exit_code == 0, group.jobs["a"].tail()
    group.recalculate()
    assert group.console is not None
    group.console.stop()
    assert group.console.exit_code == 0, group.console.tail()
    group.open_console()


def test_a_rolling_update_shows_no_wrong_number_and_loses_nothing(group: Group) -> None:
    group.start("b")
    serving(group)
    told(group, FACTS[:15_000])
    watch = Watch(group)
    watch.start()
    renew_all(group, watch.looks)
    watch.looks()
    watch.end()
    print(f"numbers asked {watch.asked} times meanwhile, away {watch.away} times")
    assert watch.wrong == []
    assert watch.asked - watch.away >= 30
    stream = Stream(group, seed=11, count=15_000, seconds=20)
    stream.start()
    renew_all(group, lambda: serving(group))
    stream.done()
    group.verify()


def test_a_state_of_another_format_is_read_again_from_the_changelog(group: Group) -> None:
    told(group, FACTS[:8000])
    shown = converted(group)
    group.workers["a"].stop()
    for path in (group.directory / "data-a").glob("partition-*"):
        ledger = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))
        ledger[FORMAT_KEY] = b"0"
        for key in list(ledger.keys()):
            if key[:1] in b"ex":
                ledger[key] = b"nobody can read this"
        ledger.close()
    began = time.monotonic()
    process = group.start("a")
    serving(group)
    print(f"a state of another format: served again after {time.monotonic() - began:.1f} s")
    assert "its state was of format '0'" in process.log.read_text()
    group.settled()
    assert converted(group) == shown
    group.verify()


def test_a_backup_that_is_put_back_goes_on_from_where_it_was(group: Group, tmp_path: Path) -> None:
    (made,) = [text for _, name, text in blocks(ROOT / "docs" / "operations.md") if name == "backup.py"]
    (tmp_path / "backup.py").write_text(made)
    told(group, FACTS[:8000])
    group.workers["a"].stop()
    data, backup = group.directory / "data-a", tmp_path / "backup"
    subprocess.run([sys.executable, str(tmp_path / "backup.py"), str(data), str(backup)], check=True, timeout=PATIENCE_SECONDS)
    group.start("a")
    told(group, FACTS[8000:12_000])
    group.kill("a")
    for path in data.glob("partition-*"):
        assert (backup / path.name / "CURRENT").exists()
    data.rename(tmp_path / "lost")
    backup.rename(data)
    assert [*data.rglob("*.sst")], "the backup holds state"
    began = time.monotonic()
    group.start("a")
    serving(group)
    print(f"a backup put back: served again after {time.monotonic() - began:.1f} s")
    group.verify()

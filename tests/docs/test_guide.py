"""The guide is done, step by step, on Apache Kafka: its files are written, its commands run, and what it shows is what came out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.brokers import free_port
from tests.support.kafka import KafkaBroker
from tests.support.terminal import ROOT, Terminal, blocks, shows

GUIDE = ROOT / "docs" / "guide.md"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """On a Kafka of its own: the guide uses the default names of topics."""
    broker = KafkaBroker(tmp_path / "kafka", heap_mb=256)
    broker.start()
    directory = tmp_path / "home"
    directory.mkdir()
    made = Terminal(directory, {"kafka.example:9092": broker.bootstrap, "8080": str(free_port())})
    try:
        yield made
    finally:
        made.end()
        broker.kill()


@pytest.mark.kafka
def test_the_guide_works_as_written(terminal: Terminal) -> None:
    output = ""
    for language, name, text in blocks(GUIDE):
        if name:
            (terminal.directory / name).write_text(terminal.filled(text))
        elif language == "sh":
            terminal.settle()
            output = terminal.run(text)
        elif language == "text":
            missing = [line for line in terminal.filled(text).splitlines() if not shows(output, line)]
            assert not missing, f"{missing}\nis not in\n{output}"


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), target

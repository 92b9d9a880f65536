"""The reference pages say what the tables in the code say."""

from pathlib import Path

import pytest

from console.cli import cli
from console.reference import PAGES, commands, document
from streams.settings import TABLE as SETTINGS
from streams.topics import TABLE as TOPICS

DOCS = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_table_makes(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: python -m console.reference docs/reference"


def test_every_setting_and_topic_is_on_a_page():
    settings, topics = ((DOCS / name).read_text(encoding="utf-8") for name in ("settings.md", "topics.md"))
    assert all(f"`{row.name}`" in settings and f"`{row.env}`" in settings for row in SETTINGS)
    assert all(f"`waypost.{row.name}`" in topics for row in TOPICS)


def test_every_command_and_route_is_on_a_page():
    command_line, http_api = ((DOCS / name).read_text(encoding="utf-8") for name in ("command-line.md", "http-api.md"))
    assert all(f"## {full}\n" in command_line for full, _ in commands(cli))
    assert all(f"## {m.upper()} {path}\n" in http_api for path, one in document()["paths"].items() for m in one)

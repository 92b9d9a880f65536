"""Log lines: what machines read of them, what people read, and what stands in neither."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from console import logs
from streams.settings import Settings

log = logging.getLogger("agents.somewhere")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.QUIET}
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def written(format_: str) -> str:
    into = io.StringIO()
    logs.configure(Settings.load({"log_format": format_, "log_level": "info", "internal_secret": "h1dden"}, environ={}), into)
    log.info("told %s", "wörld", extra={"partition": 3, "offset": 17, "contact": "ab12", "libraries_own": "no"})
    log.debug("not told")
    logging.getLogger("faust").info("nor that")
    try:
        secret = "h1dden"
        raise ValueError("bad" if secret else "")
    except ValueError:
        log.exception("it failed", extra={"topic": "waypost.activities"})
    return into.getvalue()


def test_machines_read_one_object_a_line() -> None:
    told, failed = map(json.loads, written("json").splitlines())
    assert told.pop("at").endswith("Z")
    assert told == {"level": "info", "logger": "agents.somewhere", "message": "told wörld", "partition": 3, "offset": 17, "contact": "ab12"}
    assert (failed["level"], failed["message"], failed["topic"]) == ("error", "it failed", "waypost.activities")
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ValueError: bad")


def test_people_read_a_sentence_and_what_it_is_about() -> None:
    said = written("text")
    assert "told wörld" in said
    assert "partition=3" in said
    assert "ValueError: bad" in said
    assert "\x1b" not in said, "no colours in a file"


@pytest.mark.parametrize("format_", ["json", "text"])
def test_an_exception_shows_no_variables(format_: str) -> None:
    said = written(format_)
    assert said.count("h1dden") <= 1  # the line of code, as it stands in the file
    assert "internal_secret" not in said

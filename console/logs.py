"""Logs: how log lines are written, by the settings `log_level` and `log_format`. Logs nothing itself.

Modules log through `logging`, what a line is about as `extra`: `partition`, `topic`, `offset`, and `contact` as a hash, never as it is.
"""

from __future__ import annotations

import logging
from typing import Any, TextIO

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

from streams.settings import Settings

QUIET = {"aiokafka": logging.ERROR, "faust": logging.WARNING, "mode": logging.WARNING, "uvicorn.access": logging.WARNING,
         "uvicorn.error": logging.ERROR}  # it warns of each request that is none
FIELDS = ("topic", "partition", "offset", "last_offset", "contact", "journey", "recalculation", "code", "worker")
"""What lines may be about; libraries add things of their own to theirs, which are left out."""


def _formatter(as_json: bool, colors: bool) -> logging.Formatter:
    when: Any = structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json, key="at")
    last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    if not as_json:
        plain = structlog.dev.plain_traceback  # its own shows local variables, and secrets among them
        last = [structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="at", event_key="message", pad_event_to=0, exception_formatter=plain)]
    return ProcessorFormatter(
        foreign_pre_chain=[when, add_log_level, add_logger_name, ExtraAdder(allow=FIELDS), structlog.processors.EventRenamer("message")],
        processors=[ProcessorFormatter.remove_processors_meta, *last],
    )


def configure(settings: Settings, stream: TextIO, least: str | None = None) -> None:
    """Sends log lines to *stream*, those of the libraries from warnings up. *least*: the level where the settings name none."""
    level = settings.log_level if least is None or settings.origin_of("log_level") != "default" else least
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(settings.log_format == "json", stream.isatty()))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, quiet in QUIET.items():
        logging.getLogger(name).setLevel(max(quiet, logging.getLevelName(level)))

"""Reference pages for settings and topics, made of the tables that the code reads. `python -m streams.reference docs/reference` writes them.

It must say nothing that is not in the tables; a test compares the pages with what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from streams import settings, topics

MADE = "<!-- Made by `python -m streams.reference docs/reference`; change the table in the code instead. -->"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings_page() -> str:
    rows = [(f"`{row.name}`", row.type + (", secret" if row.secret else ""), f"`{row.default}`" if row.default else "empty",
             row.description, f"`{row.env}`") for row in settings.TABLE]
    return f"""# Settings

{MADE}

A value comes from, strongest first: the flag of a command (`--topic-prefix` for `topic_prefix`), the environment variable, the TOML file
named by `{settings.CONFIG_ENV}` (keys are the names below), the default. An environment variable that is empty counts as not set;
one that begins with `WAYPOST_` and names no setting is refused. A `~` at the beginning of a path is the home directory.
`waypost config` prints what is in force and where each value came from, with secrets masked.

{_table(("name", "type", "default", "what it is", "environment"), rows)}
"""


def topics_page() -> str:
    defaults = settings.Settings.load(environ={})
    rows = [(f"`{topics.topic_name(defaults, spec.name)}`" + (" (internal)" if spec.internal else ""), spec.key, spec.value,
             "`partitions`" if spec.by_contact else "1", spec.cleanup, spec.retention, _size(spec.max_message_bytes), spec.written_by)
            for spec in topics.TABLE]
    return f"""# Topics

{MADE}

`waypost topics` makes those that are missing, `waypost topics --check` compares all of them with this table. The prefix is the setting
`topic_prefix`. All topics keyed by contact have the same number of partitions, the setting `partitions`; the partitioner is Kafka's
default (murmur2 of the key).

{_table(("topic", "key", "value", "partitions", "cleanup", "kept", "largest record", "written by"), rows)}

The configuration each one is made with, at the default settings:

{_table(("topic", "configuration"), [(f"`{spec.name}`", ", ".join(f"`{k}={v}`" for k, v in spec.config(defaults).items()))
                                     for spec in topics.TABLE])}

With a `replication_factor` above 1, `min.insync.replicas` is one less than it. Kafka counts retention by the time of the *record*, not by
`at`: a sender that gives old activities an old record time may see them go early. Leave the record time to the producer.
"""


def _size(count_bytes: int) -> str:
    return f"{count_bytes // topics.MIB} MiB"


PAGES = {"settings.md": settings_page, "topics.md": topics_page}


def main() -> None:
    """Writes the pages into the directory named on the command line."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Topics, as the command line shows them. Makes and checks nothing itself: streams.topics does."""

from __future__ import annotations

import sys

from streams import reader, topics
from streams.settings import Settings

from .options import Failed, out, print_json, table


def report(settings: Settings, only_check: bool, as_json: bool) -> None:
    """`waypost topics [--check]`: makes what is missing, or compares; prints what there is. Exit code 1 when something does not fit."""
    made: list[str] = []
    try:
        if only_check:
            wrong = topics.check(settings)
        else:
            made = topics.provision(settings)
            wrong = []
    except topics.TopicsError as error:
        wrong = error.problems
    if as_json:
        print_json({"topics": sorted(topics.names(settings).values()), "created": made, "problems": wrong})
    elif not wrong:
        shown = table("topic", "key", "value", "kept", "")
        for spec in topics.TABLE:
            name = topics.topic_name(settings, spec.name)
            shown.add_row(name, spec.key.replace("`", ""), spec.value.replace("`", ""), spec.cleanup, "created" if name in made else "")
        out.print(shown)
        out.print(f"{len(topics.TABLE)} topics are as they should be" + (f", {len(made)} of them created now." if made else "."))
    if wrong and not as_json:
        raise Failed("\n".join(wrong))
    if wrong:
        sys.exit(1)


def require(settings: Settings) -> None:
    """Raises `Failed` unless all topics are there, with the partitions that the settings say: a broker may make a missing one by itself, wrong."""
    try:
        there = reader.partitions_of_topics(settings, list(topics.names(settings).values()))
    except reader.ReaderError as error:
        raise Failed(str(error)) from None
    for spec in topics.TABLE:
        name = topics.topic_name(settings, spec.name)
        count, wanted = sum(topic == name for topic, _ in there), spec.partitions(settings)
        if count != wanted:
            raise Failed(f"topic {name} has {count} partitions, but should have {wanted}; `waypost topics --check` says what to do")

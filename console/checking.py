"""Checking: compares what the API says of one journey with what is expected. Reads only; computes nothing of its own but sums."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from schemas.hashing import h
from schemas.journey import Journey
from schemas.times import format_ms
from state import oracle
from state.checksums import MODULUS, sampled
from state.views import group_key

from .client import ApiFailed, Client, segment
from .expected import GroupSum, JourneySum, StageSum, Standing, standings_of_shard
from .statistics import MAX_GROUPS

WAIT_PARTS = 256  # medians are counted in buckets of this relative width (state.totals)
NUMBERED_GROUPS = 50  # of a long history: groups whose numbers are asked for one by one; the others by what all groups are shown with
LISTED_GROUPS = 10  # of a long history: groups whose lists are read
NAMED = 1000  # differences of single contacts that are looked for where a checksum differs
Told = Callable[[str, int, int], None]
"""Hears what is being done, and how much of how much is."""
Explained = dict[str, list[tuple[str, list[str]]]]
"""Of a contact, by journey: when it reached its stages, and by which activities."""


class _Report(Protocol):
    compared: int
    differences: list[Any]
    notes: list[str]

    def differs(
        self, journey: str, group: str | None, where: str, right: Any, found: Any
    ) -> None: ...


@dataclass
class Checksums:
    """What the workers' pages of checksums come to."""

    views: set[tuple[int | None, int | None]] = field(default_factory=set)
    lists: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)
    """(group's key in hex, furthest stage) -> (contacts, those in the sample, their checksum)"""
    stages: dict[int, tuple[int, int]] = field(default_factory=dict)

    def take(self, page: dict[str, Any]) -> None:
        self.views.add((page["version"], page["generation"]))
        for row in page["lists"]:
            key = row["group"], row["furthest"]
            contacts, count, checksum = self.lists.get(key, (0, 0, 0))
            self.lists[key] = (
                contacts + row["contacts"],
                count + row["sampled"],
                (checksum + int(row["checksum"], 16)) % MODULUS,
            )
        for row in page["stages"]:
            count, checksum = self.stages.get(row["stage"], (0, 0))
            self.stages[row["stage"]] = (
                count + row["sampled"],
                (checksum + int(row["checksum"], 16)) % MODULUS,
            )

    def reached(self, group: str | None, stages: int) -> list[int]:
        """How many contacts the index has for each stage."""
        at = [
            self.lists.get((group_key(group).hex(), k), (0, 0, 0))[0] for k in range(1, stages + 1)
        ]
        return [sum(at[k:]) for k in range(stages)]


class Naming:
    """All lines that are expected of a journey, gathered only when a checksum differs."""

    def __init__(self, paths: Iterable[Path], journey: Journey, share: float) -> None:
        self._paths, self._journey, self.share = paths, journey, share
        self._standings: list[Standing] | None = None

    def lines(self, stage: int, who: str, group: str | None) -> dict[str, tuple[str, list[str]]]:
        """Contact -> (when the stage was reached, groups)."""
        if self._standings is None:
            self._standings = [
                standing
                for path in self._paths
                for standing in standings_of_shard(path, self._journey)
            ]
        return {
            standing.name: _line(standing, stage)
            for standing in self._standings
            if len(standing.moments) in _furthest(stage, who, len(self._journey.stages))
            and (group is None or group in standing.groups)
        }


def _furthest(stage: int, who: str, last: int) -> range:
    """The furthest stages of those in a list."""
    if who == "converted":
        return range(stage, last + 1)
    return range(stage, stage + 1) if stage < last else range(0)


def _line(standing: Standing, stage: int) -> tuple[str, list[str]]:
    return format_ms(standing.moments[stage - 1]), list(standing.groups)


class Comparison:
    """One journey. *contacts*: what contacts were asked already, as one answer speaks of all journeys; *lines*: of each list, read as users do."""

    def __init__(
        self, journey: Journey, right: JourneySum, api: Client, report: _Report, contacts: dict[str, Explained | str], naming: Naming, small: bool,
        lines: int, told: Told,
    ) -> None:  # fmt: skip
        self.journey, self.right, self.api, self.report = journey, right, api, report
        self.contacts, self.naming, self.small, self.lines, self.told = (
            contacts,
            naming,
            small,
            lines,
            told,
        )
        self.last = len(journey.stages)
        self.path = f"/api/journeys/{segment(journey.id)}"

    def everything(self, found: Checksums) -> None:
        """All numbers, lists and names."""
        self._views(found)
        groups = sorted(group for group in self.right.groups if group is not None)
        numbered = groups if self.small else sorted(groups, key=h)[:NUMBERED_GROUPS]
        listed = groups if self.small else sorted(groups, key=h)[:LISTED_GROUPS]
        if len(numbered) < len(groups):
            self.report.notes.append(
                f"{self.journey.id}: {len(groups):,} groups; waits and days were compared of {len(numbered)} of them, first lines of lists of "
                f"{len(listed)}, and of all of them lists by checksum"
            )
        questions: list[str | None] = [None, *numbered]
        for done, group in enumerate(questions):
            self.told(f"comparing {self.journey.id}", done, len(questions))
            right = self.right.groups.get(group) or GroupSum(
                [StageSum() for _ in self.journey.stages]
            )
            self._results(group, right)
            self._waits(group, right)
            self._days(group, right)
            if group is None or group in listed:
                for stage in range(1, self.last + 1):
                    for who in ("converted", "dropped_off"):
                        self._first_lines(group, right, stage, who)
        self._all_groups(groups)
        self._checksums(found)
        self._explanations()

    def sample(self, found: Checksums) -> None:
        """The persons of the sample; and numbers against the lengths of their lists, of everybody."""
        self._views(found)
        self._checksums(found)
        self._explanations()
        answer = self.api.call("GET", f"{self.path}/results")
        self._head(None, answer)
        reached = found.reached(None, self.last)
        numbers = [
            (n, None if k == self.last else n - reached[k]) for k, n in enumerate(reached, 1)
        ]
        self._numbers(None, "against its list", numbers, answer)
        rows = self._side_by_side(lambda group: found.reached(group, self.last))
        groups = {group for (group, _), (contacts, *_) in found.lists.items() if contacts}
        self._equal(
            None,
            "number of groups",
            min(MAX_GROUPS, len(groups - {group_key(None).hex()})),
            rows - 1,
        )

    def _equal(self, group: str | None, where: str, right: Any, found: Any) -> None:
        self.report.compared += 1
        if right != found:
            self.report.differs(self.journey.id, group, where, right, found)

    def _views(self, found: Checksums) -> None:
        self._equal(
            None,
            "versions with checksums",
            {self.journey.version},
            {version for version, _ in found.views},
        )
        self._equal(None, "generations with checksums", 1, len(found.views))

    # ------------------------------------------------------------------ numbers

    def _head(self, group: str | None, found: dict[str, Any]) -> None:
        """Whose numbers an answer gives."""
        self._equal(group, "version", self.journey.version, found["version"])
        self._equal(group, "group", group, found["group"])

    def _results(self, group: str | None, right: GroupSum) -> None:
        found = self.api.call("GET", f"{self.path}/results", query={"group": group})
        self._head(group, found)
        numbers = [
            (sums.converted, None if k == self.last else sums.dropped_off)
            for k, sums in enumerate(right.stages, 1)
        ]
        self._numbers(group, "", numbers, found)
        for k, (sums, row) in enumerate(zip(right.stages, found["stages"], strict=False), 1):
            where = f"stage {k}, median_seconds_from_previous"
            self._median(group, where, sums.waits_ms, row["median_seconds_from_previous"])

    def _waits(self, group: str | None, right: GroupSum) -> None:
        found = self.api.call("GET", f"{self.path}/waits", query={"group": group})
        self._head(group, found)
        self._equal(group, "stages with waits", self.last - 1, len(found["stages"]))
        for k, (sums, row) in enumerate(zip(right.stages[1:], found["stages"], strict=False), 2):
            who = (k, self.journey.stages[k - 1].name, len(sums.waits_ms))
            self._equal(
                group, f"stage {k}, waits", who, (row["stage"], row["name"], row["contacts"])
            )
            self._median(group, f"stage {k}, median of waits", sums.waits_ms, row["median_seconds"])
        overall = found["overall"]
        if self.last > 1:
            waits = right.stages[-1].since_first_ms
            self._equal(
                group,
                "waits from the first stage to the last",
                len(waits),
                (overall or {}).get("contacts"),
            )
            where = "median from the first stage to the last"
            self._median(group, where, waits, (overall or {}).get("median_seconds"))

    def _numbers(
        self,
        group: str | None,
        against: str,
        numbers: list[tuple[int, int | None]],
        found: dict[str, Any],
    ) -> None:
        """`(converted, dropped off)` of each stage, and what follows from them."""
        self._equal(group, "number of stages", self.last, len(found["stages"]))
        for k, (stage, (converted, dropped), row) in enumerate(
            zip(self.journey.stages, numbers, found["stages"], strict=False), 1
        ):
            right = {
                "stage": k,
                "name": stage.name,
                "converted": converted,
                "converted_ratio": oracle.ratio(converted, numbers[max(0, k - 2)][0]),
                "dropped_off": dropped,
                "dropped_off_ratio": None if dropped is None else oracle.ratio(dropped, converted),
                "kpi": stage.kpi,
                "kpi_ratio": None if stage.kpi is None else converted / stage.kpi,
            }
            for name, value in right.items():
                self._equal(
                    group,
                    f"stage {k}, {name}" + (f", {against}" if against else ""),
                    value,
                    row[name],
                )

    def _median(
        self, group: str | None, where: str, waits_ms: Iterable[int], found: float | None
    ) -> None:
        self.report.compared += 1
        waits = list(waits_ms)
        median = statistics.median(waits) / 1000 if waits else None
        if not close(median, found):
            self.report.differs(self.journey.id, group, where, median, found)

    def _days(self, group: str | None, right: GroupSum) -> None:
        answer = self.api.call("GET", f"{self.path}/days", query={"group": group})
        self._head(group, answer)
        days = sorted({day for sums in right.stages for day in sums.days})
        found = {row["day"]: row["reached"] for row in answer["days"]}
        names = {
            day: datetime.fromtimestamp(day * oracle.DAY_MS / 1000, UTC).date().isoformat()
            for day in days
        }
        expected = {names[day]: [sums.days[day] for sums in right.stages] for day in days}
        self.report.compared += len(expected)
        for day in sorted({*expected, *found}):
            if expected.get(day) != found.get(day):
                self.report.differs(
                    self.journey.id, group, f"reached on {day}", expected.get(day), found.get(day)
                )

    def _all_groups(self, groups: list[str]) -> None:
        """What the groups are shown with side by side; of many, those with the most contacts."""

        def reached(group: str | None) -> list[int]:
            right = self.right.groups.get(group)
            return [0] * self.last if right is None else [sums.converted for sums in right.stages]

        rows = self._side_by_side(reached)
        self._equal(None, "number of groups", min(MAX_GROUPS, len(groups)), rows - 1)

    def _side_by_side(self, reached: Callable[[str | None], list[int]]) -> int:
        """Compares what each group is shown with; how many rows there are, with everyone's."""
        found = self.api.call("GET", f"{self.path}/groups")
        self._equal(None, "version of groups", self.journey.version, found["version"])
        self._equal(None, "everyone comes first", None, found["groups"][0]["group"])
        for row in found["groups"]:
            counts = reached(row["group"])
            right = [
                {
                    "stage": k,
                    "name": stage.name,
                    "converted": counts[k - 1],
                    "converted_ratio": oracle.ratio(counts[k - 1], counts[max(0, k - 2)]),
                }
                for k, stage in enumerate(self.journey.stages, 1)
            ]
            self._equal(row["group"], "side by side", right, row["stages"])
        return len({row["group"] for row in found["groups"]})

    # ------------------------------------------------------------------ lists

    def _first_lines(self, group: str | None, right: GroupSum, stage: int, who: str) -> None:
        """The first lines of a list, and its total."""
        furthest = _furthest(stage, who, self.last)
        total = sum(right.lists.get(k, (0, 0))[0] for k in furthest)
        first = list(
            islice((standing for k in furthest for standing in right.first.get(k, ())), self.lines)
        )
        query = {"who": who, "group": group}
        pages = list(
            self.api.pages(
                f"{self.path}/stages/{stage}/contacts",
                "contacts",
                query,
                None if self.small else self.lines,
            )
        )
        rows = [row for page in pages for row in page["contacts"]]
        where = f"list {stage}.{who}"
        self._equal(group, f"{where}, total", total, pages[0]["total"])
        self._equal(group, f"{where}, lines", len(first), len(rows))
        expected = {standing.name: _line(standing, stage) for standing in first}
        if not self._lines(group, where, expected, rows) and [*expected] != [
            row["contact_id"] for row in rows
        ]:
            self.report.differs(
                self.journey.id,
                group,
                f"{where}, order",
                list(expected)[:3],
                [row["contact_id"] for row in rows][:3],
            )

    def _lines(
        self,
        group: str | None,
        where: str,
        expected: dict[str, tuple[str, list[str]]],
        rows: list[dict[str, Any]],
    ) -> int:
        """How many lines differ."""
        found = {row["contact_id"]: (row["reached_at"], sorted(row["groups"])) for row in rows}
        self.report.compared += len(expected)
        wrong = [
            contact
            for contact in sorted({*expected, *found})
            if expected.get(contact) != found.get(contact)
        ]
        for contact in wrong[:NAMED] if not self.small else wrong:
            self.report.differs(
                self.journey.id,
                group,
                f"{where}, {contact}",
                expected.get(contact),
                found.get(contact),
            )
        return len(wrong)

    def _checksums(self, found: Checksums) -> None:
        """All lines of all lists, and by which activities each stage was met."""
        keys = {group_key(group).hex(): group for group in self.right.groups} | {
            group_key(None).hex(): None
        }
        right = {
            (key, k): sums
            for key, group in keys.items()
            if group in self.right.groups
            for k, sums in self.right.groups[group].lists.items()
        }
        for key, k in sorted({*right, *found.lists}):
            contacts, *sums = found.lists.get((key, k), (0, 0, 0))
            expected = right.get((key, k), (0, 0))
            self.report.compared += expected[0]
            if expected != tuple(sums) or (self.naming.share >= 1 and contacts != expected[0]):
                who = "converted" if k == self.last else "dropped_off"
                group = keys.get(key, f"(a group with the hash {key})")
                self._named(group, k, who, key in keys, expected, tuple(sums))
        for k in sorted({*self.right.stages, *found.stages}):
            expected, sums_found = self.right.stages.get(k, (0, 0)), found.stages.get(k, (0, 0))
            self.report.compared += expected[0]
            if expected != sums_found:
                self._named(None, k, "converted", True, expected, sums_found)

    def _named(
        self,
        group: str | None,
        stage: int,
        who: str,
        known: bool,
        right: tuple[int, ...],
        found: tuple[int, ...],
    ) -> None:
        """Looks for the lines by which a checksum differs, in a long history; where no line does, it is the checksum that differs."""
        before = len(self.report.differences)
        if known and not self.small and before < NAMED:
            self.told(f"looking for what differs in {self.journey.id}", 0, 0)
            pages = self.api.pages(
                f"{self.path}/stages/{stage}/contacts", "contacts", {"who": who, "group": group}
            )
            rows = [
                row
                for page in pages
                for row in page["contacts"]
                if sampled(row["contact_id"], self.naming.share)
            ]
            self._lines(group, f"list {stage}.{who}", self.naming.lines(stage, who, group), rows)
        if len(self.report.differences) == before:
            self.report.differs(
                self.journey.id, group, f"contacts and checksum of list {stage}.{who} (names, times, groups, and the activities that met the stage)",
                f"{right[0]:,}, {right[1]:016x}", f"{found[0]:,}, {found[1]:016x}",
            )  # fmt: skip

    # ------------------------------------------------------------------ names

    def _explanations(self) -> None:
        """What single contacts are told: stages, times, and the activities by which they were met."""
        for done, (_, name, rows) in enumerate(
            self.right.explained, 1
        ):  # by hash: most are the same ones for all journeys
            if done % 20 == 0:
                self.told(
                    f"comparing explanations of {self.journey.id}", done, len(self.right.explained)
                )
            expected = [(format_ms(at_ms), activities) for at_ms, activities in rows]
            if name not in self.contacts:
                self.contacts[name] = self._ask(name)
            found = self.contacts[name]
            self._equal(
                None,
                f"contact {name}",
                expected,
                found if isinstance(found, str) else found.get(self.journey.id, []),
            )

    def _ask(self, name: str) -> Explained | str:
        try:
            found = self.api.call("GET", f"/api/contacts/{segment(name)}")
        except ApiFailed as error:
            return error.message
        if found["survivor"] != name:
            return f"its person is named {found['survivor']}"
        return {
            journey["journey"]: [
                (stage["reached_at"], sorted({met["activity"] for met in stage["met_by"]}))
                for stage in journey["stages"]
            ]
            for journey in found["journeys"]
            if journey["stages"]
        }


def close(exact_seconds: float | None, found_seconds: float | None) -> bool:
    """Whether a median is the exact one as nearly as whole seconds and buckets allow: never above it, below by less than a second or a bucket."""
    if exact_seconds is None or found_seconds is None:
        return exact_seconds is found_seconds
    return exact_seconds - 1 - exact_seconds / WAIT_PARTS < found_seconds <= exact_seconds

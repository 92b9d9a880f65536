"""Data of the bench: activities that are always the same, and what an honest program must make of them, computed naively. Sends nothing.

Two kinds: *sparse*, where 10 % of the activities meet a rule, and *dense*, where all do; 191 and 209 bytes each. One activity in fifty is late.
(And *none*, where none does.)
"""

from __future__ import annotations

import calendar
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from state.totals import DAY_MS, Cell, wait_bucket

SEED = 20260102
BASE_MS = calendar.timegm((2026, 1, 2, 0, 0, 0)) * 1000
STEP_MS = 100
LATE_SHARE, LATE_MAX_MS = 0.02, 6 * 3_600_000
HIT_SHARE = {"none": 0.0, "sparse": 0.1, "dense": 1.0}

FORMS = (  # of activities that meet a rule: by stage, (type, page, path, form)
    ("pagevisit", "/loans/smb", "/loans/smb?utm_source=newsletter", None),
    ("pagevisit", "/tools/view", "/loans/smb/calculator?v=2", None),
    ("bizformsubmit", "/loans/smb/lead", "/loans/smb/lead", "smb-loan-lead"),
    ("emailclick", "/offers", "/offers?utm_campaign=smb-offer", None),
    ("bizformsubmit", "/loans/smb/apply", "/loans/smb/apply", "smb-loan-application"),
)
PAGES = ("/home", "/cards", "/deposits", "/loans/personal", "/loans/auto", "/branches", "/support", "/news")

CONDITIONS: tuple[dict[str, Any], ...] = (
    {"rule": "visited_page", "page": "/loans/smb"},
    {"rule": "visited_url", "url": {"contains": "/loans/smb/calculator"}},
    {"rule": "submitted_form", "form": "smb-loan-lead"},
    {"rule": "clicked_email_link", "url": {"contains": "utm_campaign=smb-offer"}},
    {"rule": "submitted_form", "form": "smb-loan-application"},
)
NAMES = ("Campaign page", "Calculator", "Lead form", "Offer e-mail", "Application")
STAGES = len(NAMES)
JOURNEY = "bench"


class Made(NamedTuple):
    """One activity: its contact, its JSON, the stage (from 0) whose rule it meets or None, and its time in milliseconds."""

    contact: str
    value: bytes
    stage: int | None
    at_ms: int


@dataclass
class Expected:
    """What must come out, gathered from what goes in: per contact its hits, in the end sorted and walked once (design, section 3)."""

    hits: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Contact -> (time in milliseconds, stage from 0)."""
    activities: int = 0
    stages: int = len(NAMES)
    """Of the journey that is walked; nobody reaches those past the activities' own."""
    merged: dict[str, str] = field(default_factory=dict)
    """Contact -> the one that it turned out to be, which is itself merged into nobody."""

    def take(self, made: Made) -> None:
        self.activities += 1
        if made.stage is not None:
            self.hits.setdefault(made.contact, []).append((made.at_ms, made.stage))

    def reached(self) -> dict[tuple[str, int], int]:
        """(contact, stage from 1) -> time in milliseconds at which it is reached in the end."""
        found: dict[tuple[str, int], int] = {}
        persons = self.hits
        if self.merged:
            persons = {}
            for contact, hits in self.hits.items():
                persons.setdefault(self.merged.get(contact, contact), []).extend(hits)
        for contact, hits in persons.items():
            stage = 0
            for at_ms, met in sorted(hits):  # of the same millisecond the earlier stage first: equal times count as in order
                if met == stage:
                    stage += 1
                    found[contact, stage] = at_ms
        return found

    def cells(self) -> dict[Cell, int]:
        """Every number of the results: how many reached each stage, on which day, how long after the stage before, and the last after the first."""
        cells: Counter[Cell] = Counter()
        reached = self.reached()
        for (contact, stage), at_ms in reached.items():
            cells["r", stage, 0] += 1
            cells["d", stage, at_ms // DAY_MS] += 1
            if stage > 1:
                cells["w", stage, wait_bucket(at_ms - reached[contact, stage - 1])] += 1
            if stage == self.stages > 2:
                cells["o", stage, wait_bucket(at_ms - reached[contact, 1])] += 1
        return dict(cells)


def activities(kind: str, count: int, contacts: int, *, in_turn: bool = False) -> Iterator[Made]:
    """*count* activities of "c-000000" and so on, the same for the same arguments.

    *in_turn*: contacts follow each other, so that each of them has as many activities as the others.
    """
    rnd, share = Random(SEED).random, HIT_SHARE[kind]
    second, text = None, ""
    for i in range(count):
        drawn = int(rnd() * contacts)
        contact = f"c-{i % contacts if in_turn else drawn:06d}"
        at_ms = BASE_MS + i * STEP_MS
        if rnd() < LATE_SHARE:
            at_ms -= int(rnd() * LATE_MAX_MS)
        if at_ms // 1000 != second:
            second = at_ms // 1000
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stage: int | None = None
        form: str | None = None
        if rnd() < share:
            stage = int(rnd() * STAGES)
            type_, page, path, form = FORMS[stage]
        else:
            kind_of = rnd()
            page = PAGES[int(rnd() * len(PAGES))]
            path = f"{page}?ref={int(rnd() * 1000)}"
            if kind_of < 0.7:
                type_ = "pagevisit"
            elif kind_of < 0.9:
                type_ = "emailopen"
            else:
                type_, form = "bizformsubmit", "newsletter"
        last = f',"form":"{form}"}}' if form else "}"
        value = (
            f'{{"id":"a-{i:09d}","contact_id":"{contact}","type":"{type_}","at":"{text}.{at_ms % 1000:03d}Z","page":"{page}",'
            f'"url":"https://example.com{path}","value":null,"channel":"web"{last}'
        )
        yield Made(contact, value.encode(), stage, at_ms)


def first_steps(contacts: int) -> Iterator[Made]:
    """One activity of each of *contacts* contacts, which meets the rule of the first stage."""
    type_, page, path, _ = FORMS[0]
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(BASE_MS // 1000))
    for i in range(contacts):
        said = f'"type":"{type_}","at":"{text}","page":"{page}","url":"https://example.com{path}"'
        yield Made(f"c-{i:06d}", f'{{"id":"a-{i:09d}","contact_id":"c-{i:06d}",{said}}}'.encode(), 0, BASE_MS)


def journey(id_: str = JOURNEY, stages: int = STAGES) -> dict[str, Any]:
    """The journey that the activities walk; stages past its five have rules that nothing meets."""
    rows = [{"name": name, "condition": {"any": [rule]}} for name, rule in zip(NAMES, CONDITIONS, strict=True)]
    for k in range(STAGES, stages):
        rows.append({"name": f"Never {k + 1}", "condition": {"any": [{"rule": "submitted_form", "form": f"never-{id_}-{k}"}]}})
    return {"id": id_, "name": "Bench", "version": 1, "scheduled_recalculation": False, "stages": rows[:stages]}


def other_journey(number: int, stages: int) -> dict[str, Any]:
    """A journey that looks like the one above, in the same fields of the same types of activity, and whose rules nothing meets."""
    forms = (
        lambda k: {"rule": "visited_page", "page": f"/loans/smb/{number}-{k}"},
        lambda k: {"rule": "visited_url", "url": {"contains": f"/loans/smb/calculator/{number}-{k}"}},
        lambda k: {"rule": "submitted_form", "form": f"smb-loan-lead-{number}-{k}"},
        lambda k: {"rule": "clicked_email_link", "url": {"contains": f"utm_campaign=smb-offer-{number}-{k}"}},
        lambda k: {"rule": "visited_url", "url": {"ends_with": f"/ref-{number}-{k}.pdf"}},
        lambda k: {"rule": "performed_activity", "activity": f"download-{number % 50}", "value": {"starts_with": f"{number}-{k}/"}},
        lambda k: {"rule": "visited_url", "url": {"starts_with": f"https://example.com/{number}/{k}"}, "channel": "web"},
    )
    rows = [{"name": f"Stage {k + 1}", "condition": {"any": [forms[(number + k) % len(forms)](k)]}} for k in range(stages)]
    return {"id": f"other-{number:04d}", "name": f"Other {number}", "version": 1, "scheduled_recalculation": False, "stages": rows}


def also_met(rules: int) -> dict[str, Any]:
    """A journey of one stage with so many further rules, 9 at most, that each activity of `FORMS` meets."""
    begin = "https://example.com/"
    rows: list[dict[str, Any]] = []
    for k in range(rules):
        rows += [
            {"rule": "visited_url", "url": {"starts_with": begin[: len(begin) - k]}},
            {"rule": "clicked_email_link", "url": {"starts_with": begin[: len(begin) - k]}},
            {"rule": "submitted_form", "form": {"starts_with": "smb-loan-"[: 9 - k]}},
        ]
    condition = {"any": rows}
    return {"id": "also", "name": "Also", "version": 1, "scheduled_recalculation": False, "stages": [{"name": "Any", "condition": condition}]}

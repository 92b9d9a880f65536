"""Decision: what a batch of one partition comes to, and how a holder's stages are put into it. Pure; decides about nobody: that does `batch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas.changes import StageChange

from .announcement import Spoken, differences
from .messages import ACTIVITY, Message, Origin
from .progress import Progress
from .totals import Cell, agreed, contribution
from .views import EVERYONE, View, group_key, index_key

CHANGE_BYTES, ENTRY_BYTES, RECORD_BYTES, HANDOFF_BYTES = 1000, 250, 400, 1000
"""Memory that a stage change, an index entry, a record and a handoff take on their way, as objects and as bytes; of the last two beside what they
hold. Measured: `python -m tests.bench decisions`."""
UNBOUNDED = 1 << 62


class Decision(NamedTuple):
    """What a batch comes to. `totals` maps view id to group ("" is everyone) to cell to difference; `truncated`: of how many persons something was
    cut because it was too large for one record, by what that was."""

    records: dict[bytes, bytes | None]
    changes: list[StageChange]
    handoffs: list[Message]
    refused: list[tuple[Origin, str]]
    entries: dict[bytes, bytes | None]  # of the index
    totals: dict[bytes, dict[str, dict[Cell, int]]]
    truncated: Mapping[str, int] = {}

    def size_bytes(self) -> int:
        """Return about how much memory the decision takes on its way, without what records and handoffs hold."""
        effects = CHANGE_BYTES * len(self.changes) + ENTRY_BYTES * len(self.entries)
        return effects + RECORD_BYTES * len(self.records) + HANDOFF_BYTES * len(self.handoffs)

    def moved(
        self, view: View, holder: bytes, name: str, groups: tuple[str, ...], spoken: list[Spoken], before: Progress, after: Progress,
        arrived: Mapping[bytes, str], cause_id: str, marked: tuple[bool, bool] = (False, False),
    ) -> None:
        """Announces and counts that a holder stands elsewhere in *view*. *marked*: before and after."""  # fmt: skip
        if view.speaks:
            self.changes.extend(differences(view, spoken, name, after, ACTIVITY, cause_id, arrived))
        if view.includes(holder):
            same = 0 if any(marked) else agreed(before, after)
            self.place(view, holder.decode(), (name, groups, before, marked[0]), -1, same)
            self.place(view, holder.decode(), (name, groups, after, marked[1]), 1, same)

    def place(self, view: View, holder: str, at: tuple[str, tuple[str, ...], Progress, bool], count: int, since: int = 0) -> None:
        """Adds (*count* 1) or takes away (-1) what a person contributes to a view: index entries and totals.

        The totals of the first *since* stages are left alone: where they stay the same, they need not be taken away and added again.
        """
        name, groups, progress, marked = at
        cells = contribution(progress, len(view.journey.stages), since)
        if marked:
            cells.append(("m", 0, 0))
        if not progress and not cells:
            return
        value = None if count < 0 else b""
        entries, totals = self.entries, self.totals.setdefault(view.id, {})
        for group in ("", *groups):
            if progress:
                entries[index_key(view.id, group_key(group) if group else EVERYONE, progress, name, holder)] = value
            mine = totals.get(group)
            if mine is None:
                mine = totals[group] = {}
            for cell in cells:
                mine[cell] = mine.get(cell, 0) + count


class Room:
    """The memory that a decision may take, in bytes. It is counted while the batch decides, so that the batch can stop."""

    def __init__(self, decision: Decision, limit: int) -> None:
        self._decision = decision
        self._left = limit

    def take(self, size: int) -> None:
        """Count *size* bytes that the lengths of the decision do not tell: what records hold, and effects that are still to be decided."""
        self._left -= size

    @property
    def left(self) -> int:
        """How many bytes are left. Below zero once the last contact took more than there was."""
        return self._left - self._decision.size_bytes()

"""Bulk: many contacts of a partition at once: their records and facts given to compiled code (`kernel`), and what it says of them in columns. Pure.

What is left of a batch or a scan is decided one by one, see `decision`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.compiled import Array, Loops
from schemas.journey import Condition, Journey, Stage
from schemas.rules import PerformedActivity, Rule, rule_key

from . import kernel
from .arrivals import FACT, packed
from .decision import UNBOUNDED
from .evidence import HIT_BYTES
from .kernel import ALL, ANY, RULE
from .progress import Progress, Reached
from .views import EVERYONE, View, Views, index_prefix

MOVES_A_CONTACT = 4  # room for as many, taken together; behind it contacts are not looked at


@Loops
def loops() -> None:
    rule = PerformedActivity(activity="warm")
    condition = Condition(op="all", members=(rule, rule))
    view = View(Journey(id="warm", name="warm", version=1, stages=(Stage(name="warm", condition=condition),)))
    plan = Plan(Views([view]))
    made = plan.join([b""], *packed([[(rule_key(rule), bytes(HIT_BYTES))]]))
    plan.stand(made.records, [(view, (), True)])


class Onward(NamedTuple):
    """Contacts that a view shows further on than before: what they had reached stands, met by the same hits.

    `rows`, int64: (number in the batch, number of the view in the plan, stages reached before, and now, where they begin in `stages`). `stages`,
    uint64: (moment, how many hits met it). `met`, uint64: these hits; those of a stage from `met_at` on.
    """

    rows: Array
    stages: Array
    met_at: Array
    met: Array


class Move(NamedTuple):
    """Where a view shows a contact (its number in the batch) in another way than before."""

    contact: int
    view: View
    before: Progress
    after: Progress


class Result(NamedTuple):
    """`states`: of each contact, int64, SAME, JOINED, LEFT or BEYOND; `records`: the new record of those JOINED; `moves`: in the order of contacts,
    those that do not go `onward`; `taken`: for each fact, one contact's after the other's, whether it was new (1) or not (0)."""

    states: Array
    records: list[bytes]
    onward: Onward
    moves: list[Move]
    taken: bytes


class Plan:
    """The views of a partition, made ready: their conditions as programs, and who watches which rule."""

    def __init__(self, views: Views) -> None:
        self.views = views.all
        self._numbers = number = {view.id: n for n, view in enumerate(self.views)}
        watched = sorted(views.by_rule)
        self._keys = np.array([int.from_bytes(rule, "big") for rule in watched], np.uint64)
        self._watch_at = np.cumsum([0, *(len(views.by_rule[rule]) for rule in watched)], dtype=np.int64)
        self._watchers = np.array([number[view.id] for rule in watched for view in views.by_rule[rule]], np.int64)
        ops: list[tuple[int, int]] = []
        rules: list[int] = []
        op_at, stage_at, leaves, leaves_of_all = [0], [0], 1, 0
        for view in self.views:
            keys, asked = view.source.keys, 0
            for stage in view.journey.stages:
                asked += _compile(stage.condition, keys, ops, rules)
                op_at.append(len(ops))
            stage_at.append(len(op_at) - 1)
            leaves = max(leaves, asked)
            leaves_of_all += asked
        self._ops = np.array(ops, np.int64).reshape(-1, 2)
        self._rules = np.array(rules, np.uint64)
        self._op_at, self._stage_at = np.array(op_at, np.int64), np.array(stage_at, np.int64)
        self._leaves, self._leaves_of_all = leaves, leaves_of_all
        self.lengths = np.array([len(view.journey.stages) for view in self.views], np.int64)
        self.heads = [index_prefix(view.id, EVERYONE) for view in self.views]
        self._most_stages = max([1, *self.lengths.tolist()])

    def join(
        self, old: Sequence[bytes], facts: Array, ends: Array, identified: Collection[int] = (), most_changes: int = UNBOUNDED
    ) -> Result:
        """Joins *facts* of contacts, given by number, to their evidence records *old* (empty: there is none). *facts*, *ends*: see `Arrivals`.

        *identified*: those beside whose evidence there is an identity, which does not concern hits; their moves are never among those `onward`.
        *most_changes*: behind so many stage changes, and where its own room ends, the others are BEYOND; one contact that moves is always taken.
        """
        n, n_facts = len(old), len(facts)
        may = np.zeros(n, np.uint8)
        may[[*identified]] = 1
        data, old_at = _laid(old)
        fact_at = np.zeros(n + 1, np.int64)
        fact_at[1:] = ends
        new = np.empty(len(data) + n * 4 + n_facts * (10 + HIT_BYTES), np.uint8)
        new_at, states = np.zeros(n + 1, np.int64), np.empty(n, np.int64)
        room = MOVES_A_CONTACT * n + len(self.views)  # for all that one contact can move, at least
        moves, stages = np.empty((room, 5), np.int64), np.empty((4 * room + 2 * int(self.lengths.sum()), 2), np.uint64)
        met = np.empty((4 * room + 2 * self._leaves_of_all, 2), np.uint64)
        most = int(np.diff(fact_at).max()) if n else 0
        taken = np.zeros(n_facts, np.uint8)
        n_moves = kernel.join(
            data, old_at, may, facts, fact_at, self._keys, self._watch_at, self._watchers, self._ops, self._rules,
            self._op_at, self._stage_at, self._leaves, self._most_stages, most, most_changes, new, new_at, states, taken,
            moves, stages, met,
        )  # fmt: skip
        whole, behind = new[: new_at[-1]].tobytes(), new_at.tolist()
        made = [whole[behind[i] : behind[i + 1]] for i in range(n)]
        rows, goes_on = moves[:n_moves], moves[:n_moves, 4] > 0
        used = np.where(goes_on, 0, rows[:, 2]) + rows[:, 3]
        rows[:, 4] = np.cumsum(used) - used  # where its stages begin
        stages = stages[: used.sum()]
        counts = stages[:, 1].astype(np.int64)
        onward = Onward(rows[goes_on], stages, np.cumsum(counts) - counts, met)
        return Result(states, made, onward, self._moves(rows[~goes_on].tolist(), onward), taken.tobytes())

    def stand(self, records: Sequence[bytes], views: Sequence[tuple[View, Sequence[View], bool]]) -> tuple[Array, Onward]:
        """Where views show contacts that they did not know, given by their evidence *records* (empty: there is none): state of each contact, SAME
        or LEFT; and as if they had gone on from nowhere.

        *views*: with each, those whose word it must be, and whether that may be nothing as well. A contact is left where it is not.
        """
        n, numbers = len(records), self._numbers
        befores = [[numbers.get(view.id, -1) for view in before] for _, before, _ in views]
        of = np.array([numbers[view.id] for view, _, _ in views], np.int64)
        nowhere = np.empty((0, 2), np.uint64)
        if any(-1 in before for before in befores):  # one that is kept no more
            return np.full(n, kernel.LEFT), Onward(np.empty((0, 5), np.int64), nowhere, np.empty(0, np.int64), nowhere)
        data, at = _laid(records)
        before_at = np.cumsum([0, *map(len, befores)], dtype=np.int64)
        before = np.array([one for mine in befores for one in mine], np.int64)
        silent = np.array([one for _, _, one in views], np.uint8)
        states, rows = np.empty(n, np.int64), np.empty((n * len(of), 5), np.int64)
        stages = np.empty((n * int(self.lengths[of].sum()), 2), np.uint64)
        n_rows = kernel.stand(
            data, at, of, before_at, before, silent, self._ops, self._rules, self._op_at, self._stage_at,
            self._leaves, self._most_stages, states, rows, stages,
        )  # fmt: skip
        return states, Onward(rows[:n_rows], stages, np.empty(0, np.int64), nowhere)

    def _moves(self, rows: list[list[int]], all_of_them: Onward) -> list[Move]:
        """Of those that do not go on, whose stages before stand before those now."""
        _, stages, met_at, met = all_of_them
        found = []
        for contact, view, n_before, n_after, begin in rows:
            end = begin + n_before + n_after
            moments, counts = stages[begin:end, 0].astype(FACT).tobytes(), stages[begin:end, 1].tolist()
            first_hit = int(met_at[begin])
            hits, hit = met[first_hit : first_hit + sum(counts)].astype(FACT).tobytes(), 0
            both = []
            for k, count in enumerate(counts):
                by = tuple([hits[i : i + HIT_BYTES] for i in range(hit, hit + count * HIT_BYTES, HIT_BYTES)])
                both.append(Reached(moments[8 * k : 8 * k + 8], by))
                hit += count * HIT_BYTES
            found.append(Move(contact, self.views[view], tuple(both[:n_before]), tuple(both[n_before:])))
        return found


def _laid(records: Sequence[bytes]) -> tuple[Array, Array]:
    """Records one behind the other, uint8, and where each begins, int64; the last number is where all end."""
    at = np.zeros(len(records) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, records), np.int64, len(records)), out=at[1:])
    return np.frombuffer(b"".join(records), np.uint8), at


def _compile(what: Condition | Rule, keys: Any, ops: list[tuple[int, int]], rules: list[int]) -> int:
    """Adds the program of a condition, its members first; returns how many rules it asks for."""
    if not isinstance(what, Condition):
        own = rule_key(what)
        ops.append((RULE, len(rules)))
        rules.append(int.from_bytes(keys.get(own, own), "big"))
        return 1
    asked = sum(_compile(member, keys, ops, rules) for member in what.members)
    if len(what.members) > 1:
        ops.append((ANY if what.op == "any" else ALL, len(what.members)))
    return asked

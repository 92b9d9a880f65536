"""Progress: when a contact reached each stage. Pure; knows no contact, no topic and no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from schemas.journey import Condition, Journey
from schemas.rules import Rule, rule_key

from .evidence import HIT_BYTES, Hits, first_at_or_after, moment_ms

BEGINNING = b""  # sorts before every moment
FEW_BYTES = 8 * HIT_BYTES  # up to so many hits a walk is cheaper than a search

RuleKey = Callable[[Rule], bytes]


class Reached(NamedTuple):
    """One stage reached: at which moment (8 bytes, see `evidence.moment`) and by which hits."""

    at: bytes
    met_by: tuple[bytes, ...]

    @property
    def at_ms(self) -> int:
        return moment_ms(self.at)


new_reached = tuple.__new__  # makes a Reached in half the time that Reached() takes
Progress = tuple[Reached, ...]
Met = Callable[[Hits, bytes, tuple[bytes, ...]], "Reached | None"]  # (hits, not before, activities spent) -> moment


def _rule(key: bytes) -> Met:
    """A rule is met by its earliest allowed hit."""

    def met(hits: Hits, after: bytes, spent: tuple[bytes, ...]) -> Reached | None:
        blob = hits.get(key)
        if blob is None:
            return None
        i = 0
        if after:
            if len(blob) > FEW_BYTES:
                i = first_at_or_after(blob, after)
            else:
                while blob[i : i + HIT_BYTES] < after:
                    i += HIT_BYTES
                    if i >= len(blob):
                        return None
        while i < len(blob):
            hit = blob[i : i + HIT_BYTES]
            if hit not in spent:
                return new_reached(Reached, (hit[:8], (hit,)))
            i += HIT_BYTES
        return None

    return met


def _any(members: list[Met]) -> Met:
    """Met at the earliest of its members; equal ones: the first listed."""

    def met(hits: Hits, after: bytes, spent: tuple[bytes, ...]) -> Reached | None:
        best: Reached | None = None
        for member in members:
            found = member(hits, after, spent)
            if found is not None and (best is None or found.at < best.at):
                best = found
        return best

    return met


def _all(members: list[Met]) -> Met:
    """Met at the latest of its members, by the activities of all."""

    def met(hits: Hits, after: bytes, spent: tuple[bytes, ...]) -> Reached | None:
        at: bytes = BEGINNING
        met_by: tuple[bytes, ...] = ()
        for member in members:
            found = member(hits, after, spent)
            if found is None:
                return None
            at = max(at, found.at)
            met_by += found.met_by
        return Reached(at, met_by)

    return met


def compile_condition(condition: Condition | Rule, key: RuleKey) -> Met:
    """A function that says when *condition* is first met (design, section 3, reaching stages)."""
    if not isinstance(condition, Condition):
        return _rule(key(condition))
    members = [compile_condition(member, key) for member in condition.members]
    if len(members) == 1:
        return members[0]
    return _any(members) if condition.op == "any" else _all(members)


def rules_of(what: Journey | Condition | Rule) -> list[Rule]:
    """The rules of a journey or condition, in the order listed."""
    if isinstance(what, Journey):
        return [rule for stage in what.stages for rule in rules_of(stage.condition)]
    if isinstance(what, Condition):
        return [rule for member in what.members for rule in rules_of(member)]
    return [what]


class Projection:
    """A journey made ready to be projected many times: `project(hits)` is the pure function of the design."""

    __slots__ = ("_asking", "_stages", "journey", "rules", "stage_rules")

    def __init__(self, journey: Journey, keys: Mapping[bytes, bytes] | None = None) -> None:
        """*keys*: rule key -> key under which its hits are, where that is another."""

        def key(rule: Rule) -> bytes:
            own = rule_key(rule)
            return own if keys is None else keys.get(own, own)

        self.journey = journey
        self.stage_rules: list[dict[bytes, Rule]] = [
            {key(rule): rule for rule in rules_of(stage.condition)} for stage in journey.stages
        ]
        self.rules: Mapping[bytes, Rule] = {k: rule for stage in self.stage_rules for k, rule in stage.items()}
        self._stages = [compile_condition(stage.condition, key) for stage in journey.stages]
        self._asking = {
            rule: tuple(k for k, of_stage in enumerate(self.stage_rules) if rule in of_stage) for rule in self.rules
        }  # rule -> the stages that ask for it, from 0, in order

    def project(self, hits: Hits) -> Progress:
        """Reach moments of the stages that *hits* allow, in order; shorter than the journey when the contact is on the way."""
        reached: list[Reached] = []
        after: bytes = BEGINNING
        spent: tuple[bytes, ...] = ()
        for met in self._stages:
            found = met(hits, after, spent)
            if found is None:
                break
            reached.append(found)
            after = found.at
            spent += found.met_by
        return tuple(reached)

    def unmoved(self, progress: Progress, rule: bytes, hit: bytes) -> bool:
        """True when one more *hit* of *rule* leaves *progress*, that of the hits so far, as it is. False says nothing.

        A stage that asks for the rule looks at hits from the moment of the stage before on, and at none after the moment at which it was reached;
        stages beyond the next one look at nothing yet. Most hits are of no consequence, so that this saves a projection.
        """
        at, reached = hit[:8], len(progress)
        for k in self._asking.get(rule, ()):
            if k > reached:
                break
            if k and at < progress[k - 1].at:
                continue
            if k < reached and at > progress[k].at:
                continue
            return False
        return True

    def missing(self, hits: Hits) -> list[Rule]:
        """The rules of the next stage that the contact has not met since its last stage; empty when the journey is complete."""
        progress = self.project(hits)
        if len(progress) == len(self._stages):
            return []
        after = progress[-1].at if progress else BEGINNING
        spent = tuple(hit for reached in progress for hit in reached.met_by)
        return [rule for key, rule in self.stage_rules[len(progress)].items() if _rule(key)(hits, after, spent) is None]


def project(journey: Journey, hits: Hits) -> Progress:
    """Reach moments of the stages of *journey* that *hits* allow (design, section 3)."""
    return Projection(journey).project(hits)

"""Matching: which rules an activity meets. Pure; answers as testing rule by rule would, but at a cost that does not grow with their number.

Rules are sorted by activity type. Of each rule one test, the *pivot*, decides whether the rule is looked at at all: a positive one whose operand few
rules share. The pivots on one field form an index: texts to equal stand in a dict, texts to contain, to start or to end with in one Aho-Corasick
automaton, patterns in RE2 sets. What a value finds is remembered, since values repeat. Only of rules found are the other tests looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import ahocorasick
import msgspec
import re2

from schemas.codec import WireActivity, activity_at_ms
from schemas.rules import FieldTest, Rule
from schemas.text import OPERATORS, RE2_OPTIONS, folded, pattern

from .sieve import Sieve

# Lone surrogates mark where a text starts and ends: neither a text decoded from UTF-8 nor an operand holds one.
START, END = "\ud800", "\ud801"

MEMO_ITEMS = 100_000  # values remembered and rules found for them, over all indexes of a matcher
KNOWN_ITEMS = 20_000  # the same of whole activities, by what they say; these are longer
MEMO_CHARS = 512  # longer values are looked up each time
TYPES_KEPT = 10_000  # spellings of activity types remembered
FEW = 8  # so many rules may share a pivot before another test makes a better one
COST = {
    "equals": 0,
    "one_of": 0,
    "starts_with": 1,
    "ends_with": 1,
    "contains": 1,
    "matches": 2,
    "not_equals": 3,
    "not_contains": 4,
}

Keys = tuple[bytes, ...]
Check = Callable[[WireActivity], bool]


class Candidate(NamedTuple):
    """A rule that is met when the activity passes all `checks`."""

    key: bytes
    checks: tuple[Check, ...]


class Found(NamedTuple):
    """What a value finds: keys of rules that are met, and rules that need another look."""

    met: Keys = ()
    candidates: tuple[Candidate, ...] = ()


NOTHING = Found()


def together(found: Iterable[Found]) -> Found:
    """All that *found* say, in one; no rule twice."""
    parts = [part for part in found if part is not NOTHING]
    if len(parts) <= 1:
        return parts[0] if parts else NOTHING
    met = dict.fromkeys(key for part in parts for key in part.met)
    candidates = {c.key: c for part in parts for c in part.candidates}
    return Found(tuple(met), tuple(candidates.values()))


class Memo:
    """Bounds what all indexes of a matcher remember together: past `MEMO_ITEMS` everything is forgotten, and learned again."""

    def __init__(self) -> None:
        self.items = 0
        self.dicts: list[dict[str | None, Found]] = []

    def new(self) -> dict[str | None, Found]:
        self.dicts.append({})
        return self.dicts[-1]

    def keep(self, memo: dict[str | None, Found], value: str | None, found: Found) -> None:
        items = 1 + len(found.met) + len(found.candidates)
        if (value is not None and len(value) > MEMO_CHARS) or items > MEMO_ITEMS:
            return
        self.items += items
        if self.items > MEMO_ITEMS:
            for each in self.dicts:
                each.clear()
            self.items = items
        memo[value] = found


class FieldIndex:
    """The pivots on one field: `find(value)` says which of them a value passes (None: the field is missing)."""

    def __init__(self, field: str, pivots: Iterable[tuple[FieldTest, Found]], memo: Memo) -> None:
        self.get: Callable[[WireActivity], str | None] = attrgetter(field)
        self.memo = memo.new()
        self._keep = memo.keep
        texts: dict[str, dict[str, list[Found]]] = {operator: defaultdict(list) for operator in OPERATORS}
        for test, found in pivots:
            if test.operator == "one_of":
                for operand in set(folded(test.operand)):
                    texts["equals"][operand].append(found)
            else:
                operand = str(test.operand)
                texts[test.operator][operand if test.operator == "matches" else operand.casefold()].append(found)
        self._equals = {text: together(found) for text, found in texts["equals"].items()}
        self._not_equals = {text: together(found) for text, found in texts["not_equals"].items()}
        self._patterns = Patterns([(source, together(found)) for source, found in texts["matches"].items()])
        self._inside: list[Found] = []  # by number of the text in the automaton
        self._not_inside: dict[int, Found] = {}
        self._automaton = self._automaton_of(texts)
        self.memo_missing()

    def _automaton_of(self, texts: dict[str, dict[str, list[Found]]]) -> Any:
        words: dict[str, list[Found]] = defaultdict(list)
        for text, found in texts["contains"].items():
            words[text] += found
        for text, found in texts["starts_with"].items():
            words[START + text] += found
        for text, found in texts["ends_with"].items():
            words[text + END] += found
        absent = texts["not_contains"]
        if not words and not absent:
            return None
        automaton = ahocorasick.Automaton()
        for number, word in enumerate(dict.fromkeys([*words, *absent])):
            automaton.add_word(word, number)
            self._inside.append(together(words.get(word, ())))
            if word in absent:
                self._not_inside[number] = together(absent[word])
        automaton.make_automaton()
        return automaton

    def memo_missing(self) -> None:
        """A missing field passes the negative pivots."""
        self._missing = together([*self._not_equals.values(), *self._not_inside.values()])

    def find(self, value: str | None) -> Found:
        """What *value* finds; remembered."""
        found = self._missing if value is None else self._look_up(value)
        self._keep(self.memo, value, found)
        return found

    def _look_up(self, value: str) -> Found:
        text = value.casefold()
        found = [self._equals.get(text, NOTHING)]
        if self._not_equals:
            found += [each for operand, each in self._not_equals.items() if operand != text]
        if self._automaton is not None:
            numbers = {number for _, number in self._automaton.iter(START + text + END)}
            found += [self._inside[number] for number in sorted(numbers)]
            found += [each for number, each in self._not_inside.items() if number not in numbers]
        found += self._patterns.find(value)
        return together(found)


class Patterns:
    """RE2 patterns, searched for together.

    A set of patterns has bounded memory: one that does not compile is halved, and one that gives up while searching, which it does not say,
    is told by its first pattern, which is found in every text; its patterns are then searched for one by one.
    """

    def __init__(self, patterns: list[tuple[str, Found]]) -> None:
        self._found = patterns
        self._halves: tuple[Patterns, ...] = ()
        self._set: Any = None
        if len(patterns) <= 1:
            return
        try:
            self._set = re2.Set.SearchSet(RE2_OPTIONS)
            for source in ("", *(source for source, _ in patterns)):
                self._set.Add(source)
            self._set.Compile()
        except re2.error:
            self._set = None
            middle = len(patterns) // 2
            self._halves = (Patterns(patterns[:middle]), Patterns(patterns[middle:]))

    def find(self, value: str) -> list[Found]:
        """Of the patterns found in *value* what they stand for."""
        if self._halves:
            return [found for half in self._halves for found in half.find(value)]
        numbers = self._set.Match(value) if self._set is not None else None
        if numbers:
            return [self._found[number - 1][1] for number in sorted(numbers) if number]
        return [found for source, found in self._found if pattern(source).search(value) is not None]


class Matcher:
    """Made for some rules, by the key under which hits of each are kept, says which of them an activity meets.

    `faults`: how often the own code of a rule type (`Rule.accepts`) failed, by rule name; an activity on which it fails does not meet the rule.
    `sieve`: tells records that could meet one of the rules from those that cannot, before they are decoded.
    `fields`: beside its type, all that the rules look at of an activity; None when a rule has code of its own, which may look at anything.
    `known`: what activities meet, by all that they say in their type and `fields`, as far as it is remembered (see `remember`).
    """

    def __init__(self, rules: Mapping[bytes, Rule]) -> None:
        self.faults: Counter[str] = Counter()
        self.sieve = Sieve(rules.values())
        self.fields = _fields(rules.values())
        self.known: dict[bytes, Keys] = {}
        self._remembered = 0
        self._memo = Memo()
        by_type: dict[str, dict[bytes, Rule]] = defaultdict(dict)
        every: dict[bytes, Rule] = {}
        for key, rule in rules.items():
            types = rule.activity_types()
            for bucket in [every] if types is None else [by_type[t] for t in types]:
                bucket[key] = rule
        self._other = self._compile(every)
        self._lower = {type_: self._compile({**of_type, **every}) for type_, of_type in by_type.items()}
        self._types: dict[str, Callable[[WireActivity], Keys]] = {}  # as activities spell them

    def match(self, activity: WireActivity) -> Keys:
        """The keys of the rules that *activity* meets, each once."""
        met = self._types.get(activity.type)
        return met(activity) if met is not None else self._spelled(activity.type)(activity)

    def remember(self, signature: bytes, keys: Keys) -> None:
        """That activities meet *keys*, the rules that one met, when they say the same in their type and `fields` (see `schemas.screen.read`)."""
        if len(signature) > MEMO_CHARS:
            return
        self._remembered += 1 + len(keys)
        if self._remembered > KNOWN_ITEMS:
            self.known.clear()
            self._remembered = 1 + len(keys)
        self.known[signature] = keys

    def _spelled(self, type_: str) -> Callable[[WireActivity], Keys]:
        if len(self._types) >= TYPES_KEPT:
            self._types.clear()
        met = self._types[type_] = self._lower.get(type_.lower(), self._other)
        return met

    def _compile(self, rules: dict[bytes, Rule]) -> Callable[[WireActivity], Keys]:
        """A function that says which of *rules* an activity of their type meets."""
        tests = {key: rule.possible() for key, rule in rules.items()}
        shared = Counter(operand for of_rule in tests.values() for test in of_rule or () for operand in _operands(test))
        pivots: dict[str, list[tuple[FieldTest, Found]]] = defaultdict(list)
        always: list[Found] = []
        for key, rule in rules.items():
            rest = tests[key]
            if rest is None:
                continue
            pivot = min(rest, key=lambda test: _pivot_rank(test, shared), default=None)
            checks = [_check(test) for test in rest if test is not pivot]
            if type(rule).accepts is not Rule.accepts:
                checks.append(self._own_code(rule))
            found = Found((), (Candidate(key, tuple(checks)),)) if checks else Found((key,), ())
            if pivot is None:
                always.append(found)
            else:
                pivots[pivot.field].append((pivot, found))
        indexes = [FieldIndex(field, of_field, self._memo) for field, of_field in pivots.items()]
        return _compiled(together(always), indexes)

    def _own_code(self, rule: Rule) -> Check:
        def accepts(activity: WireActivity) -> bool:
            try:
                return bool(rule.accepts(msgspec.structs.replace(activity, at=activity_at_ms(activity))))  # type: ignore[type-var]
            except Exception:  # code of other people: it must not stop a worker; it is counted and shown
                self.faults[rule.name] += 1
                return False

        return accepts


def _fields(rules: Iterable[Rule]) -> frozenset[str] | None:
    found: set[str] = set()
    for rule in rules:
        if type(rule).accepts is not Rule.accepts:
            return None
        found.update(test.field for test in rule.possible() or ())
    return frozenset(found)


def _compiled(always: Found, indexes: list[FieldIndex]) -> Callable[[WireActivity], Keys]:
    if not indexes and always is NOTHING:
        return lambda activity: ()
    if len(indexes) == 1 and always is NOTHING:
        (index,) = indexes
        get, memo, find = index.get, index.memo, index.find

        def one(activity: WireActivity) -> Keys:
            value = get(activity)
            found = memo.get(value) or find(value)
            return _settled(found, activity) if found.candidates else found.met

        return one

    parts = [(index.get, index.memo, index.find) for index in indexes]

    def many(activity: WireActivity) -> Keys:
        met = _settled(always, activity)
        for get, memo, find in parts:
            value = get(activity)
            found = memo.get(value) or find(value)
            if found is not NOTHING:
                met += _settled(found, activity)
        return met

    return many


def _settled(found: Found, activity: WireActivity) -> Keys:
    """The keys of *found* that *activity* meets."""
    met, candidates = found
    for key, checks in candidates:
        for check in checks:
            if not check(activity):
                break
        else:
            met += (key,)
    return met


def _operands(test: FieldTest) -> list[tuple[str, str, str]]:
    operands = test.operand if isinstance(test.operand, tuple) else (test.operand,)
    operator = "equals" if test.operator == "one_of" else test.operator
    return [
        (test.field, operator, operand) for operand in {o if operator == "matches" else o.casefold() for o in operands}
    ]


def _pivot_rank(test: FieldTest, shared: Counter[tuple[str, str, str]]) -> tuple[bool, int, int, int]:
    share = max(shared[operand] for operand in _operands(test))
    return (OPERATORS[test.operator].negative, share // FEW, COST[test.operator], share)


def _check(test: FieldTest) -> Check:
    """Whether an activity passes *test*."""
    get: Callable[[WireActivity], str | None] = attrgetter(test.field)
    operator = OPERATORS[test.operator]
    negative, passes = operator.negative, operator.test
    if test.operator == "matches":

        def check(activity: WireActivity) -> bool:
            value = get(activity)
            return value is not None and passes(value, test.operand)
    else:
        operand = folded(test.operand)

        def check(activity: WireActivity) -> bool:
            value = get(activity)
            return negative if value is None else passes(value.casefold(), operand)

    return check

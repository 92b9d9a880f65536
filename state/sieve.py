"""Sieve: which records could meet a rule at all, told from the bytes of many at once, before any is decoded. Pure; never says no to one that could.

An activity meets a rule only if its type is one of the rule's and its fields pass the rule's tests. So of each rule one *text* must stand in the
record: an operand of a test that a value has to hold, or the type. It stands there as it is, small or capital letters apart, unless the record
holds a backslash (JSON writes any letter as an escape) or bytes that are not ASCII (other letters fold to ASCII ones): such records always pass.

The texts are looked for together, as Wu and Manber do ("A fast algorithm for multi-pattern searching", 1994): two bytes at a time say how far
the next look may be, which is the shortest text's length at most. So the cost is far below a look at every byte.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from schemas.compiled import Array, check_inside, compiled
from schemas.rules import FieldTest, Rule
from schemas.text import OPERATORS

LOWER = np.array([byte + 32 if 65 <= byte <= 90 else byte for byte in range(256)], np.uint8)
BACKSLASH = 92
TELLING = 4  # a text of fewer bytes stands in many records
MOST_TEXTS = 50_000  # more are not worth looking for

_WHOLE = {"equals": '"{}"', "one_of": '"{}"', "contains": "{}", "starts_with": '"{}', "ends_with": '{}"'}
_BARE = {*map(chr, range(32, 127))} - {'"', "\\"}  # characters that JSON can write as they are


class Sieve:
    """Made for some rules. `texts`: one of them stands in every record that could meet a rule; None when nothing can be told, and all pass."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.texts = texts_of(rules)
        if self.texts is not None:
            self._tables = _tables(self.texts)

    def passing(self, data: bytes, starts: Array, sizes: Array) -> Array:
        """Numbers, in order, of the records of *data* that could meet a rule.

        *starts*, *sizes*: int64 of one length, bytes of a record's value in *data*; a size of -1 is a record without value, which never passes.
        Raises IndexError for a value that is not inside.
        """
        check_inside(data, starts, sizes)
        if self.texts is None:
            return np.flatnonzero(sizes >= 0)
        passed = np.empty(len(starts), np.int64)
        starts, sizes = np.ascontiguousarray(starts), np.ascontiguousarray(sizes)  # other layouts would be compiled for anew
        count = _pass(np.frombuffer(data, np.uint8), starts, sizes, LOWER, *self._tables, passed)
        return passed[:count]


def texts_of(rules: Iterable[Rule]) -> frozenset[bytes] | None:
    """The texts to look for, in small letters; None when a rule has none, or there are too many."""
    found: set[bytes] = set()
    for rule in rules:
        tests = rule.possible()
        if tests is None:
            continue  # no activity meets it
        ways = [_texts(test) for test in tests if test.operator in _WHOLE]
        way = max(ways, key=_shortest, default=[""])
        types = rule.activity_types()
        if _shortest(way) < TELLING and types is not None:  # types are few, and many activities have them
            way = [f'"{type_}"' for type_ in types if _BARE.issuperset(type_)]
        if _shortest(way) < 2:
            return None
        found.update(text.encode() for text in way)
    return frozenset(found) if len(found) <= MOST_TEXTS else None


def _shortest(way: list[str]) -> int:
    return min(map(len, way), default=1 << 20)  # of none at all: nothing plain passes


def _texts(test: FieldTest) -> list[str]:
    """Of which one stands in every plain record whose value passes *test*."""
    operands = test.operand if isinstance(test.operand, tuple) else (test.operand,)
    folded = {operand.casefold() for operand in operands}
    assert not OPERATORS[test.operator].negative
    return [_WHOLE[test.operator].format(operand) for operand in folded if _BARE.issuperset(operand)]


def _tables(texts: Iterable[bytes]) -> tuple[int, Array, Array, Array, Array]:
    """(length of the shortest, shift by pair of bytes, by last pair of their beginning which texts (from, to before), all texts in the order of that
    pair and then their own, where each begins).

    A text that begins with another is left out: where it stands, the other one stands. So at most one can stand at a place.
    """
    ordered: list[bytes] = []
    for text in sorted(texts):
        if not ordered or not text.startswith(ordered[-1]):
            ordered.append(text)
    shortest = min(map(len, ordered), default=2)
    ordered.sort(key=lambda text: (text[shortest - 2 : shortest], text))
    shift, among = np.full(1 << 16, shortest - 1, np.uint16), np.zeros((1 << 16, 2), np.int32)
    for number, text in enumerate(ordered):
        for at in range(1, shortest):
            for one in {text[at - 1], text[at - 1 : at].upper()[0]}:
                for other in {text[at], text[at : at + 1].upper()[0]}:
                    pair = one << 8 | other
                    shift[pair] = min(int(shift[pair]), shortest - 1 - at)
        pair = text[shortest - 2] << 8 | text[shortest - 1]
        if among[pair, 1] == 0:
            among[pair, 0] = number
        among[pair, 1] = number + 1
    begins = np.cumsum([0, *map(len, ordered)], dtype=np.int64)
    return shortest, shift, among, np.frombuffer(b"".join(ordered), np.uint8), begins


@compiled
def _same(data: Array, at: int, end: int, lower: Array, texts: Array, base: int, size: int, same: int) -> int:
    """How many of the *size* bytes of a text stand at *at*, where *same* are known to do."""
    while same < size and at + same < end and lower[data[at + same]] == texts[base + same]:
        same += 1
    return same


@compiled
def _stands(data: Array, at: int, end: int, lower: Array, texts: Array, begins: Array, low: int, high: int) -> bool:
    """Whether one of the texts from *low* to before *high*, which are in order and none the beginning of another, stands at *at*."""
    if low == high:
        return False
    # the first and the last come first: as a rule, what stands there is before or behind all of them
    base, size = begins[low], begins[low + 1] - begins[low]
    same_low = _same(data, at, end, lower, texts, base, size, 0)
    if same_low == size:
        return True
    if at + same_low == end or lower[data[at + same_low]] < texts[base + same_low]:
        return False
    high -= 1
    base, size = begins[high], begins[high + 1] - begins[high]
    same_high = _same(data, at, end, lower, texts, base, size, 0)
    if same_high == size:
        return True
    if at + same_high < end and lower[data[at + same_high]] > texts[base + same_high]:
        return False
    low += 1
    while low < high:  # all between have as many bytes in common with what stands there as the text below or the one above, whichever has fewer
        middle = (low + high) // 2
        base, size = begins[middle], begins[middle + 1] - begins[middle]
        same = _same(data, at, end, lower, texts, base, size, min(same_low, same_high))
        if same == size:
            return True
        if at + same == end or lower[data[at + same]] < texts[base + same]:
            high, same_high = middle, same
        else:
            low, same_low = middle + 1, same
    return False


@compiled
def _pass(
    data: Array, starts: Array, sizes: Array, lower: Array, shortest: int, shift: Array, among: Array, texts: Array, begins: Array, passed: Array
) -> int:
    """Writes the numbers of those that pass into *passed*; returns how many. Values must lie inside of *data*."""
    count = 0
    for number in range(starts.shape[0]):
        if sizes[number] < 0:
            continue
        begin = starts[number]
        end = begin + sizes[number]
        every = np.uint8(0)
        escaped = np.uint8(0)
        for at in range(begin, end):
            every |= data[at]
            escaped |= np.uint8(data[at] == BACKSLASH)
        found = bool(every > 127 or escaped > 0)
        at = begin + shortest - 1
        while at < end and not found:
            ahead = shift[np.int64(data[at - 1]) << 8 | np.int64(data[at])]
            if ahead > 0:
                at += ahead
                continue
            pair = np.int64(lower[data[at - 1]]) << 8 | np.int64(lower[data[at]])
            found = _stands(data, at - shortest + 1, end, lower, texts, begins, among[pair, 0], among[pair, 1])
            at += 1
        if found:
            passed[count] = number
            count += 1
    return count


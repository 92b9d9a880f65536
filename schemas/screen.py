"""Screen: which records are certainly sound activities, and what these say, from the bytes of many at once. Never of one that the codec refuses.

It knows the plain way to write an activity: one object of texts, whole numbers, `true`, `false` and `null`, in ASCII, without escapes, each field
once, times in whole milliseconds or as RFC 3339 to the microsecond. Of all else it says nothing, and the codec decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from msgspec import inspect

from .activity import FIELDS, Activity
from .codec import WireActivity
from .compiled import Array, check_inside, compiled
from .times import EARLIEST_MS, LAST_MS
from .wire import MAX_BYTES, NOT_BLANK

UNREAD, TEXT, MOMENT, OTHER, ID = range(5)
"""Kinds of fields: nobody reads it; a text; the time; one that only the codec knows; a text that is not blank."""
QUOTE, COMMA, MINUS, PLUS, DOT, ZERO, COLON, OPEN, CLOSE = b'",-+.0:{}'
BARE = np.array([32 <= byte < 127 and byte not in b'"\\' for byte in range(256)])
"""Bytes that stand for themselves in a text."""
BLANK = np.array([byte in b" \t\n\r" for byte in range(256)])
MOST_DIGITS = 15  # of a whole number: they fit into 64 bits
MONTHS = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], np.int64)  # days before each month of a common year
DAYS_TO_1970 = 719_162  # from the first day of the year 1


def sound(data: bytes, starts: Array, sizes: Array, latest_ms: int) -> Array:
    """For each record whether its value is certainly an activity that the codec accepts, at *latest_ms* (since 1970) or before.

    *starts*, *sizes*: int64 of one length, bytes of a record's value in *data*; a size of -1 is a record without value. Raises IndexError for a value
    that is not inside.
    """
    check_inside(data, starts, sizes)
    found = np.empty(len(starts), np.bool_)
    latest_ms = min(latest_ms, LAST_MS)
    _screen(np.frombuffer(data, np.uint8), starts, sizes, latest_ms, *_FIELDS, _REQUIRED, BARE, BLANK, MONTHS, found)
    return found


class Said(NamedTuple):
    """What some records say. Of record n: `sound[n]`, bool: it is certainly an activity that the codec accepts, at the latest time or before, and
    has an id. If so: `at[n]` is its time, milliseconds since 1970 + 2^63; in `text` stand, one behind the other, its
    *signature* from `bounds[3n]` on, its contact from `bounds[3n + 1]` on and its id from `bounds[3n + 2]` on. If not, they are empty.

    Two activities with one signature have the same type and the same values in the fields that were asked for, and nobody else has it.
    """

    sound: Array
    at: Array
    text: bytes
    bounds: Array


def read(data: bytes, starts: Array, sizes: Array, latest_ms: int, fields: Array) -> Said:
    """What records say that are certainly sound activities. Arguments and errors as those of `sound`; *fields*: see `numbers_of`."""
    check_inside(data, starts, sizes)
    n = len(starts)
    found, at, bounds = np.zeros(n, np.bool_), np.zeros(n, np.uint64), np.zeros(3 * n + 1, np.int64)
    text = np.empty(int(np.maximum(sizes, 0).sum()) + n * 2 * (len(fields) + 1), np.uint8)
    given = np.array([_NUMBERS["contact_id"], _NUMBERS["id"], _NUMBERS["type"], *fields], np.int64)
    latest_ms = min(latest_ms, LAST_MS)
    _read(np.frombuffer(data, np.uint8), starts, sizes, latest_ms, *_FIELDS, _REQUIRED, BARE, BLANK, MONTHS, given, found, at, text, bounds)
    return Said(found, at, text[: bounds[-1]].tobytes(), bounds)


def numbers_of(fields: Iterable[str]) -> Array:
    """*fields* of activities that rules can test, as `read` wants them: each once. Raises KeyError for others, for which it has no room."""
    return np.array(sorted({_TESTED[field] for field in fields}), np.int64)


def _fields(struct: Any) -> tuple[tuple[Array, Array, Array], int]:
    """((names one behind the other, where each begins, a row for each field: kind, least and most characters, whether null is allowed), required)."""
    names, rows, required = [], [], 0
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    for number, field in enumerate(info.fields):
        types = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        kinds = {type(type_) for type_ in types}
        kind, least, most = OTHER, 0, MAX_BYTES
        if kinds == {inspect.IntType, inspect.DateTimeType}:
            kind = MOMENT
        for text in types:
            if isinstance(text, inspect.StrType) and kinds <= {inspect.StrType, inspect.NoneType} and text.pattern in (None, NOT_BLANK):
                kind = TEXT if text.pattern is None else ID
                least, most = text.min_length or 0, MAX_BYTES if text.max_length is None else text.max_length
        names.append(field.encode_name.encode())
        rows.append((kind, least, most, int(inspect.NoneType in kinds)))
        required |= int(field.required) << number
    begins = np.cumsum([0, *map(len, names)], dtype=np.int64)
    return (np.frombuffer(b"".join(names), np.uint8), begins, np.array(rows, np.int64)), required


_FIELDS, _REQUIRED = _fields(WireActivity)
_NUMBERS = {name: number for number, name in enumerate(Activity.model_fields)}
_TESTED = {name: _NUMBERS[name] for name in FIELDS}


@compiled
def _blank(data: Array, at: int, end: int, blank: Array) -> int:
    while at < end and blank[data[at]]:
        at += 1
    return at


@compiled
def _text_end(data: Array, at: int, end: int, bare: Array) -> int:
    """Where the quote is that ends a plain text which begins at *at*; -1 when the text is not plain."""
    while at < end and bare[data[at]]:
        at += 1
    return at if at < end and data[at] == QUOTE else -1


@compiled
def _number(data: Array, at: int, digits: int) -> int:
    """The number that *digits* digits say, -1 when they are none."""
    value = np.int64(0)
    for i in range(at, at + digits):
        digit = np.int64(data[i]) - ZERO
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value  # type: ignore[return-value]


@compiled
def _moment_us(data: Array, at: int, end: int, months: Array) -> int:
    """Microseconds since 1970 of an RFC 3339 text in the years 2 to 9998, -1 << 63 when it is none or written otherwise."""
    none = np.int64(-1 << 63)
    if end - at < 20 or data[at + 4] != MINUS or data[at + 7] != MINUS or data[at + 10] != 84 or data[at + 13] != COLON or data[at + 16] != COLON:
        return none  # type: ignore[return-value]
    year, month, day = _number(data, at, 4), _number(data, at + 5, 2), _number(data, at + 8, 2)
    hour, minute, second = _number(data, at + 11, 2), _number(data, at + 14, 2), _number(data, at + 17, 2)
    if year < 2 or year > 9998 or month < 1 or month > 12 or day < 1 or hour < 0 or hour > 23:
        return none  # type: ignore[return-value]
    if minute < 0 or minute > 59 or second < 0 or second > 59:
        return none  # type: ignore[return-value]
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    if day > months[month] - months[month - 1] + (1 if leap and month == 2 else 0):
        return none  # type: ignore[return-value]
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 + months[month - 1] + (1 if leap and month > 2 else 0) + day - 1 - DAYS_TO_1970
    us = ((days * 24 + hour) * 60 + minute) * 60 + second
    us *= 1_000_000
    at += 19
    if data[at] == DOT:
        at += 1
        scale = 100_000
        begin = at
        while at < end and data[at] >= ZERO and data[at] <= ZERO + 9:
            if scale == 0:
                return none  # type: ignore[return-value]
            us += (np.int64(data[at]) - ZERO) * scale
            scale //= 10
            at += 1
        if at == begin:
            return none  # type: ignore[return-value]
    if at + 1 == end and data[at] == 90:  # Z
        return us  # type: ignore[no-any-return]
    if at + 6 != end or (data[at] != PLUS and data[at] != MINUS) or data[at + 3] != COLON:
        return none  # type: ignore[return-value]
    hours, minutes = _number(data, at + 1, 2), _number(data, at + 4, 2)
    if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
        return none  # type: ignore[return-value]
    offset_us = (hours * 60 + minutes) * 60_000_000
    return us - offset_us if data[at] == PLUS else us + offset_us  # type: ignore[no-any-return]


@compiled
def _field(data: Array, begin: int, end: int, names: Array, name_at: Array) -> int:
    """The number of the field whose name is between *begin* and *end*, -1 when there is none."""
    size = end - begin
    for field in range(name_at.shape[0] - 1):
        name = name_at[field]
        if name_at[field + 1] - name != size:
            continue
        same = 0
        while same < size and names[name + same] == data[begin + same]:
            same += 1
        if same == size:
            return field
    return -1


@compiled
def _literal(data: Array, at: int, end: int) -> int:
    """How many bytes `true`, `false` or `null` at *at* has; 0 when none is there."""
    left = end - at
    if left >= 4 and data[at] == 110 and data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108:
        return 4
    if left >= 4 and data[at] == 116 and data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101:
        return 4
    if left >= 5 and data[at] == 102 and data[at + 1] == 97 and data[at + 2] == 108 and data[at + 3] == 115 and data[at + 4] == 101:
        return 5
    return 0


@compiled
def _plain(
    data: Array, at: int, end: int, latest_ms: int, names: Array, name_at: Array, fields: Array, required: int, bare: Array, blank: Array,
    months: Array, spans: Array,
) -> bool:  # fmt: skip
    """Whether a value is sound. *spans*: of each field with a text where it begins and ends (-1, -1: there is none); behind them, the time in ms."""
    spans[:] = -1
    at = _blank(data, at, end, blank)
    if at >= end or data[at] != OPEN:
        return False
    at += 1
    seen = np.int64(0)
    while True:
        at = _blank(data, at, end, blank)
        if at >= end or data[at] != QUOTE:
            return False
        at += 1
        begin = at
        at = _text_end(data, begin, end, bare)
        if at < 0:
            return False
        field = _field(data, begin, at, names, name_at)
        kind, least, most, nullable = UNREAD, 0, MAX_BYTES, 1
        if field >= 0:
            kind, least, most, nullable = fields[field, 0], fields[field, 1], fields[field, 2], fields[field, 3]
            if seen >> field & 1:
                return False
            seen |= np.int64(1) << field
        if kind == OTHER:
            return False
        at = _blank(data, at + 1, end, blank)
        if at >= end or data[at] != COLON:
            return False
        at = _blank(data, at + 1, end, blank)
        if at >= end:
            return False
        if data[at] == QUOTE:
            at += 1
            begin = at
            at = _text_end(data, begin, end, bare)
            if at < 0:
                return False
            if kind == MOMENT:
                us = _moment_us(data, begin, at, months)
                if us < EARLIEST_MS * 1000 or us > latest_ms * 1000:
                    return False
                spans[-1, 0] = us // 1000
            elif at - begin < least or at - begin > most:
                return False
            if kind == ID and _blank(data, begin, at, blank) == at:
                return False
            if kind in (TEXT, ID):
                spans[field, 0], spans[field, 1] = begin, at
            at += 1
        elif data[at] == MINUS or (data[at] >= ZERO and data[at] <= ZERO + 9):
            if kind in (TEXT, ID):
                return False
            negative = data[at] == MINUS
            if negative:
                at += 1
            begin = at
            value = np.int64(0)
            while at < end and data[at] >= ZERO and data[at] <= ZERO + 9 and at - begin < MOST_DIGITS:
                value = value * 10 + np.int64(data[at]) - ZERO
                at += 1
            if at == begin or (data[begin] == ZERO and (negative or at - begin > 1)):
                return False
            if negative:
                value = -value
            if kind == MOMENT:
                if value < EARLIEST_MS or value > latest_ms:
                    return False
                spans[-1, 0] = value
        else:
            size = _literal(data, at, end)
            if size == 0 or kind == MOMENT or (kind in (TEXT, ID) and (data[at] != 110 or nullable == 0)):
                return False
            at += size
        at = _blank(data, at, end, blank)
        if at >= end:
            return False
        if data[at] == COMMA:
            at += 1
            continue
        if data[at] != CLOSE:
            return False
        break
    return bool(_blank(data, at + 1, end, blank) == end and seen & required == required)


@compiled
def _screen(
    data: Array, starts: Array, sizes: Array, latest_ms: int, names: Array, name_at: Array, fields: Array, required: int, bare: Array, blank: Array,
    months: Array, found: Array,
) -> None:  # fmt: skip
    spans = np.empty((fields.shape[0] + 1, 2), np.int64)
    for number in range(starts.shape[0]):
        begin, size = starts[number], sizes[number]
        found[number] = 0 < size <= MAX_BYTES and _plain(
            data, begin, begin + size, latest_ms, names, name_at, fields, required, bare, blank, months, spans
        )


@compiled
def _copy(data: Array, begin: int, end: int, text: Array, to: int) -> int:
    for i in range(begin, end):
        text[to] = data[i]
        to += 1
    return to


@compiled
def _read(
    data: Array, starts: Array, sizes: Array, latest_ms: int, names: Array, name_at: Array, fields: Array, required: int, bare: Array, blank: Array,
    months: Array, given: Array, found: Array, at: Array, text: Array, bounds: Array,
) -> None:  # fmt: skip
    """See `read`. *given*: the fields of contact, id and type, then those for the signature."""
    spans = np.empty((fields.shape[0] + 1, 2), np.int64)
    to = 0
    for number in range(starts.shape[0]):
        begin, size = starts[number], sizes[number]
        if 0 < size <= MAX_BYTES and _plain(data, begin, begin + size, latest_ms, names, name_at, fields, required, bare, blank, months, spans):
            found[number] = spans[given[1], 1] > spans[given[1], 0]
        if found[number]:
            at[number] = np.uint64(spans[-1, 0]) ^ np.uint64(1 << 63)
            for i in range(2, given.shape[0]):  # 0 before a field, 1 before its value: neither stands in a plain text
                text[to] = 0
                to += 1
                if spans[given[i], 0] >= 0:
                    text[to] = 1
                    to = _copy(data, spans[given[i], 0], spans[given[i], 1], text, to + 1)
            bounds[3 * number + 1] = to
            to = _copy(data, spans[given[0], 0], spans[given[0], 1], text, to)
            bounds[3 * number + 2] = to
            to = _copy(data, spans[given[1], 0], spans[given[1], 1], text, to)
        else:
            bounds[3 * number + 1] = bounds[3 * number + 2] = to
        bounds[3 * number + 3] = to

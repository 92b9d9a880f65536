"""Times: between the outside's notations and integer milliseconds since 1970 UTC. Exact arithmetic only; knows no clock.

In come RFC 3339 texts with an offset, or integers (milliseconds); out go RFC 3339 texts in UTC with milliseconds and `Z` (contract, preamble).
One parser, msgspec's, reads all texts, on the wire and elsewhere, so that no two places can disagree about one.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from .errors import Refused, shown

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
FIRST_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
EARLIEST_MS = 946_684_800_000  # 2000-01-01T00:00:00.000Z: no input fact is older
DAY_MS = 86_400_000

_days: dict[int, str] = {}  # day since 1970 -> "2026-01-02T"; formatting the date is the dear part
_DAYS_KEPT = 4096
_TWO = [f"{n:02d}" for n in range(60)]
_THREE = [f"{n:03d}" for n in range(1000)]


def parse_ms(value: object) -> int:
    """Milliseconds since 1970 UTC of an RFC 3339 text with an offset, or of an integer that is them already.

    What is finer than a microsecond is rounded to it, what is finer than a millisecond is then cut off. Raises `Refused` (`bad_time`).
    """
    if isinstance(value, str):
        try:
            return datetime_ms(msgspec.convert(value, datetime))
        except (msgspec.ValidationError, UnicodeEncodeError):
            raise Refused("bad_time", f"{shown(value)} is not a time; {WAY_OUT}") from None
    if isinstance(value, int) and not isinstance(value, bool):
        if FIRST_MS <= value <= LAST_MS:
            return value
        raise _out_of_range(value)
    raise Refused("bad_time", f"{shown(value)} is not a time; {WAY_OUT}")


WAY_OUT = "write RFC 3339 with an offset, such as 2026-01-02T03:04:05.678Z, or whole milliseconds since 1970"


def datetime_ms(at: datetime) -> int:
    """Milliseconds since 1970 UTC, cut off (towards the past). Raises `Refused` without an offset or outside the years 1 to 9999 UTC."""
    if at.tzinfo is None:
        raise Refused("bad_time", f"the time has no offset; {WAY_OUT}")
    at_ms = (at - EPOCH) // MILLISECOND
    if FIRST_MS <= at_ms <= LAST_MS:
        return at_ms
    raise _out_of_range(at_ms)


def refuse_early(at_ms: int) -> int:
    """Return *at_ms*, the time of an input fact. Raise `Refused` (`bad_time`) for one before the year 2000.

    Such a time is nearly always a number of seconds, or a missing one that became 0.
    """
    if at_ms >= EARLIEST_MS:
        return at_ms
    hint = "send the time at which it happened"
    if EARLIEST_MS <= at_ms * 1000 <= LAST_MS:
        hint = f"if these are seconds, send milliseconds: {at_ms * 1000} is {format_ms(at_ms * 1000)}"
    raise Refused("bad_time", f"{format_ms(at_ms)} ({at_ms} ms) is before the year 2000; {hint}")


def _out_of_range(at_ms: int) -> Refused:
    return Refused("bad_time", f"{shown(at_ms)} ms is outside the years 1 to 9999 (UTC); {WAY_OUT}")


def format_ms(at_ms: int) -> str:
    """*at_ms* as RFC 3339: `2026-01-02T03:04:05.678Z`. Raises `Refused` outside the years 1 to 9999."""
    day, rest = divmod(at_ms, DAY_MS)
    date = _days.get(day) or _date(at_ms, day)
    seconds, ms = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    return f"{date}{_TWO[minutes // 60]}:{_TWO[minutes % 60]}:{_TWO[second]}.{_THREE[ms]}Z"


def _date(at_ms: int, day: int) -> str:
    if not FIRST_MS <= at_ms <= LAST_MS:
        raise _out_of_range(at_ms)
    if len(_days) >= _DAYS_KEPT:
        _days.clear()
    date = _days[day] = (EPOCH + timedelta(days=day)).strftime("%Y-%m-%dT").rjust(11, "0")
    return date

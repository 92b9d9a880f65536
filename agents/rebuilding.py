"""Rebuilding: the hits of the log, in bulk, as a recalculation reads it again. Sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schemas import codec
from schemas.errors import Refused
from schemas.hashing import h8
from schemas.recalculation import Recalculation
from schemas.rules import Rule
from state.evidence import BIAS
from state.matching import Matcher
from state.recalculation import evidence_key
from streams.blocks import TIMESTAMP, VALUE, VALUE_SIZE, Block

HITS_AT_ONCE = 50_000  # about 10 MiB: activities may meet thousands of rules each
Hits = dict[str, list[tuple[bytes, bytes]]]
"""Contact -> [(rule key, hit)]."""


def finder(one: Recalculation, rules: Mapping[bytes, Rule]) -> Matcher:
    """What finds hits of *rules* (by rule key) under the epoch of *one*."""
    return Matcher({evidence_key(key, one.id): rule for key, rule in rules.items()})


def hits(block: Block, matcher: Matcher, ahead_ms: int, into: Hits) -> Iterator[int]:
    """Adds to *into* the hits of a block of the log, as `intake.activities` finds them; yields how many they are, each time there are
    HITS_AT_ONCE, and at the end.

    What intake refuses is passed over: it was said when it arrived. What was ahead of the clock then is judged by the record's own time.
    """
    decode, match, plain_bytes = codec.activity_decoder, matcher.match, codec.PLAIN_BYTES
    data, spans = block.data, block.spans
    passing = matcher.sieve.passing(data, spans[:, VALUE], spans[:, VALUE_SIZE])
    found = 0
    for sent_ms, begin, size in spans[passing][:, [TIMESTAMP, VALUE, VALUE_SIZE]].tolist():
        raw = data[begin : begin + size]
        try:
            activity = decode(raw) if size <= plain_bytes and raw.isascii() else codec.decode_activity(raw)
            rules = match(activity)
            if not rules:
                continue
            at_ms = codec.activity_at_ms(activity)
            if 0 < sent_ms < at_ms - ahead_ms:
                continue
        except (Refused, *codec.DECODE_ERRORS):
            continue
        hit = (at_ms + BIAS).to_bytes(8, "big") + h8(activity.id or codec.activity_id(activity, raw))
        mine = into.get(activity.contact_id)
        if mine is None:
            mine = into[activity.contact_id] = []
        for rule in rules:
            mine.append((rule, hit))
        found += len(rules)
        if found >= HITS_AT_ONCE:
            yield found
            found = 0
    yield found

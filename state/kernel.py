"""Kernel: the common case of a batch and of a scan, compiled: hits joined to packed evidence, and how views show it. Pure; called by `bulk`.

It reads and writes evidence records as `records` lays them out, and says for each view what `Projection.project` says. What it does not know
(aliases, identities that it was not told of, more hits than the limits of a rule and of a record) it leaves to the way written in Python, which it
must always agree with.

All in one module: what was compiled is kept until the module that it stands in changes, whatever it calls in others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.compiled import Array, compiled

from .evidence import HIT_BYTES, LIMIT_HITS, MAX_RECORD_BYTES, RECORD_HEAD_BYTES, RECORD_RULE_BYTES
from .records import COUNT, HAS_IDENTITY, VERSION

SAME, JOINED, LEFT, BEYOND = 0, 1, 2, 3
"""Of a contact: nothing was new; joined; left to others; behind the last for which there was room, and not looked at."""
RULE, ANY, ALL = 0, 1, 2


@compiled
def _u64(data: Array, at: int) -> Any:
    value = np.uint64(0)
    for i in range(8):
        value = value << np.uint64(8) | np.uint64(data[at + i])
    return value


@compiled
def _put(data: Array, at: int, value: Any) -> None:
    for i in range(8):
        data[at + 7 - i] = np.uint8(value & np.uint64(255))
        value >>= np.uint64(8)


@compiled
def _search(data: Array, begin: int, count: int, at: Any, h: Any) -> int:
    """How many of *count* hits at *begin* come before the hit (at, h)."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        here = begin + middle * HIT_BYTES
        theirs = _u64(data, here)
        if theirs < at or (theirs == at and _u64(data, here + 8) < h):
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _slots(data: Array, at: int, slots: Array, places: Array) -> int:
    """Writes the rules of the record at *at* into *slots*, and (where its hits begin, how many) into *places*; how many rules, -1 too many."""
    n = np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])
    if n > slots.shape[0]:
        return -1
    begin = at + 4 + n * 10
    for i in range(n):
        here = at + 4 + i * 10
        slots[i] = _u64(data, here)
        count = np.int64(data[here + 8]) << 8 | np.int64(data[here + 9])
        places[i, 0] = begin
        places[i, 1] = count
        begin += (count & COUNT) * HIT_BYTES
    return n  # type: ignore[return-value]


@compiled
def _project(
    data: Array, slots: Array, places: Array, n: int, ops: Array, rules: Array, op_at: Array, first: int, last: int,
    spent: Array, reached: Array, stack: Array, range_: Array, scratch: Array,
) -> int:
    """`Projection.project` of the stages from *first* to before *last*: how many are reached, (moment, how many hits met it) of each in *reached*,
    those hits one after the other in *spent*."""  # fmt: skip
    n_spent = 0
    after = np.uint64(0)
    for stage in range(first, last):
        depth = 0
        top = 0
        for op in range(op_at[stage], op_at[stage + 1]):
            kind = ops[op, 0]
            if kind == 0:
                rule = rules[ops[op, 1]]
                range_[depth, 0] = top
                range_[depth, 1] = -1
                for i in range(n):
                    if slots[i] == rule:
                        begin, count = places[i, 0], places[i, 1]
                        hit = _search(data, begin, count, after, np.uint64(0)) if stage > first else 0
                        while hit < count:
                            at = _u64(data, begin + hit * HIT_BYTES)
                            h = _u64(data, begin + hit * HIT_BYTES + 8)
                            used = False
                            for k in range(n_spent):
                                if spent[k, 0] == at and spent[k, 1] == h:
                                    used = True
                                    break
                            if not used:
                                scratch[top, 0] = at
                                scratch[top, 1] = h
                                top += 1
                                stack[depth] = at
                                range_[depth, 1] = 1
                                break
                            hit += 1
                        break
                depth += 1
            else:
                members = ops[op, 1]
                base = depth - members
                if kind == 1:
                    best = -1
                    for i in range(base, depth):
                        if range_[i, 1] >= 0 and (best < 0 or stack[i] < stack[best]):
                            best = i
                    if best < 0:
                        range_[base, 1] = -1
                    else:
                        stack[base] = stack[best]
                        range_[base, 0] = range_[best, 0]
                        range_[base, 1] = range_[best, 1]
                else:
                    met = True
                    latest = np.uint64(0)
                    for i in range(base, depth):
                        if range_[i, 1] < 0:
                            met = False
                            break
                        latest = max(latest, stack[i])
                    if met:
                        start = top
                        for i in range(base, depth):
                            for k in range(range_[i, 1]):
                                scratch[top, 0] = scratch[range_[i, 0] + k, 0]
                                scratch[top, 1] = scratch[range_[i, 0] + k, 1]
                                top += 1
                        stack[base] = latest
                        range_[base, 0] = start
                        range_[base, 1] = top - start
                    else:
                        range_[base, 1] = -1
                depth = base + 1
        if range_[0, 1] < 0:
            return stage - first
        after = stack[0]
        reached[stage - first, 0] = after
        reached[stage - first, 1] = np.uint64(range_[0, 1])
        for k in range(range_[0, 1]):
            spent[n_spent, 0] = scratch[range_[0, 0] + k, 0]
            spent[n_spent, 1] = scratch[range_[0, 0] + k, 1]
            n_spent += 1
    return last - first


@compiled
def join(
    data: Array, old_at: Array, may: Array, facts: Array, fact_at: Array, keys: Array, watch_at: Array, watchers: Array, ops: Array, rules: Array,
    op_at: Array, stage_at: Array, leaves: int, most_stages: int, most_facts: int, most_changes: int, new: Array, new_at: Array, states: Array,
    taken: Array, moves: Array, stages: Array, met: Array,
) -> int:
    """See `bulk.Plan.join`. Returns how many rows *moves* has: contact, view, stages before, stages after, 1 where those before are the first of
    those after. *stages* and *met* hold them, those before only where they are others."""  # fmt: skip
    most_slots = 1024 + most_facts
    old_slots, new_slots = np.empty(most_slots, np.uint64), np.empty(most_slots, np.uint64)
    old_places, new_places = np.empty((most_slots, 2), np.int64), np.empty((most_slots, 2), np.int64)
    added = np.empty(most_slots, np.int64)
    accepted = np.empty(most_facts, np.int64)
    slot_of = np.empty(most_facts, np.int64)
    seen = np.full(stage_at.shape[0], -1, np.int64)
    spent_before, spent_after = np.empty((leaves, 2), np.uint64), np.empty((leaves, 2), np.uint64)
    reached_before, reached_after = np.empty((most_stages, 2), np.uint64), np.empty((most_stages, 2), np.uint64)
    stack, range_ = np.empty(leaves + 1, np.uint64), np.empty((leaves + 1, 2), np.int64)
    scratch = np.empty((leaves * (leaves + 1), 2), np.uint64)
    n_moves = n_stages = n_met = n_changes = 0
    at = 0
    for contact in range(states.shape[0]):
        new_at[contact] = at
        old = old_at[contact]
        size = old_at[contact + 1] - old
        n = 0
        if size > 0:
            plain = data[old] == VERSION and (data[old + 1] == 0 or (may[contact] and data[old + 1] == HAS_IDENTITY))
            n = _slots(data, old, old_slots[:1024], old_places) if plain else -1
        for i in range(n):
            if old_places[i, 1] > LIMIT_HITS:
                n = -1  # marked
                break
        if n < 0:
            states[contact] = LEFT
            continue
        # which facts are new
        n_slots = n
        n_new = 0
        for i in range(n):
            new_slots[i] = old_slots[i]
            added[i] = 0
        for fact in range(fact_at[contact], fact_at[contact + 1]):
            rule = facts[fact, 0]
            slot = 0
            while slot < n_slots and new_slots[slot] != rule:
                slot += 1
            known = False
            if slot < n:
                begin, count = old_places[slot, 0], old_places[slot, 1]
                place = _search(data, begin, count, facts[fact, 1], facts[fact, 2])
                here = begin + place * HIT_BYTES
                known = place < count and _u64(data, here) == facts[fact, 1] and _u64(data, here + 8) == facts[fact, 2]
            if not known:
                for i in range(n_new):
                    other = accepted[i]
                    if slot_of[i] == slot and facts[other, 1] == facts[fact, 1] and facts[other, 2] == facts[fact, 2]:
                        known = True
                        break
            if known:
                continue
            if slot == n_slots:
                new_slots[slot] = rule
                added[slot] = 0
                n_slots += 1
            taken[fact] = 1
            accepted[n_new] = fact
            slot_of[n_new] = slot
            added[slot] += 1
            n_new += 1
        if n_new == 0:
            states[contact] = SAME
            continue
        n_hits = 0
        for slot in range(n_slots):
            total = (old_places[slot, 1] if slot < n else 0) + added[slot]
            n_hits += total
            if total > LIMIT_HITS:
                n_new = 0
        if RECORD_HEAD_BYTES + RECORD_RULE_BYTES * n_slots + HIT_BYTES * n_hits > MAX_RECORD_BYTES:
            n_new = 0
        if n_new == 0 or n_slots > 1024:
            states[contact] = LEFT
            continue
        # the new record
        new[at] = VERSION
        new[at + 1] = HAS_IDENTITY if may[contact] else 0
        new[at + 2] = np.uint8(n_slots >> 8)
        new[at + 3] = np.uint8(n_slots & 255)
        to = at + 4 + n_slots * 10
        for slot in range(n_slots):
            here = at + 4 + slot * 10
            _put(new, here, new_slots[slot])
            count = old_places[slot, 1] if slot < n else 0
            begin = old_places[slot, 0] if slot < n else 0
            total = count + added[slot]
            new[here + 8] = np.uint8(total >> 8)
            new[here + 9] = np.uint8(total & 255)
            new_places[slot, 0] = to
            new_places[slot, 1] = total
            if added[slot] == 0:
                new[to : to + count * HIT_BYTES] = data[begin : begin + count * HIT_BYTES]
                to += count * HIT_BYTES
                continue
            copied = 0
            left = added[slot]
            last_at, last_h = np.uint64(0), np.uint64(0)
            began = True
            while left > 0:  # the smallest of the new ones that is not written yet
                best = -1
                for i in range(n_new):
                    if slot_of[i] != slot:
                        continue
                    fact = accepted[i]
                    if not began and (facts[fact, 1] < last_at or (facts[fact, 1] == last_at and facts[fact, 2] <= last_h)):
                        continue
                    if best < 0 or facts[fact, 1] < facts[best, 1] or (facts[fact, 1] == facts[best, 1] and facts[fact, 2] < facts[best, 2]):
                        best = fact
                last_at, last_h, began = facts[best, 1], facts[best, 2], False
                place = _search(data, begin, count, last_at, last_h)
                size = (place - copied) * HIT_BYTES
                new[to : to + size] = data[begin + copied * HIT_BYTES : begin + place * HIT_BYTES]
                to += size
                copied = place
                _put(new, to, last_at)
                _put(new, to + 8, last_h)
                to += HIT_BYTES
                left -= 1
            size = (count - copied) * HIT_BYTES
            new[to : to + size] = data[begin + copied * HIT_BYTES : begin + count * HIT_BYTES]
            to += size
        # whom that moves
        m_moves, m_stages, m_met, m_changes = n_moves, n_stages, n_met, n_changes
        room = True
        for i in range(n_new):
            rule = new_slots[slot_of[i]]
            low, high = 0, keys.shape[0]
            while low < high:
                middle = (low + high) // 2
                if keys[middle] < rule:
                    low = middle + 1
                else:
                    high = middle
            if low == keys.shape[0] or keys[low] != rule:
                continue
            for w in range(watch_at[low], watch_at[low + 1]):
                view = watchers[w]
                if seen[view] == contact:
                    continue
                seen[view] = contact
                first, last = stage_at[view], stage_at[view + 1]
                n_after = _project(
                    new, new_slots, new_places, n_slots, ops, rules, op_at, first, last, spent_after, reached_after, stack, range_, scratch
                )
                n_before = _project(
                    data, old_slots, old_places, n, ops, rules, op_at, first, last, spent_before, reached_before, stack, range_, scratch
                )
                onward = n_before <= n_after
                k_before = k_after = 0
                for k in range(n_before):
                    if onward and (reached_before[k, 0] != reached_after[k, 0] or reached_before[k, 1] != reached_after[k, 1]):
                        onward = False
                    k_before += np.int64(reached_before[k, 1])  # type: ignore[assignment]
                for k in range(n_after):
                    k_after += np.int64(reached_after[k, 1])  # type: ignore[assignment]
                if onward:
                    for k in range(k_before):
                        if spent_before[k, 0] != spent_after[k, 0] or spent_before[k, 1] != spent_after[k, 1]:
                            onward = False
                            break
                if onward and n_before == n_after:
                    continue
                onward = onward and not may[contact]
                m_changes += n_after - n_before if onward else n_after + n_before
                if m_moves >= moves.shape[0] or m_stages + n_before + n_after > stages.shape[0] or m_met + k_before + k_after > met.shape[0]:
                    room = False
                    break
                moves[m_moves, 0] = contact
                moves[m_moves, 1] = view
                moves[m_moves, 2] = n_before
                moves[m_moves, 3] = n_after
                moves[m_moves, 4] = 1 if onward else 0
                m_moves += 1
                if onward:
                    n_before = k_before = 0
                for k in range(n_before):
                    stages[m_stages, 0], stages[m_stages, 1] = reached_before[k, 0], reached_before[k, 1]
                    m_stages += 1
                for k in range(n_after):
                    stages[m_stages, 0], stages[m_stages, 1] = reached_after[k, 0], reached_after[k, 1]
                    m_stages += 1
                for k in range(k_before):
                    met[m_met, 0], met[m_met, 1] = spent_before[k, 0], spent_before[k, 1]
                    m_met += 1
                for k in range(k_after):
                    met[m_met, 0], met[m_met, 1] = spent_after[k, 0], spent_after[k, 1]
                    m_met += 1
            if not room:
                break
        if not room and n_moves == 0:  # it alone has more than there is room for
            states[contact] = LEFT
            continue
        if not room or (m_changes > most_changes and n_moves > 0):
            states[contact:] = BEYOND
            new_at[contact:] = at
            break
        states[contact] = JOINED
        n_moves, n_stages, n_met, n_changes = m_moves, m_stages, m_met, m_changes
        at = to
    new_at[states.shape[0]] = at
    return n_moves


@compiled
def stand(
    data: Array, old_at: Array, of: Array, before_at: Array, before: Array, silent: Array, ops: Array, rules: Array, op_at: Array, stage_at: Array,
    leaves: int, most_stages: int, states: Array, rows: Array, stages: Array,
) -> int:
    """See `bulk.Plan.stand`. Returns how many rows *rows* has: contact, view, 0, stages reached, where they begin in *stages*."""
    slots, places = np.empty(1024, np.uint64), np.empty((1024, 2), np.int64)
    spent, scratch = np.empty((leaves, 2), np.uint64), np.empty((leaves * (leaves + 1), 2), np.uint64)
    reached, theirs = np.empty((most_stages, 2), np.uint64), np.empty((most_stages, 2), np.uint64)
    stack, range_ = np.empty(leaves + 1, np.uint64), np.empty((leaves + 1, 2), np.int64)
    n_rows = n_stages = 0
    for contact in range(states.shape[0]):
        states[contact] = LEFT
        old = old_at[contact]
        if old_at[contact + 1] == old or data[old] != VERSION or data[old + 1] != 0:
            continue
        n = _slots(data, old, slots, places)
        for i in range(n):
            if places[i, 1] > LIMIT_HITS:
                n = -1  # marked
                break
        if n < 0:
            continue
        m_rows, m_stages = n_rows, n_stages
        known = True
        for j in range(of.shape[0]):
            first, last = stage_at[of[j]], stage_at[of[j] + 1]
            n_now = _project(data, slots, places, n, ops, rules, op_at, first, last, spent, reached, stack, range_, scratch)
            known = n_now == 0 or silent[j] == 0
            for b in range(before_at[j], before_at[j + 1]):
                first, last = stage_at[before[b]], stage_at[before[b] + 1]
                n_then = _project(data, slots, places, n, ops, rules, op_at, first, last, spent, theirs, stack, range_, scratch)
                known = known and n_then == n_now
                for k in range(n_now):
                    known = known and theirs[k, 0] == reached[k, 0]
            if not known:
                break
            if n_now == 0:
                continue
            rows[m_rows, 0], rows[m_rows, 1], rows[m_rows, 2], rows[m_rows, 3], rows[m_rows, 4] = contact, of[j], 0, n_now, m_stages
            m_rows += 1
            for k in range(n_now):
                stages[m_stages, 0], stages[m_stages, 1] = reached[k, 0], reached[k, 1]
                m_stages += 1
        if known:
            states[contact] = SAME
            n_rows, n_stages = m_rows, m_stages
    return n_rows

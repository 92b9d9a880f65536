"""`python -m tests.fuzz` fuzzes a million records and two hundred thousand requests over HTTP."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from console.people import ROLES
from streams.brokers import EmbeddedBroker
from tests.support.running import started

from .calls import fuzz_calls, users
from .fuzz import Found, fuzz_records


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    if args.records:
        _tell("records", args.records, fuzz_records(args.records, args.seed, _say), time.monotonic() - began)
    if args.calls:
        with tempfile.TemporaryDirectory(prefix="waypost-fuzz-") as name, EmbeddedBroker(Path(name)) as broker:
            running = started(broker.bootstrap, "fuzz.", Path(name) / "up", **users(Path(name)))
            running.http.headers["Authorization"] = f"Bearer {ROLES[-1]}"
            with running:
                began = time.monotonic()
                found = fuzz_calls(running, args.calls, args.seed, _say)
                _tell("requests", args.calls, found, time.monotonic() - began)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _tell(what: str, count: int, found: Found, seconds: float) -> None:
    print(f"{count:,} {what} in {seconds:.0f} s, none failed; memory at the end for that after a tenth: {found.growth:.2f}")
    print("  " + ", ".join(f"{said} {times:,}" for said, times in found.said.most_common(40)))


if __name__ == "__main__":
    sys.exit(main())

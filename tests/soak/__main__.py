"""`python -m tests.soak` soaks for two hours; `--minutes 3` for a look."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from .soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=100.0, help="facts a second")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="waypost-soak-"))
    try:
        found = soak(directory, args.minutes, args.rate, args.seed, lambda text: print(text, flush=True))
    except BaseException:
        print(f"logs and data are left in {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    print(f"sent: {dict(found.sent)}\nfaults: {dict(found.faults)}")
    print(f"compared with the oracle: {found.compared:,}, no difference; current again after a fault within {found.slowest_seconds:.0f} s")
    step = max(1, len(found.memory_mib) // 12)
    print("memory of the worker left alone, MiB: " + ", ".join(f"{at:.0f} min {mib:.0f}" for at, mib in found.memory_mib[::step]))
    print(f"last quarter for the second: {found.growth():.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

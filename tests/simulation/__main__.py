"""Plays many histories: `python -m tests.simulation --histories 100000`. `--seed N` plays one, with every step told."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from .play import failure, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=2000, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one only and tell every step")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.seed is not None:
        play(args.seed, trace=print)
        print(f"history {args.seed}: everything as the oracle says")
        return 0
    began, done, failed = time.monotonic(), 0, []
    seeds = range(args.first, args.first + args.histories)
    with ProcessPoolExecutor(args.jobs) as pool:
        for seed, error in pool.map(failure, seeds, chunksize=50):
            done += 1
            if error is not None:
                failed.append(seed)
                print(f"\nhistory {seed}: {error}\n  again: python -m tests.simulation --seed {seed}", flush=True)
                if len(failed) >= 10:
                    break
            if done % 100 == 0 or done == args.histories:
                rate = done / (time.monotonic() - began)
                print(f"\r{done:,} of {args.histories:,} histories, {len(failed)} failed, {rate:.0f}/s ", end="", flush=True)
    print(f"\n{done:,} histories, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

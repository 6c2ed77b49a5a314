"""Compare how long OpenMP's idle threads spin, alone and beside a process that occupies a core.

    python benchmarks/waiting.py                    # the bundled space
    python benchmarks/waiting.py --space sonar      # any other that is installed

Each run is a new process, which encodes and decodes three short sentences with two threads and
takes the median time. Counts alternate between rounds; the table has the medians over rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

COUNTS = (300_000, 10_000, 5_000, 1_000, 0)  # OpenMP's default first; 0: sleep at once
SENTENCES = [
    "The cat sleeps in the house.",
    "A dog runs.",
    "The man goes to the garden with a friend.",
]
SPIN = "while True: pass"


def main() -> None:
    """Run the comparison, or with --run one measurement of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(measure(options.space))
        return
    found: dict[tuple[int, bool], list[float]] = {}
    for _ in range(options.rounds):
        for busy in (False, True):
            for count in COUNTS:
                found.setdefault((count, busy), []).append(start(count, busy))
    print("| `GOMP_SPINCOUNT` | alone | beside a process |\n|---|---|---|")
    for count in COUNTS:
        alone, beside = (statistics.median(found[count, busy]) for busy in (False, True))
        print(f"| {count:,} | {alone:.2f} s | {beside:.2f} s |")


def start(count: int, busy: bool) -> float:
    """Return the seconds that a new process takes whose threads spin `count` times."""
    other = subprocess.Popen([sys.executable, "-c", SPIN]) if busy else None
    try:
        env = os.environ | {"GOMP_SPINCOUNT": str(count)}
        run = [sys.executable, *sys.argv, "--run"]
        return float(subprocess.run(run, env=env, check=True, capture_output=True).stdout)
    finally:
        if other:
            other.kill()
            other.wait()


def measure(name: str) -> float:
    """Return the median seconds of encoding and decoding, without those of the first time."""
    import torch

    from lcm_cli.space import load_space

    torch.set_num_threads(2)
    space, seconds = load_space(name, device="cpu"), []
    for _ in range(8):
        begun = time.perf_counter()
        space.decode(space.encode(SENTENCES, "eng_Latn").concepts, ["fra_Latn"])
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()

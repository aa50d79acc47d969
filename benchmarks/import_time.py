"""Claim: to import the transcriber takes little longer than torch, which it cannot do without.

User CPU seconds of a fresh interpreter that does nothing but the import, ours and the peer's in
turn; the ratio is ours over the peer's, so less is better.

    python benchmarks/import_time.py [--quick] [--json FILE]
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from rows import row, save, spread

OURS, PEER = "from speechattn import Transcriber", "import torch"
TARGET = 1.4


def user_seconds(code: str) -> float:
    """Run Python code in an interpreter of its own and return the user CPU time."""
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {OURS: [], PEER: []}
    for turn in range(1 + (5 if options.quick else 15)):
        for code, values in times.items():
            seconds = user_seconds(code)
            if turn:  # the first reads files that the system has not in memory
                values.append(seconds)
    for code, values in times.items():
        print(f"{code}: {spread(values)} s")
    ours, peer = (statistics.median(times[code]) for code in (OURS, PEER))
    ratio = ours / peer
    name = "import of the transcriber, times that of torch (the peer)"
    save([row(name, ours, peer, ratio, f"<= {TARGET}", "s CPU", ratio <= TARGET)], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

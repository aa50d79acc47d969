"""Whether the miniature did what it should; its exit status says so.

Every clip that was damaged on purpose is accounted for; the best system misreads less than a
quarter of the characters; fusion does better; the right-to-left decoder does no harm.
"""

import argparse
import json
import sys
from pathlib import Path

BEST = 25.0  # CER %
HARM = 0.5  # that reading both ways may seem to do: of 500 characters two or three


def unaccounted(corpus: Path, data: Path, track: str) -> list[str]:
    """Damaged clips of the track's corpora that no list names."""
    lists = [
        data / "manifests" / "failures.tsv",
        data / "crops" / "failures.tsv",
        data / "crops" / "notes.tsv",
    ]
    named = "\n".join(path.read_text(encoding="utf-8") for path in lists)
    rows = [row.split("\t") for row in (corpus / "damaged.tsv").read_text("utf-8").splitlines()[1:]]
    return [
        f"{path} ({kind})"
        for path, kind in rows
        if path.startswith(("cncvs/", f"cnvsrc-{track}/")) and Path(path).stem not in named
    ]


def error_rate(folder: Path) -> float:
    score = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    return score["char"]["error_rate"]


def check(root: Path, track: str) -> int:
    """Print a line a claim; 1 if one does not hold."""
    exp, data = root / track, root / f"data_{track}_2024"
    lost = unaccounted(root / "corpus", data, track)
    systems = {
        path.parent.name: error_rate(path)
        for path in sorted(exp.glob("*/decode_test"))
        if path.parent.name != "fused"
    }
    left = {name: error_rate(exp / name / "decode_test_left") for name in systems}
    fused = error_rate(exp / "fused" / "decode_test")
    best = min(systems.values())
    both, alone = (sum(x.values()) / len(x) for x in (systems, left))
    claims = {
        f"every damaged clip is listed{': not ' + ', '.join(lost) if lost else ''}": not lost,
        f"the best system has {best:.2f} % CER, below {BEST:g}": best < BEST,
        f"fused they have {fused:.2f} %": fused < best,
        f"read both ways {both:.2f} % on average, left to right alone {alone:.2f} %": (
            both <= alone + HARM
        ),
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '} {claim}")
    return int(not all(claims.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the miniature's folder")
    parser.add_argument("track", choices=("single", "multi"))
    args = parser.parse_args()
    sys.exit(check(args.root, args.track))

"""Whether the demo's models learned anything: its exit status says so.

A model that guesses gets what the transcript of some other utterance gets. Each must be clearly
better: the upper end of its word error rate's interval below three quarters of that.
"""

import argparse
import json
import sys
from pathlib import Path

from lhotse import CutSet

from speechattn.data.tables import read_table
from speechattn.evaluation import score

MODALITIES = ("audio", "video", "av")
CLEARLY = 0.75


def guessing(references: dict[str, str]) -> float:
    """Word error rate in percent of answering with the next utterance's transcript."""
    ids = list(references)
    shifted = {a: references[b] for a, b in zip(ids, ids[1:] + ids[:1], strict=True)}
    return score(references, shifted, "word").total.error_rate


def check(exp: Path) -> int:
    """Print a line for each model; 1 if any is not clearly better than guessing."""
    status = 0
    for modality in MODALITIES:
        folder = exp / modality / "decode_test"
        chance = guessing(read_table(folder / "ref.tsv").texts)
        words = json.loads((folder / "score.json").read_text())["word"]
        good = words["ci_high"] < CLEARLY * chance
        verdict = "better" if good else "FAILED, not clearly better"
        print(f"{modality:6} WER {words['error_rate']:5.1f} %, guessing {chance:5.1f} %: {verdict}")
        status |= not good
    return status


def first_test_clip(exp: Path) -> str:
    """A video of the test split."""
    cuts = CutSet.from_file(exp / "data_corpus" / "manifests" / "cuts_test.jsonl.gz")
    return next(iter(cuts)).custom["video"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exp", type=Path, help="the demo's folder")
    parser.add_argument("--clip", action="store_true", help="only print the path of a test clip")
    args = parser.parse_args()
    if args.clip:
        print(first_test_clip(args.exp))
    else:
        sys.exit(check(args.exp))

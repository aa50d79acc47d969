"""Check that the demo's models learned something; exits with status 1 if not.

Guessing is taken to score as well as the transcript of another utterance. Each model must be
clearly better: the upper end of its word error rate's interval below three quarters of that.
"""

import argparse
import json
import sys
from pathlib import Path

from lhotse import CutSet

from speechattn.data.tables import read_table
from speechattn.evaluation import score

MODALITIES = ("audio", "video", "av")
MAX_RATIO = 0.75  # of a model's word error rate to that of guessing


def chance_error_rate(references: dict[str, str]) -> float:
    """Return the word error rate, percent, of answering with the next utterance's transcript."""
    ids = list(references)
    shifted = {a: references[b] for a, b in zip(ids, ids[1:] + ids[:1], strict=True)}
    return score(references, shifted, "word").total.error_rate


def check(exp: Path) -> int:
    """Print a line for each model; return 1 if any is not clearly better than guessing."""
    status = 0
    for modality in MODALITIES:
        folder = exp / modality / "decode_test"
        chance = chance_error_rate(read_table(folder / "ref.tsv").texts)
        words = json.loads((folder / "score.json").read_text())["word"]
        good = words["ci_high"] < MAX_RATIO * chance
        verdict = "better" if good else "FAILED, not clearly better"
        print(f"{modality:6} WER {words['error_rate']:5.1f} %, guessing {chance:5.1f} %: {verdict}")
        status |= not good
    return status


def first_test_clip(exp: Path) -> str:
    """Return the path of a video of the test split."""
    cuts = CutSet.from_file(exp / "data_corpus" / "manifests" / "cuts_test.jsonl.gz")
    return next(iter(cuts)).custom["video"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exp", type=Path, help="the demo's folder")
    parser.add_argument(
        "--clip", action="store_true", help="print the path of a test clip and exit"
    )
    args = parser.parse_args()
    if args.clip:
        print(first_test_clip(args.exp))
    else:
        sys.exit(check(args.exp))

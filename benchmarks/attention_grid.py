"""What every attention mechanism makes of GRID under one small training budget, the same for all.

Trains recipes/grid (sound only, conf/audio.yaml) with each mechanism of `speechattn.attention` at
its place, all else equal, each with one thread and several beside each other; decodes the test set;
keeps word error rates in docs/attention/wer.json, from which docs/attention.md has them. What is
finished is not done again, what was cut off goes on: run it again.

    recipes/grid/run.sh --data-dir GRID --modality audio --exp EXP --stop-stage 2
    python benchmarks/attention_grid.py --data-dir GRID --dump DIR --exp DIR [--only WORD]

--dump is what the first command prepared: its manifests and tokens. Without --data-dir nothing is
run.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mechanisms.found import PLACES, Mechanism, mechanisms
from mechanisms.table import write_page
from rows import row, save

from speechattn.files import write_text

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "grid" / "run.sh"
DOCS = HERE.parent / "docs"
# Where conf/audio.yaml takes a mechanism.
KEYS = {
    "encoder": "model.audio.encoder.init_args.attention",
    "tokens": "model.decoder.init_args.self_attention",
    "memory": "model.decoder.init_args.cross_attention",
}
EPOCHS = 8  # about three minutes on one core


def settings(mechanism: Mechanism, epochs: int) -> Iterator[str]:
    """What of the config differs, as KEY=VALUE."""
    value = {"class_path": f"speechattn.attention.{mechanism.kind}", "init_args": mechanism.options}
    yield f"{KEYS[mechanism.place]}={json.dumps(value)}"
    if mechanism.place == "encoder" and "noncausal self" not in mechanism.patterns:
        yield "model.audio.encoder.init_args.chunk_size=1"
    yield f"training.max_epochs={epochs}"
    yield "training.threads=1"


def chosen(only: str) -> list[Mechanism]:
    """Those with a word in their name, the recipe's own mechanism first."""
    found = [m for m in mechanisms() if only in str(m)]
    return sorted(found, key=lambda m: m.kind != "RelativeSelfAttention")


def run(mechanism: Mechanism, options: argparse.Namespace) -> dict:
    """Train and measures one.

    Returns:
        `wer` in percent, its 95 % interval `low` and `high`, `seconds` that this call took, or
        `error` with what was printed last.
    """
    folder = options.exp / mechanism.slug
    folder.mkdir(parents=True, exist_ok=True)
    command = [RECIPE, "--data-dir", options.data_dir, "--dump", options.dump, "--modality",
               "audio", "--exp", folder, "--nj", "1", "--stage", "3"]  # fmt: skip
    for setting in settings(mechanism, options.epochs):
        command += ["--set", setting]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    begun = time.monotonic()
    with open(folder / "log.txt", "ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment)
    seconds = time.monotonic() - begun
    score = folder / "decode_test" / "score.json"
    if done.returncode or not score.exists():
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "nothing was printed"
        return {"error": f"{last} (see {folder / 'log.txt'})"}
    word = json.loads(score.read_text())["word"]
    return {
        "wer": word["error_rate"],
        "low": word["ci_low"],
        "high": word["ci_high"],
        "seconds": round(seconds, 1),
    }


def keep(path: Path, mechanism: Mechanism, result: dict, budget: str) -> None:
    """Write a result beside the others of the same budget."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("budget") != budget:
        kept = {"budget": budget, "results": {}}
    before = kept["results"].get(str(mechanism), {})
    if "wer" in result and result["seconds"] < before.get("seconds", 0):
        result = {**result, "seconds": before["seconds"]}  # it was only looked at again
    kept["results"][str(mechanism)] = result
    write_text(path, json.dumps(kept, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="GRID")
    parser.add_argument("--dump", type=Path, help="manifests and tokens of GRID")
    parser.add_argument("--exp", type=Path, default=Path("exp/attention"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--jobs", type=int, default=2, help="trainings beside each other")
    parser.add_argument("--only", default="", help="mechanisms with this in their name")
    parser.add_argument("--docs", type=Path, help="where to write (default: docs, or nowhere with "
                        "--quick)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one epoch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data_dir is None or options.dump is None:
        print("attention_grid: --data-dir and --dump name a prepared GRID; nothing was run")
        return 0
    if not (options.dump / "manifests" / "cuts_train.jsonl.gz").exists():
        parser.error(f"--dump {options.dump} holds no manifests: recipes/grid/run.sh makes them")
    options.epochs = 1 if options.quick else options.epochs
    docs = options.docs or (None if options.quick else DOCS)
    budget = f"{options.epochs} epochs of conf/audio.yaml without noise"
    options.exp = options.exp / f"epochs_{options.epochs}"
    options.exp.mkdir(parents=True, exist_ok=True)
    wer = (docs / "attention" if docs else options.exp) / "wer.json"
    wer.parent.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()

    def one(mechanism: Mechanism) -> dict:
        result = run(mechanism, options)
        with lock:
            keep(wer, mechanism, result, budget)
            text = result.get("error") or f"WER {result['wer']:.1f} %, {result['seconds']:.0f} s"
            print(f"{mechanism}: {text}", flush=True)
        return result

    found = chosen(options.only)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, found))
    if docs is not None:
        write_page(docs)
    rows = []
    for mechanism, result in zip(found, results, strict=True):
        plain = PLACES[mechanism.place][1].__name__
        name = f"GRID, {budget}, {mechanism} at the place of {plain}"
        rows.append(row(name, result.get("wer"), None, None, "none", "WER %", "wer" in result))
    save(rows, options.json)
    return 0 if all("wer" in r for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The CNVSRC recipe as a user runs it: a shell, media files on disk, every stage, and kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from speechattn.data.crops.store import CropStore
from speechattn.synth import synth_cnvsrc

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "cnvsrc"
MINI = RECIPE / "conf" / "mini"


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [RECIPE / "run.sh", *map(str, arguments)], env=environment(), capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_help_lists_the_stages():
    text = run("--help").stdout
    for stage in (
        "data",
        "mouth ROI",
        "tokens",
        "LM",
        "train",
        "average",
        "decode",
        "score",
        "fuse",
    ):
        assert stage in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--track is single or multi"),
        (["--track", "single"], "--data-dir is needed"),
        (["--track", "single", "--data-dir", "/nonexistent"], "no such folder"),
        (["--track", "both"], "single or multi"),
        (["--track", "multi", "--year", "2022"], "2023, 2024 or 2025"),
        (["--track", "multi", "--modality", "smell"], "video, audio or av"),
        (["--track", "multi", "--lm", "big"], "ngram, transformer, both or none"),
        (["--track", "multi", "--data-dir", ".", "--config", "/nonexistent.yaml"], "no such file"),
        (["--track", "multi", "--speed", "2"], "unknown option"),
        (["--track"], "needs a value"),
    ],
)
def test_says_what_is_wrong(arguments, reason):
    done = run(*arguments, check=False)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.parametrize("modality", ["video", "audio", "av"])
def test_dry_run_prints_every_command_and_runs_none(tmp_path, modality):
    exp = tmp_path / "exp"
    text = run(
        "--data-dir", tmp_path, "--track", "multi", "--dry-run", "--exp", exp,
        "--modality", modality, "--scales", "96 64", "--lm", "both", "--extra", tmp_path, "--open",
        "--ngpu", 4,
    ).stdout  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    commands = [line.split() for line in text.splitlines() if line.startswith("  ")]
    verbs = [command[1] for command in commands if command[0] == "speechattn"]
    trained = {"video": 2, "audio": 1, "av": 3}[modality]
    assert verbs.count("train") == verbs.count("average") == 3 * trained
    assert verbs.count("roi") == (modality != "audio")
    assert verbs.count("combine") == (2 if modality == "av" else 0)
    assert {"prepare", "tokens", "ngram", "train-lm", "decode"} <= set(verbs)
    assert ("fuse" in verbs) == (modality != "audio")
    # Evaluation videos are mute.
    decoded = " ".join(word for c in commands if c[1] == "decode" for word in c)
    assert ("cuts_test" in decoded) == (modality == "video")


def grid_in_cnvsrc_layout(grid: Path, corpus: Path) -> None:
    """GRID's train and dev clips as CNVSRC-Single's dev part, its test clips as the eval part."""
    rows = [line.split("\t") for line in (grid / "manifest.tsv").read_text().splitlines()[1:]]
    single = corpus / "cnvsrc-single"
    infos: dict[str, dict] = {"dev": {}, "eval": {}}
    for i, (file, _, split, text) in enumerate(rows):
        part = "eval" if split == "test" else "dev"
        target = single / part / "video" / f"{i:08d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(grid / file)
        infos[part][f"{i:08d}"] = {"text": text, "speaker": "s01"}
    for part, info in infos.items():
        (single / f"cnvsrc-single-{part}-infos.json").write_text(json.dumps(info))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grid_in_this_layout_gives_the_grid_recipes_crops(data_dir, tmp_path):
    grid_in_cnvsrc_layout(data_dir / "grid", tmp_path / "corpus")
    run(
        "--data-dir", tmp_path / "corpus", "--track", "single", "--exp", tmp_path / "exp",
        "--stop-stage", 2,
    )  # fmt: skip
    data = tmp_path / "data_single_2024"
    cuts = [
        cut
        for name in ("finetune", "dev", "test")
        for cut in CutSet.from_file(data / "manifests" / f"cuts_{name}.jsonl.gz")
    ]
    assert len(cuts) == 850
    assert (data / "tokens" / "tokens.txt").is_file()
    # The grid recipe's own crops of a few of them.
    grid = RECIPE.parent / "grid" / "run.sh"
    few = tmp_path / "few"
    few.mkdir()
    chosen = cuts[::170]
    rows = ["file\tspeaker\tsplit\ttext"]
    for cut, split in zip(chosen, ("train", "train", "train", "dev", "test"), strict=True):
        link = few / f"{cut.id}.mp4"
        link.symlink_to(Path(cut.custom["video"]).resolve())
        rows.append(f"{link.name}\ts1\t{split}\t{cut.supervisions[0].text}")
    (few / "manifest.tsv").write_text("\n".join(rows) + "\n")
    subprocess.run(
        [grid, "--data-dir", few, "--modality", "video", "--exp", tmp_path / "g", "--dump",
         tmp_path / "gdata", "--stop-stage", "1"],
        env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    ours, theirs = CropStore(data / "crops"), CropStore(tmp_path / "gdata" / "crops")
    for cut in chosen:
        key = next(key for key in theirs.keys() if key.endswith(cut.id))  # noqa: SIM118
        wanted, found = theirs.read(key).astype(int), ours.read(cut.id).astype(int)
        margin = (found.shape[1] - wanted.shape[1]) // 2  # the largest scale is stored
        found = found[:, margin : margin + wanted.shape[1], margin : margin + wanted.shape[2]]
        assert np.abs(found - wanted).mean() < 0.5  # grey levels: far less than a pixel's shift
    assert ours.info(chosen[0].id).height == 128


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cnvsrc") / "corpus"
    synth_cnvsrc(folder, clips=24, speakers=4, workers=2, progress=False)
    return folder


def recipe(corpus: Path, folder: Path) -> list[str]:
    """A run of every stage: two systems, two phases, two epochs each."""
    curriculum = folder / "curriculum"
    curriculum.mkdir(parents=True, exist_ok=True)
    (curriculum / "all").write_text("training.max_epochs=2\ntraining.keep=2\n")
    (curriculum / "target").write_text("training.max_epochs=1\ntraining.keep=1\n")
    arguments = [
        "--data-dir", corpus, "--track", "single", "--exp", folder / "exp",
        "--config", MINI / "conformer.yaml", "--scales", "96 64",
        "--roi-config", MINI / "roi.yaml", "--curriculum", curriculum,
        "--set", "search.beam_size=2",
        "--set", "model.video.frontend.init_args.channels=[8,8,8,96]",
    ]  # fmt: skip
    return [str(RECIPE / "run.sh"), *map(str, arguments)]


def results(folder: Path) -> dict:
    """What has to be the same however often the run was interrupted."""
    data, exp = folder / "data_single_2024", folder / "exp"
    manifests = data / "manifests"
    store = CropStore(data / "crops")
    found: dict = {
        "cuts": {
            path.name: sorted(cut.id for cut in CutSet.from_file(path))
            for path in sorted(manifests.glob("cuts_*.jsonl.gz"))
        },
        "failures": sorted((manifests / "failures.tsv").read_text().splitlines()),
        "no crops": sorted((data / "crops" / "failures.tsv").read_text().splitlines()),
        "crops": {key: int(store.read(key).astype(int).sum()) for key in sorted(store.keys())},
        "ngram": (data / "ngram.arpa").read_text(),
    }
    for path in sorted(exp.glob("*/decode_*")):
        found[f"{path.parent.name} {path.name}"] = (path / "hyp.tsv").read_text()
        found[f"{path.parent.name} {path.name} score"] = (path / "score.json").read_text()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_it_ends_the_same(corpus, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(recipe(corpus, straight), env=environment(), check=True, capture_output=True)
    assert (straight / "exp" / "results.md").read_text().count("Synthetic") == 1
    rng = random.Random(0)
    kills, patience = 0, 8.0
    while True:
        process = subprocess.Popen(
            recipe(corpus, killed),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=rng.uniform(1.0, 2.0) * patience)
            assert process.returncode == 0, output[-3000:].decode()
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            patience *= 1.2  # a stage that writes nothing for long needs its time
            time.sleep(0.1)
    assert kills >= 5
    assert results(killed) == results(straight)

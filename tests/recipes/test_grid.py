"""The GRID recipe as a user runs it: a shell, media files on disk, every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "grid"
TINY = [
    "--set", "training.max_epochs=2", "--set", "training.keep=2", "--set", "data.num_workers=0",
    "--set", "search.beam_size=2", "--token-kind", "char",
]  # fmt: skip


def run(
    *arguments: object, check: bool = True, script: str = "run.sh"
) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [RECIPE / script, *map(str, arguments)],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_help_lists_the_stages():
    text = run("--help").stdout
    for stage in ("manifests", "mouth ROI", "tokens", "train", "average", "decode", "score"):
        assert stage in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--data-dir is needed"),
        (["--data-dir", "/nonexistent"], "no such folder"),
        (["--data-dir", ".", "--modality", "smell"], "audio, video or av"),
        (["--data-dir", ".", "--speed", "2"], "unknown option"),
        (["--data-dir"], "needs a value"),
        (["--data-dir", ".", "--noise", "/nonexistent.flac"], "no such file"),
        (["--data-dir", ".", "--modality", "av", "--config", "x.yaml"], "name them by --init"),
        (["--data-dir", ".", "--modality", "av", "--init", "x"], "joins two models"),
        (["--data-dir", ".", "--modality", "av", "--fusion", "hot"], "late or mlp"),
    ],
)
def test_says_what_is_wrong(arguments, reason):
    done = run(*arguments, check=False)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Twenty-four synthetic clips in GRID's published layout."""
    synth = pytest.importorskip("speechattn.synth")
    folder = tmp_path_factory.mktemp("grid") / "corpus"
    synth.synth_corpus(folder, "en", speakers=2, utterances=12, workers=1, progress=False)
    return folder


@pytest.mark.slow
def test_all_stages_and_again(corpus, tmp_path):
    exp = tmp_path / "av"
    wav = next((corpus / "s1").glob("*.mp4"))
    common = ["--data-dir", corpus, "--modality", "av", "--fusion", "mlp", "--exp", exp]
    first = run(*common, "--noise", wav, *TINY)
    assert "stage 3: train in" in first.stdout
    for name in ("decode_test", "decode_test_noise_0dB"):
        hyp = (exp / name / "hyp.tsv").read_text().splitlines()
        ref = (exp / name / "ref.tsv").read_text().splitlines()
        assert [line.split("\t")[0] for line in hyp] == [line.split("\t")[0] for line in ref]
        score = json.loads((exp / name / "score.json").read_text())
        assert set(score) == {"char", "word"}
        assert list((exp / name / "details").glob("*.npz"))
    assert json.loads((exp / "model" / "meta.json").read_text())["synthetic"] is True
    assert (exp.parent / "data_corpus" / "crops" / "contact_sheet.png").stat().st_size > 10_000

    weights = (exp / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(*common, "--noise", wav, *TINY)
    for line in ("tokens are there", "stage 3: trained", "averaged", "is decoded", "is scored"):
        assert line in again.stdout
    assert (exp / "model" / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
def test_late_fusion_trains_its_two_models(corpus, tmp_path):
    exp = tmp_path / "av"
    common = ["--data-dir", corpus, "--modality", "av", "--exp", exp]
    wav = next((corpus / "s1").glob("*.mp4"))
    run(*common, "--noise", wav, *TINY)
    meta = json.loads((exp / "model" / "meta.json").read_text())
    assert meta["synthetic"] is True and set(meta["token_errors"]) == {"clean", "at 0 dB"}
    for name in ("decode_test", "decode_test_noise_0dB"):
        assert set(json.loads((exp / name / "score.json").read_text())) == {"char", "word"}
    weights = (exp / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(*common, "--noise", wav, *TINY).stdout
    for line in ("stage 3: trained", "stage 4: averaged", "stage 4: combined", "is decoded"):
        assert line in again
    assert (exp / "model" / "model.safetensors").stat().st_mtime_ns == weights
    # The same models under another name.
    models = ["--init", exp / "audio" / "model", "--init", exp / "video" / "model"]
    other = ["--data-dir", corpus, "--modality", "av", "--exp", tmp_path / "other", *models]
    assert "the models are there" in run(*other, "--stage", 3, "--token-kind", "char").stdout
    assert (tmp_path / "other" / "decode_test" / "score.json").is_file()


@pytest.mark.slow
def test_other_corpus_in_the_same_dump_is_refused(corpus, tmp_path):
    common = ["--modality", "audio", "--dump", tmp_path / "dump", "--stop-stage", 0]
    run("--data-dir", corpus, "--exp", tmp_path / "a", *common)
    other = tmp_path / "other"
    other.mkdir()
    done = run("--data-dir", other, "--exp", tmp_path / "b", *common, check=False)
    assert done.returncode == 1 and "choose another --dump" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_delays_by_penalty(corpus, tmp_path):
    exp = tmp_path / "delay"
    options = ["--data-dir", corpus, "--exp", exp, "--penalties", "0 0.05", "--base-epochs", "2",
               "--epochs", "1", "--set", "data.num_workers=0", "--nj", "1"]  # fmt: skip
    # So short a training need not say a word, and then there is no curve.
    done = run(*options, "--stop-stage", "3", script="delay.sh")
    assert "emission delay of" in done.stdout
    for penalty in ("0", "0.05"):
        folder = exp / f"penalty_{penalty}"
        assert f"delay_penalty: {penalty}\n" in (folder / "train" / "config.yaml").read_text()
        for search in ("decode_test", "decode_graph"):
            score = json.loads((folder / search / "score.json").read_text())
            assert score["delay"]["reference_words"] > 0


def test_delay_curve(tmp_path):
    for penalty, search, rate, ms in (
        ("0.03", "decode_test", 4.5, 120.0),
        ("0", "decode_test", 4.0, 210.0),
        ("0", "decode_graph", 3.0, 200.0),
    ):
        folder = tmp_path / f"penalty_{penalty}" / search
        folder.mkdir(parents=True)
        score = {"word": {"error_rate": rate, "ci_low": rate - 1, "ci_high": rate + 1}}
        delay = {"words": 9, "mean": ms, "p90": ms + 50}
        report = dict.fromkeys(("end", "start", "first", "last"), delay)
        score["delay"] = {**report, "reference_words": 10}
        (folder / "score.json").write_text(json.dumps(score))
    script = [sys.executable, RECIPE / "delay_curve.py", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2:] == [
        "| greedy | 0 | 4.00 (3.0-5.0) | 210 | 260 | 210 | 210 |",
        "| greedy | 0.03 | 4.50 (3.5-5.5) | 120 | 170 | 120 | 120 |",
        "| graph | 0 | 3.00 (2.0-4.0) | 200 | 250 | 200 | 200 |",
    ]
    assert (tmp_path / "delay.md").read_text() == done.stdout
    assert "<svg" in (tmp_path / "delay.svg").read_text()

"""The small Mandarin recipe as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "zh_small"
SENTENCES = ["设定三十度", "三十二度", "想听歌曲", "听三十二歌", "设定歌曲", "想听度"]
TINY = [
    "--set", "training.max_epochs=2", "--set", "training.keep=2", "--set", "data.num_workers=0",
    "--set", "data.audio_transforms=[]", "--set", "search.beam_size=2",
    "--set", "model.audio.encoder.init_args.num_blocks=1", "--weights", "0.3 0.5",
]  # fmt: skip


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [RECIPE / "run.sh", *map(str, arguments)],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_help_lists_the_stages():
    text = run("--help").stdout
    for stage in ("manifests", "tokens", "train", "average", "LM", "tune", "decode", "score"):
        assert stage in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--data-dir is needed"),
        (["--data-dir", "/nonexistent"], "no such folder"),
        (["--data-dir", ".", "--lm-text", "/nonexistent.txt"], "no such file"),
        (["--data-dir", ".", "--speed", "2"], "unknown option"),
        (["--data-dir"], "needs a value"),
    ],
)
def test_says_what_is_wrong(arguments, reason):
    done = run(*arguments, check=False)
    assert done.returncode == 1
    assert reason in done.stderr


def corpus(folder: Path) -> Path:
    """Tones for sentences of a dozen characters, one tone for each."""
    units = sorted(set("".join(SENTENCES)))
    rows = ["file\tspeaker\tsplit\ttext"]
    draw = np.random.default_rng(0)
    for i in range(24):
        text = SENTENCES[i % len(SENTENCES)]
        t = np.arange(4800) / 16000
        tones = [np.sin(2 * np.pi * (300 + 150 * units.index(c)) * t) for c in text]
        sound = 0.3 * np.concatenate(tones) + 0.01 * draw.standard_normal(4800 * len(text))
        soundfile.write(folder / f"{i}.flac", sound, 16000)
        split = "dev" if i >= 20 else "test" if i >= 16 else "train"
        rows.append(f"{i}.flac\ts{i % 2}\t{split}\t{text}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_and_again(tmp_path):
    pytest.importorskip("kaldifst")
    data = tmp_path / "corpus"
    data.mkdir()
    text = tmp_path / "lm.txt"
    text.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    exp = tmp_path / "exp"
    options = ["--data-dir", corpus(data), "--lm-text", text, "--exp", exp, *TINY]
    first = run(*options)
    assert "stage 2: train in" in first.stdout
    methods = ("ctc_greedy", "joint", "joint_ngram", "ctc_beam_ngram", "hlg", "hlg_larger",
               "hlg_decoder")  # fmt: skip
    for method in methods:
        score = json.loads((exp / f"decode_test_{method}" / "score.json").read_text())
        assert score["char"]["error_rate"] >= 0
    table = (exp / "results.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + len(methods)
    assert table in first.stdout
    # What the graph lets through is in its lexicon, one character after the other.
    hyp = (exp / "decode_test_hlg" / "hyp.tsv").read_text(encoding="utf-8").splitlines()
    said = "".join(line.split("\t")[1] for line in hyp)
    assert set(said) <= set("".join(SENTENCES))
    again = run(*options)
    for line in ("2: trained", "3: averaged", "4: the graph is there", "is decoded"):
        assert line in again.stdout

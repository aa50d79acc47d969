"""A made-up experiment folder with everything that a report can show."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechattn.data.tables import write_table
from speechattn.evaluation.score_files import score_both

WORDS = (
    "bin lay place set blue green red white at by in with a b f g one two seven now soon"
).split()
LATIN = ["<blank>", "<unk>", "<space>", *"abcdefghijklmnopqrstuvwxyz", "<sos/eos>"]
HANZI = list("今天气很好我们去公园散步看花开")
CHINESE = ["<blank>", "<unk>", *HANZI, "<sos/eos>"]


def make_experiment(
    folder: Path,
    seed: int = 0,
    language: str = "en",
    modality: str = "av",
    error: float = 0.12,
    crops: bool = True,
    attention: bool = True,
    synthetic: bool = False,
) -> Path:
    """Write an experiment folder as training and decoding would."""
    rng = np.random.default_rng(seed)
    (folder / "train").mkdir(parents=True)
    (folder / "model").mkdir()
    _write_metrics(folder / "train" / "metrics.csv", rng)
    modalities = ["audio", "video"] if modality == "av" else [modality]
    meta = {"modalities": modalities, "synthetic": synthetic, "parameters": 1_234_567}
    (folder / "model" / "meta.json").write_text(json.dumps(meta))
    vocabulary = LATIN if language == "en" else CHINESE
    glue = " " if language == "en" else ""
    units = WORDS if language == "en" else HANZI
    reference, hypothesis, speakers = {}, {}, {}
    for i in range(60):
        words = list(rng.choice(units, 6 if glue else 9))
        heard = [str(rng.choice(units)) if rng.random() < error else word for word in words]
        if rng.random() < error:
            heard.pop(int(rng.integers(len(heard))))
        if rng.random() < error:
            heard.insert(2, str(rng.choice(units)))
        key = f"s{i % 3 + 1}_utt{i:03d}"
        reference[key], hypothesis[key] = glue.join(words), glue.join(heard)
        speakers[key] = key[:2]
    decode = folder / "decode_test"
    write_table(decode / "ref.tsv", reference, speakers)
    write_table(decode / "hyp.tsv", hypothesis)
    score_both(decode)
    (decode / "details").mkdir()
    for key in list(reference)[:2]:
        write_details(
            decode / "details" / f"{key}.npz",
            rng,
            hypothesis[key],
            reference[key],
            vocabulary,
            crops,
            attention,
        )
    return folder


def write_details(
    path: Path,
    rng: np.random.Generator,
    text: str,
    reference: str,
    vocabulary: list[str],
    crops: bool,
    attention: bool,
) -> None:
    """Posteriors with a spike for every token, attention beside it, a mouth that opens."""
    frames, tokens = 75, ["<space>" if char == " " else char for char in text]
    at = np.linspace(6, frames - 8, len(tokens)).round().astype(int)
    logits = rng.normal(0, 0.7, (frames, len(vocabulary)))
    logits[:, 0] += 5
    for frame, token in zip(at, tokens, strict=True):
        logits[frame, 0] -= 4
        logits[frame, vocabulary.index(token)] += 6
        logits[frame, int(rng.integers(2, len(vocabulary)))] += 4
    ctc = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    content = {
        "ctc": ctc.astype(np.float16),
        "tokens": np.array(tokens),
        "vocabulary": np.array(vocabulary),
        "frame_shift": np.float64(0.04),
        "text": np.array(text),
        "reference": np.array(reference),
    }
    if attention:
        time = np.arange(frames)
        centre = np.append(at, frames - 1)[None, None, :, None]
        width = np.array([[2, 4, 8, 20], [1.5, 2, 3, 30], [1, 1.5, 2, 5]])[:, :, None, None]
        weights = np.exp(-0.5 * ((time - centre) / width) ** 2)
        weights += 0.05 * rng.random(weights.shape)
        weights /= weights.sum(axis=-1, keepdims=True)
        content["cross_attention"] = weights.astype(np.float16)
    if crops:
        y, x = np.mgrid[-1:1:96j, -1:1:96j]
        opening = 0.1 + 0.35 * np.abs(np.sin(np.arange(frames) / 4))[:, None, None]
        mouth = (x / 0.6) ** 2 + (y / opening) ** 2
        face = 175 - 115 * np.exp(-(mouth**2)) + 10 * x + rng.normal(0, 4, (frames, 96, 96))
        content["crops"] = face.clip(0, 255).astype(np.uint8)
    np.savez_compressed(path, **content)


def _write_metrics(path: Path, rng: np.random.Generator) -> None:
    lines = [
        "epoch,step,train_loss,valid_loss,valid_ctc_loss,valid_att_loss,valid_error,lr,seconds"
    ]
    speed = rng.uniform(5, 10)
    for epoch in range(30):
        fall = np.exp(-epoch / speed)
        loss, noise = 0.2 + 3 * fall, rng.normal(0, 0.03, 3)
        lr = 1e-3 * min(1, (epoch + 1) / 5) * np.cos(epoch / 20) ** 2
        # Lightning writes training and validation on lines of their own.
        lines.append(f"{epoch},{epoch * 40},{loss:.4f},,,,,{lr:.6f},")
        lines.append(
            f"{epoch},{epoch * 40 + 39},,{loss * 1.1 + noise[0]:.4f},{loss * 1.4 + noise[1]:.4f},"
            f"{loss + noise[2]:.4f},{5 + 90 * fall:.3f},,{epoch * 60.0}"
        )
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three experiments, to be read only: two on English and one on Chinese without attention."""
    folder = tmp_path_factory.mktemp("exp")
    return {
        "grid_av": make_experiment(folder / "grid_av"),
        "grid_audio": make_experiment(
            folder / "grid_audio", 1, modality="audio", error=0.2, crops=False
        ),
        "cnvsrc <video>": make_experiment(
            folder / "zh", 2, "zh", "video", error=0.3, attention=False, synthetic=True
        ),
    }

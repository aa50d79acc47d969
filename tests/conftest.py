"""Fixtures that the whole suite shares."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

# Tests run on tiny tensors, where a second thread costs more than it gives.
torch.set_num_threads(1)
# Triton reads this when it is first imported, and half of what tests use imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real speech and lip video, if there is any: $SPEECHATTN_TEST_DATA or ../shared/data."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPEECHATTN_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: set SPEECHATTN_TEST_DATA to a folder like {default}")
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., dict[str, Any]]:
    """A function of modality (audio, video, av) and encoder that gives a small `model:` section."""
    return _tiny_model


def _tiny_model(modality: str, encoder: str = "conformer", dropout: float = 0.0) -> dict[str, Any]:
    name = {"conformer": "ConformerEncoder", "e_branchformer": "EBranchformerEncoder"}[encoder]
    kernel = {"conformer": {"conv_kernel": 7}, "e_branchformer": {"cgmlp_units": 24}}[encoder]

    def stream(frontend: str, size: int, subsampling: str, **arguments: Any) -> dict[str, Any]:
        return {
            "frontend": {"class_path": f"speechattn.frontends.{frontend}", "init_args": arguments},
            "encoder": {
                "class_path": f"speechattn.encoders.{name}",
                "init_args": {
                    "input_size": size,
                    "output_size": 16,
                    "attention_heads": 2,
                    "linear_units": 24,
                    "num_blocks": 1,
                    "subsampling": subsampling,
                    "dropout": dropout,
                    **kernel,
                },
            },
        }

    streams = {
        "audio": stream("LogMelFbank", 20, "conv2d4", num_bins=20),
        "video": stream(
            "ResNet3D", 8, "linear", stem_channels=4, channels=[4, 4, 6, 8], blocks=[1, 1, 1, 1]
        ),
    }
    section: dict[str, Any] = {"crop_size": 16, "ctc_dropout": dropout}
    for name in ("audio", "video") if modality == "av" else (modality,):
        section[name] = streams[name]
    if modality == "av":
        section["fusion"] = {
            "audio_size": 16,
            "video_size": 16,
            "hidden_size": 32,
            "output_size": 16,
        }
    section["decoder"] = {
        "class_path": "speechattn.decoders.TransformerDecoder",
        "init_args": {
            "memory_size": 16,
            "width": 16,
            "attention_heads": 2,
            "linear_units": 24,
            "num_blocks": 1,
            "dropout": dropout,
        },
    }
    return section


@dataclass(frozen=True)
class TinyCorpus:
    """Ten clips of tones and of grey levels that spell their letters, two of them for validation.

    Attributes:
        folder: holds `cuts_train.jsonl.gz`, `cuts_dev.jsonl.gz`, `tokens`, `crops` (20x20, 25 Hz)
            and `noise.wav`.
        texts: by cut id.
    """

    folder: Path
    texts: dict[str, str]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    """Made once; nobody writes into it."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    from speechattn.data.crops.store import CropWriter
    from speechattn.data.tokenizers import CharTokenizer

    folder = tmp_path_factory.mktemp("tiny_corpus")
    rng = np.random.default_rng(0)
    texts, cuts = {}, []
    with CropWriter(folder / "crops") as writer:
        for i in range(10):
            text = "".join(rng.choice(list("abc"), 2 + i % 3))
            frames, key = 8 * len(text) + i % 2, f"s{i % 2}_u{i}"
            letters = np.repeat(["abc".index(c) for c in text], frames // len(text))
            letters = np.pad(letters, (0, frames - len(letters)), mode="edge")
            hertz = np.repeat(400.0 * 2.0**letters, 640)
            wave = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / 16000)
            wave += 0.01 * rng.standard_normal(len(wave))
            soundfile.write(folder / f"{key}.flac", wave, 16000)
            crops = rng.integers(0, 40, (frames, 20, 20)) + 80 * letters[:, None, None]
            writer.add(key, crops.astype(np.uint8), 25.0)
            seconds = frames / 25
            said = SupervisionSegment(key, key, 0.0, seconds, text=text, speaker=key[:2])
            recording = Recording.from_file(folder / f"{key}.flac", recording_id=key)
            cuts.append(MonoCut(key, 0.0, seconds, 0, recording=recording, supervisions=[said]))
            texts[key] = text
    CutSet.from_cuts(cuts[:8]).to_file(folder / "cuts_train.jsonl.gz")
    CutSet.from_cuts(cuts[8:]).to_file(folder / "cuts_dev.jsonl.gz")
    CharTokenizer.train(texts.values()).save(folder / "tokens")
    soundfile.write(folder / "noise.wav", 0.1 * rng.standard_normal(16000), 16000)
    return TinyCorpus(folder, texts)


@pytest.fixture(scope="session")
def tiny_model_dir(
    tiny_model: Callable[..., dict[str, Any]],
    tiny_corpus: TinyCorpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A function of modality that gives the directory of a model with random weights.

    `late` is an ensemble of the audio and the video model.
    """
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.model.directory import build_model, save_model_dir
    from speechattn.transcribe.combine import read_models, save_ensemble

    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.load(tiny_corpus.folder / "tokens")

    def make(modality: str) -> Path:
        path = folder / modality
        if modality == "late" and not path.exists():
            parts = {name: make(name) for name in ("audio", "video")}
            save_ensemble(read_models(parts), parts, path)
        elif not path.exists():
            config = {
                "model": tiny_model(modality),
                "search": {
                    "class_path": "JointSearch",
                    "init_args": {"beam_size": 3, "max_length_ratio": 0.3},
                },
                "roi": {"size": 20, "smoothing": 3},
            }
            torch.manual_seed(1)
            model = build_model(config["model"], tokenizer.vocab_size)
            with torch.no_grad():
                model.ctc.weight.mul_(4)  # else blank wins all frames, or none
            save_model_dir(path, config, model.state_dict(), tokenizer, {})
        return path

    return make

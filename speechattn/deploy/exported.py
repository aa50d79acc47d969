"""Exported models run by onnxruntime.

An exported folder is a model directory whose weights are the ONNX graphs that
`speechattn.deploy.export` writes, those of an ensemble in a folder for each model. Where a model
reads lips, `frontend.safetensors` has the weights of its visual frontend.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoders import BidirectionalDecoder, Decoder, DecoderState
from speechattn.decoders.tree import TokenTree
from speechattn.errors import ConfigError, missing_extra
from speechattn.masks import padding_mask
from speechattn.model.directory import CONFIG, WEIGHTS, build_model, read_config
from speechattn.model.ensemble import Ensemble
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import SpeechModel

ENCODER, START, STEP = "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx"
FRONTEND = "frontend.safetensors"


class OnnxDecoder(Decoder):
    """The graphs of a folder as a decoder for a search, with the sizes of the one exported.

    It takes one token at a time.
    """

    scores_sequences = False

    def __init__(self, source: Decoder, folder: Path):
        super().__init__()
        self.vocab_size, self.memory_size = source.vocab_size, source.memory_size
        self.width = source.width
        left = source.left if isinstance(source, BidirectionalDecoder) else source
        tokens = left.layers[0].self_attention
        self.heads = (tokens.kv_heads, tokens.head_width)
        self.start_session = open_session(folder / START)
        self.step_session = open_session(folder / STEP)

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        keys, values = run_session(self.start_session, hidden=memory)  # (L, B, H, T, Dh)
        empty = keys.new_empty(len(memory), 0, *self.heads)
        tree = TokenTree.root(tuple((empty, empty) for _ in keys))
        mask = padding_mask(memory_lengths, memory.size(1))[:, None, None]
        return DecoderState(tuple(zip(keys, values, strict=True)), mask, tree)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        tree = state.tree
        key, value = (torch.stack(x) for x in zip(*tree.cache, strict=True))
        memory_key, memory_value = (torch.stack(x) for x in zip(*state.memory, strict=True))
        tokens = token.view(state.utterances, -1)
        place = {"token": tokens, "position": torch.tensor(tree.depth)}
        past = {"path": tree.path, "key": key, "value": value}
        memory = {"memory_key": memory_key, "memory_value": memory_value}
        memory["memory_mask"] = state.memory_mask[:, 0, 0]
        log_probs, key, value = run_session(self.step_session, **place, **past, **memory)
        cache = tuple(zip(key, value, strict=True))
        return log_probs.flatten(0, 1), replace(state, tree=tree.grown(cache, tree.growth()))


class OnnxModel(nn.Module):
    """Exported graphs with the interface of a `SpeechModel`.

    Args:
        source: the model that was exported; its sizes are read, and its visual frontend is used.
        folder: of the graphs.
    """

    def __init__(self, source: SpeechModel, folder: str | Path):
        super().__init__()
        folder = Path(folder)
        self.modalities, self.vocab_size = source.modalities, source.vocab_size
        self.sample_rate, self.frame_shift = source.sample_rate, source.frame_shift
        self.crop_size, self.video_fps = source.crop_size, source.video_fps
        self.frontend = source.streams["video"].frontend if "video" in source.streams else None
        self.encoder = open_session(folder / ENCODER)
        self.decoder = None if source.decoder is None else OnnxDecoder(source.decoder, folder)
        self._num_parameters = source.num_parameters()

    def num_parameters(self) -> int:
        """Return the number of parameters of the model that was exported."""
        return self._num_parameters

    @property
    def decoders(self) -> list[Decoder | None]:
        """Return the decoder, as a `SpeechModel` lists it."""
        return [self.decoder]

    @property
    def transducers(self) -> list[None]:
        """Return None: a transducer is not exported."""
        return [None]

    def outputs(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> list[ModelOutput]:
        """Compute a batch's outputs for a search; arguments as of `SpeechModel.encode`."""
        inputs = {}
        if "audio" in self.modalities:
            inputs.update(audio=audio, audio_lengths=audio_lengths)
        if self.frontend is not None:
            video, video_lengths = self.frontend(video, video_lengths)
            inputs.update(video=video, video_lengths=video_lengths)
        hidden, lengths, log_probs = run_session(self.encoder, **inputs)
        return [ModelOutput(hidden, lengths, log_probs, self.decoder, self.frame_shift)]


def open_session(path: Path):
    """Open a graph with onnxruntime on the CPU, with as many threads as PyTorch has."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnx", "onnxruntime") from error
    if not path.is_file():
        raise ConfigError(f"{path} is missing: write it with `speechattn export`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session, **inputs: Tensor) -> list[Tensor]:
    """Run a graph and return its outputs in their order."""
    arrays = {name: x.contiguous().numpy() for name, x in inputs.items()}
    return [torch.from_numpy(y) for y in session.run(None, arrays)]


def is_exported(folder: str | Path) -> bool:
    """Return whether a folder has graphs where a model directory has weights."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or (folder / WEIGHTS).exists():
        return False
    return (folder / ENCODER).is_file() or any(folder.glob(f"*/{ENCODER}"))


def load_exported(folder: str | Path, allow: Iterable[str] = ()) -> OnnxModel | Ensemble:
    """Load the graphs of a folder as `export_dir` writes it.

    `allow` lists packages beside this one whose classes config.yaml may name.

    Raises:
        ConfigError: a file is missing or does not fit, or onnxruntime is not installed.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder), Tokenizer.load(folder).vocab_size
    if "ensemble" not in config:
        return load_one(folder, config["model"], vocab_size, allow)
    ensemble = config["ensemble"]
    sections = ensemble["models"].items()
    models = {name: load_one(folder / name, one, vocab_size, allow) for name, one in sections}
    return Ensemble(models, ensemble["weights"])


def load_one(folder: Path, section: dict, vocab_size: int, allow: Iterable[str]) -> OnnxModel:
    """Load the graphs of one model."""
    with torch.device("meta"):  # its shapes are enough, except for the visual frontend
        source = build_model(section, vocab_size, allow)
    if "video" in source.streams:
        path = folder / FRONTEND
        if not path.is_file():
            raise ConfigError(f"{path} is missing: write it with `speechattn export`")
        try:
            source.streams["video"].frontend.load_state_dict(load_file(path), assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise ConfigError(f"{path} does not fit its {CONFIG}: {error}") from error
    return OnnxModel(source, folder).eval()

"""Write a model as ONNX graphs, and a model directory as an exported folder.

Each model becomes `encoder.onnx` (input to hidden frames and CTC log-probabilities),
`decoder_start.onnx` (hidden frames to the decoder's keys and values of them) and
`decoder_step.onnx` (one more token of every hypothesis). Batch, time, tokens and hypotheses are
free axes. Sound enters as waveforms, lips as the features of the visual frontend, which stays in
PyTorch: it packs the frames of ragged clips, whose number a graph cannot know.

`speechattn.deploy.exported` reads what is written here.
"""

import copy
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from speechattn.attention import SoftmaxCrossAttention, SoftmaxTokenAttention
from speechattn.attention.decoder_base import Growth
from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.deploy.exported import ENCODER, FRONTEND, START, STEP
from speechattn.deploy.replacement import replace_modules
from speechattn.errors import ConfigError, missing_extra
from speechattn.files import write_text
from speechattn.frontends import MLPFusion
from speechattn.kernels import backend
from speechattn.masks import without_padding
from speechattn.model.directory import CONFIG, META, WEIGHTS, load_model, read_config
from speechattn.model.ensemble import Ensemble
from speechattn.model.speech_model import SpeechModel

FREE = torch.export.Dim.DYNAMIC
MEMORY = ("memory_key", "memory_value")  # outputs of the decoder's start, inputs of its step
# Of each input of a graph an example and its free axes.
Inputs = dict[str, tuple[Tensor, dict]]


class GivenFeatures(nn.Module):
    """A frontend whose features are computed outside of the graph."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return x, lengths


class UnboundedPositions(nn.Module):
    """`RelativePositions` without its table, which would limit the length."""

    def __init__(self, source: RelativePositions):
        super().__init__()
        self.width = source.width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * math.sqrt(self.width), relative_positions(x.shape[1], self.width, x.device)


class PaddedFusion(nn.Module):
    """`MLPFusion` that computes padding too and drops it afterwards."""

    def __init__(self, source: MLPFusion):
        super().__init__()
        self.output_size = source.output_size
        self.up, self.norm, self.down = source.up, source.norm, source.down

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        lengths = torch.minimum(audio_lengths, video_lengths)
        frames = torch.sym_min(audio.shape[1], video.shape[1])
        x = self.up(torch.cat([audio[:, :frames], video[:, :frames]], dim=-1))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)  # (B, T, hidden)
        return without_padding(self.down(torch.relu(x)), lengths), lengths


class EncoderGraph(nn.Module):
    """Input and lengths of each stream to hidden frames, lengths and log-probabilities.

    The model stays as it is; the graph shares its weights.
    """

    def __init__(self, model: SpeechModel):
        super().__init__()
        shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self.model.decoder = None
        if "video" in self.model.streams:
            self.model.streams["video"].frontend = GivenFeatures()
        replace_modules(self.model, MLPFusion, PaddedFusion)
        replace_modules(self.model, RelativePositions, UnboundedPositions)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        names = (x for name in self.model.modalities for x in (name, f"{name}_lengths"))
        hidden, lengths = self.model.encode(**dict(zip(names, inputs, strict=True)))
        return hidden, lengths, self.model.ctc_log_probs(hidden)


class StartGraph(nn.Module):
    """Hidden frames (B, T, D) to keys and values of all layers, each (L, B, H, T, Dh)."""

    def __init__(self, decoder: TransformerDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (hidden,) = inputs
        pairs = [layer.cross_attention.keys(hidden) for layer in self.decoder.layers]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


class StepGraph(nn.Module):
    """The decoder's step, with its state as plain tensors."""

    def __init__(self, decoder: TransformerDecoder):
        super().__init__()
        self.decoder = decoder
        rate = torch.arange(0, decoder.width, 2, dtype=torch.float32)
        self.register_buffer("rate", torch.exp(rate * -(math.log(1e4) / decoder.width)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feed one token to each hypothesis.

        Args:
            inputs: in this order
                token: (B, K) int64, <sos> first.
                position: () int64, how many tokens came before.
                path: (B, K, M) bool, the nodes that a hypothesis went through.
                key, value: (L, B, M, H, Dh), of the nodes; H counts heads of keys.
                memory_key, memory_value: (L, B, H, T, Dh).
                memory_mask: (B, T) bool, True where a frame is real.

        Returns:
            Log-probabilities of the next token (B, K, V), and keys and values of M + K nodes,
            (L, B, M + K, H, Dh) each: those before, then one of each hypothesis in their order.
        """
        token, position, path, key, value, memory_key, memory_value, memory_mask = inputs
        decoder = self.decoder
        angle = position * self.rate
        place = torch.stack([angle.sin(), angle.cos()], 1).flatten()  # (D,)
        x = decoder.embed(token) * math.sqrt(decoder.width) + place  # (B, K, D)
        b, k = token.shape
        own = torch.eye(k, dtype=torch.bool, device=path.device).expand(b, k, k)
        growth = Growth(torch.cat([path, own], 2))  # (B, K, M + K)
        mask = memory_mask[:, None, None]
        keys, values = [], []
        for i, layer in enumerate(decoder.layers):
            past, memory = (key[i], value[i]), (memory_key[i], memory_value[i])
            x, past, _ = layer.step(x, past, growth, memory, mask)
            keys.append(past[0])
            values.append(past[1])
        log_probs = decoder.output(decoder.after_norm(x)).log_softmax(-1)
        return log_probs, torch.stack(keys), torch.stack(values)


def export_onnx(model: nn.Module, folder: str | Path) -> list[Path]:
    """Write a model as ONNX graphs.

    Args:
        model: in evaluation mode, on a CPU, float32; with a `TransformerDecoder`, a
            `BidirectionalDecoder` (whose left-to-right half is written) or none.
        folder: made if it is not there.

    Returns:
        The files: the encoder and, where there is a decoder, its start and its step.

    Raises:
        ConfigError: the model is an ensemble or has another decoder, or a package is missing.
    """
    decoder = exportable_decoder(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / ENCODER]
    outputs = ("hidden", "hidden_lengths", "log_probs")
    write(EncoderGraph(model), encoder_inputs(model), outputs, files[0])
    if decoder is None:
        return files
    files += [folder / START, folder / STEP]
    hidden = {"hidden": (torch.zeros(2, 7, decoder.memory_size), {0: FREE, 1: FREE})}
    write(StartGraph(decoder), hidden, MEMORY, files[1])
    outputs = ("log_probs", "new_key", "new_value")
    write(StepGraph(decoder), step_inputs(decoder), outputs, files[2])
    return files


def exportable_decoder(model: nn.Module) -> TransformerDecoder | None:
    """Return the decoder to write, None for a model without.

    Raises:
        ConfigError: the model cannot be exported.
    """
    if not isinstance(model, SpeechModel):
        raise ConfigError("export: one model at a time; of an ensemble, each of its models")
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        raise ConfigError("export: the model has to be in float32 on a CPU")
    decoder = model.decoder
    if isinstance(decoder, BidirectionalDecoder):
        decoder = decoder.left
    if decoder is not None and not isinstance(decoder, TransformerDecoder):
        raise ConfigError(f"export: a {type(decoder).__name__} cannot be exported")
    for layer in decoder.layers if decoder is not None else ():
        for attention in (layer.self_attention, layer.cross_attention):
            if not isinstance(attention, SoftmaxTokenAttention | SoftmaxCrossAttention):
                name = type(attention).__name__
                raise ConfigError(f"export: a decoder with {name} cannot be exported")
    return decoder


def encoder_inputs(model: SpeechModel) -> Inputs:
    """Return the inputs of the encoder's graph."""
    inputs: Inputs = {}
    for name in model.modalities:
        size = (model.streams[name].frontend.output_size,) if name == "video" else ()
        # Long enough for any subsampling, and no two axes alike.
        frames = 101 if name == "video" else 16001
        lengths = torch.tensor([frames, frames // 2, frames - 1])
        inputs[name] = torch.zeros(3, frames, *size), {0: FREE, 1: FREE}
        inputs[f"{name}_lengths"] = lengths, {0: FREE}
    return inputs


def step_inputs(decoder: TransformerDecoder) -> Inputs:
    """Return the inputs of the graph of a decoder's step."""
    b, k, m, t, layers = 2, 3, 5, 7, len(decoder.layers)
    tokens, cross = decoder.layers[0].self_attention, decoder.layers[0].cross_attention
    past = (layers, b, m, tokens.kv_heads, tokens.head_width)
    memory = (layers, b, cross.kv_heads, t, cross.head_width)
    # Each a tensor of its own, or the graph would read one input in two places.
    return {
        "token": (torch.zeros(b, k, dtype=torch.int64), {0: FREE, 1: FREE}),
        "position": (torch.tensor(4), {}),
        "path": (torch.ones(b, k, m, dtype=torch.bool), {0: FREE, 1: FREE, 2: FREE}),
        "key": (torch.zeros(past), {1: FREE, 2: FREE}),
        "value": (torch.zeros(past), {1: FREE, 2: FREE}),
        **{name: (torch.zeros(memory), {1: FREE, 3: FREE}) for name in MEMORY},
        "memory_mask": (torch.ones(b, t, dtype=torch.bool), {0: FREE, 1: FREE}),
    }


def write(graph: nn.Module, inputs: Inputs, outputs: Sequence[str], path: Path) -> None:
    """Trace a graph that takes `*inputs`, and write it.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("export", str(error.name)) from error
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every optional package that is missing
    try:
        with reference_kernels(), torch.no_grad():
            examples, axes = zip(*inputs.values(), strict=True)
            options = {"dynamic_shapes": (axes,), "strict": False}
            program = torch.export.export(graph.eval(), examples, **options)
            names = {"input_names": list(inputs), "output_names": list(outputs)}
            written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    finally:
        log.setLevel(level)
    written.save(path)


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Compute by the operations' definitions, whose code never branches on what a tensor holds."""
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[backend.VARIABLE]
        if before is not None:
            os.environ[backend.VARIABLE] = before


def export_dir(source: str | Path, output: str | Path, allow: Iterable[str] = ()) -> list[Path]:
    """Write the exported folder of a model directory.

    Args:
        source: a model directory, of one model or of an ensemble.
        output: made if it is not there.
        allow: packages beside this one whose classes config.yaml may name.

    Returns:
        The graphs.

    Raises:
        ConfigError: a model cannot be exported, or `output` is a model directory.
    """
    source, output = Path(source), Path(output)
    if (output / WEIGHTS).exists():
        raise ConfigError(f"--output {output}: is a model directory; name another folder")
    model = load_model(source, allow)
    # config.yaml comes last: without it the folder is no exported one.
    (output / CONFIG).unlink(missing_ok=True)
    files = []
    for name, one in model.models.items() if isinstance(model, Ensemble) else [("", model)]:
        if Path(name).name != name:
            raise ConfigError(f"export: {name!r} cannot name a folder: rename this model")
        files += export_onnx(one, output / name)
        if "video" in one.streams:
            weights = one.streams["video"].frontend.state_dict()
            save_file({k: w.contiguous() for k, w in weights.items()}, output / name / FRONTEND)
    Tokenizer.load(source).save(output)
    if (source / META).is_file():
        shutil.copyfile(source / META, output / META)
    config = read_config(source)
    write_text(output / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return files

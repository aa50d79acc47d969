"""A model as ONNX graphs, and what reads them with onnxruntime.

Three files: `encoder.onnx` (input to hidden frames and CTC log-probabilities), `decoder_start.onnx`
(hidden frames to the keys and values that the decoder listens to) and `decoder_step.onnx` (one more
token of every hypothesis). Batch, time, tokens and hypotheses are free axes.

Sound enters as waveforms, lips as the features of the visual frontend: that packs the frames of
ragged clips, of which a graph cannot know the number. The graphs need nothing of this package;
`OnnxModel` is what a `Transcriber` takes in a model's place (see `speechattn.deploy.exported`).

Legend: B utterances, K hypotheses of each, T frames, M nodes (tokens of an utterance's hypotheses,
those that they share once, see `speechattn.decoders.tree`), V units, L layers, H heads, Dh width.
"""

import copy
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from speechattn.attention import SoftmaxCrossAttention, SoftmaxTokenAttention
from speechattn.attention.decoder_base import Growth
from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.decoders import BidirectionalDecoder, Decoder, DecoderState, TransformerDecoder
from speechattn.decoders.tree import TokenTree
from speechattn.errors import ConfigError
from speechattn.frontends import MLPFusion
from speechattn.frontends.base import Frontend
from speechattn.kernels import backend
from speechattn.masks import padding_mask, without_padding
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import SpeechModel

ENCODER, START, STEP = "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx"
MISSING = "ONNX needs more packages: pip install 'speechattn[onnx]'"

ANY = torch.export.Dim.DYNAMIC


class Given(Frontend):
    """Stands for a frontend whose features come from outside."""

    def __init__(self, output_size: int):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return x, lengths


class Sinusoids(RelativePositions):
    """`RelativePositions` without a table: there is no length beyond which it would end."""

    def _lookup(self, frames: int, device: torch.device) -> Tensor:
        return relative_positions(frames, self.width, device)


class DenseFusion(MLPFusion):
    """`MLPFusion` in evaluation mode: padding is computed too and then thrown away."""

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        lengths = torch.minimum(audio_lengths, video_lengths)
        frames = torch.sym_min(audio.shape[1], video.shape[1])
        x = self.up(torch.cat([audio[:, :frames], video[:, :frames]], dim=-1))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)  # (B, T, hidden)
        return without_padding(self.down(torch.relu(x)), lengths), lengths


class EncoderGraph(nn.Module):
    """Input of each stream and its lengths to hidden frames, lengths and log-probabilities.

    Args:
        model: of which nothing is changed.
    """

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.decoder = None
        if "video" in self.model.streams:
            stream = self.model.streams["video"]
            stream.frontend = Given(stream.frontend.output_size)
        if self.model.fusion is not None:
            self.model.fusion.__class__ = DenseFusion
        for module in self.model.modules():
            if isinstance(module, RelativePositions):
                module.__class__ = Sinusoids
                module._table = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = {}
        for i, name in enumerate(self.model.modalities):
            given[name], given[f"{name}_lengths"] = inputs[2 * i : 2 * i + 2]
        hidden, lengths = self.model.encode(**given)
        return hidden, lengths, self.model.ctc_log_probs(hidden)


class StartGraph(nn.Module):
    """Hidden frames (B, T, D) to keys and values of all layers, each (L, B, H, T, Dh)."""

    def __init__(self, decoder: TransformerDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [layer.cross_attention.keys(hidden) for layer in self.decoder.layers]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


class StepGraph(nn.Module):
    """The decoder's step, with states as plain tensors."""

    def __init__(self, decoder: TransformerDecoder):
        super().__init__()
        self.decoder = decoder
        rate = torch.arange(0, decoder.width, 2, dtype=torch.float32)
        self.register_buffer("rate", torch.exp(rate * -(math.log(1e4) / decoder.width)))

    def forward(
        self,
        token: Tensor,
        position: Tensor,
        path: Tensor,
        key: Tensor,
        value: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token of each hypothesis.

        Args:
            token: (B, K) int64, <sos> first.
            position: () int64, how many tokens came before.
            path: (B, K, M) bool, the nodes that a hypothesis went through.
            key: (L, B, M, H, Dh), of the nodes; H and below heads of keys.
            value: (L, B, M, H, Dh).
            memory_key: (L, B, H, T, Dh).
            memory_value: (L, B, H, T, Dh).
            memory_mask: (B, T) bool, True where a frame is real.

        Returns:
            Log-probabilities of the next token (B, K, V), and keys and values of M + K nodes,
            (L, B, M + K, H, Dh) each: those before, and one for each hypothesis in their order.
        """
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


@contextmanager
def traceable() -> Iterator[None]:
    """While it lasts nothing in Python depends on what is in a tensor.

    The definitions of the operations take over from what looks at lengths to skip padding.
    """
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[backend.VARIABLE]
        else:
            os.environ[backend.VARIABLE] = before


def export_onnx(model: nn.Module, folder: str | Path) -> list[Path]:
    """Write a model as ONNX graphs; needs `speechattn[onnx]`.

    Args:
        model: in evaluation mode, on a CPU, float32; with a `TransformerDecoder`, a
            `BidirectionalDecoder` (of which the left-to-right half is written) or none.
        folder: made if it is not there.

    Returns:
        The files: the encoder, and where there is a decoder its start and its step.

    Raises:
        ConfigError: an ensemble, another decoder, or the packages are not there.
    """
    if not isinstance(model, SpeechModel):
        raise ConfigError("export: one model at a time; of an ensemble, each of its models")
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        raise ConfigError("export: the model has to be in float32 on a CPU")
    decoder = (
        model.decoder.left if isinstance(model.decoder, BidirectionalDecoder) else model.decoder
    )
    if decoder is not None and not isinstance(decoder, TransformerDecoder):
        raise ConfigError(f"export: a {type(decoder).__name__} cannot be exported")
    for layer in decoder.layers if decoder is not None else ():
        for attention in (layer.self_attention, layer.cross_attention):
            if not isinstance(attention, SoftmaxTokenAttention | SoftmaxCrossAttention):
                raise ConfigError(
                    f"export: a decoder with {type(attention).__name__} cannot be exported"
                )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    inputs, arguments, axes = [], [], []
    for name in model.modalities:
        stream = model.streams[name]
        inputs += [name, f"{name}_lengths"]
        size = (stream.frontend.output_size,) if name == "video" else ()
        # Long enough for any subsampling, and no two axes alike.
        frames = 101 if name == "video" else 16001
        arguments += [
            torch.zeros(3, frames, *size),
            torch.tensor([frames, frames // 2, frames - 1]),
        ]
        axes += [{0: ANY, 1: ANY}, {0: ANY}]
    outputs = ["hidden", "hidden_lengths", "log_probs"]
    files = [folder / ENCODER]
    write(EncoderGraph(model), arguments, (tuple(axes),), inputs, outputs, files[0])
    if decoder is None:
        return files
    files += [folder / START, folder / STEP]
    b, k, m, t, layers = 2, 3, 5, 7, len(decoder.layers)
    memory = ["memory_key", "memory_value"]
    hidden = [torch.zeros(b, t, decoder.memory_size)]
    write(StartGraph(decoder), hidden, [{0: ANY, 1: ANY}], ["hidden"], memory, files[1])
    tokens, cross = decoder.layers[0].self_attention, decoder.layers[0].cross_attention
    past = (layers, b, m, tokens.kv_heads, tokens.head_width)
    kept = (layers, b, cross.kv_heads, t, cross.head_width)
    # Each a tensor of its own, or the graph would read one input in two places.
    arguments = {
        "token": (torch.zeros(b, k, dtype=torch.int64), {0: ANY, 1: ANY}),
        "position": (torch.tensor(4), {}),
        "path": (torch.ones(b, k, m, dtype=torch.bool), {0: ANY, 1: ANY, 2: ANY}),
        "key": (torch.zeros(past), {1: ANY, 2: ANY}),
        "value": (torch.zeros(past), {1: ANY, 2: ANY}),
        "memory_key": (torch.zeros(kept), {1: ANY, 3: ANY}),
        "memory_value": (torch.zeros(kept), {1: ANY, 3: ANY}),
        "memory_mask": (torch.ones(b, t, dtype=torch.bool), {0: ANY, 1: ANY}),
    }
    examples, axes = ([pair[i] for pair in arguments.values()] for i in (0, 1))
    outputs = ["log_probs", "new_key", "new_value"]
    write(StepGraph(decoder), examples, axes, list(arguments), outputs, files[2])
    return files


def write(
    graph: nn.Module,
    arguments: list[Tensor],
    axes: list | tuple,
    inputs: list[str],
    outputs: list[str],
    path: Path,
) -> None:
    """Trace a graph with free axes and writes it."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export: {MISSING} ({error})") from error
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)  # it warns of every optional package that is not there
    try:
        with traceable(), torch.no_grad():
            program = torch.export.export(
                graph.eval(), tuple(arguments), dynamic_shapes=axes, strict=False
            )
            written = torch.onnx.export(
                program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False
            )
    finally:
        loud.setLevel(level)
    written.save(path)


def open_session(path: Path, threads: int | None = None):
    """An onnxruntime session on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: {MISSING} ({error})") from error
    if not path.is_file():
        raise ConfigError(f"{path} is missing: write it with `speechattn export`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session, **inputs: Tensor) -> list[Tensor]:
    """The outputs of a session, in their order."""
    given = {name: x.contiguous().numpy() for name, x in inputs.items()}
    return [torch.from_numpy(y) for y in session.run(None, given)]


class OnnxDecoder(Decoder):
    """The exported decoder with the interface that a search knows.

    Args:
        source: whose sizes it has.
        folder: of the graphs.
    """

    scores_sequences = False  # one token after another

    def __init__(self, source: Decoder, folder: Path):
        super().__init__()
        self.vocab_size, self.memory_size = source.vocab_size, source.memory_size
        self.width = source.width
        left = source.left if isinstance(source, BidirectionalDecoder) else source
        tokens = left.layers[0].self_attention
        self.node = (tokens.kv_heads, tokens.head_width)
        self.start, self.one = open_session(folder / START), open_session(folder / STEP)

    def init_state(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        keys, values = run_session(self.start, hidden=memory)  # (L, B, H, T, Dh)
        none = keys.new_empty(len(memory), 0, *self.node)
        tree = TokenTree.root(tuple((none, none) for _ in keys))
        mask = padding_mask(memory_lengths, memory.size(1))[:, None, None]
        return DecoderState(tuple(zip(keys, values, strict=True)), mask, tree)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        tree = state.tree
        key, value = (torch.stack(x) for x in zip(*tree.cache, strict=True))
        memory_key, memory_value = (torch.stack(x) for x in zip(*state.memory, strict=True))
        log_probs, key, value = run_session(
            self.one,
            token=token.view(state.utterances, -1),
            position=torch.tensor(tree.depth),
            path=tree.path,
            key=key,
            value=value,
            memory_key=memory_key,
            memory_value=memory_value,
            memory_mask=state.memory_mask[:, 0, 0],
        )
        cache = tuple(zip(key, value, strict=True))
        return log_probs.flatten(0, 1), replace(state, tree=tree.grown(cache, tree.growth()))


class OnnxModel(nn.Module):
    """Exported graphs in a model's place, e.g. in a `Transcriber`.

    Args:
        source: the model that was exported; its sizes are read and, of a model that sees, its
            visual frontend is used.
        folder: of the graphs.
    """

    def __init__(self, source: SpeechModel, folder: str | Path):
        super().__init__()
        folder = Path(folder)
        self.modalities = source.modalities
        self.vocab_size, self.frame_shift = source.vocab_size, source.frame_shift
        self.crop_size, self.video_fps = source.crop_size, source.video_fps
        self.sample_rate = source.sample_rate
        self.look = source.streams["video"].frontend if "video" in source.streams else None
        self.encoder = open_session(folder / ENCODER)
        self.decoder = None if source.decoder is None else OnnxDecoder(source.decoder, folder)

    @property
    def decoders(self) -> list[Decoder | None]:
        """The decoder, as a `SpeechModel` lists it."""
        return [self.decoder]

    @property
    def transducers(self) -> list[None]:
        """None: a transducer is not exported."""
        return [None]

    def outputs(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> list[ModelOutput]:
        """As `SpeechModel.outputs`."""
        given = {}
        if "audio" in self.modalities:
            given.update(audio=audio, audio_lengths=audio_lengths)
        if self.look is not None:
            video, video_lengths = self.look(video, video_lengths)
            given.update(video=video, video_lengths=video_lengths)
        hidden, lengths, log_probs = run_session(self.encoder, **given)
        return [ModelOutput(hidden, lengths, log_probs, self.decoder, self.frame_shift)]

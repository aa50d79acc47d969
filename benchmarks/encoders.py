"""Claim: the encoders are exact, and faster than ESPnet 202611's with the same weights.

Conformer and E-Branchformer, 12 blocks of width 256 with 4 heads, float32: forward pass of one
input of 10, 40 and 160 s and of a ragged batch of 8, training step on the ragged batch, and what a
pass adds to the process at its peak. Beside the forward pass stands its floor: the time that the
same matrix products and convolutions take alone, in the same run. `packed` is what a `Transcriber`
runs: the same in float32 with weights laid out for the processor. Each case has a process of its
own; ours, ESPnet's and the floor take turns in it, and their outputs are compared first. ESPnet's
batch of 8 at 160 s would need 45 GB and is left out.

    python benchmarks/encoders.py [--quick] [--json FILE] [--only WORD]

ESPnet is found in the environment of `make test-espnet`, which `make bench` takes where it is.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rows import against_peer, in_turn, row, save, spread, times_floor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.attention import relative
from speechattn.deploy.packing import pack
from speechattn.encoders import ConformerEncoder, EBranchformerEncoder
from speechattn.importing.espnet import encoder_weights

THREADS = 2
FEATURES, FRAME_RATE = 80, 100
BLOCKS, WIDTH, HEADS = 12, 256, 4
TILE = 128  # queries a tile of the floor's attention: nothing larger or smaller is faster
KINDS = ("conformer", "e_branchformer")
# What ours must reach in a forward pass, times ESPnet's speed, by seconds of input.
FORWARD_TARGETS = {10: 1.0, 40: 1.15, 160: 3.0}
FLOOR_TARGET, MEMORY_TARGET, TRAINING_TARGET = 1.15, 3.0, 1.2


def our_model(kind: str) -> nn.Module:
    shared = {"num_blocks": BLOCKS, "dropout": 0.1, "attention_dropout": 0.1}
    if kind == "conformer":
        return ConformerEncoder(FEATURES, WIDTH, HEADS, linear_units=2048, conv_kernel=15, **shared)
    return EBranchformerEncoder(FEATURES, WIDTH, HEADS, **shared)


def espnet_model(kind: str) -> nn.Module | None:
    """None where ESPnet cannot be imported."""
    shared = {
        "output_size": WIDTH,
        "attention_heads": HEADS,
        "num_blocks": BLOCKS,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": "conv2d",
        "rel_pos_type": "latest",
    }
    try:
        if kind == "conformer":
            from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as Theirs

            return Theirs(
                FEATURES, linear_units=2048, cnn_module_kernel=15, macaron_style=True, **shared
            )
        from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder as Theirs

        return Theirs(
            FEATURES,
            linear_units=1024,
            cgmlp_linear_units=1024,
            cgmlp_conv_kernel=31,
            merge_conv_kernel=31,
            use_ffn=True,
            macaron_ffn=True,
            **shared,
        )
    except ImportError:
        return None


def batch(seconds: float, items: int) -> tuple[Tensor, Tensor]:
    """Noise, (B, T, F) and lengths: one item, or several from half the length to the whole."""
    frames = round(seconds * FRAME_RATE)
    lengths = torch.linspace(frames, frames / 2, items).long() if items > 1 else None
    return torch.randn(items, frames, FEATURES), (
        torch.tensor([frames]) if lengths is None else lengths
    )


class Products(TorchDispatchMode):
    """Notes each matrix product and convolution: the operation, and on what.

    Weights are the model's own, since each layer has to read its own from memory; of other operands
    the shapes are kept.
    """

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.calls = []
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.NAMES:
            self.calls.append((function, [self._note(a) for a in args]))
        return function(*args, **(kwargs or {}))

    def _note(self, argument: object) -> tuple:
        if not isinstance(argument, Tensor):
            return "value", argument
        if argument.untyped_storage().data_ptr() in self.weights:
            return "value", argument.detach()
        return tuple(argument.shape), argument.stride()


def floor_of(model: nn.Module, x: Tensor, lengths: Tensor) -> Callable[[], None]:
    """What runs the products and convolutions of a forward pass, and nothing else.

    All but those of attention are recorded from the model. Those of attention are content, position
    and values by their definition, for each item's own length: T x T each, not one product more.
    """
    counts: list[list[int]] = []

    def without_attention(q, k, v, p, u, w, lengths, *_):
        counts.append(lengths.tolist())
        return torch.zeros_like(v)

    kernel, relative.relative_attention = relative.relative_attention, without_attention
    try:
        with torch.no_grad(), Products(model) as seen:
            model(x, lengths)
    finally:
        relative.relative_attention = kernel
    if not counts or not seen.calls:
        raise RuntimeError("the floor saw no products: has the model changed?")
    made: dict[tuple, Tensor] = {}

    def tensor(shape: tuple, stride: tuple) -> Tensor:
        if (shape, stride) not in made:
            size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            made[shape, stride] = torch.rand(size).as_strided(shape, stride)
        return made[shape, stride]

    calls = [
        (function, [b if a == "value" else tensor(a, b) for a, b in shapes])
        for function, shapes in seen.calls
    ]
    depth, longest = WIDTH // HEADS, max(max(c) for c in counts)
    heads = torch.rand(longest, HEADS, depth).transpose(0, 1)  # (H, T, Dh)
    weights = torch.rand(HEADS, TILE, longest)

    @torch.inference_mode()
    def run() -> None:
        for function, args in calls:
            function(*args)
        for frames in (n for layer in counts for n in layer):
            keys = heads[:, :frames]
            for start in range(0, frames, TILE):
                queries = heads[:, start : min(start + TILE, frames)]
                torch.bmm(queries, keys.transpose(1, 2))  # content
                torch.bmm(queries, keys.transpose(1, 2))  # position
                torch.bmm(weights[:, : queries.shape[1], :frames], keys)

    return run


def forward_pass(model: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x, lengths)[0]


def training_step(model: nn.Module, x: Tensor, lengths: Tensor, optimizer) -> None:
    optimizer.zero_grad()
    y, lengths = model(x, lengths)[:2]
    real = torch.arange(y.shape[1]) < lengths[:, None]
    (y * real[..., None]).square().mean().backward()
    optimizer.step()


def measure_time(kind: str, task: str, seconds: float, items: int, rounds: int) -> dict:
    """Seconds a run of ours, of ESPnet's and of the floor, in turn."""
    torch.manual_seed(0)
    theirs, ours = espnet_model(kind), our_model(kind)
    if theirs is not None:
        ours.load_state_dict(encoder_weights(theirs.state_dict()))
    x, lengths = batch(seconds, items)
    runs: dict[str, Callable[[], object]] = {}
    for name, model in (("ours", ours), ("peer", theirs)):
        if model is None:
            continue
        model.train(task == "training")
        if task == "training":
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
            runs[name] = lambda m=model, o=optimizer: training_step(m, x, lengths, o)
        else:
            runs[name] = lambda m=model: forward_pass(m, x, lengths)
    if task == "forward":
        packed = pack(copy.deepcopy(ours))
        runs["packed"] = lambda: forward_pass(packed, x, lengths)
        runs["floor"] = floor_of(ours, x, lengths)
    if theirs is not None:
        check(ours, theirs)
    return in_turn(runs, rounds, warm=rounds > 1)


def check(ours: nn.Module, theirs: nn.Module) -> None:
    """That both compute the same."""
    modes = ours.training, theirs.training
    x, lengths = batch(4, 3)
    y, new = forward_pass(ours.eval(), x, lengths), ours(x, lengths)[1]
    z = forward_pass(theirs.eval(), x, lengths)
    real = (torch.arange(y.shape[1]) < new[:, None])[..., None]
    worst = ((y - z) * real).abs().max().item()
    if worst > 1e-3:
        raise RuntimeError(f"ours and ESPnet's outputs differ by {worst:.2g}")
    ours.train(modes[0]), theirs.train(modes[1])


def measure_memory(kind: str, task: str, seconds: float, items: int, who: str) -> float | None:
    """Bytes that the first pass of this process adds at its peak."""
    torch.manual_seed(0)
    model = our_model(kind) if who == "ours" else espnet_model(kind)
    if model is None:
        return None
    x, lengths = batch(seconds, items)
    if task == "training":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        training_step(model.train(), *batch(1, 2), optimizer)
    else:
        forward_pass(model.eval(), *batch(1, 1))  # libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    if task == "training":
        training_step(model, x, lengths, optimizer)
    else:
        forward_pass(model, x, lengths)
    return status("VmHWM") - before


def status(field: str) -> int:
    """A number of bytes from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_own_process(function: str, *arguments) -> object:
    """What a function of this file returns, from a fresh process; None where it was killed."""
    command = [sys.executable, __file__, "--worker", json.dumps([function, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        print(f"{function} {arguments}: killed by signal {-done.returncode}")
        return None
    if done.returncode:
        raise RuntimeError(f"{function} {arguments} failed")
    return json.loads(done.stdout.splitlines()[-1])


def timed(kind: str, task: str, seconds: int, items: int, rounds: int) -> list[dict]:
    """The rows of one case."""
    times = in_own_process("measure_time", kind, task, seconds, items, rounds)
    what = "batch of 8, up to" if items > 1 else "one input of"
    title = f"{kind} 12 x 256, {task}, {what} {seconds} s"
    if times is None:
        return [row(title, None, None, None, None, "s", False)]
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    ours, packed, peer, floor = (
        statistics.median(times[n]) if n in times else None
        for n in ("ours", "packed", "peer", "floor")
    )
    target = TRAINING_TARGET if task == "training" else FORWARD_TARGETS[seconds]
    rows = [against_peer(title, ours, peer, target, "s")]
    if floor is not None:
        wanted = FLOOR_TARGET if (seconds, items) == (10, 1) else None
        rows.append(against_peer(f"{title}, packed", packed, peer, target, "s"))
        rows.append(times_floor(title, ours, floor, None, "s"))
        rows.append(times_floor(f"{title}, packed", packed, floor, wanted, "s"))
    return rows


def remembered(kind: str, task: str, seconds: int, items: int, target: float) -> dict:
    """The row of one case's memory."""
    found = {
        who: in_own_process("measure_memory", kind, task, seconds, items, who)
        for who in ("ours", "peer")
    }
    ours, peer = (found[who] / 1e6 if found[who] else None for who in ("ours", "peer"))
    what = "batch of 8, up to" if items > 1 else "one input of"
    title = f"{kind} 12 x 256, {task}, {what} {seconds} s, peak memory"
    print(f"{title}, MB: ours {ours}, peer {peer}", flush=True)
    return against_peer(title, ours, peer, target, "MB")


def benchmark(quick: bool, only: str) -> list[dict]:
    """All rows; `quick` is short inputs and few rounds."""
    #        task, seconds, items, rounds
    cases = [("forward", 10, 1, 15), ("forward", 40, 1, 7), ("forward", 160, 1, 3),
             ("forward", 10, 8, 5), ("forward", 40, 8, 2), ("training", 10, 8, 5)]  # fmt: skip
    memory = [("forward", 160, 1, MEMORY_TARGET), ("training", 10, 8, 1.0)]
    if quick:
        cases = [("forward", 10, 1, 3), ("forward", 40, 1, 1), ("training", 10, 8, 1)]
        memory = [("forward", 40, 1, 1.0)]
    rows = []
    for kind in KINDS:
        for case in cases:
            if only in f"{kind} {' '.join(map(str, case))}":
                rows += timed(kind, *case)
        for case in memory:
            if only in f"{kind} memory {' '.join(map(str, case))}":
                rows.append(remembered(kind, *case[:3], case[3]))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short inputs, few rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases with this in 'kind task seconds items'")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.worker:
        function, *arguments = json.loads(options.worker)
        print(json.dumps({f.__name__: f for f in (measure_time, measure_memory)}[function](
            *arguments)))  # fmt: skip
        return 0
    rows = benchmark(options.quick, options.only)
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Claim: ResNet3D describes 10 s of mouth crops faster than the modules it is published as.

The peer is written with `Conv3d`, `BatchNorm3d`, `MaxPool3d` and a plain ResNet-18, on the same
weights. The floor beside them is the time that the convolutions alone take as oneDNN's direct
ones, weights packed; optimised float32 may be below it, as Winograd's have fewer products. With
`--model`, also how many clips of a test set keep their text when the model's frontend computes in
the cheaper arithmetic.

    python benchmarks/visual_frontend.py [--quick] [--json FILE]
        [--model DIR --cuts FILE --crops DIR [--options FILE]]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from rows import in_turn, row, save, spread
from torch import Tensor, nn

from speechattn.deploy.visual_frontend import FUSED, FoldedConv, fold_frontend
from speechattn.frontends import ResNet3D
from speechattn.model import load_model

FRAMES, SIDE = 250, 88
SEED = 1


class PlainBlock(nn.Module):
    """The basic block of torchvision's ResNet-18."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.SiLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.SiLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.downsample is None else self.downsample(x)
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + around)


class PlainResNet3D(nn.Module):
    """The frontend as lip-reading code bases write it, on (B, 1, T, H, W) normalised crops."""

    def __init__(self):
        super().__init__()
        self.frontend3d = nn.Sequential(
            nn.Conv3d(1, 64, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.SiLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        shapes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        shapes += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.trunk = nn.Sequential(*(PlainBlock(*shape) for shape in shapes))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.frontend3d(x)
        batch, _, frames = y.shape[:3]
        y = self.trunk(y.transpose(1, 2).flatten(0, 1))
        return self.pool(y).view(batch, frames, -1)

    def load(self, model: ResNet3D) -> None:
        """Take the other's weights: both list theirs in the order in which they are used."""
        theirs = [v for v in model.state_dict().values() if v.dim() or v.dtype != torch.int64]
        ours = self.state_dict()
        names = [n for n, v in ours.items() if v.dim() or v.dtype != torch.int64]
        self.load_state_dict({**ours, **dict(zip(names, theirs, strict=True))})


def timed(functions: dict, rounds: int) -> dict[str, list[float]]:
    """`in_turn`, printed."""
    times = in_turn(functions, rounds)
    for name, values in times.items():
        print(f"{name}, s: {spread(values)}")
    return times


def randomise(model: nn.Module) -> None:
    """Norms that do something, as a trained network's do."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def convolutions(folded: nn.Module, clip: Tensor, lengths: Tensor) -> list:
    """Every convolution that a pass makes, as a call on an input of its shape."""
    calls = []

    def note(module: FoldedConv, arguments, output) -> None:
        x = torch.randn_like(arguments[0])
        shape = (module.padding, module.stride, [1, 1], module.groups, "none", [], "")
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            module.weight, module.padding, module.stride, [1, 1], module.groups, list(x.shape)
        )
        calls.append((x, packed, module.bias, *shape))

    if not FUSED:
        return calls
    convs = [module for module in folded.modules() if isinstance(module, FoldedConv)]
    hooks = [module.register_forward_hook(note) for module in convs]
    folded(clip, lengths)
    for hook in hooks:
        hook.remove()
    return calls


def forward_rows(frames: int, rounds: int) -> list[dict]:
    """A pass in inference: float32 and bfloat16 against the plain modules."""
    torch.manual_seed(SEED)
    model = ResNet3D()
    randomise(model)
    plain = PlainResNet3D()
    plain.load(model)
    model.eval()
    plain.eval()
    clip = torch.randint(0, 256, (1, frames, 1, SIDE, SIDE), dtype=torch.uint8)
    lengths = torch.tensor([frames])
    fp32, mixed, bf16 = (fold_frontend(model, name) for name in ("fp32", "mixed", "bf16"))
    mean, std = model.windows.mean, model.windows.std

    def peer() -> Tensor:
        return plain(((clip.float() / 255 - mean) / std).transpose(1, 2))

    calls = convolutions(fp32, clip, lengths)

    def floor() -> None:
        for call in calls:
            torch.ops.mkldnn._convolution_pointwise(*call)

    functions = {
        "plain modules": peer,
        "ResNet3D": lambda: model(clip, lengths),
        "ResNet3D, optimised": lambda: fp32(clip, lengths),
        "ResNet3D, optimised, mixed": lambda: mixed(clip, lengths),
        "ResNet3D, optimised, bf16": lambda: bf16(clip, lengths),
    }
    if calls:
        functions["direct convolutions alone, float32"] = floor
    times = in_turn(functions, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["plain modules"]
    what = f"{frames} frames of {SIDE}x{SIDE}"
    rows = []
    for name, target in (("optimised", 1.1), ("optimised, mixed", 1.5), ("optimised, bf16", 1.5)):
        value = medians[f"ResNet3D, {name}"]
        ratio = base / value
        rows.append(
            row(f"ResNet3D, {name}, {what}", value, base, ratio, target, "s", ratio >= target)
        )
    value = medians["ResNet3D"]
    rows.append(row(f"ResNet3D as trained, {what}", value, base, base / value, None, "s", None))
    if "direct convolutions alone, float32" in medians:
        value, least = medians["ResNet3D, optimised"], medians["direct convolutions alone, float32"]
        title = f"ResNet3D, optimised, over its direct convolutions alone, {what}"
        rows.append(row(title, value, least, least / value, None, "s", None))
    expected = peer()
    for name, found in (("as trained", model), ("optimised", fp32)):
        error = float((found(clip, lengths)[0] - expected).abs().max())
        title = f"ResNet3D, {name}: largest difference from the plain modules"
        rows.append(row(title, error, "bound", error / 1e-4, 1e-4, "", error <= 1e-4))
        print(f"{title}: {error:.2g}")
    return rows


def training_row(frames: int, rounds: int) -> dict:
    """A training step on two clips, the second half as long: forward and backward."""
    torch.manual_seed(SEED)
    model = ResNet3D().train()
    plain = PlainResNet3D().train()
    plain.load(model)
    clips = torch.randint(0, 256, (2, frames, 1, SIDE, SIDE), dtype=torch.uint8)
    lengths = torch.tensor([frames, frames // 2])

    def ours() -> None:
        model(clips, lengths)[0].square().mean().backward()

    def peer() -> None:
        plain((clips.float() / 255).transpose(1, 2)).square().mean().backward()

    times = in_turn({"plain modules, training": peer, "ResNet3D, training": ours}, rounds)
    base, value = (statistics.median(values) for values in times.values())
    name = f"ResNet3D, training, clips of {frames} and {frames // 2} frames"
    return row(name, value, base, base / value, None, "s", None)


def text_rows(options: argparse.Namespace) -> list[dict]:
    """The share of clips whose text the cheaper arithmetic leaves alone."""
    from speechattn.decoding import JointSearch
    from speechattn.transcribe.manifests import decode_cuts
    from speechattn.transcribe.transcriber import Transcriber

    decoding = JointSearch.load(options.options) if options.options else None
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("as trained", "fp32", "mixed", "bf16"):
            precision = "fp32" if name == "as trained" else name
            transcriber = Transcriber.from_pretrained(options.model, decoding, precision=precision)
            if name == "as trained":
                transcriber.model = load_model(options.model)
            output = Path(folder) / name.replace(" ", "_")
            path = decode_cuts(transcriber, options.cuts, output, options.crops, details=0)
            lines = path.read_text(encoding="utf-8").splitlines()
            texts[name] = dict(line.partition("\t")[::2] for line in lines)
    rows = []
    for name, target in (("fp32", 1.0), ("mixed", 0.99), ("bf16", 0.99)):
        total = len(texts["as trained"])
        same = sum(texts[name][key] == text for key, text in texts["as trained"].items())
        title = f"clips of {total} with the same text, {options.model.name}, frontend in {name}"
        share = same / total
        print(f"{title}: {same}")
        rows.append(row(title, share, "bound", share / target, target, "share", share >= target))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 s of video, fewer rounds")
    parser.add_argument("--json", type=Path)
    # What `recipes/grid/run.sh` has left behind, if it was run.
    exp = Path(__file__).resolve().parent.parent / "exp"
    made = exp / "grid_video" / "model", exp / "data_grid" / "manifests" / "cuts_test.jsonl.gz"
    model, cuts = made if all(path.exists() for path in made) else (None, None)
    crops = exp / "data_grid" / "crops"
    parser.add_argument("--model", type=Path, default=model, help="a trained model that sees")
    parser.add_argument("--cuts", type=Path, default=cuts, help="its test set")
    parser.add_argument("--crops", type=Path, default=crops, help="the test set's mouth crops")
    parser.add_argument("--options", type=Path, help="decode options, the model's own by default")
    options = parser.parse_args()
    if options.model is not None and options.cuts is None:
        parser.error("--model needs --cuts")
    with torch.inference_mode():
        rows = forward_rows(50 if options.quick else FRAMES, 3 if options.quick else 7)
    rows.append(training_row(8 if options.quick else 25, 3 if options.quick else 5))
    if options.model is not None:
        rows += text_rows(options)
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Frontends on a stream: pieces of sound or of mouth crops in, features out once they are sure.

A feature is computed from the inputs around it. So a frontend goes over what is new and the little
before it that new features still look at; what it says of the first of these and of the last ones,
which look beyond, is left out. What comes out is what the frontend says of the whole input.

Legend: T features, N inputs (samples or pictures), F width of a feature.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from speechattn.deploy.visual_frontend import FoldedResNet
from speechattn.errors import ConfigError
from speechattn.frontends.base import Frontend
from speechattn.frontends.espnet_log_mel import EspnetLogMel
from speechattn.frontends.fbank import LogMelFbank
from speechattn.frontends.resnet3d import PackedResNet
from speechattn.frontends.temporal import OverTime

WHOLE = (
    "cannot stream: it needs the whole utterance for {what}. Train a model with {instead}, or "
    "transcribe files"
)


@dataclass(frozen=True)
class Reach:
    """How far around a feature its inputs lie.

    Attributes:
        step: inputs from a feature to the next.
        left: features, before one, whose inputs it looks at.
        right: the same, behind it.
        window: inputs of a feature that looks neither left nor right.
    """

    step: int = 1
    left: int = 0
    right: int = 0
    window: int = 1

    def inputs(self, features: int) -> int:
        """The inputs that so many features of a stream need."""
        return (features - 1 + self.right) * self.step + self.window


def reach_of(frontend: Frontend, name: str) -> Reach:
    """How far a frontend looks.

    Args:
        frontend: of a trained model.
        name: how an error calls it: `audio.frontend`, `video.frontend`.

    Raises:
        ConfigError: it needs the whole utterance, or is of a class unknown here.
    """
    cmvn = getattr(frontend, "cmvn", None)
    if cmvn is not None and cmvn.kind not in ("global", "none"):
        what = f"{name}.init_args.normalise {cmvn.kind}"
        raise ConfigError(
            f"{name} " + WHOLE.format(what=what, instead="`normalise: global` and its statistics")
        )
    if isinstance(frontend, LogMelFbank):
        return Reach(frontend.hop, window=frontend.window_size)
    if isinstance(frontend, EspnetLogMel):
        edge = math.ceil(frontend.fft_size / 2 / frontend.hop)
        # At its end a stream is mirrored, for which there has to be more than is read before it.
        return Reach(frontend.hop, edge + 1, edge, 0)
    if isinstance(frontend, PackedResNet | FoldedResNet):
        if frontend.windows.normalise == "clip":
            what = f"{name}.init_args.normalise clip"
            raise ConfigError(f"{name} " + WHOLE.format(what=what, instead="`normalise: fixed`"))
        layers = sum(isinstance(layer, OverTime) for layer in frontend.modules())
        side = frontend.windows.frames // 2 + layers
        return Reach(1, side, side)
    raise ConfigError(
        f"{name} "
        + WHOLE.format(
            what=f"what {type(frontend).__name__} does",
            instead="one of LogMelFbank, EspnetLogMel, ResNet3D and EnhancedResNet3D",
        )
    )


class FrontendStream:
    """One stream through a frontend.

    Args:
        frontend: in evaluation mode.
        name: see `reach_of`.

    Attributes:
        reach: how far it looks.
        held: (1, N, ...), inputs that features to come look at; None before the first.
    """

    def __init__(self, frontend: Frontend, name: str):
        self.frontend = frontend
        self.reach = reach_of(frontend, name)
        self.held: Tensor | None = None
        self._skip = 0  # features of `held` that came out already
        packed = isinstance(frontend, PackedResNet | FoldedResNet)
        self._by_picture = packed and not any(isinstance(m, OverTime) for m in frontend.modules())

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        """Go on.

        Args:
            x: (1, n, ...), any number of inputs, none included.
            last: nothing comes after these.

        Returns:
            (1, T, F), the features that are sure now, T may be 0.
        """
        x = x if self.held is None else torch.cat([self.held, x], dim=1)
        count, skip = x.shape[1], self._skip
        ready = self._ready(count, last)
        if ready <= skip:
            self.held = x
            return torch.zeros(1, 0, self.frontend.output_size, device=x.device)
        y = self._features(x, skip, ready)
        keep = max(ready - self.reach.left, 0)
        self.held, self._skip = x[:, keep * self.reach.step :].clone(), ready - keep
        return y

    def _ready(self, count: int, last: bool) -> int:
        """Features of the inputs held that are sure."""
        reach = self.reach
        if count == 0:
            return 0
        return max((count - reach.window) // reach.step + 1 - (0 if last else reach.right), 0)

    def _features(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Of inputs (1, N, ...) the features from `start` to `stop`."""
        frontend, lengths = self.frontend, torch.tensor([x.shape[1]], device=x.device)
        if not self._by_picture:
            return frontend(x, lengths)[0][:, start:stop]
        # Pictures that are only looked at from the side need no trunk of their own.
        pictures, first = frontend.windows.pictures(x, lengths)
        first = first[start:stop]
        if isinstance(frontend, FoldedResNet):
            y = frontend.describe(pictures, first, None)
        else:
            y = frontend.apply_stem(frontend.windows.gather(pictures, first))
            y = frontend.apply_trunk(y, lengths.new_tensor([len(first)])).mean(dim=(2, 3))
        return frontend.output_norm(y)[None]  # (1, T, F)

"""What every frontend is: sound or pictures in, one feature vector a frame out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError


@dataclass(frozen=True)
class Reach:
    """The inputs that a feature is computed from.

    Feature t's own inputs are `window` many from t * step on; it depends on those of the features
    t - left to t + right and on no others.

    Attributes:
        step: inputs from one feature to the next.
        left, right: features before and after it.
        window: inputs of a feature by itself.
    """

    step: int = 1
    left: int = 0
    right: int = 0
    window: int = 1

    def inputs(self, features: int) -> int:
        """Return the inputs of a stream that its first `features` features need."""
        return (features - 1 + self.right) * self.step + self.window

    def features(self, inputs: int, last: bool = False) -> int:
        """Return the features that so many inputs determine; nothing follows if `last`."""
        if inputs == 0:
            return 0
        return max((inputs - self.window) // self.step + 1 - (0 if last else self.right), 0)


@dataclass(frozen=True)
class FrontendState:
    """The state of B streams of equal length. A step makes a new one.

    Attributes:
        inputs: (B, N, ...), those that features to come depend on; None before the first.
        done: features of `inputs` that came out already.
    """

    inputs: Tensor | None = None
    done: int = 0


class Frontend(nn.Module):
    """Turns sound or pictures into features; the base of every frontend, those of plug-ins too.

    `forward(x, lengths) -> (features (B, T, output_size), lengths (B,))`. Frames beyond an item's
    length are zero, and an item's features do not depend on the rest of its batch. A subclass
    implements `forward`; one that can stream implements `reach` too, from which `step` follows.

    Attributes:
        output_size: F.
        frame_shift: seconds from one feature to the next; None for a feature a picture.
        sample_rate: of the sound that it takes, in Hz; None for any.
    """

    output_size: int
    frame_shift: float | None = None
    sample_rate: int | None = None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of whole utterances.

        Args:
            x: (B, N) sound in [-1, 1], or (B, N, C, H, W) pictures in [0, 255].
            lengths: (B,) int64, samples or pictures of each item, at most N.

        Returns:
            (B, T, output_size) float, and (B,) int64.
        """
        raise NotImplementedError

    def reach(self) -> Reach:
        """Return the inputs that a feature depends on.

        Raises:
            ConfigError: on the whole utterance, so that the frontend cannot stream; the message
                has the reason, and what to do.
        """
        raise ConfigError(
            f"{type(self).__name__} needs the whole utterance; use LogMelFbank, EspnetLogMel, "
            "ResNet3D or EnhancedResNet3D, or transcribe files"
        )

    def step(
        self, x: Tensor, state: FrontendState, last: bool = False
    ) -> tuple[Tensor, FrontendState]:
        """Compute the next features of streams; in eval mode equal to `forward` on the whole.

        Args:
            x: (B, n, ...), any number of inputs, none included.
            state: `FrontendState()`, or that of the step before.
            last: nothing comes after these inputs.

        Returns:
            (B, T, output_size), the features that no later input can change, T may be 0; and the
            new state.

        Raises:
            ConfigError: see `reach`.
        """
        reach = self.reach()
        if state.inputs is not None:
            x = torch.cat([state.inputs, x], dim=1)
        ready = reach.features(x.shape[1], last)
        if ready <= state.done:
            none = torch.zeros(len(x), 0, self.output_size, device=x.device)
            return none, FrontendState(x, state.done)
        y = self.forward_slice(x, state.done, ready)
        gone = max(ready - reach.left, 0)
        return y, FrontendState(x[:, gone * reach.step :].clone(), ready - gone)

    def forward_slice(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Compute some of the features of equally long inputs.

        Args:
            x: (B, N, ...), no padding.
            start, stop: first feature, and the one after the last.

        Returns:
            (B, stop - start, output_size).
        """
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        y: Tensor = self(x, lengths)[0]
        return y[:, start:stop]

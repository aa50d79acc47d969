"""Ensemble: several models that read together, each with a share of every score.

Of an audio and a visual model it makes an audio-visual one (decision fusion): the search asks each
model what it thinks of a hypothesis, so that neither has to learn when to believe the other.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from speechattn.decoders import Decoder, Transducer
from speechattn.errors import ConfigError
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import Modality, SpeechModel


class Ensemble(nn.Module):
    """Models of the same units, searched together.

    Args:
        models: by name; those that hear take the same sound, those that see the same crops.
        weights: by name, above 0. Scores are weighed by the share of each in their sum.
    """

    def __init__(self, models: Mapping[str, SpeechModel], weights: Mapping[str, float]):
        super().__init__()
        if not models:
            raise ConfigError("an ensemble needs models")
        if set(models) != set(weights):
            raise ConfigError(
                f"ensemble.weights are of {', '.join(weights)}, but the models are "
                f"{', '.join(models)}"
            )
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise ConfigError(f"ensemble.weights.{name} has to be a number, not {weight!r}")
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(f"ensemble.weights.{name} has to be above 0, not {weight:g}")
        try:
            self.models = nn.ModuleDict(models)
        except KeyError as error:  # it has a dot in it, or is a method's
            raise ConfigError(f"the models of an ensemble need other names: {error}") from error
        total = sum(weights.values())
        self.weights = {name: weights[name] / total for name in models}
        self.vocab_size = self._common("vocab_size")
        self.crop_size = self._common("crop_size", "video")
        self.video_fps = self._common("video_fps", "video")
        self.sample_rate = self._common("sample_rate", "audio")

    def _common(self, attribute: str, modality: Modality | None = None) -> Any:
        """Return what the models, or those of a modality if there are any, agree in."""
        values = {
            name: getattr(model, attribute)
            for name, model in self.models.items()
            if modality not in self.modalities or modality in model.modalities
        }
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value:g} in {name}" for name, value in values.items())
            raise ConfigError(f"the models of an ensemble share their {attribute}: it is {listed}")
        return next(iter(values.values()))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Return what the models take together."""
        taken = {m for model in self.models.values() for m in model.modalities}
        return tuple(m for m in ("audio", "video") if m in taken)

    @property
    def decoders(self) -> list[Decoder | None]:
        """Return the decoder of each model."""
        return [decoder for model in self.models.values() for decoder in model.decoders]

    @property
    def transducers(self) -> list[Transducer | None]:
        """Return the transducer of each model."""
        return [head for model in self.models.values() for head in model.transducers]

    def outputs(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> list[ModelOutput]:
        """Return each model's output for a batch; arguments as of `SpeechModel.encode`."""
        return [
            replace(output, weight=self.weights[name], name=name)
            for name, model in self.models.items()
            for output in model.outputs(audio, audio_lengths, video, video_lengths)
        ]

    def num_parameters(self) -> int:
        """Return how many numbers the models learned."""
        return sum(p.numel() for p in self.parameters())

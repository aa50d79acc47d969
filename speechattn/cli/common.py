"""Groups of options that several commands share, and what is read for them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from speechattn.errors import ConfigError

Tokens = Annotated[Path, "folder of the tokenizer"]
Crops = Annotated[Path | None, "folder of mouth crops, for a model that reads lips"]
Overrides = Annotated[
    tuple[str, ...],
    "change the configuration, e.g. --set training.max_epochs=5; may be repeated",
    "--set",
    "KEY=VALUE",
]
_ALLOW = "plug-in package whose classes the {} may name; may be repeated"
AllowInConfig = Annotated[tuple[str, ...], _ALLOW.format("configuration"), "--allow", "PACKAGE"]
AllowInModel = Annotated[tuple[str, ...], _ALLOW.format("model"), "--allow", "PACKAGE"]


def summary(function: Callable[..., Any], whole: bool = False) -> str:
    """Return the first paragraph of a docstring, or all of it."""
    text = inspect.getdoc(function) or ""
    return text if whole else " ".join(text.split("\n\n")[0].split()).rstrip(".")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise to mix in."""

    noise: Annotated[Path | None, "sound file that is mixed into the utterances"] = None
    snr: Annotated[float, "signal-to-noise ratio in dB"] = 0.0
    noise_part: Annotated[
        tuple[float, float],
        "stretch of the file that is used, start and end as shares of its length",
    ] = (0.0, 1.0)

    def load(self):
        """Return the transform that mixes the noise in, or None without one."""
        if self.noise is None:
            return None
        if not self.noise.is_file():
            raise ConfigError(f"--noise {self.noise}: no such file")
        from speechattn.data.augment import AddNoise

        return AddNoise(self.noise, (self.snr, self.snr), p=1.0, part=tuple(self.noise_part))


def read_config(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Read a configuration and apply what --set changes."""
    from speechattn.config import override, read_yaml

    config = read_yaml(path)
    override(config, overrides)
    return config


def named(assignments: tuple[str, ...], option: str) -> dict[str, str]:
    """Return NAME=VALUE texts as a dictionary."""
    values: dict[str, str] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if not (name and value):
            raise ConfigError(f"{option} {assignment}: write NAME=VALUE")
        if name in values:
            raise ConfigError(f"{option} {assignment}: {name} is given twice")
        values[name] = value
    return values


def check_device(name: str) -> str:
    """Return PyTorch's name of a device.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    import torch

    kind, colon, index = name.replace("gpu", "cuda", 1).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not index.isdecimal()):
        raise ConfigError(f"--device {name}: choose cpu, cuda (or gpu), cuda:1 or mps")
    gpus = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= gpus:
        there = f"only {gpus}" if gpus else "no"
        raise ConfigError(f"--device {name}: PyTorch finds {there} GPU here; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device {name}: PyTorch finds no Metal here; use --device cpu")
    return kind + colon + index

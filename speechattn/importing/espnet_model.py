"""A whole ESPnet model: the names of its weights, and weights kept in another form."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.frontends import EspnetLogMel
from speechattn.frontends.cmvn import read_statistics
from speechattn.importing.checkpoint import map_part
from speechattn.importing.espnet import Names, decoder_names, encoder_names

_MEL = "frontend.logmel.melmat"
_STREAM = "streams.audio."


def weight_names(names: Iterable[str]) -> Names:
    """Map each of our names to an ESPnetASRModel's, after `convert`; unknown ones stay."""
    names = list(names)
    found = {
        **map_part(names, encoder_names, f"{_STREAM}encoder.", "encoder."),
        **map_part(names, decoder_names, "decoder.", "decoder."),
    }
    for name in names:
        if not name.startswith(("encoder.", "decoder.")):
            ours = name.replace("ctc.ctc_lo.", "ctc.")
            found[ours.replace("normalize.", f"{_STREAM}frontend.cmvn.")] = (name,)
    return found


def convert(
    state: dict[str, Tensor], frontend: EspnetLogMel, statistics: Path | None, path: Path
) -> dict[str, Tensor]:
    """Convert the weights that ESPnet keeps in another form.

    ESPnet stores the mel filters, which we compute: they are compared and dropped. It divides by a
    deviation where we multiply by its inverse.

    Args:
        state, frontend: of the whole model, and made of the same configuration.
        statistics: `feats_stats.npz`, for a checkpoint that does not hold them.
        path: of the checkpoint, for messages.
    """
    state = dict(state)
    filters, ours = state.pop(_MEL, frontend.filters), frontend.filters
    if filters.shape != ours.shape or not torch.allclose(filters.float(), ours, atol=1e-6):
        raise ConfigError(
            f"{path}: its mel filters ({_MEL}) are not those that frontend_conf describes"
        )
    if "normalize.std" in state:
        state["normalize.istd"] = 1.0 / state.pop("normalize.std")
    elif frontend.cmvn.kind == "global" and statistics is not None:
        try:
            state["normalize.mean"], state["normalize.istd"] = read_statistics(statistics)
        except ConfigError:
            raise
        except Exception as error:  # a broken file fails in every way there is
            raise ConfigError(f"{statistics}: cannot be read as statistics: {error}") from error
    return state

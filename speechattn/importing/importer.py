"""Make a model directory of another toolkit's checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from speechattn.config import build, read_yaml
from speechattn.data.tokenizers import Tokenizer, read_units, with_ends
from speechattn.decoding import CtcGreedySearch, JointSearch, Search
from speechattn.decoding.config import search_section
from speechattn.errors import ConfigError
from speechattn.frontends import EspnetLogMel
from speechattn.importing import auto_avsr, espnet_config, espnet_model
from speechattn.importing.checkpoint import fit, read_checkpoint
from speechattn.importing.espnet import Names
from speechattn.importing.espnet_decode import read_decode
from speechattn.importing.espnet_lm import is_lm, lm_weight_names, read_lm_config
from speechattn.importing.tokens import make_tokenizer
from speechattn.lm.directory import build_lm, save_lm
from speechattn.model.directory import build_model, save_model_dir

Source = Literal["espnet", "auto_avsr", "cnvsrc2023", "cnvsrc2024"]

# The searches that the models were published with.
_SEARCHES: Mapping[str, Search] = {
    "espnet": JointSearch(),
    "auto_avsr": JointSearch(beam_size=40, ctc_weight=0.1),
    "cnvsrc2023": JointSearch(beam_size=40, ctc_weight=0.5),
    "cnvsrc2024": JointSearch(beam_size=40, ctc_weight=0.5),
}


@dataclass(frozen=True)
class _Files:
    """A checkpoint and what belongs to it; None for what the user did not name."""

    checkpoint: Path
    config: Path | None
    tokens: Path | None
    bpe_model: Path | None


# Our `model:` section, names of weights, the weights, and the units.
_Found = tuple[dict[str, Any], Names, dict[str, Tensor], Tokenizer]


def import_checkpoint(
    source: Source,
    src: Path,
    dest: Path,
    *,
    config: Path | None = None,
    tokens: Path | None = None,
    bpe_model: Path | None = None,
    decode: Path | None = None,
) -> Path:
    """Make a model directory of a checkpoint.

    Args:
        source: the toolkit that wrote it.
        src: the checkpoint, or for `espnet` an experiment's folder with one `.pth` in it.
        dest: the new model directory; of a language model (espnet) the one that `--lm` reads.
        config: its configuration, for `espnet` by default `config.yaml` beside the checkpoint.
        tokens: list of units. auto_avsr and the CNVSRC baselines need their `*_units.txt`; for
            `espnet` it replaces the list in the configuration.
        bpe_model: SentencePiece model of units that are not characters; for `espnet` where the one
            that its configuration names is not found.
        decode: decode YAML of ESPnet's, instead of the published search.

    Returns:
        `dest`.

    Raises:
        ConfigError: it lists everything that cannot be imported.
    """
    if source not in get_args(Source):
        raise ConfigError(f"{source}: no such source; choose one of {', '.join(get_args(Source))}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConfigError(f"{dest}: is there already; name a new folder")
    if source == "espnet":
        src, config = _espnet_files(src, config)
    files = _Files(src, config, tokens, bpe_model)
    meta = {"imported_from": source, "checkpoint": src.name}
    if source == "espnet" and is_lm(read_yaml(config)):
        if decode is not None:
            raise ConfigError(f"--decode: {src} is a language model, which has no search")
        section, names, state, tokenizer = _espnet_lm(files)
        lm = build_lm(section, tokenizer.vocab_size)
        fit(lm, state, names, src)
        save_lm(dest, section, lm.state_dict(), tokenizer, meta)
        return dest
    section, names, state, tokenizer = (_espnet if source == "espnet" else _auto_avsr)(files)
    model = build_model(section, tokenizer.vocab_size)
    fit(model, state, names, src)
    search = _SEARCHES[source] if decode is None else read_decode(decode)
    if "decoder" not in section:
        search = CtcGreedySearch()
    sections = {"model": section, "search": search_section(search)}
    save_model_dir(dest, sections, model.state_dict(), tokenizer, meta)
    return dest


def _espnet_files(src: Path, config: Path | None) -> tuple[Path, Path]:
    """Find the checkpoint and its configuration."""
    if src.is_dir():
        found = sorted(src.glob("*.pth"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise ConfigError(f"{src}: name one checkpoint in it; there are: {names}")
        src = found[0]
    config = config or src.parent / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{config}: no such file; name the model's config.yaml with --config")
    return src, config


def _espnet_lm(files: _Files) -> _Found:
    settings = read_yaml(files.config)
    tokenizer = _espnet_tokenizer(settings, files)
    state = read_checkpoint(files.checkpoint)
    section = read_lm_config(settings, str(files.config))
    return section, lm_weight_names(state), state, tokenizer


def _espnet(files: _Files) -> _Found:
    settings, config = read_yaml(files.config), files.config
    tokenizer = _espnet_tokenizer(settings, files)
    section = espnet_config.read_config(settings, tokenizer.vocab_size, str(config))
    state = read_checkpoint(files.checkpoint)
    frontend = build(EspnetLogMel, section["audio"]["frontend"]["init_args"], "frontend_conf")
    statistics = None
    if frontend.cmvn.kind == "global" and "normalize.std" not in state:
        named = (settings.get("normalize_conf") or {}).get("stats_file")
        if named is not None:
            statistics = _near(config, named, "normalize_conf.stats_file", "a path from there")
    state = espnet_model.convert(state, frontend, statistics, files.checkpoint)
    return section, espnet_model.weight_names(state), state, tokenizer


def _espnet_tokenizer(settings: Mapping[str, Any], files: _Files) -> Tokenizer:
    config, tokens, bpe_model = files.config, files.tokens, files.bpe_model
    listed = settings.get("token_list")
    if tokens is None and isinstance(listed, str):
        tokens = _near(config, listed, "token_list", "--tokens")
    if tokens is not None:
        listed = read_units(tokens)
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{config}: token_list: holds no tokens; name their file with --tokens")
    kind = settings.get("token_type", "bpe")
    if kind not in ("char", "bpe"):
        raise ConfigError(f"{config}: token_type: {kind!r}: only 'char' or 'bpe' can be imported")
    if kind == "bpe" and bpe_model is None:
        bpe_model = _near(config, settings.get("bpemodel"), "bpemodel", "--bpe-model")
    return make_tokenizer([str(token) for token in listed], bpe_model if kind == "bpe" else None)


def _near(config: Path, name: Any, key: str, option: str) -> Path:
    """Find a file that a configuration names, relative to the folder that ESPnet was run in.

    The configuration is not trusted: it can name files in that folder or below, none elsewhere.
    """
    for folder in (Path.cwd(), *config.resolve().parents[:4]):
        if not isinstance(name, str) or folder == folder.parent:
            continue
        path = Path(os.path.normpath(folder / name))
        if path.is_relative_to(folder) and path.is_file():
            return path
    raise ConfigError(
        f"{config}: {key}: {name!r} is not found here or beside it; name it with {option}"
    )


def _auto_avsr(files: _Files) -> _Found:
    if files.tokens is None:
        raise ConfigError(f"{files.checkpoint}: needs its list of units, ..._units.txt (--tokens)")
    tokenizer = make_tokenizer(with_ends(read_units(files.tokens)), files.bpe_model)
    state, config = read_checkpoint(files.checkpoint), files.config
    backbone: Mapping[str, Any] = {}
    if config is not None:
        kind = "audio" if any(".trunk.conv1." in name for name in state) else "visual"
        backbone = read_yaml(config)
        for key in ("model", f"{kind}_backbone"):
            backbone = backbone.get(key, backbone)
            if not isinstance(backbone, Mapping):
                wrong = f"{key}: {backbone!r}"
                raise ConfigError(f"{config}: {wrong}: is no section of keys and values")
    section = auto_avsr.read_sizes(state, backbone, str(files.checkpoint))
    return section, auto_avsr.weight_names(state), state, tokenizer

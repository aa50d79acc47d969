"""`speechattn import-checkpoint`: another toolkit's checkpoint into a model directory."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from speechattn.config import build, read_yaml
from speechattn.data.tokenizers import read_units, with_ends
from speechattn.decoding import CtcGreedySearch, JointSearch
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

# How each was tested by those who published it: their own search, with our names.
_SEARCHES = {
    "espnet": JointSearch(),
    "auto_avsr": JointSearch(beam_size=40, ctc_weight=0.1),
    "cnvsrc2023": JointSearch(beam_size=40, ctc_weight=0.5),
    "cnvsrc2024": JointSearch(beam_size=40, ctc_weight=0.5),
}


def import_checkpoint(
    source: Source,
    src: Path,
    dest: Path,
    config: Path | None = None,
    tokens: Path | None = None,
    bpe_model: Path | None = None,
    decode: Path | None = None,
) -> Path:
    """Make a model directory of a checkpoint.

    Args:
        source: what wrote it.
        src: the checkpoint, or for `espnet` the experiment's folder if there is one `.pth` in it.
        dest: the model directory, made anew; of a language model (espnet) the one that `--lm`
            reads.
        config: its configuration. For `espnet` `config.yaml` beside the checkpoint where left out;
            the others can do without one.
        tokens: the list of units: `*_units.txt` of auto_avsr and the CNVSRC baselines, which need
            it; for `espnet` instead of the list in its configuration.
        bpe_model: the SentencePiece model of units that are no characters; for `espnet` where the
            one that its configuration names is not found.
        decode: a decode YAML of ESPnet's, instead of the options that we take by default.

    Returns:
        `dest`.

    Raises:
        ConfigError: what cannot be imported, with every reason that was found.
    """
    if source not in get_args(Source):
        raise ConfigError(f"--from {source}: choose one of {', '.join(get_args(Source))}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConfigError(f"{dest}: is there already; name a new folder")
    if source == "espnet":
        src, config = _espnet_files(src, config)
        if is_lm(read_yaml(config)):
            return _espnet_lm(src, dest, config, tokens, bpe_model, decode)
        section, names, state, tokenizer = _espnet(src, config, tokens, bpe_model)
    else:
        section, names, state, tokenizer = _auto_avsr(source, src, config, tokens, bpe_model)
    model = build_model(section, tokenizer.vocab_size)
    fit(model, state, names, src)
    search = _SEARCHES[source]
    if decode is not None:
        search = replace(search, **read_decode(decode))
    if "decoder" not in section:
        search = CtcGreedySearch()
    save_model_dir(
        dest,
        {"model": section, "search": search_section(search)},
        model.state_dict(),
        tokenizer,
        {"imported_from": source, "checkpoint": src.name},
    )
    return dest


def _espnet_files(src: Path, config: Path | None) -> tuple[Path, Path]:
    """The checkpoint and its configuration."""
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


def _espnet_lm(
    src: Path,
    dest: Path,
    config: Path,
    tokens: Path | None,
    bpe_model: Path | None,
    decode: Path | None,
) -> Path:
    """A language model, into a directory that `--lm` reads."""
    if decode is not None:
        raise ConfigError(f"--decode: {src} is a language model, which nothing is decoded by")
    settings = read_yaml(config)
    tokenizer = _espnet_tokenizer(settings, config, tokens, bpe_model)
    section = read_lm_config(settings, str(config))
    lm = build_lm(section, tokenizer.vocab_size)
    state = read_checkpoint(src)
    fit(lm, state, lm_weight_names(state), src)
    meta = {"imported_from": "espnet", "checkpoint": src.name}
    save_lm(dest, section, lm.state_dict(), tokenizer, meta)
    return dest


def _espnet(src: Path, config: Path, tokens: Path | None, bpe_model: Path | None):
    settings = read_yaml(config)
    tokenizer = _espnet_tokenizer(settings, config, tokens, bpe_model)
    section = espnet_config.read_config(settings, tokenizer.vocab_size, str(config))
    statistics = None
    state = read_checkpoint(src)
    frontend = build(EspnetLogMel, section["audio"]["frontend"]["init_args"], "frontend_conf")
    if frontend.cmvn.kind == "global" and "normalize.std" not in state:
        named = (settings.get("normalize_conf") or {}).get("stats_file")
        if named is not None:
            statistics = _near(config, named, "normalize_conf.stats_file", "a path from there")
    state = espnet_model.prepare(state, frontend, statistics, src)
    return section, espnet_model.weight_names(state), state, tokenizer


def _espnet_tokenizer(
    settings: Mapping[str, Any], config: Path, tokens: Path | None, bpe_model: Path | None
):
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
    """A file that a configuration names, relative to the folder that ESPnet was run in.

    The configuration may be a stranger's: it can name files there and below, and none elsewhere.
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


def _auto_avsr(
    source: Source, src: Path, config: Path | None, tokens: Path | None, bpe_model: Path | None
) -> tuple[dict[str, Any], Names, dict[str, Tensor], Any]:
    if tokens is None:
        raise ConfigError(
            f"--from {source} needs the list of units (--tokens), such as its ..._units.txt"
        )
    tokenizer = make_tokenizer(with_ends(read_units(tokens)), bpe_model)
    state = read_checkpoint(src)
    backbone: Mapping[str, Any] = {}
    if config is not None:
        kind = "audio" if any(".trunk.conv1." in name for name in state) else "visual"
        backbone = read_yaml(config)
        for key in ("model", f"{kind}_backbone"):
            backbone = backbone.get(key, backbone)
            if not isinstance(backbone, Mapping):
                raise ConfigError(
                    f"{config}: {key}: {backbone!r}: is no section of keys and values"
                )
    section = auto_avsr.read_sizes(state, backbone, str(src))
    return section, auto_avsr.weight_names(state), state, tokenizer

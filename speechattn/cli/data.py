"""The commands that make what training reads: corpora, mouth crops, tokenizers."""

import logging
from pathlib import Path
from typing import Annotated, Literal

from speechattn.cli.common import AllowInConfig, Tokens, read_config
from speechattn.errors import ConfigError, SpeechattnError

logger = logging.getLogger(__name__)


def synth_grid(
    output: Annotated[Path, "folder to make"],
    *,
    language: Annotated[Literal["en", "cmn"], "English, with GRID's sentences, or Mandarin"] = "en",
    speakers: Annotated[int, "number of speakers"] = 2,
    utterances: Annotated[int, "utterances of each speaker"] = 60,
    seed: Annotated[int, "seed of everything drawn at random"] = 0,
    workers: Annotated[int, "worker processes"] = 2,
) -> None:
    """Make a small synthetic talking-face corpus in the layout of GRID.

    The voices are eSpeak NG's (extra `synth`), which is under the GPLv3.
    """
    from speechattn.synth import synth_corpus

    options = {"speakers": speakers, "utterances": utterances, "seed": seed, "workers": workers}
    synth_corpus(output, language, **options)


def synth_cnvsrc(
    output: Annotated[Path, "folder to make"],
    *,
    clips: Annotated[int, "clips of all parts together, 16 to 3000"] = 620,
    speakers: Annotated[int, "speakers of CN-CVS, at least 4"] = 8,
    no_damaged: Annotated[bool, "leave out the damaged clips"] = False,
    seed: Annotated[int, "seed of everything drawn at random"] = 0,
    workers: Annotated[int, "worker processes"] = 2,
) -> None:
    """Make a small synthetic talking-face corpus in the layout of CNVSRC.

    The voices are eSpeak NG's (extra `synth`), which is under the GPLv3.
    """
    from speechattn import synth

    options = {"speakers": speakers, "seed": seed, "damaged": not no_damaged, "workers": workers}
    synth.synth_cnvsrc(output, clips, **options)


def prepare_tsv(
    corpus: Annotated[Path, "folder of the corpus"],
    output: Annotated[Path, "folder for the manifests"],
    *,
    table: Annotated[str, "name of the table in the folder"] = "manifest.tsv",
    language: Annotated[str | None, "language code of the rows that name none"] = None,
    workers: Annotated[int, "files read at a time"] = 2,
) -> None:
    """Make Lhotse manifests of any folder with a table of its files.

    The columns of the table are file, speaker, split and text.
    """
    from speechattn.data import corpora

    corpora.prepare_tsv(corpus, output, table=table, language=language, workers=workers)


def prepare_grid(
    corpus: Annotated[Path, "folder of the corpus, with s1/ or manifest.tsv in it"],
    output: Annotated[Path, "folder for the manifests"],
    *,
    split: Annotated[
        Literal["utterance", "speaker"],
        "divide each speaker's utterances, or hold out whole speakers",
    ] = "utterance",
    dev_speakers: Annotated[
        tuple[str, ...], "with --split speaker, held out for development (default: 7 %)"
    ] = (),
    test_speakers: Annotated[
        tuple[str, ...], "with --split speaker, held out for testing (default: 13 %)"
    ] = (),
    workers: Annotated[int, "files read at a time"] = 2,
) -> None:
    """Make Lhotse manifests of GRID."""
    from speechattn.data import corpora

    held_out = {"dev_speakers": dev_speakers, "test_speakers": test_speakers}
    corpora.prepare_grid(corpus, output, split=split, workers=workers, **held_out)


def prepare_cnvsrc(
    corpus: Annotated[Path, "folder with cncvs, cnvsrc-single and cnvsrc-multi"],
    output: Annotated[Path, "folder for the manifests"],
    *,
    track: Annotated[Literal["single", "multi"], "one speaker, or several"],
    year: Annotated[Literal[2023, 2024, 2025], "year of the challenge"] = 2024,
    open: Annotated[bool, "the open track, which trains on all data that is there"] = False,
    extra: Annotated[
        tuple[Path, ...], "with --open, folders with a manifest.tsv to train on too"
    ] = (),
    lists: Annotated[
        Path | None, "data/ folder of a baseline with the official lists (default: in the corpus)"
    ] = None,
    units: Annotated[
        Path | None, "units that the lists' ids stand for (default: beside the lists)"
    ] = None,
    workers: Annotated[int, "files read at a time"] = 2,
) -> None:
    """Make Lhotse manifests of a track of CNVSRC."""
    from speechattn.data import corpora

    options = {"open_track": open, "extra": extra, "lists": lists, "units": units}
    corpora.prepare_cnvsrc(corpus, output, track, year=year, workers=workers, **options)


def roi(
    cuts: Annotated[tuple[Path, ...], "Lhotse cuts"],
    *,
    output: Annotated[Path, "folder for the crops"],
    config: Annotated[
        Path | None, "YAML whose section `roi` has the options (default: RoiOptions)"
    ] = None,
    detector: Annotated[Literal["mtcnn", "mediapipe"], "face detector"] = "mtcnn",
    no_landmarks: Annotated[
        bool, "run the detector even where the corpus brings landmarks"
    ] = False,
    workers: Annotated[int, "worker processes"] = 2,
    faces: Annotated[
        tuple[Path, ...], "folders of other crops of these videos, whose faces are taken over"
    ] = (),
    dry_run: Annotated[bool, "say how much time and disk it takes, and stop"] = False,
    num_shards: Annotated[int, "number of jobs that share the videos"] = 1,
    shard: Annotated[int | None, "number of this job, from 0 (default: all the videos)"] = None,
    merge: Annotated[bool, "make one folder of what the jobs wrote, and stop"] = False,
    ray: Annotated[
        str | None, "address of a Ray cluster to run the shards on, auto, or local for this machine"
    ] = None,
) -> None:
    """Cut the mouths out of the videos of manifests."""
    from lhotse import CutSet

    from speechattn.config import build, read_yaml
    from speechattn.data.crops import roi

    if shard is not None and not 0 <= shard < num_shards:
        raise ConfigError(f"--shard {shard}: must be from 0 to {num_shards - 1} (--num-shards)")
    options = build(roi.RoiOptions, (read_yaml(config) if config else {}).get("roi") or {}, "roi")
    items = []
    for path in cuts:
        for cut in CutSet.from_file(path):
            custom = cut.custom or {}
            if "video" in custom:
                landmarks = None if no_landmarks else custom.get("landmarks")
                items.append(roi.RoiItem(cut.id, custom["video"], landmarks, cut.duration))
    if not items:
        raise ConfigError(f"{' '.join(map(str, cuts))}: no cut has a video")
    if merge:
        return _log_merged(roi.merge_shards(items, output))
    how = {
        "options": options,
        "workers": workers,
        "detector": roi.MediaPipeDetector if detector == "mediapipe" else None,
        "faces": faces,
        "num_shards": num_shards,
    }
    if dry_run:
        needed = roi.estimate(items, output, shard=shard, **how)
        print(needed or "nothing to do, or none of the first videos can be cropped")
    elif ray:
        from speechattn.data.crops.roi.on_ray import extract_on_ray

        address = None if ray == "local" else ray
        _log_merged(extract_on_ray(items, output, address=address, **how))
    else:
        summary = roi.extract(items, output, shard=shard, **how)
        speed = summary.frames / options.fps / max(summary.seconds, 1e-9)
        counts = (summary.done, summary.skipped, summary.failed, speed)
        logger.info("%d videos cropped, %d were there, %d failed; %.1f times real time", *counts)
        # A shard may have few videos or none.
        if summary.done + summary.skipped == 0 and shard is None:
            raise SpeechattnError(f"no video could be cropped, see {output / 'failures.tsv'}")


def _log_merged(merged) -> None:
    logger.info("%d videos cropped, %d failed", merged.done, merged.failed)
    if merged.missing:
        logger.warning("%d videos have not been tried: run their shards", merged.missing)


def augment_sheet(
    *,
    config: Annotated[Path, "YAML with a section `data`"],
    crops: Annotated[Path, "folder of mouth crops"],
    output: Annotated[Path, "PNG file to write"],
    clip: Annotated[str | None, "id of the clip to show (default: the first)"] = None,
    draws: Annotated[int, "rows for each transform"] = 3,
    seed: Annotated[int, "seed of the transforms"] = 0,
    overrides: Annotated[tuple[str, ...], "change the configuration", "--set", "KEY=VALUE"] = (),
    allow: AllowInConfig = (),
) -> None:
    """Draw what the augmentation of a configuration does to mouth crops."""
    from speechattn.config import build
    from speechattn.data.augment import SpeedPerturb
    from speechattn.data.augment.sheet import write_augment_sheet
    from speechattn.data.batches import DataOptions
    from speechattn.data.crops.store import CropStore

    sections = read_config(config, overrides)
    options = build(DataOptions, sections.get("data") or {}, "data", allow)
    speeds = [t for t in options.audio_transforms or () if isinstance(t, SpeedPerturb)]
    transforms = [*speeds, *(options.video_transforms or ())]
    if not transforms:
        raise ConfigError(f"{config}: data has no transforms that change crops")
    store = CropStore(crops)
    clip = clip or next(iter(store), None)
    if clip is None or clip not in store:
        raise ConfigError(f"--clip: no crops of {clip!r} in {crops}")
    write_augment_sheet(store.read(clip), transforms, output, draws=draws, seed=seed)
    logger.info("%s of %s", output, clip)


def tokens(
    cuts: Annotated[Path, "Lhotse cuts"],
    *,
    output: Annotated[Path, "folder for the tokenizer"],
    kind: Annotated[
        Literal["char", "bpe", "unigram"], "characters, or the subwords of SentencePiece"
    ] = "char",
    vocab_size: Annotated[int | None, "number of units, for bpe and unigram"] = None,
) -> None:
    """Make a tokenizer from training transcripts."""
    from lhotse import CutSet

    from speechattn.data.tokenizers import build_tokenizer

    texts = [s.text for cut in CutSet.from_file(cuts) for s in cut.supervisions]
    tokenizer = build_tokenizer(texts, kind, vocab_size)
    tokenizer.save(output)
    logger.info("%d units from %d transcripts", tokenizer.vocab_size, len(texts))


def import_tokens(
    units: Annotated[Path, "text file, one unit a line"],
    *,
    output: Annotated[Path, "folder for the tokenizer"],
    bpe_model: Annotated[
        Path | None, "SentencePiece model that cuts texts into the units (default: characters)"
    ] = None,
) -> None:
    """Make a tokenizer from a list of units, such as char_units.txt of CNVSRC."""
    from speechattn.data.tokenizers import read_token_list
    from speechattn.importing.tokens import make_tokenizer

    tokenizer = make_tokenizer(read_token_list(units), bpe_model)
    tokenizer.save(output)
    logger.info("%d units of %s", tokenizer.vocab_size, units)


def align(
    cuts: Annotated[tuple[Path, ...], "Lhotse cuts; the aligner is trained on the first"],
    *,
    tokens: Tokens,
    output: Annotated[Path, "folder for the aligned cuts"],
) -> None:
    """Add to cuts the times of their words."""
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.training.aligner import align

    align(cuts[0], cuts[1:], Tokenizer.load(tokens), output)

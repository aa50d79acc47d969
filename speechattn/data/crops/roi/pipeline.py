"""Mouth crops of a whole corpus: workers, a progress bar, a list of failures, a picture to look at.

The parent process alone writes the store; workers crop and compress. A run that was interrupted is
continued by running it again: what is in the store is skipped, what failed is tried again (without
the detector where it is known that there is no face).
"""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechattn.data.crops.blobs import index_folders, part_name
from speechattn.data.crops.roi.estimation import SAMPLE, Estimate, estimate_run, spread_first
from speechattn.data.crops.roi.faces import FaceCache, FaceWriter
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.shards import FAILURES, OPTIONS, finish, line, shard_items
from speechattn.data.crops.roi.workers import DetectorFactory, Outcome, RoiItem, Task, crop_all
from speechattn.data.crops.store import CROPS, CropStore, CropWriter
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.files import write_text

if TYPE_CHECKING:
    from rich.progress import Progress

_log = logging.getLogger(__name__)
_TELL_EVERY = 300.0  # seconds; a log file shows no progress bar


@dataclass(frozen=True)
class RoiSummary:
    """Counts of a run."""

    done: int  # clips cropped in this run
    skipped: int  # clips that were in the store before
    failed: int  # clips without a crop; listed in `failures.tsv`
    frames: int  # crops written in this run
    seconds: float  # wall time of this run


def extract(
    items: Sequence[RoiItem],
    folder: str | Path,
    options: RoiOptions | None = None,
    workers: int = 2,
    *,
    detector: DetectorFactory | None = None,
    progress: bool = True,
    faces: Sequence[str | Path] = (),
    num_shards: int = 1,
    shard: int | None = None,
) -> RoiSummary:
    """Crop the mouths of many videos into a crop store.

    Writes into `folder`: the store (see `crops.store`), `roi.json` (the options), the faces that
    were found (see `faces`), `failures.tsv` (key, path, reason; of this run), `notes.tsv` (clips
    that are cropped, but by a choice that a person should know) and `contact_sheet.png`. A video
    that cannot be used never stops the run, not even one that kills its worker. After the first
    clips it says how much time and disk the rest will take.

    Args:
        items: the videos; keys are unique.
        folder: of the store, made if missing.
        options: see `RoiOptions`; must be those that the store was begun with.
        workers: processes; 0 works in this one. With more, a script that calls this must guard its
            main code by `if __name__ == "__main__"`.
        detector: a class or function that makes a face detector, called in each worker; MTCNN
            by default.
        progress: show a progress bar.
        faces: folders of other crop stores of these videos, whose faces are taken instead of
            looking for them again; those of `folder` are taken anyway.
        num_shards: jobs among which the videos are divided.
        shard: crop the videos of this job alone, into its own part of the store, from 0; None for
            all that no job has cropped.

    Returns:
        Counts of the run.

    Raises:
        ConfigError: `folder` was begun with other options.
        SpeechattnError: the disk is too small for the crops.
        ValueError: a key occurs twice, or there is no such shard.
    """
    options = options or RoiOptions()
    folder = common = Path(folder)
    _check_keys(items)
    if shard is not None:
        items = shard_items(items, num_shards, shard)
        folder = common / part_name(shard, num_shards)
    begun = told = time.monotonic()
    done = failed = frames = 0
    folder.mkdir(parents=True, exist_ok=True)
    with CropWriter(folder) as writer, FaceWriter(folder) as face_writer:
        _check_options(common, options)
        write_text(folder / OPTIONS, json.dumps(asdict(options), indent=1) + "\n")
        there = CropStore(common)
        todo = spread_first([item for item in items if item.key not in there])
        skipped = len(items) - len(todo)
        cache = FaceCache([common, *faces])
        tasks = (Task(item, cache.get(item.key)) for item in todo)
        measured: list[Outcome] = []
        with (
            open(folder / FAILURES, "w", encoding="utf-8") as failures,
            _bar(progress) as bar,
            closing(crop_all(tasks, options, detector, workers)) as outcomes,
        ):
            failures.write("key\tpath\treason\n")
            failures.flush()
            task = bar.add_task("mouth crops", total=len(items), completed=skipped, failed=0)
            try:
                for item, outcome in outcomes:
                    if outcome.faces is not None:
                        face_writer.add(item.key, outcome.faces)
                    if outcome.crop is None:
                        failed += 1
                        failures.write(line(item.key, item.path, outcome.reason))
                        failures.flush()
                    else:
                        writer.add_encoded(item.key, outcome.crop)
                        done += 1
                        frames += outcome.crop.info.frames
                    bar.update(task, advance=1, failed=failed)
                    if time.monotonic() - told > _TELL_EVERY:
                        told = time.monotonic()
                        _log.info("%d of %d done, %d failed", done + failed, len(todo), failed)
                    if done + failed <= SAMPLE < len(todo):
                        measured.append(outcome)
                        if len(measured) == SAMPLE:
                            place = {"workers": workers, "folder": folder}
                            _announce(estimate_run(todo, measured, options.fps, **place))
            finally:
                writer.close()
                finish(items, folder)
    if failed:
        _log.warning("%d videos gave no crops, see %s", failed, folder / FAILURES)
    return RoiSummary(done, skipped, failed, frames, time.monotonic() - begun)


def estimate(
    items: Sequence[RoiItem],
    folder: str | Path,
    options: RoiOptions | None = None,
    workers: int = 2,
    *,
    detector: DetectorFactory | None = None,
    faces: Sequence[str | Path] = (),
    num_shards: int = 1,
    shard: int | None = None,
) -> Estimate | None:
    """Estimate what `extract` with the same arguments would take; keeps nothing.

    Without `shard` all is meant, however many shards do it: their time together is that of one
    machine with `num_shards` times the workers.

    Returns:
        None if there is nothing to do, or none of the clips tried could be cropped.
    """
    options = options or RoiOptions()
    folder = Path(folder)
    _check_keys(items)
    if shard is not None:
        items, num_shards = shard_items(items, num_shards, shard), 1
    _check_options(folder, options)
    if index_folders(folder, CROPS):
        there = CropStore(folder)
        items = [item for item in items if item.key not in there]
    cache = FaceCache([folder, *faces])
    tasks = (Task(item, cache.get(item.key)) for item in spread_first(items)[:SAMPLE])
    measured = [outcome for _, outcome in crop_all(tasks, options, detector, workers)]
    workers = max(workers, 1) * num_shards
    return estimate_run(items, measured, options.fps, workers=workers, folder=folder)


def _check_keys(items: Sequence[RoiItem]) -> None:
    keys = {item.key for item in items}
    if len(keys) != len(items):
        raise ValueError(f"{len(items) - len(keys)} keys occur twice among the videos")


def _announce(estimate: Estimate | None) -> None:
    if estimate is None:
        _log.warning("none of the first videos could be cropped, see %s", FAILURES)
        return
    _log.info("%s", estimate)
    if estimate.disk > estimate.free:
        advice = "choose another folder or make room, what is cropped is kept"
        raise SpeechattnError(f"the disk is too small: {estimate}; {advice}")


def _check_options(folder: Path, options: RoiOptions) -> None:
    # Crops of two geometries in one store would train a model on both, unnoticed.
    for one in index_folders(folder, CROPS):
        if not (one / OPTIONS).is_file() or not (one / CROPS.index).stat().st_size:
            continue
        before = json.loads((one / OPTIONS).read_text())
        before["scales"] = tuple(before["scales"])
        old, new = _geometry(RoiOptions(**before)), _geometry(options)
        told = ", ".join(f"{k} was {old[k]}, is {v}" for k, v in new.items() if old[k] != v)
        if told:
            raise ConfigError(f"{one}: holds crops made with other options ({told})")


def _geometry(options: RoiOptions) -> dict[str, float]:
    """Return what the stored crops depend on, in which the scales taken of them are not."""
    values = asdict(options)
    del values["scales"]
    return {**values, "size": options.side, "mouth_width": round(options.side_mouth_width, 9)}


def _bar(show: bool) -> "Progress":
    from rich import progress  # a tenth of a second, which recognition does without

    columns = progress.BarColumn(), progress.MofNCompleteColumn()
    failed = progress.TextColumn("{task.fields[failed]} failed")
    return progress.Progress(
        "{task.description}", *columns, failed, progress.TimeRemainingColumn(), disable=not show
    )

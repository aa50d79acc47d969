"""Claim: loading never holds up training: ten times the clips a second, half a million utterances.

Clips a second into padded training batches, by two loading processes: ours reads the crop store
and augments bytes; the peer does what the official baseline of CNVSRC does (auto_avsr's loader, our
own re-creation of it): an H.264 file per clip is decoded to RGB, made float, cropped, made grey,
masked in time and normalised. Both load batches of the same plan, in turn. A second row has all of
NPU-ASLP's augmentations on our side and still none but the baseline's on the other.

Then a manifest and a crop store of 500,000 utterances: seconds from the start of Python to the
first batch from the middle of an epoch, memory of all processes together (shared pages once; what
Python and its libraries take before anything is opened is printed, not counted), and padding. Their
entries share the bytes of a few clips. The first start, which looks through the manifest once, is
printed too.

    python benchmarks/loading.py [--quick] [--json FILE]
"""

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from rows import in_turn, row, save, spread
from torch.utils.data import DataLoader, Dataset

from speechattn.data.augment import (
    AdaptiveTimeMask,
    ColorJitter,
    Cutout,
    HorizontalFlip,
    RandomCrop,
    RandomRotation,
    SpeedPerturb,
)
from speechattn.data.batches import DataOptions
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.crops.store import CROPS, CropWriter
from speechattn.data.tokenizers import CharTokenizer

RATE, SIDE, CROP = 25, 96, 88
WORKERS = 2
TEXT = "abcdefghij"
REPEATS = 24  # of each clip in an epoch: starting the processes is then little of it
PEER_SHARE = 8  # the peer loads every eighth batch, or it would take ten times as long


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer clips, a smaller manifest")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--utterances", type=int, help="of the large manifest")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)  # the measured process
    options = parser.parse_args()
    if options.resume:
        print(json.dumps(resume(options.resume)))
        return 0
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    count = options.utterances or (20_000 if options.quick else 500_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = make_clips(folder, 40 if options.quick else 120)
        rows = throughput(folder, rounds=2 if options.quick else 3)
        rows += [padding(count)]
        rows += large(folder, frames, count, starts=2 if options.quick else 5)
    for one in rows:
        print(one)
    save(rows, options.json)
    return 0


# ------------------------------------------------------------------------------- clips a second


def lengths(count: int) -> np.ndarray:
    """Draw durations in seconds: log-normal, 1 to 20, median 4, as in real corpora."""
    return np.random.default_rng(count).lognormal(np.log(4.0), 0.6, count).clip(1.0, 20.0)


def texture(frames: int, seed: int) -> np.ndarray:
    """Draw uint8 (T, H, W): a smooth picture that moves, with the noise of a camera.

    The store takes 3.5 kB a frame for it, and 3.2 kB for the lips of GRID.
    """
    rng = np.random.default_rng(seed)
    wide = cv2.GaussianBlur(rng.normal(0.0, 1.0, (SIDE + 64, SIDE + 64)), (0, 0), 6.0)
    wide = 128.0 + 20.0 * wide / wide.std()
    path = 32 + 3 * np.sin(np.arange(frames) / 10.0 + rng.uniform(0, 6, (2, 1)))
    places = path.round().astype(int).T
    clip = np.stack([wide[y : y + SIDE, x : x + SIDE] for y, x in places])
    noise = rng.normal(0.0, 0.7, (frames, SIDE, SIDE)).astype(np.float32)
    return (clip + noise).clip(0, 255).astype(np.uint8)


def make_clips(folder: Path, count: int) -> list[int]:
    """Write a crop store, H.264 files, a manifest and a tokenizer of `count` clips."""
    frames = (lengths(count) * RATE).round().astype(int).tolist()
    (folder / "mp4").mkdir()
    sizes = [0, 0]
    with CropWriter(folder / "crops") as writer:
        for i, number in enumerate(frames):
            clip = texture(number, i)
            writer.add(f"clip{i:06d}", clip, RATE)
            path = folder / "mp4" / f"clip{i:06d}.mp4"
            write_mp4(clip, path)
            sizes[1] += path.stat().st_size
    sizes[0] = (folder / "crops" / "crops-00000.bin").stat().st_size
    total = sum(frames)
    print(
        f"{count} clips, {total / count / RATE:.1f} s each; a frame takes {sizes[0] / total:.0f} "
        f"bytes of the store, {sizes[1] / total:.0f} of H.264"
    )
    repeat(folder, frames, list(range(count)) * REPEATS, "cuts", "many")
    CharTokenizer.train([TEXT]).save(folder / "tokens")
    return frames


def write_mp4(clip: np.ndarray, path: Path) -> None:
    """Write H.264 of default quality, as torchvision does."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in clip:
            rgb = np.repeat(frame[..., None], 3, -1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode())


def write_manifest(path: Path, frames: list[int]) -> None:
    """Write Lhotse cuts, as `prepare` does."""
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i, number in enumerate(frames):
            name, seconds = f"clip{i:06d}", number / RATE
            span = {"start": 0.0, "duration": seconds, "channel": 0}
            sound = f"corpora/cnvsrc/manifests/audio/{name}.flac"
            cut = {
                "id": name,
                **span,
                "supervisions": [
                    {"id": name, "recording_id": name, **span, "text": TEXT, "speaker": "s1"}
                ],
                "recording": {
                    "id": name,
                    "sources": [{"type": "file", "channels": [0], "source": sound}],
                    "sampling_rate": 16000,
                    "num_samples": number * 640,
                    "duration": seconds,
                    "channel_ids": [0],
                },
                "custom": {"has_audio": True, "video": f"{name}.mp4", "video_fps": float(RATE)},
                "type": "MonoCut",
            }
            file.write(json.dumps(cut) + "\n")


def repeat(folder: Path, frames: list[int], chosen: list[int], cuts: str, crops: str) -> None:
    """Write a manifest and a crop store whose clips share the bytes of a few."""
    write_manifest(folder / f"{cuts}.jsonl.gz", [frames[i] for i in chosen])
    with (folder / "crops" / CROPS.index).open() as index:
        known = [json.loads(line) for line in index]
    (folder / crops).mkdir()
    os.link(folder / "crops" / "crops-00000.bin", folder / crops / "crops-00000.bin")
    with (folder / crops / CROPS.index).open("w") as index:
        for i, one in enumerate(chosen):
            index.write(json.dumps({**known[one], "key": f"clip{i:06d}"}) + "\n")


def make_data(folder: Path, cuts: str, crops: str, every: bool) -> SpeechData:
    """Make our batches, with all of NPU-ASLP's augmentations if `every`."""
    more = [RandomRotation(), RandomCrop(), HorizontalFlip(), ColorJitter(), Cutout()]
    video = [*(more if every else [RandomCrop()]), AdaptiveTimeMask()]
    options = DataOptions(
        num_workers=WORKERS,
        audio_transforms=[SpeedPerturb()] if every else None,
        video_transforms=video,
    )
    tokenizer = CharTokenizer.load(folder / "tokens")
    valid = folder / "cuts.jsonl.gz"
    return SpeechData(
        options,
        folder / cuts,
        valid,
        tokenizer,
        modalities=("video",),
        crops=folder / crops,
        crop_size=CROP,
    )


class BaselineClips(Dataset):
    """The official baseline's dataset: decode, then floats, then the crop."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.iterdir())

    def __getitem__(self, index: int) -> torch.Tensor:
        with av.open(str(self.files[index % len(self.files)])) as source:
            source.streams.video[0].thread_type = "NONE"  # two processes have the two cores
            frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255.0  # (T, 3, H, W)
        top, left = torch.randint(SIDE - CROP + 1, (2,)).tolist()
        x = x[..., top : top + CROP, left : left + CROP]
        red, green, blue = x.unbind(1)
        x = (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)  # (T, 1, H, W)
        x = x.clone()
        for _ in range(-(-len(x) // RATE)):
            size = int(torch.randint(10, ()))
            if size < len(x):
                start = int(torch.randint(len(x) - size, ()))
                x[start : start + size] = 0.0
        return (x - 0.421) / 0.165


def baseline_collate(clips: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)


def throughput(folder: Path, rounds: int) -> list[dict]:
    loaders = {}
    for name, every in (("ours", False), ("ours, every augmentation", True)):
        data = make_data(folder, "cuts.jsonl.gz", "many", every)
        loaders[name] = data.train_dataloader()
    batches = list(loaders["ours"].batch_sampler)
    fewer = batches[::PEER_SHARE]
    loaders["baseline"] = DataLoader(
        BaselineClips(folder / "mp4"),
        batch_sampler=fewer,
        collate_fn=baseline_collate,
        num_workers=WORKERS,
    )

    def run(loader: DataLoader):
        return lambda: sum(1 for _ in loader)

    times = in_turn({name: run(loader) for name, loader in loaders.items()}, rounds, warm=False)
    rates = {}
    for name, found in times.items():
        clips = sum(map(len, fewer if name == "baseline" else batches))
        print(f"{name}: {spread([clips / t for t in found])} clips/s")
        rates[name] = clips / statistics.median(found)
    rows = []
    for name, title in (
        ("ours", "the baseline's augmentations"),
        ("ours, every augmentation", "all of NPU-ASLP's, the peer the baseline's"),
    ):
        ratio = rates[name] / rates["baseline"]
        rows.append(
            row(
                f"loading, {title}",
                rates[name],
                rates["baseline"],
                ratio,
                10.0,
                "clips/s",
                ratio >= 10.0,
            )
        )
    return rows


# -------------------------------------------------------------------- half a million utterances


def under(name: str, value: float, bound: float, unit: str) -> dict:
    value = float(value)
    return row(name, value, "bound", None, f"< {bound:g}", unit, value < bound)


def padding(count: int) -> dict:
    """Measure the padding of shuffled batches with speed perturbation."""
    from speechattn.data.batches.sampler import PaddedFrameBatches

    hashes = np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64)
    seconds = lengths(count) / SpeedPerturb().draws(hashes, 0, 0)
    batches = PaddedFrameBatches(seconds, DataOptions().batch_seconds).batches()
    padded = sum(len(batch) * seconds[batch].max() for batch in batches)
    share = 100.0 * (1.0 - seconds.sum() / padded)
    return under(f"padding, {count} utterances in {len(batches)} batches", share, 5.0, "%")


def large(folder: Path, frames: list[int], count: int, starts: int) -> list[dict]:
    """Measure fresh processes that open a manifest and a store of `count` utterances."""
    chosen = np.random.default_rng(0).integers(0, len(frames), count).tolist()
    repeat(folder, frames, chosen, "large", "large")
    print(f"{count} cuts: {(folder / 'large.jsonl.gz').stat().st_size / 1e6:.0f} MB of manifest")
    found = []
    for start in range(starts + 1):
        command = [sys.executable, __file__, "--resume", str(folder)]
        begun = time.time()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        found[-1]["seconds"] = found[-1]["at"] - begun
        parts = ", ".join(f"{key} {value:.4g}" for key, value in found[-1].items() if key != "at")
        print("first start:" if start == 0 else "restart:", parts)
    seconds = statistics.median(one["seconds"] for one in found[1:])
    more = max(one["megabytes"] - one["imports alone"] for one in found)
    title = f"{count} utterances"
    return [
        under(f"{title}, restart amid an epoch to its first batch", seconds, 10.0, "s"),
        under(f"{title}, memory of loader, manifest and {WORKERS} workers", more, 1000.0, "MB"),
    ]


def resume(folder: Path) -> dict[str, float]:
    """Resume in the middle of an epoch, and measure it.

    Returns:
        `at`, the time of the first batch; seconds of parts; megabytes of all processes together
        behind `batches`, and of Python with what it imports alone.
    """
    imported = time.time()
    alone = megabytes([os.getpid()])
    data = make_data(folder, "large.jsonl.gz", "large", every=True)
    opened = time.time()
    data.train.epoch = 3
    loader = data.loader(data.train, shuffle=True)
    # As Lightning does with what a checkpoint holds.
    loader.load_state_dict({"done": loader.total // 2, "total": loader.total})
    batches = iter(loader)
    next(batches)
    at = time.time()
    seen = 1
    for _ in batches:
        seen += 1
        if seen == 100:
            break
    workers = [worker.pid for worker in multiprocessing.active_children()]
    assert len(workers) == WORKERS
    return {
        "at": at,
        "opening": opened - imported,
        "to the batch": at - opened,
        "megabytes": megabytes([os.getpid(), *workers]),
        "imports alone": alone,
    }


def megabytes(processes: list[int]) -> float:
    """Measure the memory of processes, with shared pages counted once."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
        except (OSError, StopIteration):  # counted more than once
            text = Path(f"/proc/{process}/status").read_text()
            total += next(int(x.split()[1]) for x in text.splitlines() if x.startswith("VmRSS:"))
    return total / 1000.0


if __name__ == "__main__":
    sys.exit(main())

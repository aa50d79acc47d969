"""Claim: no lossless way to keep mouth crops is both smaller and faster to read than ours.

Bytes a clip and milliseconds to read a whole clip, on one core, of the same mouth crops kept in
each way; all readers run in turn on each clip. A row compares with one peer: reading with those
that are slower, size with those that are faster to read. Lossy peers are named so.

    python benchmarks/crop_store.py --data-dir GRID [--quick] [--json FILE]
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from rows import save

from speechattn.data.crops.roi import MouthCropper
from speechattn.data.crops.store import CropStore, CropWriter

Reader = Callable[[int], np.ndarray]  # number of a clip -> uint8 (T, H, W)


def in_memory(clips, encode, decode) -> tuple[float, Reader]:
    """A codec on its own: no index, no file, which favours the peers."""
    packed = [encode(clip) for clip in clips]
    sizes = [sum(map(len, p)) if isinstance(p, list) else len(p) for p in packed]
    return statistics.mean(sizes), lambda i: decode(packed[i])


def images(suffix: str, flags: list[int]):
    def encode(clip):
        return [cv2.imencode(suffix, frame, flags)[1].tobytes() for frame in clip]

    def decode(parts):
        gray = cv2.IMREAD_GRAYSCALE
        return np.stack([cv2.imdecode(np.frombuffer(p, np.uint8), gray) for p in parts])

    return encode, decode


def video(codec: str, options: dict[str, str]):
    def encode(clip):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as out:
            stream = out.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = *clip.shape[1:], "gray"
            for frame in clip:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
            out.mux(stream.encode())
        return buffer.getvalue()

    def decode(data):
        with av.open(io.BytesIO(data)) as source:
            source.streams.video[0].thread_type = "NONE"
            return np.stack([plane(frame) for frame in source.decode(video=0)])

    def plane(frame):
        # As stored: converting to "gray" would stretch what FFmpeg takes for limited range.
        data = np.frombuffer(frame.planes[0], np.uint8)
        return data.reshape(frame.height, -1)[:, : frame.width]

    return encode, decode


def raw_file(clips, folder: Path) -> tuple[float, Reader]:
    path = folder / "raw.bin"
    path.write_bytes(b"".join(clip.tobytes() for clip in clips))
    ends = np.cumsum([clip.nbytes for clip in clips])
    descriptor = os.open(path, os.O_RDONLY)

    def read(i):
        size, shape = clips[i].nbytes, clips[i].shape
        data = os.pread(descriptor, size, int(ends[i]) - size)
        return np.frombuffer(data, np.uint8).reshape(shape).copy()

    return path.stat().st_size / len(clips), read


def shar(clips, folder: Path) -> tuple[float, Reader]:
    """Lhotse Shar keeps integer arrays as numpy files in a tar, which is read from end to end."""
    from lhotse.array import Array
    from lhotse.shar.readers.tar import TarIterator
    from lhotse.shar.writers import ArrayTarWriter

    path = folder / "crops.tar"
    with ArrayTarWriter(str(path), shard_size=None, compression="numpy") as writer:
        for i, clip in enumerate(clips):
            manifest = Array("memory_raw", "", "", shape=list(clip.shape))
            writer.write(f"k{i}", clip, manifest)
    position = iter(())

    def read(i):
        nonlocal position
        if i == 0:
            position = iter(TarIterator(str(path)))
        manifest, _ = next(position)
        return manifest.load()

    return path.stat().st_size / len(clips), read


def ours(clips, folder: Path) -> tuple[float, Reader]:
    with CropWriter(folder / "store") as writer:
        for i, clip in enumerate(clips):
            writer.add(f"k{i}", clip, 25.0)
    store = CropStore(folder / "store")
    size = sum(f.stat().st_size for f in (folder / "store").iterdir())
    return size / len(clips), lambda i: store.read(f"k{i}")


def candidates(clips, folder: Path) -> dict[str, tuple[float, Reader]]:
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, 2]
    lossless = {"qp": "0", "preset": "ultrafast", "x264-params": "threads=1"}
    lossy = {"crf": "18", "preset": "veryfast", "x264-params": "threads=1"}

    def inflate(data):
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(-1, *clips[0].shape[1:])

    return {
        "ours": ours(clips, folder),
        "raw bytes": raw_file(clips, folder),
        "Lhotse Shar": shar(clips, folder),
        "npz (zlib of raw)": in_memory(clips, lambda c: zlib.compress(c.tobytes(), 6), inflate),
        "PNG frames": in_memory(clips, *images(".png", png)),
        "FFV1": in_memory(clips, *video("ffv1", {"level": "3", "slicecrc": "0"})),
        "H.264 lossless": in_memory(clips, *video("libx264", lossless)),
        "H.264 crf 18": in_memory(clips, *video("libx264", lossy)),
        "JPEG frames q95": in_memory(clips, *images(".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])),
    }


def measure(clips: list[np.ndarray], rounds: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        stores = candidates(clips, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in stores}
        errors: dict[str, float] = dict.fromkeys(stores, 0.0)
        for _ in range(rounds):
            for i, clip in enumerate(clips):
                for name, (_, read) in stores.items():
                    begun = time.perf_counter()
                    got = read(i)
                    times[name].append(1e3 * (time.perf_counter() - begun))
                    error = np.abs(got.astype(np.int16) - clip).mean()
                    errors[name] += float(error) / len(clips) / rounds
        size = {name: value[0] / 1e3 for name, value in stores.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        values = sorted(values)
        low, high = values[len(values) // 10], values[-1 - len(values) // 10]
        print(
            f"{name:18s} {size[name]:6.1f} kB a clip, read {median[name]:6.2f} ms "
            f"({low:.2f} to {high:.2f}), mean error {errors[name]:.2f}"
        )
        if name == "ours":
            continue
        faster = median["ours"] <= median[name]
        kind, unit, values = (
            ("read", "ms a clip", median) if faster else ("size", "kB a clip", size)
        )
        rows.append(
            {
                "name": f"crop store, {kind}, against {name}"
                + ("" if errors[name] == 0 else " (lossy)"),
                "ours": values["ours"],
                "peer": values[name],
                "ratio": values[name] / values["ours"],
                "target": 1.0,
                "unit": unit,
                "met": values[name] >= values["ours"],
            }
        )
    assert errors["ours"] == 0
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("SPEECHATTN_TEST_DATA")
    root = Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data-dir", type=Path, default=root / "grid")
    parser.add_argument("--quick", action="store_true", help="fewer clips, fewer rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    videos = sorted((options.data_dir / "video").glob("*.mp4"))
    if not videos:
        print(f"no videos in {options.data_dir / 'video'}: give --data-dir", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    cropper = MouthCropper()
    chosen = np.linspace(0, len(videos) - 1, 8 if options.quick else 30, dtype=int)
    clips = [cropper.crop(videos[i]).frames for i in chosen]
    rows = measure(clips, 2 if options.quick else 5)
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

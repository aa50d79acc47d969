"""A cache of detections: another crop size or smoothing does not detect again.

For every picture searched all faces are kept as the detector gave them (box, score, points),
since which one is the speaker depends on options too. A face takes 60 bytes, about 1 % of the
crops. Faces are used again only for the same file (size and time of change), the same detector and
the same rates of detection.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.data.crops.blobs import BlobStore, BlobWriter, Layout, index_folders
from speechattn.data.crops.roi.detector import Face
from speechattn.data.crops.roi.options import RoiOptions

FACES = Layout("faces.jsonl", "faces", ("pictures", "bytes", "modified", "detector"), "face cache")
_FLOATS = 15  # of a face: box, score, five points

Detections = Sequence[Sequence[Face]]  # the faces of each picture searched, in order of time


@dataclass(frozen=True)
class CachedFaces:
    """The faces of one video, as they are stored."""

    pictures: int  # how many were searched; 0 if there was no face in any
    size: int  # bytes of the video file
    modified: int  # when it was last changed, whole seconds
    detector: int  # see `detector_number`
    data: bytes  # the faces; without any, why there are none


def detector_number(detector: str, options: RoiOptions) -> int:
    """Return a number for a detector and all that decides what it is shown."""
    shown = (detector, options.fps, options.detect_every, options.search_every)
    return zlib.crc32(repr(shown).encode())


def file_state(path: str | Path) -> tuple[int, int]:
    """Return size in bytes and time of change of a file, zeros if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0
    return state.st_size, int(state.st_mtime)


def encode_faces(detections: Detections) -> bytes:
    """Pack faces; what comes back is the same to the last bit."""
    counts = np.array([len(faces) for faces in detections], dtype=np.uint16)
    every = (face for faces in detections for face in faces)
    rows = [[*face.box, face.score, *np.ravel(face.points)] for face in every]
    rows = np.array(rows, dtype=np.float32)
    # Bytes of equal weight side by side: the high ones hardly change.
    planes = rows.reshape(-1, 1).view(np.uint8).T.tobytes() if rows.size else b""
    return zlib.compress(counts.tobytes() + planes, 1)


def decode_faces(data: bytes, pictures: int) -> list[list[Face]]:
    """Unpack the faces of so many pictures that `encode_faces` packed."""
    raw = zlib.decompress(data)
    counts = np.frombuffer(raw, np.uint16, pictures)
    planes = np.frombuffer(raw, np.uint8, offset=2 * pictures).reshape(4, -1)
    rows = np.ascontiguousarray(planes.T).view(np.float32).reshape(-1, _FLOATS)
    faces = [Face(row[:4], float(row[4]), row[5:].reshape(5, 2)) for row in rows]
    ends = np.cumsum(counts).tolist()
    return [faces[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


class FaceCache:
    """Faces that earlier runs kept, in any of some folders.

    Args:
        folders: of crop stores; those without faces are passed over.
    """

    def __init__(self, folders: Sequence[str | Path]):
        self._stores = [BlobStore(one, FACES) for one in folders if index_folders(one, FACES)]

    def get(self, key: str) -> CachedFaces | None:
        """Return the faces of a video if they are known, without a check that they still hold."""
        for store in self._stores:
            if key in store:
                numbers = (int(store.number(key, name)) for name in FACES.numbers)
                return CachedFaces(*numbers, b"".join(store.blocks(key)))
        return None


class FaceWriter(BlobWriter):
    """Keeps faces beside the crops, in the folder of the store; a context manager."""

    def __init__(self, folder: str | Path):
        super().__init__(folder, FACES)

    def add(self, key: str, faces: CachedFaces) -> None:
        """Keep the faces of a video, in place of those kept before."""
        numbers = (faces.pictures, faces.size, faces.modified, faces.detector)
        numbers = dict(zip(FACES.numbers, numbers, strict=True))
        self.add_blocks(key, [faces.data], numbers, replace=True)

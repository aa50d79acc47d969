"""Media files: sound and pictures, whole or in pieces.

In a file with both, time counts from the first picture.
"""

from speechattn.data.media.container import MediaInfo, probe
from speechattn.data.media.pictures import Frame, iter_frames, iter_video
from speechattn.data.media.rolling import Rolling
from speechattn.data.media.sound import fit_audio, read_audio, resample, stream_audio

__all__ = [
    "Frame",
    "MediaInfo",
    "Rolling",
    "fit_audio",
    "iter_frames",
    "iter_video",
    "probe",
    "read_audio",
    "resample",
    "stream_audio",
]

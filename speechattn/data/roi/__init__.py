"""Mouth region of interest: from raw face videos to 96x96 grey crops of the mouth."""

from speechattn.data.roi.cropper import MouthCrop, MouthCropper
from speechattn.data.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.roi.mediapipe import MediaPipeDetector
from speechattn.data.roi.mtcnn import MtcnnDetector
from speechattn.data.roi.options import RoiOptions
from speechattn.data.roi.pipeline import RoiItem, RoiSummary, extract

__all__ = [
    "Face",
    "FaceDetector",
    "MediaPipeDetector",
    "MouthCrop",
    "MouthCropper",
    "MtcnnDetector",
    "RefiningDetector",
    "RoiItem",
    "RoiOptions",
    "RoiSummary",
    "extract",
]

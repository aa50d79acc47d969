"""Mouth region of interest: from raw face videos to 96x96 grey crops of the mouth."""

from speechattn.data.roi.cropper import MouthCrop, MouthCropper
from speechattn.data.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.roi.estimation import Estimate
from speechattn.data.roi.mediapipe import MediaPipeDetector
from speechattn.data.roi.mtcnn import MtcnnDetector
from speechattn.data.roi.options import RoiOptions
from speechattn.data.roi.pipeline import RoiSummary, estimate, extract
from speechattn.data.roi.shards import MergeSummary, merge_shards
from speechattn.data.roi.workers import RoiItem

__all__ = [
    "Estimate",
    "Face",
    "FaceDetector",
    "MediaPipeDetector",
    "MergeSummary",
    "MouthCrop",
    "MouthCropper",
    "MtcnnDetector",
    "RefiningDetector",
    "RoiItem",
    "RoiOptions",
    "RoiSummary",
    "estimate",
    "extract",
    "merge_shards",
]

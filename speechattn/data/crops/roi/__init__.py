"""Mouth region of interest: from raw face videos to 96x96 grey crops of the mouth."""

from speechattn.data.crops.roi.cropper import MouthCrop, MouthCropper
from speechattn.data.crops.roi.detector import Face, FaceDetector, RefiningDetector
from speechattn.data.crops.roi.estimation import Estimate
from speechattn.data.crops.roi.mediapipe import MediaPipeDetector
from speechattn.data.crops.roi.mtcnn import MtcnnDetector
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.roi.pipeline import RoiSummary, estimate, extract
from speechattn.data.crops.roi.shards import MergeSummary, merge_shards
from speechattn.data.crops.roi.workers import RoiItem

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

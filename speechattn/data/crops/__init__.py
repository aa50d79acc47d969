"""Mouth crops: cut out of videos (`roi`), stored, read.

Legend: T frames, H and W height and width in pixels; points are (x, y) in pixels.
"""

from speechattn.data.crops.store import CropInfo, CropStore, CropWriter

__all__ = ["CropInfo", "CropStore", "CropWriter"]

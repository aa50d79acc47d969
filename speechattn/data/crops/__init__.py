"""Mouth crops: cut out of videos (`roi`), stored, read."""

from speechattn.data.crops.store import CropInfo, CropStore, CropWriter

__all__ = ["CropInfo", "CropStore", "CropWriter"]

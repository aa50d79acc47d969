"""Models: one recogniser, ensembles of them, and the directory that a trained one is kept in."""

from speechattn.model.directory import load_model
from speechattn.model.ensemble import Ensemble
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import Modality, SpeechModel, Stream

__all__ = ["Ensemble", "Modality", "ModelOutput", "SpeechModel", "Stream", "load_model"]

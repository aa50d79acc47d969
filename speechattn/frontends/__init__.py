"""Frontends: sound or mouth crops to one feature vector a frame.

Legend: B utterances, N inputs of an utterance (samples of sound or pictures), T frames, F features,
P pictures of all utterances in a row, C channels, H height, W width.
"""

from speechattn.frontends.base import Frontend, FrontendState, Reach
from speechattn.frontends.conv1d_resnet import Conv1dResNet
from speechattn.frontends.enhanced_resnet3d import EnhancedResNet3D
from speechattn.frontends.espnet_log_mel import EspnetLogMel
from speechattn.frontends.fbank import LogMelFbank
from speechattn.frontends.fusion import MLPFusion
from speechattn.frontends.resnet3d import ResNet3D
from speechattn.frontends.specaugment import SpecAugment

__all__ = [
    "Conv1dResNet",
    "EnhancedResNet3D",
    "EspnetLogMel",
    "Frontend",
    "FrontendState",
    "LogMelFbank",
    "MLPFusion",
    "Reach",
    "ResNet3D",
    "SpecAugment",
]

"""From a waveform or mouth crops to one vector a frame."""

from speechattn.frontends.base import Frontend
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
    "LogMelFbank",
    "MLPFusion",
    "ResNet3D",
    "SpecAugment",
]

"""What training minimises."""

from speechattn.losses.delay_penalised_ctc import DelayPenalisedCTC, delay_penalised_ctc_loss
from speechattn.losses.joint import JointLoss, LossParts, label_smoothing_loss
from speechattn.losses.mwer import MwerLoss
from speechattn.losses.transducer import FullTransducerLoss, PrunedTransducerLoss

__all__ = [
    "DelayPenalisedCTC",
    "FullTransducerLoss",
    "JointLoss",
    "LossParts",
    "MwerLoss",
    "PrunedTransducerLoss",
    "delay_penalised_ctc_loss",
    "label_smoothing_loss",
]

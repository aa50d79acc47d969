"""What training minimises.

Legend: B utterances, N hypotheses of all of them, T frames, U tokens, V units, D width.
"""

from speechattn.losses.blank_regularised_ctc import BlankRegularisedCTC, blank_regularised_ctc_loss
from speechattn.losses.delay_penalised_ctc import DelayPenalisedCTC, delay_penalised_ctc_loss
from speechattn.losses.joint import JointLoss, LossParts, label_smoothing_loss
from speechattn.losses.lattice_free_mmi import LatticeFreeMmi
from speechattn.losses.mwer import MwerLoss
from speechattn.losses.transducer import FullTransducerLoss, PrunedTransducerLoss

__all__ = [
    "BlankRegularisedCTC",
    "DelayPenalisedCTC",
    "FullTransducerLoss",
    "JointLoss",
    "LatticeFreeMmi",
    "LossParts",
    "MwerLoss",
    "PrunedTransducerLoss",
    "blank_regularised_ctc_loss",
    "delay_penalised_ctc_loss",
    "label_smoothing_loss",
]

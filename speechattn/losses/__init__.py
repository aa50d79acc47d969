"""What training minimises."""

from speechattn.losses.joint import JointLoss, LossParts, label_smoothing_loss

__all__ = ["JointLoss", "LossParts", "label_smoothing_loss"]

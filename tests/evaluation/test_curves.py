"""Learning curves."""

import numpy as np

from speechattn.evaluation.curves import by_epoch, compare_curves, learning_curves
from speechattn.evaluation.experiment import read_metrics


def test_by_epoch_is_the_mean_of_an_epochs_rows():
    metrics = {
        "epoch": np.array([0, 0, 1, 1, 2]),
        "train_loss": np.array([1.0, 3.0, np.nan, 4.0, np.inf]),
    }
    epochs, values = by_epoch(metrics, "train_loss")
    np.testing.assert_array_equal(epochs, [0, 1])
    np.testing.assert_array_equal(values, [2, 4])
    assert by_epoch(metrics, "absent") is None
    assert by_epoch({"valid_error": np.array([1.0])}, "valid_error") is None  # one point, no curve
    steps, _ = by_epoch({"step": np.array([5, 9]), "lr": np.array([1.0, 2.0])}, "lr")
    np.testing.assert_array_equal(steps, [5, 9])


def test_svg_has_a_panel_for_what_is_there(experiments):
    metrics = read_metrics(experiments["grid_av"] / "train" / "metrics.csv")
    svg = learning_curves(metrics)
    for text in ("loss", "validation token error, %", "learning rate", "best "):
        assert text in svg
    del metrics["lr"]
    assert "learning rate" not in learning_curves(metrics)
    assert learning_curves({}) == ""


def test_comparison_needs_two(experiments):
    curves = {
        name: read_metrics(folder / "train" / "metrics.csv") for name, folder in experiments.items()
    }
    svg = compare_curves(curves)
    assert "grid_av" in svg and "cnvsrc &lt;video&gt;" in svg
    assert compare_curves({"a": curves["grid_av"], "b": {}}) == ""

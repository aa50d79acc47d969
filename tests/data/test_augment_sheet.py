"""The picture of augmentation, by the command."""

import cv2
import numpy as np
import pytest

from speechattn.cli import main
from speechattn.data.augment import HorizontalFlip, RandomCrop, SpeedPerturb
from speechattn.data.augment.sheet import write_augment_sheet
from speechattn.data.crops.store import CropStore

CONFIG = """
data:
  audio_transforms:
    - {class_path: speechattn.data.augment.SpeedPerturb, init_args: {factors: [0.5]}}
    - {class_path: speechattn.data.augment.AddNoise, init_args: {snr_db: [0, 5]}}
  video_transforms:
    - {class_path: speechattn.data.augment.RandomCrop, init_args: {size: 16}}
    - {class_path: speechattn.data.augment.ColorJitter}
"""


def read_fields(path, columns: int) -> np.ndarray:
    """Read the pictures of a sheet of 24x24 fields, (rows, columns, H, W)."""
    sheet = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    fields = sheet.reshape(-1, 26, sheet.shape[1])[:, :24, 150:].reshape(-1, 24, columns, 26)
    return fields[..., :24].transpose(0, 2, 1, 3)


def test_rows(tmp_path):
    """A field shows the picture of its time, as it is and as it was changed."""
    clip = np.random.default_rng(0).integers(0, 200, (24, 24, 24), dtype=np.uint8)
    path = tmp_path / "new" / "sheet.png"
    transforms = [SpeedPerturb((1.0, 0.5)), HorizontalFlip(0.5), RandomCrop()]
    write_augment_sheet(clip, transforms, path, draws=2, columns=6)
    fields = read_fields(path, 8)
    # Speed and flip change a clip in one way alone, crops and all together in many.
    assert len(fields) == 1 + 1 + 1 + 2 + 2
    for column in range(6):
        np.testing.assert_array_equal(fields[0, column], clip[4 * column])
        np.testing.assert_array_equal(fields[1, column], clip[2 * column])  # half as fast
        np.testing.assert_array_equal(fields[2, column], clip[4 * column, :, ::-1])
        assert (fields[3:, column, 1:-1, 1:-1] != 255).all()
        assert (fields[3:, column, 0] == 255).all()  # 22 of 24
    assert (fields[0, 6:] == 255).all() and (fields[1, 6:] != 255).any()
    assert [one.name for one in path.parent.iterdir()] == ["sheet.png"]


def test_command(tiny_corpus, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    command = ["augment-sheet", "--config", str(config), "--crops"]
    command += [str(tiny_corpus.folder / "crops"), "--output", str(tmp_path / "sheet.png")]
    assert main([*command, "--draws", "2"]) == 0
    rows = 1 + 1 + 2 + 2 + 2  # one speed
    height = CropStore(tiny_corpus.folder / "crops").read("s0_u0").shape[1]
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[0] == rows * (height + 2)
    assert main([*command, "--clip", "none"]) == 1
    assert "no crops of 'none'" in capsys.readouterr().err
    config.write_text("data: {}")
    assert main(command) == 1
    assert "no transforms" in capsys.readouterr().err


@pytest.mark.parametrize("frames", [1, 5])
def test_short_clips(tmp_path, frames):
    """Clips of fewer frames than the sheet has columns: each once, in order, the rest white."""
    clip = np.random.default_rng(0).integers(0, 200, (frames, 24, 24), dtype=np.uint8)
    write_augment_sheet(clip, [RandomCrop(20)], tmp_path / "sheet.png", draws=3, columns=12)
    fields = read_fields(tmp_path / "sheet.png", 14)
    assert len(fields) == 1 + 3 + 3  # the clip, three draws of the crop, three of all
    np.testing.assert_array_equal(fields[0, :frames], clip)
    corners = range(5)
    for row in fields[1:]:
        cropped = row[:frames, 2:-2, 2:-2]
        assert any(
            np.array_equal(cropped, clip[:, y : y + 20, x : x + 20])
            for y in corners
            for x in corners
        )
    assert (fields[:, frames:] == 255).all()

"""Decode options and their YAML."""

import pytest

from speechattn.decoding import DecodeOptions
from speechattn.errors import ConfigError


def test_yaml_round_trip(tmp_path):
    options = DecodeOptions(method="attention", beam_size=4, length_bonus=0.5, nbest=2)
    options.save(tmp_path / "options.yaml")
    assert DecodeOptions.load(tmp_path / "options.yaml") == options
    (tmp_path / "part.yaml").write_text("beam_size: 3\nctc_weight: 1\n")
    assert DecodeOptions.load(tmp_path / "part.yaml") == DecodeOptions(beam_size=3, ctc_weight=1)
    (tmp_path / "empty.yaml").write_text("")
    assert DecodeOptions.load(tmp_path / "empty.yaml") == DecodeOptions()


@pytest.mark.parametrize(
    "text, message",
    [
        ("beam: 3", "unknown option 'beam'"),
        ("beam_size: ten", "beam_size: expected int"),
        ("beam_size: 0", "beam_size: has to be at least 1"),
        ("beam_size: true", "beam_size: expected int"),
        ("ctc_weight: 1.5", "ctc_weight"),
        ("method: beam", "one of joint"),
        ("- 3", "expected a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, text, message):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        DecodeOptions.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        DecodeOptions.load(tmp_path / "nowhere.yaml")

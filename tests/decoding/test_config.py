"""Searches as sections of a configuration."""

import logging

import pytest
import yaml

from speechattn.decoding import (
    CtcBeamSearch,
    CtcGreedySearch,
    GraphSearch,
    JointSearch,
    TransducerBeamSearch,
)
from speechattn.decoding.config import (
    METHODS,
    build_search,
    chosen_search,
    converted,
    search_of,
    search_section,
)
from speechattn.errors import ConfigError


def test_a_section_and_back():
    search = JointSearch(ctc_weight=0.0, beam_size=4, length_bonus=0.5, nbest=2)
    section = yaml.safe_load(yaml.safe_dump(search_section(search)))
    assert build_search(section) == search
    assert build_search("CtcGreedySearch") == CtcGreedySearch()
    assert build_search({"class_path": "CtcBeamSearch", "init_args": {"beam_size": 3}}) == (
        CtcBeamSearch(beam_size=3)
    )
    assert build_search() == search_of({}) == JointSearch()


@pytest.mark.parametrize(
    "section, message",
    [
        ({"beam_size": 3}, "a class and its options are needed"),
        ({"class_path": "JointSearch", "init_args": {"beam": 3}}, "beam"),
        ({"class_path": "JointSearch", "init_args": {"beam_size": "ten"}}, "beam_size"),
        ({"class_path": "JointSearch", "init_args": {"beam_size": 0}}, "beam_size.*at least 1"),
        ({"class_path": "JointSearch", "init_args": {"ctc_weight": 1.5}}, "ctc_weight.*0..1"),
        ({"class_path": "GraphSearch", "init_args": {"library": "k2py"}}, "library"),
        ("JoinSearch", "did you mean JointSearch"),
        ("NbestSearch", "there is no NbestSearch"),
        ("os.system", "not part of speechattn"),
        (5, "a class and its options are needed"),
    ],
)
def test_errors_name_the_key(section, message):
    with pytest.raises(ConfigError, match=message):
        build_search(section)


@pytest.mark.parametrize("method", METHODS)
def test_sections_of_before_are_converted_and_said_so(method, caplog):
    """All options of the old section, as a model directory has them."""
    old = {
        "method": method,
        "beam_size": 7,
        "ctc_weight": 0.4,
        "length_bonus": 0.1,
        "min_length_ratio": 0.0,
        "ngram_weight": 0.0,
        "frame_tokens": 1,
        "graph_weight": 0.5,
        "graph_beam": 9.0,
        "graph_states": 300,
        "graph_library": "k2py",
        "graph_ngram_weight": 0.25,
    }
    with caplog.at_level(logging.WARNING):
        search = search_of({"decode": old}, where="exp/model")
    assert "exp/model" in caplog.text and type(search).__name__ in caplog.text
    assert type(search).__name__ == METHODS[method]
    if method == "joint":
        assert search == JointSearch(beam_size=7, ctc_weight=0.4, length_bonus=0.1)
    if method == "attention":
        assert search == JointSearch(beam_size=7, ctc_weight=0.0, length_bonus=0.1)
    if method == "ctc_graph":
        assert search == GraphSearch(
            beam_size=7, weight=0.5, beam=9.0, max_states=300, ngram_weight=0.25
        )
    if method == "transducer_beam":
        assert search == TransducerBeamSearch(beam_size=7, length_bonus=0.1)


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="'beam'"):
        converted({"method": "beam"})


def test_what_a_command_names(tmp_path):
    config = {"search": {"class_path": "JointSearch", "init_args": {"beam_size": 4}}}
    assert chosen_search(config) == JointSearch(beam_size=4)
    overrides = ["search.ctc_weight=0.5", "nbest=2"]
    wanted = JointSearch(beam_size=4, ctc_weight=0.5, nbest=2)
    assert chosen_search(config, overrides=overrides) == wanted
    other = chosen_search(config, search="CtcBeamSearch", overrides=["beam_size=3"])
    assert other == CtcBeamSearch(beam_size=3)
    (tmp_path / "search.yaml").write_text("search: CtcGreedySearch\n")
    assert chosen_search(config, search=str(tmp_path / "search.yaml")) == CtcGreedySearch()
    with pytest.raises(ConfigError, match="beam_siz"):
        chosen_search(config, overrides=["beam_siz=3"])
    with pytest.raises(ConfigError, match="--search"):
        chosen_search(config, overrides=["search=CtcGreedySearch"])

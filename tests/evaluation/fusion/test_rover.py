"""ROVER against enumeration, a slow vote and examples worked out by hand."""

import itertools
import random

import kaldialign
import numpy as np
import pytest

from speechattn.errors import ConfigError
from speechattn.evaluation.fusion.rover import (
    Alternatives,
    RoverOptions,
    Unit,
    align,
    align_all,
    rover,
)


def units(text: str, *confidences: float) -> list[Unit]:
    """The words of a text, or its characters after a '|'."""
    words = list(text[1:]) if text.startswith("|") else text.split()
    confidences = confidences or (0.5,) * len(words)
    return [Unit(w.lower(), w, c) for w, c in zip(words, confidences, strict=True)]


def said(fused: list[Unit]) -> str:
    return " ".join(unit.text for unit in fused)


def shown(network) -> list[str]:
    return [" ".join(unit.text if unit else "@" for unit in column) for column in network]


def alignments(count: int, width: int):
    """All alignments of `count` units with `width` columns."""
    if not count and not width:
        yield []
    if count and width:
        yield from ([*a, (count - 1, width - 1)] for a in alignments(count - 1, width - 1))
    if count:
        yield from ([*a, (count - 1, None)] for a in alignments(count - 1, width))
    if width:
        yield from ([*a, (None, width - 1)] for a in alignments(count, width - 1))


def price(pairs, words, network, systems) -> tuple[int, int]:
    """NIST's cost of an alignment, and the pairs of systems that differ in it."""
    cost = differing = 0
    for i, j in pairs:
        word = words[i].key if i is not None else None
        column = [None] * systems if j is None else [u and u.key for u in network[j]]
        steps = [0 if word == k else 3 if word is None or k is None else 4 for k in column]
        cost += min(steps)
        differing += sum(word != k for k in column)
    return cost, differing


def cases(number: int, longest: int, systems: int, seed: int):
    """Random transcripts of few words, so that they often agree; empty ones too."""
    rng = random.Random(seed)
    for _ in range(number):
        yield [
            [
                Unit(rng.choice("abc"), "", round(rng.random(), 2))
                for _ in range(rng.randint(0, longest))
            ]
            for _ in range(systems)
        ]


@pytest.mark.parametrize("systems", [1, 2, 3])
def test_alignment_is_the_best_of_all(systems):
    for *earlier, new in cases(60, 4, systems + 1, seed=systems):
        network = [c[:systems] for c in align_all(earlier)]
        if len(network) > 5:
            continue
        found = align(new, network, systems)
        everything = alignments(len(new), len(network))
        best = min(price(pairs, new, network, systems) for pairs in everything)
        assert price(found, new, network, systems) == best
        assert [i for i, _ in found if i is not None] == list(range(len(new)))
        assert [j for _, j in found if j is not None] == list(range(len(network)))
        # The same cost seen otherwise: sclite's distance from the nearest path.
        distances = []
        for path in itertools.product(*({u and u.key for u in c} for c in network)):
            d = kaldialign.edit_distance(
                [k for k in path if k], [u.key for u in new], sclite_mode=True
            )
            distances.append(3 * (d["ins"] + d["del"]) + 4 * d["sub"])
        assert best[0] == min(distances)


def test_a_network_keeps_every_transcript():
    for transcripts in cases(100, 7, 4, seed=0):
        network = align_all(transcripts)
        for s, transcript in enumerate(transcripts):
            assert [c[s] for c in network if c[s] is not None] == transcript
        assert all(any(column) for column in network)


def slow_vote(network, present, options, weights) -> list[str]:
    """The vote as the module's text words it."""
    winners = []
    for column in network:
        best = None
        voters = [s for s in range(len(column)) if present[s]]
        for s in voters:
            key = column[s].key if column[s] else None
            agree = [t for t in voters if (column[t].key if column[t] else None) == key]
            share = sum(weights[t] for t in agree) / sum(weights[t] for t in voters)
            if key is None:
                confidence = options.null_confidence
            elif options.voting == "maximum":
                confidence = max(column[t].confidence for t in agree)
            else:
                confidence = sum(weights[t] * column[t].confidence for t in agree) / sum(
                    weights[t] for t in agree
                )
            if options.voting == "avgconf":
                null = options.null_confidence
                total = sum(
                    weights[t] * (column[t].confidence if column[t] else null) for t in voters
                )
                mass = confidence * sum(weights[t] for t in agree)
                confidence = mass / total if total else 0.0
            alpha = 1.0 if options.voting == "frequency" else options.alpha
            value = alpha * share + (1 - alpha) * confidence
            if best is None or value > best[0] + 1e-9:
                best = (value, key)
        if best[1] is not None:
            winners.append(best[1])
    return winners


@pytest.mark.parametrize("voting", ["frequency", "average", "maximum", "avgconf"])
def test_vote_is_the_slow_one(voting):
    rng = random.Random(1)
    networks, present = [], []
    for transcripts in cases(80, 6, 4, seed=2):
        here = [True, *(rng.random() > 0.2 for _ in range(3))]
        networks.append(
            align_all([t if p else None for t, p in zip(transcripts, here, strict=True)])
        )
        present.append(here)
    alternatives = Alternatives(networks, 4, present)
    for weights in ([1.0] * 4, [0.5, 2.0, 1.0, 1.5]):
        for alpha, null in itertools.product((0.0, 0.3, 1.0), (0.0, 0.6, 1.0)):
            options = RoverOptions(voting, alpha, null)
            fused = alternatives.fuse(options, np.array(weights))
            plain = [
                slow_vote(n, p, options, weights) for n, p in zip(networks, present, strict=True)
            ]
            assert [[u.key for u in one] for one in fused] == plain
            assert any(plain)


def test_english_by_hand():
    transcripts = [units(t) for t in ("the cat sat on mat", "a cat sat on the mat", "the bat sat")]
    assert shown(align_all(transcripts)) == [
        "the a the",
        "cat cat bat",
        "sat sat sat",
        "on on @",
        "@ the @",
        "mat mat @",
    ]
    assert said(rover(transcripts)) == "the cat sat on mat"


def test_chinese_by_hand():
    transcripts = [units("|" + t) for t in ("今天天汽很好", "今天气很好", "明天天气很好啊")]
    assert shown(align_all(transcripts)) == [
        "今 今 明",
        "天 @ 天",  # either 天 would do: as late as it can
        "天 天 天",
        "汽 气 气",
        "很 很 很",
        "好 好 好",
        "@ @ 啊",
    ]
    assert "".join(u.text for u in rover(transcripts)) == "今天天气很好"


def test_insertions_at_one_place_share_a_column():
    network = align_all([units("a c"), units("a x c"), units("a y c")])
    assert shown(network) == ["a a a", "@ x y", "c c c"]


def test_agreement_decides_between_alignments_of_equal_cost():
    # Either a of the network would cost nothing; the second has the vote of two.
    network = align_all([units("a a"), units("a"), units("a")])
    columns = [sum(unit is not None for unit in column) for column in network]
    assert sorted(columns) == [1, 3]


def test_a_tie_is_the_earliest_systems():
    one, two = units("a b c"), units("a x c d")
    assert said(rover([one, two])) == "a b c"
    assert said(rover([two, one])) == "a x c d"
    # Null arcs as well: the first says nothing, the third and the second differ.
    assert said(rover([units("a c"), units("a x c"), units("a y c")])) == "a c"
    # 0.1 + 0.2 and 0.3 are as many votes, whatever the last digit.
    weights = [0.3, 0.1, 0.2]
    assert said(rover([units("x"), units("y"), units("y")], weights=weights)) == "x"
    assert said(rover([units("y"), units("y"), units("x")], weights=[0.1, 0.2, 0.3])) == "y"


def test_weights():
    transcripts = [units("x"), units("y"), units("y")]
    assert said(rover(transcripts)) == "y"
    assert said(rover(transcripts, weights=[2.1, 1, 1])) == "x"
    assert said(rover(transcripts, weights=[1.9, 1, 1])) == "y"
    assert said(rover(transcripts, weights=[19, 10, 10])) == "y"  # only their ratio counts
    # Weighted mean: y has 0.3 * 3/4 + 0.9 / 4 = 0.45; with equal weights 0.6.
    sure = [units("x", 0.5), units("y", 0.3), units("y", 0.9)]
    average = RoverOptions("average", alpha=0.0)
    assert said(rover(sure, average)) == "y"
    assert said(rover(sure, average, [1, 3, 1])) == "x"
    for wrong in ([1, 1], [1, 0, 1], [1, -1, 1], [1, float("nan"), 1]):
        with pytest.raises(ConfigError, match="weights"):
            rover(transcripts, weights=wrong)


def test_confidences():
    transcripts = [units("x", 0.9), units("y", 0.2), units("y", 0.6)]
    assert said(rover(transcripts, RoverOptions("frequency", alpha=0.0))) == "y"
    # x: a / 3 + 0.9 (1 - a); y: 2 a / 3 + 0.4 (1 - a), more from a = 0.6 on.
    assert said(rover(transcripts, RoverOptions("average", alpha=0.59))) == "x"
    assert said(rover(transcripts, RoverOptions("average", alpha=0.61))) == "y"
    # y's best is 0.6: from a = 9 / 19 on.
    assert said(rover(transcripts, RoverOptions("maximum", alpha=0.46))) == "x"
    assert said(rover(transcripts, RoverOptions("maximum", alpha=0.48))) == "y"
    assert rover(transcripts, RoverOptions("maximum", 0.48))[0].confidence == pytest.approx(
        0.48 * 2 / 3 + 0.52 * 0.6
    )


def test_null_confidence():
    transcripts = [units("a", 1.0), units("a b", 1.0, 0.8), units("a", 1.0)]
    # b: 0.3 / 3 + 0.7 * 0.8 = 0.66; nothing: 0.3 * 2 / 3 + 0.7 * null, more from 0.657 on.
    assert said(rover(transcripts, RoverOptions("average", 0.3, 0.65))) == "a b"
    assert said(rover(transcripts, RoverOptions("average", 0.3, 0.66))) == "a"
    assert said(rover(transcripts, RoverOptions("frequency", 0.3, 0.0))) == "a"


def test_one_system_and_equal_systems_change_nothing():
    for transcripts in cases(40, 8, 1, seed=3):
        for count, voting in itertools.product((1, 2, 5), ("average", "maximum", "avgconf")):
            fused = rover(transcripts * count, RoverOptions(voting, 0.5, 1.0))
            # A null confidence of 1 cannot win: there are no null arcs.
            assert [u.key for u in fused] == [u.key for u in transcripts[0]]


def test_empty_transcripts_vote_for_nothing():
    assert rover([[], []]) == []
    assert said(rover([units("a b"), [], []])) == ""
    assert said(rover([[], units("a b"), units("a b")])) == "a b"
    assert said(rover([[], units("a b"), units("b a")])) == "b"


def test_an_absent_transcript_has_no_vote():
    transcripts = [units("a b"), None, units("a")]
    alternatives = Alternatives([align_all(transcripts)], 3, [[True, False, True]])
    options = RoverOptions()
    assert said(alternatives.fuse(options, np.ones(3))[0]) == "a b"
    assert said(alternatives.fuse(options, np.array([1.0, 9.0, 1.1]))[0]) == "a"
    assert alternatives.fuse(options, np.ones(3))[0][0].confidence == 1.0


def test_the_winner_is_written_as_its_first_system_does():
    assert said(rover([units("x"), units("London"), units("london")])) == "London"


def test_utterances_do_not_mix():
    """Many utterances at once, without a word among them too, are what each of them is alone."""
    some = [*cases(20, 6, 3, seed=4), [[], [], []], *cases(3, 6, 3, seed=5), [[], [], []]]
    options, weights = RoverOptions("average", 0.4, 0.3), [1.0, 0.7, 1.2]
    alternatives = Alternatives([align_all(one) for one in some], 3)
    assert alternatives.fuse(options, np.array(weights)) == [
        rover(o, options, weights) for o in some
    ]


@pytest.mark.parametrize(
    "wrong", [{"voting": "loudest"}, {"alpha": 1.1}, {"alpha": -0.1}, {"null_confidence": 2.0}]
)
def test_options_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RoverOptions(**wrong)


def test_avgconf_by_hand():
    transcripts = [units("a . x", 0.8, 1, 0.2), units("a . y", 0.6, 1, 0.5), units("b .", 0.9, 1)]
    alternatives = Alternatives([align_all(transcripts)], 3)
    # First column: a has (0.8 + 0.6) / 2.3 of the confidence, b 0.9 / 2.3. Last: 0.2, 0.5 and the
    # null arc's 0.3 are all of it.
    scores = alternatives.scores(RoverOptions("avgconf", 0.4, 0.3), np.ones(3))
    expected = [0.4 * 2 / 3 + 0.6 * 1.4 / 2.3, 0.4 / 3 + 0.6 * 0.9 / 2.3, 1.0]
    expected += [0.4 / 3 + 0.6 * share for share in (0.2, 0.5, 0.3)]
    assert scores == pytest.approx(expected)
    # The first system counts three times.
    scores = alternatives.scores(RoverOptions("avgconf", 0.0, 0.3), np.array([3.0, 1, 1]))
    expected = [3.0 / 3.9, 0.9 / 3.9, 1.0, 0.6 / 1.4, 0.5 / 1.4, 0.3 / 1.4]
    assert scores == pytest.approx(expected)
    # Columns without any confidence are decided by the votes.
    nothing = [units("a", 0.0), units("b", 0.0), units("b", 0.0)]
    assert said(rover(nothing, RoverOptions("avgconf", 0.5))) == "b"


# Correspondence sets that NIST's rover (SCTK 2.4.12) made of three CTM files, and what it wrote.
NIST_COLUMNS = """
b/0.56 b/0.03 @ | c/0.03 c/0.09 d/0.16 | d/0.81 b/0.40 d/0.30 | a/0.10 b/0.49 a/0.11
| d/0.23 @ @ | c/0.08 c/0.40 d/0.93 | d/0.21 a/0.48 d/0.19 | b/0.48 @ @
"""
NIST_WINNERS = [
    ("avgconf", 0.0, 0.3, "b d d b d a"),
    ("avgconf", 0.3, 0.6, "b c d b d d"),
    ("avgconf", 0.6, 0.85, "b c d a c d"),
    ("average", 0.0, 0.3, "d d b d a b"),  # -m meth1
    ("average", 0.3, 0.6, "c d b d a"),
    ("average", 0.6, 0.85, "c d a d d"),
    ("maximum", 0.0, 0.3, "b d d b d a b"),  # -m maxconf
    ("maximum", 0.3, 0.6, "b c d b d a"),
    ("maximum", 0.6, 0.85, "b c d a d d"),
]


@pytest.mark.parametrize(("voting", "alpha", "null", "winners"), NIST_WINNERS)
def test_votes_are_those_of_nist(voting, alpha, null, winners):
    def arc(text: str) -> Unit | None:
        word, _, confidence = text.partition("/")
        return None if word == "@" else Unit(word, word, float(confidence))

    network = [tuple(map(arc, column.split())) for column in NIST_COLUMNS.split("|")]
    alternatives = Alternatives([network], 3)
    assert said(alternatives.fuse(RoverOptions(voting, alpha, null), np.ones(3))[0]) == winners

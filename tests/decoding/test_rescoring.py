"""Right-to-left and language model rescoring against each hypothesis scored alone, by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.decoding import (
    CtcBeamSearch,
    CtcGreedySearch,
    CtcRescoringSearch,
    Fusion,
    Hypothesis,
    JointSearch,
    rescoring,
)
from speechattn.errors import ConfigError
from speechattn.lm.transformer import TransformerLm
from speechattn.model.output import ModelOutput

V, D = 9, 8
EOS = V - 1
HIDDEN = torch.randn(4, 14, D, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([14, 7, 1, 10])


class Model(nn.Module):
    def __init__(self, decoder: str = "both"):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(D, V)
        self.decoder = None
        if decoder == "both":
            self.decoder = BidirectionalDecoder(
                V, D, 16, 2, linear_units=32, num_blocks=1, reverse_blocks=2
            )
            nn.init.normal_(self.decoder.left.output.weight, std=0.4)
            nn.init.normal_(self.decoder.right.output.weight, std=0.4)
        elif decoder == "left":
            self.decoder = TransformerDecoder(V, D, 16, 2, linear_units=32, num_blocks=1)

    def outputs(self, hidden, lengths):
        log_probs = (4 * self.head(hidden)).log_softmax(-1)
        return [ModelOutput(hidden, lengths, log_probs, self.decoder)]


def right_to_left(decoder: BidirectionalDecoder, row: int, tokens: list[int]) -> float:
    """Sum of the log-probabilities of the tokens from the last to the first, then <eos>."""
    t = LENGTHS[row : row + 1]
    state = decoder.right.init_state(HIDDEN[row : row + 1, : int(t)], t)
    total, fed = 0.0, EOS
    for token in [*reversed(tokens), EOS]:
        log_probs, state = decoder.right.step(torch.tensor([fed]), state)
        total += log_probs[0, token].item()
        fed = token
    return total


@pytest.mark.parametrize("ctc_weight", [0.3, 0.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@torch.no_grad()
def test_decoding_ranks_by_both_directions(ctc_weight, weight):
    model = Model().eval()
    options = JointSearch(ctc_weight=ctc_weight, beam_size=6, length_bonus=0.2, nbest=6)
    plain = options.search(model.outputs(HIDDEN, LENGTHS))
    both = replace(options, reverse_weight=weight).search(model.outputs(HIDDEN, LENGTHS))
    attention_weight = 1 - ctc_weight
    moved = 0
    for row, (before, after) in enumerate(zip(plain, both, strict=True)):
        scores = {tuple(h.tokens): h for h in before}
        assert {tuple(h.tokens) for h in after} == set(scores)
        wanted = {}
        for tokens, h in scores.items():
            reverse = right_to_left(model.decoder, row, list(tokens))
            attention = (1 - weight) * h.scores["decoder"] + weight * reverse
            rest = 0.2 * h.scores["length"]
            if ctc_weight:
                rest += ctc_weight * h.scores["ctc"]
            wanted[tokens] = attention_weight * attention + rest, reverse
        order = sorted(wanted, key=lambda tokens: -wanted[tokens][0])
        assert [tuple(h.tokens) for h in after] == order
        moved += order != [tuple(h.tokens) for h in before]
        for h in after:
            score, reverse = wanted[tuple(h.tokens)]
            assert h.score == pytest.approx(score, abs=1e-4)
            assert h.scores["reverse"] == pytest.approx(reverse, abs=1e-4)
            assert {**h.scores, "reverse": 0} == {**scores[tuple(h.tokens)].scores, "reverse": 0}
    assert moved >= 2


@torch.no_grad()
def test_the_best_may_come_from_the_whole_beam():
    """One hypothesis is wanted, and one that the search ranked lower is the best by both."""
    model = Model().eval()
    options = JointSearch(beam_size=6, reverse_weight=0.5)
    wide = replace(options, nbest=6).search(model.outputs(HIDDEN, LENGTHS))
    best = options.search(model.outputs(HIDDEN, LENGTHS))
    searched = JointSearch(beam_size=6).search(model.outputs(HIDDEN, LENGTHS))
    assert [h[0].tokens for h in best] == [h[0].tokens for h in wide]
    assert [h[0].tokens for h in best] != [h[0].tokens for h in searched]
    assert all(len(h) == 1 for h in best)


@torch.no_grad()
def test_a_batch_gives_what_its_utterances_give(monkeypatch):
    model = Model().eval()
    lengths = torch.tensor([14, 7, 0, 10])  # nothing is heard in the third
    options = JointSearch(beam_size=4, nbest=4, reverse_weight=0.4)
    together = options.search(model.outputs(HIDDEN, lengths))
    monkeypatch.setattr(rescoring, "MAX_LOGITS", 1)  # one utterance a pass
    apart = options.search(model.outputs(HIDDEN, lengths))
    assert together[2] == [Hypothesis([], 0.0)]
    for row in (0, 1, 3):
        (alone,) = options.search(model.outputs(HIDDEN[row : row + 1], lengths[row : row + 1]))
        for found in (together[row], apart[row]):
            assert [h.tokens for h in found] == [h.tokens for h in alone]
            for a, b in zip(alone, found, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-4)
                assert a.scores == pytest.approx(b.scores, abs=1e-3)


@torch.no_grad()
def test_uneven_lists():
    """Lists of other lengths, the empty reading and none at all among them."""
    decoder = Model().eval().decoder
    lists = [[[1, 2, 3], []], [[4]], [[], [5], [6, 6]], []]
    nbest = [[Hypothesis(tokens, -1.0, {"decoder": -1.0}) for tokens in row] for row in lists]
    found = rescoring.rescore(Model().eval().outputs(HIDDEN, LENGTHS), nbest, 1.0, 1.0)
    assert found[3] == []
    for row, hypotheses in enumerate(found):
        assert sorted(h.tokens for h in hypotheses) == sorted(lists[row])
        for h in hypotheses:
            assert h.score == pytest.approx(right_to_left(decoder, row, h.tokens), abs=1e-4)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


@torch.no_grad()
def test_without_weight_nothing_changes():
    model = Model().eval()
    options = JointSearch(beam_size=4, nbest=2)
    found = options.search(model.outputs(HIDDEN, LENGTHS))
    assert found == options.search(model.outputs(HIDDEN, LENGTHS))
    assert "reverse" not in found[0][0].scores


def test_what_a_model_lacks_is_named():
    options = JointSearch(reverse_weight=0.3)
    with pytest.raises(ConfigError, match="reverse_weight: 0.3 needs a right-to-left.*Transformer"):
        options.search(Model("left").outputs(HIDDEN, LENGTHS))
    with pytest.raises(ConfigError, match="reverse_weight.*ctc_weight 1"):
        replace(options, ctc_weight=1.0).search(Model().outputs(HIDDEN, LENGTHS))
    with pytest.raises(ConfigError, match="needs an attention decoder"):
        options.search(Model("none").outputs(HIDDEN, LENGTHS))
    with pytest.raises(ConfigError, match="reverse_weight has to be in 0..1"):
        JointSearch(reverse_weight=1.2)


@pytest.mark.parametrize("reverse", [0.0, 0.4])
@torch.no_grad()
def test_what_ctc_found_is_ranked_by_the_decoder(reverse):
    """A ragged batch, an utterance of nothing in it, against each text alone."""
    model = Model().eval()
    lengths = torch.tensor([14, 7, 0, 10])
    evidence = model.outputs(HIDDEN, lengths)
    options = dict(beam_size=6, nbest=6, length_bonus=0.1)
    searched = CtcBeamSearch(**options).search(evidence)
    search = CtcRescoringSearch(**options, ctc_weight=0.4, reverse_weight=reverse)
    found = search.search(evidence)
    assert found[2] == [Hypothesis([], 0.0)]
    changed = 0
    for row in (0, 1, 3):
        wanted = {}
        for h in searched[row]:
            inputs = torch.tensor([[EOS, *h.tokens]])
            after = torch.tensor([*h.tokens, EOS])
            t = lengths[row : row + 1]
            logits = model.decoder(
                inputs, torch.tensor([len(after)]), HIDDEN[row : row + 1, : int(t)], t
            )
            forward = logits.log_softmax(-1)[0, torch.arange(len(after)), after].sum().item()
            attention = (1 - reverse) * forward
            if reverse:
                attention += reverse * right_to_left(model.decoder, row, h.tokens)
            bonus = 0.1 * h.scores["length"]
            wanted[tuple(h.tokens)] = 0.4 * h.scores["ctc"] + 0.6 * attention + bonus
        order = sorted(wanted, key=lambda tokens: -wanted[tokens])
        assert [tuple(h.tokens) for h in found[row]] == order
        changed += order != [tuple(h.tokens) for h in searched[row]]
        for h in found[row]:
            assert h.score == pytest.approx(wanted[tuple(h.tokens)], abs=1e-4)
    assert changed
    with pytest.raises(ConfigError, match="needs an attention decoder"):
        search.search(Model("none").outputs(HIDDEN, LENGTHS))


def distance(a: list[int], b: list[int]) -> int:
    """Edit distance, by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0])
    )


def test_least_risk():
    # Three that agree but for one token outweigh the one that is the most probable alone.
    texts = [[5, 5, 5, 5], [1, 2, 3, 4], [1, 2, 3, 6], [1, 2, 7, 4]]
    scores = (-1.0, -1.5, -1.6, -1.7)
    nbest = [Hypothesis(tokens, s) for tokens, s in zip(texts, scores, strict=True)]
    (found,) = rescoring.least_risk([nbest], 1.0)
    assert found[0].tokens == [1, 2, 3, 4]
    assert sorted(h.tokens for h in found) == sorted(texts)
    (sure,) = rescoring.least_risk([nbest], 50.0)  # only the best counts
    assert sure == nbest
    weights = torch.tensor([h.score for h in nbest]).softmax(0).tolist()
    risks = [sum(w * distance(a, b) for w, b in zip(weights, texts, strict=True)) for a in texts]
    assert texts[risks.index(min(risks))] == found[0].tokens


@torch.no_grad()
def test_least_risk_by_option():
    model = Model().eval()
    options = JointSearch(beam_size=6, nbest=6)
    nbest = options.search(model.outputs(HIDDEN, LENGTHS))
    found = replace(options, nbest=1, risk_scale=0.2).search(model.outputs(HIDDEN, LENGTHS))
    assert found == [[h[0]] for h in rescoring.least_risk(nbest, 0.2)]
    assert any(a[0] != b[0] for a, b in zip(found, nbest, strict=True))


def lm_alone(lm: TransformerLm, tokens: list[int]) -> float:
    """Sum of the log-probabilities of the tokens and of <eos>, one step after another."""
    state, total, fed = lm.init_state(1), 0.0, EOS
    for token in [*tokens, EOS]:
        log_probs, state = lm.step(torch.tensor([fed]), state)
        total += log_probs[0, token].item()
        fed = token
    return total


@pytest.fixture
def lm():
    torch.manual_seed(5)
    lm = TransformerLm(V, 16, 2, 32, num_blocks=1, embed_size=8).eval()
    torch.nn.init.normal_(lm.output.weight, std=0.6)
    return lm


@pytest.mark.parametrize("kind", [JointSearch, CtcBeamSearch, CtcRescoringSearch])
@torch.no_grad()
def test_a_language_model_ranks_what_was_found(kind, lm):
    model = Model("left").eval()
    lengths = torch.tensor([14, 7, 0, 10])
    options = kind(beam_size=6, nbest=6)
    plain = options.search(model.outputs(HIDDEN, lengths))
    options = replace(options, lm_rescore_weight=0.8)
    fusion = Fusion(lm)
    found = options.search(model.outputs(HIDDEN, lengths), fusion)
    moved = 0
    for row in (0, 1, 3):
        before = {tuple(h.tokens): h for h in plain[row]}
        assert {tuple(h.tokens) for h in found[row]} == set(before)
        for h in found[row]:
            score, was = lm_alone(lm, h.tokens), before[tuple(h.tokens)]
            assert h.scores["lm"] == pytest.approx(score, abs=1e-4)
            assert h.score == pytest.approx(was.score + 0.8 * score, abs=1e-4)
        assert [h.score for h in found[row]] == sorted((h.score for h in found[row]), reverse=True)
        moved += found[row][0].tokens != plain[row][0].tokens
    assert moved
    assert found[2] == [Hypothesis([], 0.0)]
    # One hypothesis is wanted, and it is the best of all that were held.
    best = replace(options, nbest=1).search(model.outputs(HIDDEN, lengths), fusion)
    assert [h[0].tokens for h in best] == [h[0].tokens for h in found]


@torch.no_grad()
def test_a_language_model_in_the_search_and_after_it_score_alike(lm):
    """With room for every hypothesis both rank them the same."""
    model = Model("left").eval()
    options = JointSearch(beam_size=60, max_length_ratio=0.3, pre_beam_ratio=2.0, nbest=3)
    lengths = torch.tensor([7, 7, 5, 7])
    fusion = Fusion(lm)
    inside = replace(options, lm_weight=0.5).search(model.outputs(HIDDEN, lengths), fusion)
    after = replace(options, lm_rescore_weight=0.5).search(model.outputs(HIDDEN, lengths), fusion)
    for a, b in zip(inside, after, strict=True):
        assert [h.tokens for h in a] == [h.tokens for h in b]
        for one, other in zip(a, b, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.scores["lm"] == pytest.approx(other.scores["lm"], abs=1e-4)


@torch.no_grad()
def test_both_directions_the_language_model_and_least_risk(lm):
    """In this order: the risk is that of the scores with everything in them."""
    model = Model().eval()
    options = JointSearch(beam_size=6, nbest=6, reverse_weight=0.4)
    both = options.search(model.outputs(HIDDEN, LENGTHS))
    everything = replace(options, lm_rescore_weight=0.3, risk_scale=0.2)
    found = everything.search(model.outputs(HIDDEN, LENGTHS), Fusion(lm))
    wanted = rescoring.least_risk(rescoring.add_lm(lm, both, 0.3), 0.2)
    for a, b in zip(found, wanted, strict=True):
        assert [h.tokens for h in a] == [h.tokens for h in b]


def test_a_language_model_that_would_do_nothing_is_refused(lm):
    evidence = Model("left").eval().outputs(HIDDEN, LENGTHS)
    for fusion, search, message in (
        (
            Fusion(),
            JointSearch(lm_rescore_weight=0.3),
            "lm_rescore_weight: 0.3 needs a Transformer",
        ),
        (Fusion(lm), JointSearch(), "would change nothing"),
        (Fusion(lm), CtcGreedySearch(), "would change nothing"),
        (
            Fusion(lm),
            JointSearch(lm_rescore_weight=0.3, lm_weight=0.3),
            "count the language model twice",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            search.search(evidence, fusion)

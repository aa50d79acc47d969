"""Transducer searches against searches of one utterance and one hypothesis at a time."""

import math
from dataclasses import replace

import pytest
import torch

from speechattn.decoders import LstmPredictor, StatelessPredictor, Transducer
from speechattn.decoding import (
    CtcGreedySearch,
    TransducerBeamSearch,
    TransducerGreedySearch,
    hypothesis_times,
    transducer_beam,
    transducer_greedy,
)
from speechattn.encoders import FrameReducer
from speechattn.errors import ConfigError
from speechattn.kernels.lattice.transducer import transducer
from speechattn.model.output import ModelOutput

VOCAB, MEMORY = 6, 5
LENGTHS = torch.tensor([9, 4, 0, 7, 1])


def make(predictor="lstm", vocab=VOCAB, scale=3.0):
    torch.manual_seed(1)
    kind = {"lstm": LstmPredictor, "stateless": StatelessPredictor}[predictor]
    head = Transducer(kind(vocab, 8), MEMORY, 12, vocab).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(scale)
        head.joiner.output.bias[0] += 1.0
    return head, torch.randn(len(LENGTHS), 9, MEMORY, dtype=torch.float64)


def log_probs(head, frame, text):
    """(V,) after a text, from the pass over the whole of it."""
    predicted = head.predict(torch.tensor([text], dtype=torch.int64))[0, -1]
    return head.joiner(frame, predicted).float().log_softmax(-1).double()


def greedy(head, frames, count):
    text, at, score = [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(count):
            values = log_probs(head, frame, text)[:-1]
            token = int(values.argmax())
            score += values[token].item()
            if token == 0:
                break
            text.append(token)
            at.append(t)
    return text, at, score


def beam(head, frames, k, added=lambda text: 0.0):
    """All hypotheses grow by all tokens, equal ones are added up, the best K go on.

    What is added to a text's score counts in the choice of the best.
    """
    held = {(): 0.0}
    for frame in frames:
        grown = {}
        for text, score in held.items():
            values = log_probs(head, frame, list(text))[:-1].tolist()
            for token, value in enumerate(values):
                new = text if token == 0 else (*text, token)
                path = score + value
                grown[new] = torch.logaddexp(
                    torch.tensor(grown.get(new, -math.inf)).double(), torch.tensor(path).double()
                ).item()
        held = dict(sorted(grown.items(), key=lambda x: -x[1] - added(x[0]))[:k])
    found = [(list(text), score + added(text)) for text, score in held.items()]
    return sorted(found, key=lambda x: -x[1])


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
@pytest.mark.parametrize("count", [1, 3])
def test_greedy(predictor, count):
    head, hidden = make(predictor)
    found = transducer_greedy(head, hidden, LENGTHS, count)
    several = 0
    for h, frames, n in zip(found, hidden, LENGTHS.tolist(), strict=True):
        text, at, score = greedy(head, frames[:n], count)
        assert (h.tokens, h.frames) == (text, at)
        assert h.score == pytest.approx(score, abs=1e-4)
        several += len(at) - len(set(at))
    assert (several > 0) == (count > 1)  # else the test would say nothing of it
    assert any(len(h.tokens) > 2 for h in found)


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
@pytest.mark.parametrize("k", [1, 2, 4, 9])
@pytest.mark.parametrize("bonus", [0.0, 0.7])
def test_beam(predictor, k, bonus):
    head, hidden = make(predictor)
    found = transducer_beam(head, hidden, LENGTHS, beam_size=k, nbest=k, length_bonus=bonus)
    for hypotheses, frames, n in zip(found, hidden, LENGTHS.tolist(), strict=True):
        expected = beam(head, frames[:n], k, lambda text: bonus * len(text))
        assert [h.tokens for h in hypotheses] == [text for text, _ in expected]
        for h, (_, score) in zip(hypotheses, expected, strict=True):
            assert h.score == pytest.approx(score, abs=1e-4)
            assert h.scores["transducer"] == pytest.approx(score - bonus * len(h.tokens), abs=1e-4)
            assert h.scores["length"] == len(h.tokens)
            assert len(h.frames) == len(h.tokens)
            assert h.frames == sorted(set(h.frames)) and all(0 <= t < n for t in h.frames)
    assert any(len(h.tokens) > 2 for hypotheses in found for h in hypotheses)


def test_merging_changes_what_is_found():
    """Without parents and children in one beam the searches above would not need any of it."""
    head, hidden = make()
    best = transducer_beam(head, hidden, LENGTHS, beam_size=9)[0][0]
    path = 0.0
    for t, frame in enumerate(hidden[0]):
        said = sum(at < t for at in best.frames)
        values = log_probs(head, frame, best.tokens[:said])
        path += values[best.tokens[said] if t in best.frames else 0].item()
    assert path < best.score - 0.05


def test_a_beam_that_keeps_all_is_the_loss():
    head, hidden = make(vocab=4)
    lengths = torch.tensor([4, 3, 2, 4, 1])
    found = transducer_beam(head, hidden, lengths, beam_size=40, nbest=40)
    for b, hypotheses in enumerate(found):
        n = int(lengths[b])
        assert len(hypotheses) == sum(2**u for u in range(n + 1))
        for h in hypotheses:
            tokens = torch.tensor([h.tokens], dtype=torch.int64)
            logits = head.joiner(hidden[b : b + 1, :n, None], head.predict(tokens)[:, None])
            (loss,) = transducer(
                logits,
                lengths[b : b + 1],
                tokens,
                torch.tensor([len(h.tokens)]),
                delay_penalty=0.0,
                topology="modified",
            )
            assert h.score == pytest.approx(-loss.item(), abs=1e-4)


def test_ragged_equals_single():
    head, hidden = make()
    noisy = hidden.clone()
    for row, n in zip(noisy, LENGTHS.tolist(), strict=True):
        row[n:] = 1e3
    together = transducer_beam(head, noisy, LENGTHS, beam_size=4, nbest=3)
    greedily = transducer_greedy(head, noisy, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        one = hidden[b : b + 1, :n], LENGTHS[b : b + 1]
        (alone,) = transducer_beam(head, *one, beam_size=4, nbest=3)
        (first,) = transducer_greedy(head, *one)
        assert (first.tokens, first.frames) == (greedily[b].tokens, greedily[b].frames)
        assert [(h.tokens, h.frames) for h in alone] == [(h.tokens, h.frames) for h in together[b]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[b]])
    assert together[2][0].tokens == greedily[2].tokens == []


class Favourite:
    """A scorer that likes one token after another, and ends of even length."""

    def __init__(self, batch):
        self.batch = batch

    def start(self):
        return torch.zeros(self.batch, 2, dtype=torch.int64)

    def score(self, token, state):
        scores = torch.zeros(len(token), VOCAB, dtype=torch.float64)
        scores[token == 2, 3] = 1.5
        scores[token == 1, 1] = -2.0
        count = state[:, 1]
        scores[:, VOCAB - 1] = -0.5 * ((count + 1) % 2)
        return scores, torch.stack([token, count + 1], 1)

    def select(self, state, index):
        return state[index]


def favour(text):
    added, last = 0.0, None
    for token in text:
        added += {(2, 3): 1.5, (1, 1): -2.0}.get((last, token), 0.0)
        last = token
    return added


def test_scorers():
    head, hidden = make()
    found = transducer_beam(
        head,
        hidden,
        LENGTHS,
        beam_size=6,
        nbest=3,
        scorers={"favourite": (Favourite(len(LENGTHS)), 0.5)},
    )
    moved = 0
    for hypotheses, frames, n in zip(found, hidden, LENGTHS.tolist(), strict=True):
        expected = [
            # <eos> is asked at the end; as many tokens as before it have been fed.
            (text, score - 0.25 * ((len(text) + 1) % 2))
            for text, score in beam(head, frames[:n], 6, lambda text: 0.5 * favour(text))
        ]
        expected = sorted(expected, key=lambda x: -x[1])[:3]
        assert [h.tokens for h in hypotheses] == [text for text, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx([s for _, s in expected], abs=1e-4)
        for h in hypotheses:
            part = favour(h.tokens) - 0.5 * ((len(h.tokens) + 1) % 2)
            assert h.scores["favourite"] == pytest.approx(part)
        moved += hypotheses[0].tokens != beam(head, frames[:n], 6)[0][0]
    assert moved


def evidence(threshold=None):
    head, hidden = make()
    log_probs = (3 * torch.randn(*hidden.shape[:2], VOCAB)).log_softmax(-1)
    reducer = None if threshold is None else FrameReducer(threshold)
    return ModelOutput(
        hidden, LENGTHS, log_probs, transducer=head, frame_reducer=reducer and reducer.eval()
    )


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_searches(method):
    e = evidence()
    if method == "greedy":
        found = TransducerGreedySearch().search([e])
        assert found == [[h] for h in transducer_greedy(e.transducer, e.hidden, LENGTHS)][:2] + [
            found[2],
            *([h] for h in transducer_greedy(e.transducer, e.hidden, LENGTHS)[3:]),
        ]
    else:
        found = TransducerBeamSearch(beam_size=4, nbest=2).search([e])
        for b in (0, 1, 3, 4):
            assert [h.tokens for h in found[b]] == [
                h.tokens
                for h in transducer_beam(e.transducer, e.hidden, LENGTHS, beam_size=4, nbest=2)[b]
            ]
    assert found[2][0].tokens == []


@pytest.mark.parametrize("options", [TransducerGreedySearch(), TransducerBeamSearch()])
def test_skipped_frames_keep_their_times(options):
    e = evidence(0.2)
    found = options.search([e])
    dropped = 0
    for b, (best, *_) in enumerate(found):
        n = int(LENGTHS[b])
        kept = [t for t in range(n) if e.log_probs[b, t, 0].exp() <= 0.2]
        dropped += n - len(kept)
        alone = replace(
            e,
            hidden=e.hidden[b : b + 1, kept],
            lengths=torch.tensor([len(kept)]),
            log_probs=e.log_probs[b : b + 1, kept],
            frame_reducer=None,
        )
        ((expected, *_),) = options.search([alone])
        assert best.tokens == expected.tokens
        assert (best.frames or []) == [kept[t] for t in expected.frames or []]
    assert dropped > 3
    assert e.frame_reducer.share() == pytest.approx(1 - dropped / LENGTHS.sum().item())


def test_times_are_those_of_the_search():
    e = evidence()
    (best, *_) = TransducerGreedySearch().search([e])[0]
    times = hypothesis_times([e], 0, best)
    assert [t.token for t in times] == best.tokens
    assert [t.start for t in times] == pytest.approx([0.04 * t for t in best.frames])
    assert [t.end for t in times] == pytest.approx([0.04 * (t + 1) for t in best.frames])
    (other, *_) = CtcGreedySearch().search([e])[0]
    assert other.frames is None and len(hypothesis_times([e], 0, other)) == len(other.tokens)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="needs a transducer"):
        TransducerBeamSearch().search([replace(evidence(), transducer=None)])
    with pytest.raises(ConfigError, match="reads one model"):
        TransducerBeamSearch().search([evidence()] * 2)
    with pytest.raises(ConfigError, match="frame_tokens"):
        TransducerGreedySearch(frame_tokens=0)
    with pytest.raises(ValueError, match="beam_size"):
        transducer_beam(make()[0], make()[1], LENGTHS, beam_size=0)

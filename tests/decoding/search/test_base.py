"""What all searches have in common."""

import pytest
import torch
from torch import nn

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import CtcBeamSearch, CtcGreedySearch, Hypothesis, JointSearch, ctc_greedy
from speechattn.errors import ConfigError
from speechattn.model.output import ModelOutput


class Model(nn.Module):
    def __init__(self, with_decoder: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 9)
        self.decoder = (
            TransformerDecoder(9, 8, 16, 2, linear_units=32, num_blocks=1) if with_decoder else None
        )

    def outputs(self, hidden, lengths):
        log_probs = (4 * self.head(hidden)).log_softmax(-1)
        return [ModelOutput(hidden, lengths, log_probs, self.decoder)]


HIDDEN = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([12, 7, 1])


def test_searches_find_what_their_algorithms_find():
    model = Model().eval()
    (evidence,) = model.outputs(HIDDEN, LENGTHS)
    greedy = CtcGreedySearch().search(model.outputs(HIDDEN, LENGTHS))
    assert [h[0] for h in greedy] == ctc_greedy(evidence.log_probs, LENGTHS)
    attention = JointSearch(ctc_weight=0.0).search(model.outputs(HIDDEN, LENGTHS))
    assert set(attention[0][0].scores) == {"decoder", "length"}


def test_a_model_without_decoder():
    model = Model(with_decoder=False).eval()
    for weight in (0.3, 0.0):
        with pytest.raises(ConfigError, match="needs an attention decoder"):
            JointSearch(ctc_weight=weight).search(model.outputs(HIDDEN, LENGTHS))
    (best, *_) = JointSearch(ctc_weight=1.0).search(model.outputs(HIDDEN, LENGTHS))
    assert set(best[0].scores) == {"ctc", "length"}


@pytest.mark.parametrize(
    "options", [JointSearch(), JointSearch(ctc_weight=0.0), CtcGreedySearch(), CtcBeamSearch()]
)
def test_an_utterance_of_no_frames_reads_as_nothing(options):
    model = Model().eval()
    lengths = torch.tensor([12, 0, 1])
    results = options.search(model.outputs(HIDDEN, lengths))
    assert results[1][0].tokens == []
    (alone,) = options.search(model.outputs(HIDDEN[2:, :1], lengths[2:]))
    assert results[2][0].tokens == alone[0].tokens
    nothing = options.search(model.outputs(HIDDEN[:1, :0], lengths[1:2]))
    assert [h.tokens for h in nothing[0]] == [[]]
    assert isinstance(nothing[0][0], Hypothesis)

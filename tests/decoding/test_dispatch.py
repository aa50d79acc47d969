"""`decode` chooses the search that the options name."""

import pytest
import torch
from torch import nn

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import DecodeOptions, Hypothesis, ctc_greedy, decode, joint_search
from speechattn.errors import ConfigError
from speechattn.model.output import ModelOutput


class Model(nn.Module):
    def __init__(self, with_decoder: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 9)
        self.decoder = TransformerDecoder(9, 8, 16, 2, 32, 1) if with_decoder else None

    def evidence(self, hidden, lengths):
        log_probs = (4 * self.head(hidden)).log_softmax(-1)
        return [ModelOutput(hidden, lengths, log_probs, self.decoder)]


HIDDEN = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([12, 7, 1])


def test_each_method_is_its_search():
    model = Model().eval()
    (evidence,) = model.evidence(HIDDEN, LENGTHS)
    greedy = decode(model.evidence(HIDDEN, LENGTHS), DecodeOptions(method="ctc_greedy"))
    assert [h[0] for h in greedy] == ctc_greedy(evidence.log_probs, LENGTHS)
    options = DecodeOptions(nbest=2)
    assert decode(model.evidence(HIDDEN, LENGTHS), options) == joint_search(
        model.evidence(HIDDEN, LENGTHS), options
    )
    attention = decode(model.evidence(HIDDEN, LENGTHS), DecodeOptions(method="attention"))
    assert set(attention[0][0].scores) == {"decoder", "length"}


def test_a_model_without_decoder():
    model = Model(with_decoder=False).eval()
    for method in ("joint", "attention"):
        with pytest.raises(ConfigError, match="needs a decoder"):
            decode(model.evidence(HIDDEN, LENGTHS), DecodeOptions(method=method))
    (best, *_) = decode(model.evidence(HIDDEN, LENGTHS), DecodeOptions(ctc_weight=1.0))
    assert set(best[0].scores) == {"ctc", "length"}


@pytest.mark.parametrize("method", ["joint", "attention", "ctc_greedy"])
def test_an_utterance_of_no_frames_reads_as_nothing(method):
    model, options = Model().eval(), DecodeOptions(method=method)
    lengths = torch.tensor([12, 0, 1])
    results = decode(model.evidence(HIDDEN, lengths), options)
    assert results[1][0].tokens == []
    (alone,) = decode(model.evidence(HIDDEN[2:, :1], lengths[2:]), options)
    assert results[2][0].tokens == alone[0].tokens
    nothing = decode(model.evidence(HIDDEN[:1, :0], lengths[1:2]), options)
    assert [h.tokens for h in nothing[0]] == [[]]
    assert isinstance(nothing[0][0], Hypothesis)

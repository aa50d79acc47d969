"""CTC prefix scores and best hypotheses against ESPnet's on the same weights."""

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoders import TransformerDecoder
from speechattn.decoding import CtcPrefixScorer, JointSearch
from speechattn.importing.espnet import decoder_weights
from speechattn.model.output import ModelOutput

INSTALL = "pip install espnet==202611 to compare with ESPnet"
prefix_score = pytest.importorskip("espnet2.legacy.nets.ctc_prefix_score", reason=INSTALL)
search = pytest.importorskip("espnet2.legacy.nets.batch_beam_search", reason=INSTALL)
scorers = pytest.importorskip("espnet2.legacy.nets.scorers.ctc", reason=INSTALL)
bonus = pytest.importorskip("espnet2.legacy.nets.scorers.length_bonus", reason=INSTALL)
espnet = pytest.importorskip("espnet2.asr.decoder.transformer_decoder", reason=INSTALL)

V, D = 24, 16
EOS = V - 1


class Ctc(torch.nn.Module):
    """A CTC head of random weights that is blank most of the time, as trained ones are."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(D, V)
        torch.nn.init.normal_(self.head.weight, std=0.7)
        torch.nn.init.constant_(self.head.bias[:1], 4.0)

    def log_softmax(self, x):
        return self.head(x).log_softmax(-1)


def make(seed: int):
    torch.manual_seed(seed)
    theirs = espnet.TransformerDecoder(V, D, attention_heads=2, linear_units=32, num_blocks=2)
    torch.nn.init.normal_(theirs.output_layer.weight, std=0.5)
    # ESPnet's attention-only search would say blank; a trained decoder never does.
    torch.nn.init.constant_(theirs.output_layer.bias[:1], -1e4)
    ours = TransformerDecoder(V, D, D, 2, linear_units=32, num_blocks=2)
    ours.load_state_dict(decoder_weights(theirs.state_dict()))
    return ours.eval(), theirs.eval(), Ctc().eval()


@torch.no_grad()
def test_prefix_scores():
    torch.manual_seed(0)
    lengths = torch.tensor([40, 23])
    log_probs = (3 * torch.randn(2, 40, V)).log_softmax(-1)
    theirs = prefix_score.CTCPrefixScoreTH(log_probs.clone(), lengths, 0, EOS)
    ours = CtcPrefixScorer(log_probs, lengths)
    their_state, state = None, ours.start()
    everything = torch.arange(1, V).expand(2, -1)
    history = torch.full((2, 1), EOS)
    for token in ([3, 4], [3, 5], [6, 5], [3, 2], [3, 2]):
        wanted, full_state = theirs(history, their_state)
        scores = ours.score(everything, state)
        assert_close(scores.float(), wanted[:, 1:], atol=1e-3, rtol=1e-5)
        token = torch.tensor(token)
        their_state = theirs.index_select_state(full_state, token[:, None])
        state = ours.extend(state, torch.arange(2), token)
        history = torch.cat([history, token[:, None]], 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "weight, length_bonus, beam", [(0.3, 0.0, 5), (0.5, 0.3, 3), (0.0, 0.0, 4)], ids=str
)
def test_best_hypotheses(weight, length_bonus, beam):
    utterances = same = 0
    for seed in range(14):
        ours, theirs, ctc = make(seed)
        lengths = torch.tensor([26, 14, 20, 9, 17])
        hidden = torch.randn(5, 26, D)
        options = JointSearch(beam_size=beam, ctc_weight=weight, length_bonus=length_bonus)
        log_probs = ctc.log_softmax(hidden)
        found = options.search([ModelOutput(hidden, lengths, log_probs, ours)])
        beam_search = search.BatchBeamSearch(
            {
                "decoder": theirs,
                "ctc": scorers.CTCPrefixScorer(ctc, EOS),
                "length_bonus": bonus.LengthBonus(V),
            },
            {"decoder": 1 - weight, "ctc": weight, "length_bonus": length_bonus},
            beam,
            V,
            EOS,
            EOS,
            pre_beam_score_key="full",
        )
        for row, t in enumerate(lengths.tolist()):
            best = beam_search(hidden[row, :t])[0]
            tokens = best.yseq[1:].tolist()
            tokens = tokens[: tokens.index(EOS)]
            if len(tokens) == t:
                continue  # it was given its <eos> for nothing
            utterances += 1
            if tokens == found[row][0].tokens:
                same += 1
                assert found[row][0].score == pytest.approx(float(best.score), abs=1e-3)
            else:
                assert found[row][0].score > float(best.score)
    assert utterances >= 45
    assert same >= 0.99 * utterances

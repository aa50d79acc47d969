"""Scores from a tree of prefixes against each sequence fed alone."""

import pytest
import torch

from speechattn.decoders import BidirectionalDecoder
from speechattn.decoding import prefix_tree
from speechattn.decoding.prefix_tree import PrefixTree, tree_scores

EOS = 8
NBEST = [
    [[1, 2, 3, 4], [1, 2, 3], [1, 2, 5, 4], [], [7, 2, 3, 4], [1, 2, 3, 4]],
    [],
    [[6], [6, 6, 6], [5, 6]],
]


def test_prefixes_stand_once():
    tree = PrefixTree.of(NBEST, EOS)
    # <sos>; 1; 12; 123; 1234; 125; 1254; 7; 72; 723; 7234
    assert tree.tokens[0].tolist() == [EOS, 1, 2, 3, 4, 5, 4, 7, 2, 3, 4]
    assert tree.depth[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 1, 2, 3, 4]
    assert tree.path[0, 6].nonzero()[:, 0].tolist() == [0, 1, 2, 5, 6]
    assert tree.path.diagonal(dim1=1, dim2=2).all()  # no row of attention is empty
    assert tree.sequence.bincount().tolist() == [5, 4, 5, 1, 5, 5, 2, 4, 3]


def alone(half, sequence: list[int], memory: torch.Tensor) -> float:
    fed = torch.tensor([[EOS, *sequence]])
    logits = half(fed, torch.tensor([fed.size(1)]), memory, torch.tensor([memory.size(1)]))
    log_probs = logits[0].double().log_softmax(-1)
    return float(sum(log_probs[i, token] for i, token in enumerate([*sequence, EOS])))


@pytest.mark.parametrize("logits", [2**27, 1], ids=["one pass", "a pass an utterance"])
@torch.inference_mode()
def test_scores_are_those_of_each_sequence_alone(logits, monkeypatch):
    monkeypatch.setattr(prefix_tree, "MAX_LOGITS", logits)
    torch.manual_seed(0)
    decoder = BidirectionalDecoder(
        EOS + 1, 12, 16, 4, linear_units=32, num_blocks=2, reverse_blocks=1
    ).eval()
    memory, lengths = torch.randn(3, 7, 12), torch.tensor([7, 3, 5])
    for predict, half in (
        (decoder.predict_tree, decoder.left),
        (decoder.reverse_tree, decoder.right),
    ):
        found = tree_scores(predict, NBEST, memory, lengths, EOS + 1)
        for b, sequences in enumerate(NBEST):
            wanted = [alone(half, s, memory[b : b + 1, : lengths[b]]) for s in sequences]
            assert found[b] == pytest.approx(wanted, abs=1e-5)


@torch.inference_mode()
def test_sequences_longer_than_the_table_of_positions():
    torch.manual_seed(0)
    decoder = BidirectionalDecoder(
        EOS + 1, 12, 16, 4, linear_units=32, num_blocks=1, reverse_blocks=1
    ).eval()
    memory = torch.randn(1, 7, 12)
    long = [1 + i % 7 for i in range(300)]
    found = tree_scores(decoder.predict_tree, [[long]], memory, torch.tensor([7]), EOS + 1)
    assert found[0][0] == pytest.approx(alone(decoder.left, long, memory), rel=1e-5)

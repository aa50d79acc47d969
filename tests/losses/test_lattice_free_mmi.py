"""Lattice-free MMI against all texts, one by one."""

import itertools

import pytest
import torch

from speechattn.cli import main
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.graph import Graph
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss, LatticeFreeMmi

pytest.importorskip("kaldifst")
LENGTHS = torch.tensor([4, 3])


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer.train(["ab b"])


@pytest.fixture(scope="module")
def graph(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    tokenizer.save(folder / "tokens")
    (folder / "text").write_text("ab b\nb ab\n")
    given = ["graph", "--tokens", str(folder / "tokens"), "--text", str(folder / "text")]
    assert main([*given, "--units", "--order", "2", "--output", str(folder / "units")]) == 0
    return folder / "units"


def batch(tokenizer):
    torch.manual_seed(0)
    x = torch.randn(2, 4, tokenizer.vocab_size, dtype=torch.double).log_softmax(-1)
    tokens = [tokenizer.encode(text) for text in ("ab", "b b")]
    lengths = torch.tensor([len(t) for t in tokens])
    padded = torch.tensor([t + [0] * (3 - len(t)) for t in tokens])
    return x.requires_grad_(), LENGTHS, padded, lengths


def test_units_are_words(graph, tokenizer):
    loaded = Graph.load(graph)
    assert set(loaded.words) == set(tokenizer.tokens[2:-1]) and "<space>" in loaded.words


def test_value_is_that_of_all_texts(graph, tokenizer):
    """Texts of up to four units, each by torch's CTC and by all its ways through the graph.

    Gradients are those of logits: torch's CTC has them right behind a softmax only.
    """
    logits, lengths, tokens, token_lengths = batch(tokenizer)
    x = logits.log_softmax(-1)
    arcs = Graph.load(graph).arcs
    probability = {}

    def ways(text):
        """The probability of a text in the graph without its frames: each unit's first arc."""
        found = {0: 1.0}
        for unit in text:
            onward = {}
            for state, p in found.items():
                for i in range(len(arcs)):
                    begins = arcs.output[i] > 0 and arcs.label[i] == unit
                    if begins and arcs.source[i] == state:
                        to = after[int(arcs.target[i])]
                        onward[to] = onward.get(to, 0.0) + p * float(
                            torch.tensor(arcs.score[i]).exp()
                        )
            found = onward
        return sum(p * float(torch.tensor(arcs.final[s]).exp()) for s, p in found.items())

    # From the states inside a unit a blank leads to the state behind it.
    after = {s: s for s in range(arcs.states)}
    for i in range(len(arcs)):
        if arcs.label[i] == 0:
            after[int(arcs.source[i])] = int(arcs.target[i])
    totals = torch.zeros(2, dtype=torch.double)
    for n in range(5):
        for text in itertools.product(range(2, tokenizer.vocab_size - 1), repeat=n):
            p = probability.setdefault(text, ways(text))
            if p:
                target = torch.tensor([list(text)] * 2).view(2, n)
                score = torch.nn.functional.ctc_loss(
                    x.transpose(0, 1), target, lengths, torch.full((2,), n), reduction="none",
                    zero_infinity=True,  # or the gradient would be none
                )  # fmt: skip
                totals = totals + torch.where(score > 0, p * (-score).exp(), 0.0)
    said = torch.nn.functional.ctc_loss(
        x.transpose(0, 1), tokens, lengths, token_lengths, reduction="none"
    )
    loss = LatticeFreeMmi(str(graph), ctc_share=0.1)(x, lengths, tokens, token_lengths)
    assert loss.item() == pytest.approx((1.1 * said + totals.log()).mean().item(), abs=1e-5)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad((1.1 * said + totals.log()).mean(), logits)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_items_that_do_not_fit_count_nothing(graph, tokenizer):
    x, lengths, tokens, token_lengths = batch(tokenizer)
    loss = LatticeFreeMmi(str(graph))
    short = torch.tensor([4, 1])
    both = loss(x, short, tokens, token_lengths)
    first = loss(x[:1], short[:1], tokens[:1], token_lengths[:1])
    assert both.item() == pytest.approx(first.item() / 2)
    (gradient,) = torch.autograd.grad(both, x)
    assert gradient.isfinite().all() and gradient[1].abs().sum() == 0


def test_what_is_refused(graph, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="speechattn graph"):
        LatticeFreeMmi(str(tmp_path))
    with pytest.raises(ConfigError, match="ctc_share"):
        LatticeFreeMmi(str(graph), -1.0)
    x, *rest = batch(tokenizer)
    with pytest.raises(ConfigError, match="model's tokenizer"):
        LatticeFreeMmi(str(graph))(torch.cat([x, x], 2), *rest)


def test_it_is_a_ctc_of_the_joint_loss(graph):
    loss = JointLoss(ctc_weight=1.0, ctc=LatticeFreeMmi(str(graph)))
    assert isinstance(loss.ctc_criterion, LatticeFreeMmi)

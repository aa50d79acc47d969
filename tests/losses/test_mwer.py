"""Expected errors over n-best lists: against a sum that is written out, and as what is learnt."""

import pytest
import torch
from kaldialign import edit_distance
from torch.nn import functional

from speechattn.decoders import TransformerDecoder
from speechattn.errors import ConfigError
from speechattn.losses import MwerLoss

VOCAB, WIDTH = 7, 8
LENGTHS = torch.tensor([9, 5, 7])
TOKENS = torch.tensor([[3, 1, 2, 4], [5, 0, 0, 0], [2, 2, 0, 0]])
TOKEN_LENGTHS = torch.tensor([4, 1, 2])


def a_decoder() -> TransformerDecoder:
    return TransformerDecoder(
        vocab_size=VOCAB, memory_size=WIDTH, width=WIDTH, attention_heads=2, linear_units=16,
        num_blocks=1, dropout=0.0,
    ).double()  # fmt: skip


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden frames that learn, and the log probabilities that a head makes of them."""
    torch.manual_seed(3)
    hidden = torch.randn(3, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    head = torch.randn(WIDTH, VOCAB, dtype=torch.float64)
    return hidden, (hidden @ head).log_softmax(-1)


def log_prob(text, hidden, log_probs, decoder, ctc_weight):
    """Of one text for one utterance without padding, by torch's CTC and token after token."""
    total = 0.0
    if ctc_weight > 0:
        loss = functional.ctc_loss(
            log_probs, torch.tensor(text), torch.tensor(len(log_probs)), torch.tensor(len(text)),
            reduction="sum",
        )  # fmt: skip
        total = total - ctc_weight * loss
    if ctc_weight < 1:
        sos = VOCAB - 1
        for u, token in enumerate([*text, sos]):
            before = torch.tensor([[sos, *text[:u]]])
            memory = torch.tensor([len(hidden)])
            logits = decoder(before, torch.tensor([u + 1]), hidden[None], memory)
            total = total + (1 - ctc_weight) * logits[0, u].log_softmax(-1)[token]
    return total


@pytest.mark.parametrize("with_truth", [False, True])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
def test_it_is_the_expected_number_of_errors(ctc_weight, with_truth):
    hidden, log_probs = inputs()
    decoder = a_decoder()
    loss = MwerLoss(nbest=3, ctc_weight=ctc_weight, with_truth=with_truth, scale=0.5)
    lists = loss.search(hidden, LENGTHS, log_probs, decoder)
    assert all(len(found) == 3 for found in lists)
    expected = 0.0
    for b, found in enumerate(lists):
        t, truth = LENGTHS[b], TOKENS[b, : TOKEN_LENGTHS[b]].tolist()
        if with_truth and truth not in found:
            found = [*found, truth]
        scores = [
            0.5 * log_prob(text, hidden[b, :t], log_probs[b, :t], decoder, ctc_weight)
            for text in found
        ]
        share = torch.stack(scores).softmax(0)
        wrong = torch.tensor([edit_distance(truth, text)["total"] for text in found]).double()
        expected = expected + (share * wrong).sum() - wrong.mean()
    expected = expected / 3
    ours = loss(hidden, LENGTHS, log_probs, decoder, TOKENS, TOKEN_LENGTHS)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    learn = [hidden, *(decoder.parameters() if ctc_weight < 1 else ())]
    (got, *others) = torch.autograd.grad(ours, learn, retain_graph=True, allow_unused=True)
    (wanted, *theirs) = torch.autograd.grad(expected, learn, allow_unused=True)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    for a, b in zip(others, theirs, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_stands_beyond_an_item_changes_nothing():
    hidden, log_probs = inputs()
    decoder, loss = a_decoder(), MwerLoss(nbest=3)
    with torch.no_grad():
        together = loss(hidden, LENGTHS, log_probs, decoder, TOKENS, TOKEN_LENGTHS)
        alone = [
            loss(
                hidden[b : b + 1, : LENGTHS[b]], LENGTHS[b : b + 1],
                log_probs[b : b + 1, : LENGTHS[b]], decoder,
                TOKENS[b : b + 1], TOKEN_LENGTHS[b : b + 1],
            )
            for b in range(3)
        ]  # fmt: skip
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_a_decoder_in_training_searches_without_dropout_and_goes_on_with_it():
    hidden, log_probs = inputs()
    decoder = (
        TransformerDecoder(VOCAB, WIDTH, WIDTH, 2, linear_units=16, num_blocks=1, dropout=0.5)
        .double()
        .train()
    )
    loss = MwerLoss(nbest=3)
    first, second = (loss.search(hidden, LENGTHS, log_probs, decoder) for _ in range(2))
    assert first == second
    assert decoder.training


def test_minimising_it_makes_fewer_errors():
    """From posteriors that prefer a wrong text, by its gradient alone."""
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 5, dtype=torch.float64)
    truth = torch.tensor([[1, 3, 2]])
    logits[0, :, 0] += 1.0
    logits.requires_grad_()
    loss = MwerLoss(nbest=4, ctc_weight=1.0, with_truth=True)
    args = (None, truth, torch.tensor([3]))
    lengths = torch.tensor([6])

    def best() -> list[int]:
        return loss.search(logits, lengths, logits.log_softmax(-1), None)[0][0]

    assert edit_distance(truth[0].tolist(), best())["total"] > 0
    for _ in range(60):
        value = loss(logits, lengths, logits.log_softmax(-1), *args)
        (gradient,) = torch.autograd.grad(value, logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
    assert best() == truth[0].tolist()


def test_an_utterance_of_no_frames_or_no_tokens_is_harmless():
    hidden, log_probs = inputs()
    lengths, token_lengths = torch.tensor([9, 0, 7]), torch.tensor([0, 1, 2])
    value = MwerLoss(nbest=2)(hidden, lengths, log_probs, a_decoder(), TOKENS, token_lengths)
    (gradient,) = torch.autograd.grad(value, hidden)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("options", [{"nbest": 1}, {"ctc_weight": 1.5}, {"scale": 0.0}])
def test_options_that_mean_nothing(options):
    with pytest.raises(ConfigError):
        MwerLoss(**options)

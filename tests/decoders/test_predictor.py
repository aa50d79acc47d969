"""Predictors: what a pass gives against plain code, and a step after the other against the pass."""

import pytest
import torch

from speechattn.decoders import LstmPredictor, StatelessPredictor
from speechattn.errors import ConfigError

VOCAB, WIDTH = 9, 8
TOKENS = torch.tensor([[3, 5, 5, 2], [4, 1, 0, 0], [7, 6, 1, -1]])


def predictors():
    torch.manual_seed(0)
    return {
        "bigram": StatelessPredictor(VOCAB, WIDTH, context=1),
        "trigram": StatelessPredictor(VOCAB, WIDTH),
        "stateless_4": StatelessPredictor(VOCAB, WIDTH, context=4),
        "lstm": LstmPredictor(VOCAB, WIDTH),
        "lstm_2": LstmPredictor(VOCAB, WIDTH, layers=2, dropout=0.5),
    }


NAMES = list(predictors())


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_pass(name):
    predictor = predictors()[name].double().eval()
    whole = predictor(TOKENS)
    assert whole.shape == (3, 5, WIDTH)
    state = predictor.init_state(3)
    for u, token in enumerate(torch.nn.functional.pad(TOKENS, (1, 0)).unbind(1)):
        before = [x.clone() for x in state]
        now, after = predictor.step(token, state)
        torch.testing.assert_close(now, whole[:, u])
        for x, y in zip(before, state, strict=True):
            torch.testing.assert_close(x, y)  # a state may be stepped twice
        state = after


@pytest.mark.parametrize("name", NAMES)
def test_what_is_selected_goes_on(name):
    predictor = predictors()[name].double().eval()
    state = predictor.init_state(3)
    for token in torch.nn.functional.pad(TOKENS[:, :2], (1, 0)).unbind(1):
        _, state = predictor.step(token, state)
    index = torch.tensor([2, 0, 0, 1])
    now, _ = predictor.step(torch.tensor([8, 8, 2, 1]), predictor.select(state, index))
    texts = torch.cat([TOKENS[index, :2], torch.tensor([[8], [8], [2], [1]])], 1)
    torch.testing.assert_close(now, predictor(texts)[:, -1])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_known_of_what_comes(name):
    predictor = predictors()[name].eval()
    other = TOKENS.clone()
    other[:, 2:] = torch.tensor([8, -1])
    torch.testing.assert_close(predictor(other)[:, :3], predictor(TOKENS)[:, :3])
    assert not torch.equal(predictor(other)[:, 3], predictor(TOKENS)[:, 3])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_stateless_one_forgets(context):
    predictor = StatelessPredictor(VOCAB, WIDTH, context)
    one, other = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[6, 7, 3, 4, 5]])
    same = (predictor(one) == predictor(other)).all(-1)[0].tolist()
    # After token 3 (column 3) the last `context` tokens are equal from column 2 + context on.
    assert same == [u == 0 or u >= 2 + context for u in range(6)]


def test_stateless_against_loops():
    predictor = StatelessPredictor(VOCAB, WIDTH, context=3)
    table, weight = predictor.embedding.weight, predictor.convolution.weight  # (D, 4, 3)
    found = predictor(TOKENS[:1])[0]
    history = [0, 0, 0, *TOKENS[0].tolist()]
    for u in range(5):
        for d in range(WIDTH):
            group = d // 4 * 4
            total = sum(
                weight[d, c, i] * table[history[u + i], group + c]
                for c in range(4)
                for i in range(3)
            )
            assert found[u, d].item() == pytest.approx(max(total.item(), 0.0), abs=1e-6)


def test_gradients_reach_everything():
    for name, predictor in predictors().items():
        predictor(TOKENS).sum().backward()
        assert all(p.grad is not None for p in predictor.parameters()), name


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="multiple of 4"):
        StatelessPredictor(VOCAB, 10)
    with pytest.raises(ConfigError, match="context"):
        StatelessPredictor(VOCAB, WIDTH, 0)
    with pytest.raises(ConfigError, match="layers"):
        LstmPredictor(VOCAB, WIDTH, 0)
    with pytest.raises(ConfigError, match="dropout"):
        LstmPredictor(VOCAB, WIDTH, dropout=1.0)

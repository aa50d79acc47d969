"""Language models and hot words beside a model: they reach each search; what is refused."""

from dataclasses import replace

import pytest
import torch

from speechattn import Transcriber
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoders import TransformerDecoder
from speechattn.decoding import ContextGraph, CtcBeamSearch, CtcGreedySearch, JointSearch
from speechattn.decoding.fusion import Fusion, read_fusion, read_hot_words
from speechattn.errors import ConfigError
from speechattn.lm.transformer import TransformerLm
from speechattn.model.output import ModelOutput

TOKENIZER = CharTokenizer.train(["abcde"])
V, D = TOKENIZER.vocab_size, 8
LENGTHS = torch.tensor([12, 0, 7])

ARPA = """\\data\\
ngram 1=7
ngram 2=1

\\1-grams:
-2 <s> -0.1
-1 </s>
-2 <unk>
-1 a
-1 b -0.1
-0.2 c
-1 d

\\2-grams:
-0.01 b d

\\end\\
"""


def evidence() -> list[ModelOutput]:
    torch.manual_seed(0)
    decoder = TransformerDecoder(V, D, 16, 2, linear_units=32, num_blocks=1).eval()
    hidden = torch.randn(3, 12, D)
    log_probs = (2 * torch.randn(3, 12, V)).log_softmax(-1)
    return [ModelOutput(hidden, LENGTHS, log_probs, decoder)]


@pytest.fixture
def ngram(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    return tmp_path / "lm.arpa"


@pytest.fixture
def hot_words(tmp_path):
    (tmp_path / "words.txt").write_text("bd\t2.5\n\ncab\n")
    return tmp_path / "words.txt"


SEARCHES = {
    "joint": JointSearch(min_length_ratio=0.3),
    "attention": JointSearch(min_length_ratio=0.3, ctc_weight=0.0),
    "ctc_beam": CtcBeamSearch(frame_units=0),
}


@pytest.mark.parametrize("method", SEARCHES)
def test_scores_of_all_parts_reach_the_hypothesis(method, ngram, hot_words):
    torch.manual_seed(0)
    lm = TransformerLm(V, 16, 2, 32, num_blocks=1).eval()
    files = read_fusion(TOKENIZER, ngram=ngram, hot_words=hot_words)
    fusion = Fusion(lm, files.ngram, files.hot_words)
    weights = {"lm_weight": 0.3, "ngram_weight": 0.5, "hot_words_weight": 0.7}
    options = replace(SEARCHES[method], beam_size=20, nbest=3)
    plain = options.search(evidence())
    found = replace(options, **weights).search(evidence(), fusion)
    assert found[1][0].tokens == []  # nothing was heard
    assert [h[0].tokens for h in found] != [h[0].tokens for h in plain]
    ctc = 0.3 if method == "joint" else 1.0
    for hypothesis in (found[0][0], found[2][0]):
        parts = dict(hypothesis.scores)
        total = 0.3 * parts["lm"] + 0.5 * parts["ngram"] + 0.7 * parts["hot_words"]
        total += ctc * parts.get("ctc", 0.0)
        total += (0.7 if method == "joint" else 1.0) * parts.get("decoder", 0.0)
        assert hypothesis.score == pytest.approx(total, abs=1e-4)
        # Each part, by the text alone.
        inputs = torch.tensor([[V - 1, *hypothesis.tokens]])
        after = torch.tensor([*hypothesis.tokens, V - 1])
        out = lm(inputs, torch.tensor([inputs.size(1)])).log_softmax(-1)[0]
        wanted = out[torch.arange(len(after)), after].sum().item()
        assert parts["lm"] == pytest.approx(wanted, abs=1e-4)
        text = TOKENIZER.decode(hypothesis.tokens)
        held = 5.0 * text.count("bd") + 3.0 * text.count("cab")
        assert parts["hot_words"] == pytest.approx(held, abs=1e-4)


def test_an_internal_language_model_is_taken_away():
    (e,) = evidence()
    options = JointSearch(beam_size=5, internal_lm_weight=0.4)
    best = options.search([e])[0][0]
    inputs = torch.tensor([[V - 1, *best.tokens]])
    after = torch.tensor([*best.tokens, V - 1])
    silent = torch.zeros(1, 3, D), torch.tensor([3])
    out = e.decoder(inputs, torch.tensor([inputs.size(1)]), *silent).log_softmax(-1)[0]
    inside = out[torch.arange(len(after)), after].sum().item()
    assert best.scores["internal_lm"] == pytest.approx(inside, abs=1e-4)
    total = 0.7 * best.scores["decoder"] + 0.3 * best.scores["ctc"] - 0.4 * inside
    assert best.score == pytest.approx(total, abs=1e-4)


def test_what_does_not_go_together_is_refused(ngram):
    graph = ContextGraph.build([[2, 3]], V + 1)
    for fusion, search, message in (
        (Fusion(), JointSearch(ngram_weight=0.1), "ngram_weight: 0.1 needs an n-gram model"),
        (Fusion(), JointSearch(lm_weight=0.1), "lm_weight: 0.1 needs a Transformer"),
        (
            read_fusion(TOKENIZER, ngram=ngram),
            JointSearch(),
            "would change nothing: search.ngram_weight is 0",
        ),
        (
            read_fusion(TOKENIZER, ngram=ngram),
            CtcGreedySearch(),
            "would change nothing.*CtcGreedySearch",
        ),
        (Fusion(hot_words=graph), JointSearch(hot_words_weight=1.0), "units and the model"),
        (Fusion(), JointSearch(ctc_weight=1.0, internal_lm_weight=0.1), "leaves out"),
    ):
        with pytest.raises(ConfigError, match=message):
            search.search(evidence(), fusion)


def test_files_of_hot_words(tmp_path):
    path = tmp_path / "words.txt"
    for content, message in (
        ("ab\tmuch\n", "line 1: 'much' is no score"),
        ("ab\nxyz\n", "line 2: the tokenizer has no units for all of 'xyz'"),
        ("\n \n", "no hot words"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_hot_words(TOKENIZER, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hot_words(TOKENIZER, tmp_path / "none.txt")


def test_hot_words_change_a_transcript(tiny_model_dir, tiny_corpus, tmp_path):
    """From the files on: what is boosted without bounds is what is heard."""
    wave = next(tiny_corpus.folder.glob("*.flac"))
    (tmp_path / "words.txt").write_text("cab\t50\n")
    folder = tiny_model_dir("audio")
    options = JointSearch(beam_size=20, hot_words_weight=1.0, max_length_ratio=0.5)
    transcriber = Transcriber.from_pretrained(
        folder, search=options, hot_words=tmp_path / "words.txt"
    )
    assert "cab" in transcriber.transcribe(wave).text
    assert "cab" not in Transcriber.from_pretrained(folder).transcribe(wave).text

"""Times of tokens out of cuts, and recordings cut between words."""

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from speechattn.data.augment import SpeedPerturb
from speechattn.data.batches.batch import Item, collate
from speechattn.data.batches.dataset import SpeechDataset
from speechattn.data.batches.joined import JoinedDataset
from speechattn.data.batches.timed import token_times, trim, word_alignment
from speechattn.data.crops.store import CropStore
from speechattn.data.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer


def cut(text, *words, start=0.0):
    aligned = {"word": [AlignmentItem(w, a, b - a) for w, a, b in words]} if words else None
    said = SupervisionSegment("a", "a", start, 2.0, text=text, alignment=aligned)
    return MonoCut("a", 0.0, 2.0, 0, supervisions=[said])


FIRST = cut("ab c", ("ab", 0.2, 0.6), ("c", 1.0, 1.5))
SECOND = cut("b", ("b", 0.3, 0.4))


def test_pieces():
    pieces = SentencePieceTokenizer.train(["ab c ab c abc", "c ca ba"], 10, "bpe")
    tokens = pieces.encode("ab c b")
    times = token_times([FIRST, SECOND], [2.0, 2.0], tokens, pieces)
    count = len(pieces.encode("ab"))
    expected = [(0.2, 0.6)] * count + [(1.0, 1.5)] + [(2.3, 2.4)] * len(pieces.encode("b"))
    np.testing.assert_allclose(times, expected, atol=1e-6)


def test_characters_with_and_without_spaces():
    letters = CharTokenizer.train(["ab c"])
    tokens = letters.encode("ab c b")
    times = token_times([FIRST, SECOND], [2.0, 2.0], tokens, letters)
    expected = [(0.2, 0.6), (0.2, 0.6), (0.6, 1.0), (1.0, 1.5), (1.5, 2.3), (2.3, 2.4)]
    np.testing.assert_allclose(times, expected, atol=1e-6)
    chinese = cut("你好", ("你", 0.1, 0.3), ("好", 0.4, 0.5))
    times = token_times([chinese], [2.0], [2, 3], CharTokenizer.train(["你好"]))
    np.testing.assert_allclose(times, [(0.1, 0.3), (0.4, 0.5)], atol=1e-6)


def test_not_known():
    letters = CharTokenizer.train(["ab c"])
    assert word_alignment(cut("ab")) is None
    assert token_times([FIRST, cut("b")], [2.0, 2.0], letters.encode("ab c b"), letters) is None
    other = cut("ab c", ("ab", 0.2, 0.6), ("b", 1.0, 1.5))
    assert token_times([other], [2.0], letters.encode("ab c"), letters) is None
    short = cut("ab c", ("ab", 0.2, 0.6))
    assert token_times([short], [2.0], letters.encode("ab c"), letters) is None
    assert token_times([cut("", ("x", 0, 1))], [2.0], [], letters) is None


def item(tokenizer, text="ab c b"):
    tokens = tokenizer.encode(text)
    times = token_times([FIRST, SECOND], [2.0, 2.0], tokens, tokenizer)
    sound, crops = np.arange(64000, dtype=np.float32), np.arange(100, dtype=np.uint8)
    return Item("a", text, tokens, sound, np.tile(crops[:, None, None], (1, 2, 2)), times)


@pytest.mark.parametrize(
    "start, stop, text",
    [(0.3, 3.0, "ab c b"), (0.45, 2.3, "c"), (0.5, 2.4, "c b"), (0.0, 1.2, "ab"), (1.3, 4, "b")],
)
def test_trimmed(start, stop, text):
    letters = CharTokenizer.train(["ab c"])
    one = item(letters)
    trim(one, start, stop, letters, sample_rate=16000, fps=25.0)
    assert one.text == text and letters.decode(one.tokens) == text
    first, last = round(start * 25), round(stop * 25)
    np.testing.assert_array_equal(one.audio, np.arange(first * 640, last * 640))
    np.testing.assert_array_equal(one.video[:, 0, 0], np.arange(first, last))
    whole = item(letters)
    at = whole.text.rindex(text)
    moved = (whole.times[at : at + len(text)] - first / 25).clip(0, (last - first) / 25)
    np.testing.assert_allclose(one.times, moved, atol=1e-5)


def test_nothing_to_trim_by():
    letters = CharTokenizer.train(["ab c"])
    silent, unknown = item(letters), item(letters)
    trim(silent, 1.6, 2.1, letters, sample_rate=16000)  # nobody speaks
    unknown.times = None
    trim(unknown, 0.0, 1.0, letters, sample_rate=16000)
    for one in (silent, unknown):
        assert one.text == "ab c b" and len(one.audio) == 64000


def test_batches_of_known_and_unknown():
    letters = CharTokenizer.train(["ab c"])
    known, unknown = item(letters), item(letters)
    unknown.times, unknown.tokens = None, unknown.tokens[:2]
    batch = collate([unknown, known])
    assert batch.token_times.shape == (2, 6, 2)
    np.testing.assert_array_equal(batch.token_times[0, :2], [[-np.inf, np.inf]] * 2)
    np.testing.assert_array_equal(batch.token_times[1], known.times)
    assert collate([unknown]).token_times is None


@pytest.fixture
def aligned(tiny_corpus):
    """The tiny corpus, whose letters last 8 pictures, one or two more at the end."""
    folder = tiny_corpus.folder
    store = CropStore(folder / "crops")
    cuts = []
    for one in CutSet.from_file(folder / "cuts_train.jsonl.gz"):
        said = one.supervisions[0]
        words = [AlignmentItem(said.text, 0.0, 0.32 * len(said.text))]
        cuts.append(one.map_supervisions(lambda s, w=words: with_words(s, w)))
    return SpeechDataset(cuts, Tokenizer.load(folder / "tokens"), ("audio", "video"), store, seed=3)


def with_words(supervision, words):
    supervision.alignment = {"word": words}
    return supervision


def test_recordings_that_begin_and_end_anywhere(aligned):
    joined = JoinedDataset(aligned, 9.0, 1.0, trim=1.0)
    shorter = 0
    for epoch in range(4):
        joined.epoch = epoch
        for i in range(len(joined)):
            found, numbers = joined[i], joined.utterances(i)
            whole = aligned.join(numbers)
            assert found.text in whole.text and len(found.audio) == 640 * len(found.video)
            assert aligned.tokenizer.decode(found.tokens) == found.text
            assert len(found.times) == len(found.tokens)
            shorter += len(found.audio) < len(whole.audio)
            if len(numbers) == 1:
                assert len(found.audio) == len(whole.audio)
            # Words between the first and the last stay.
            assert "".join(aligned[k].text for k in numbers[1:-1]) in found.text
            np.testing.assert_array_equal(found.audio, joined[i].audio)
    assert shorter > 4
    joined.trim = 0.0
    assert all(len(joined[i].audio) == len(aligned.join(joined.utterances(i)).audio)
               for i in range(len(joined)))  # fmt: skip


def test_speed_moves_words(aligned):
    faster = SpeechDataset(
        aligned.cuts, aligned.tokenizer, ("audio", "video"), aligned.crops,
        audio_transforms=[SpeedPerturb((1.25, 1.25))],
    )  # fmt: skip
    np.testing.assert_allclose(faster[0].times, aligned[0].times / 1.25, rtol=2e-3)

"""Token lists of other toolkits: ids stay where they were, text is cut as SentencePiece cuts it."""

import io

import pytest
import sentencepiece

from speechattn.data.tokenizers import Tokenizer, read_units, with_ends
from speechattn.errors import ConfigError
from speechattn.importing.tokens import make_tokenizer, with_pieces
from speechattn.units import UNK_MARK

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "a quick brown dog barks at the other quick dogs",
    "peter piper picked a peck of pickled peppers",
] * 4


def train(kind="unigram", size=45):
    """A model as ESPnet and auto_avsr train theirs: <unk>, <s>, </s>, pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        minloglevel=2,
    )
    return written.getvalue()


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return processor, [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


@pytest.fixture(params=["unigram", "bpe"])
def model(request, tmp_path):
    path = tmp_path / "bpe.model"
    path.write_bytes(train(request.param))
    return path


def test_espnet_bpe(model, tmp_path):
    """ESPnet's list leaves <s> and </s> out."""
    processor, pieces = pieces_of(model.read_bytes())
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    tokens = ["<blank>", "<unk>", *pieces[3:], "<sos/eos>"]
    tokenizer = make_tokenizer(tokens, model)
    assert tokenizer.tokens == tokens
    for text in set(TEXTS):
        expected = [tokens.index(piece) for piece in processor.encode(text, out_type=str)]
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_auto_avsr_units(model, tmp_path):
    """Units are sorted by themselves, and some are no pieces of the model."""
    processor, pieces = pieces_of(model.read_bytes())
    units = ["<unk>", *sorted(pieces[3:], reverse=True)]
    units.insert(5, "É")
    path = tmp_path / "units.txt"
    path.write_text("".join(f"{u} {i}\n" for i, u in enumerate(units, 1)), encoding="utf-8")
    tokens = with_ends(read_units(path))
    tokenizer = make_tokenizer(tokens, model)
    assert tokenizer.tokens == ["<blank>", *units, "<sos/eos>"]
    for text in set(TEXTS):
        expected = [tokens.index(piece) for piece in processor.encode(text, out_type=str)]
        assert tokenizer.encode(text) == expected
    assert tokenizer.decode([6]) == "É"
    assert tokenizer.decode(tokenizer.encode("the É")) == f"the {UNK_MARK}"


def test_characters(tmp_path):
    path = tmp_path / "char_units.txt"
    path.write_text("<unk> 1\n惶 2\n英 3\n", encoding="utf-8")
    tokenizer = make_tokenizer(with_ends(read_units(path)))
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("英惶x") == [3, 2, 1]
    assert tokenizer.decode([2, 3, 4]) == "惶英"


def test_lines_without_ids(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_text("<blank>\n<unk>\na\n<space>\n<sos/eos>\n", encoding="utf-8")
    assert make_tokenizer(read_units(path)).encode("a a") == [2, 3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<unk> 1\na 3\n", "'a' is not the number"),
        ("<unk> 1\na\n", "a line is a token"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    path = tmp_path / "units.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_units(path)


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="--bpe-model"):
        make_tokenizer(["<blank>", "<unk>", "▁the", "<sos/eos>"])
    with pytest.raises(ConfigError, match="has to be <unk>"):
        with_ends(["a", "b"])
    for wrong in (b"", b"\xff\xff\xff", b"PK\x03\x04 no model at all"):
        (tmp_path / "m").write_bytes(wrong)
        with pytest.raises(ConfigError, match="is no SentencePiece model"):
            make_tokenizer(["<blank>", "<unk>", "▁the", "<sos/eos>"], tmp_path / "m")


def test_same_pieces_is_the_same_model():
    model = train()
    _, pieces = pieces_of(model)
    again, kind = with_pieces(model, pieces)
    assert kind == "unigram"
    assert sorted(again) == sorted(model)  # fields may be in another order


def test_ends_are_checked_with_pieces_too(model):
    _, pieces = pieces_of(model.read_bytes())
    for first, last in (("<b>", "<sos/eos>"), ("<blank>", "<end>")):
        with pytest.raises(ConfigError, match="must be <blank>, <unk>, ..., <sos/eos>"):
            make_tokenizer([first, "<unk>", *pieces[3:], last], model)


@pytest.mark.parametrize(
    "wrong",
    [b"\x08\x01", b"\x10\x01", b"\x0a\x00", b"\x0a\x02\x08\x01"],
    ids=["pieces are a number", "trainer is a number", "no text", "text is a number"],
)
def test_models_of_other_fields(tmp_path, wrong):
    (tmp_path / "m").write_bytes(wrong + train())
    with pytest.raises(ConfigError, match="is no SentencePiece model"):
        make_tokenizer(["<blank>", "<unk>", "▁the", "<sos/eos>"], tmp_path / "m")

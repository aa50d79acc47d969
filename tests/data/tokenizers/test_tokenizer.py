"""Tokenizers: ids as ESPnet's, round trips, what is saved is what is loaded."""

import json
import pickle

import pytest
import sentencepiece
import torch

from speechattn.data.tokenizers import (
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    build_tokenizer,
)
from speechattn.errors import ConfigError
from speechattn.units import UNK_MARK

EN = ["Bin blue at f two now", "lay RED by a nine soon", "set white with p zero please"] * 3
ZH = ["设定三十一度", "打开空调", "哈根达斯 ABC 好吃", "广州市房地产中介协会分析"] * 3
KINDS = ["char", "bpe", "unigram"]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return build_tokenizer(EN + ZH, request.param, None if request.param == "char" else 64)


def test_ids(tokenizer):
    assert tokenizer.tokens[0] == "<blank>"
    assert tokenizer.tokens[1] == "<unk>"
    assert tokenizer.tokens[-1] == "<sos/eos>"
    assert tokenizer.vocab_size == len(tokenizer.tokens) == len(set(tokenizer.tokens))
    assert tokenizer.sos_eos_id == tokenizer.vocab_size - 1
    if tokenizer.kind != "char":
        assert tokenizer.vocab_size == 64
    for text in EN + ZH:
        ids = tokenizer.encode(text)
        assert ids and all(1 < i < tokenizer.vocab_size - 1 for i in ids)


def test_round_trip(tokenizer):
    for text in EN + ZH + ["  two \t spaces\n", "", "设　定", "PABC"]:
        if set("".join(text.split())) <= set("".join(EN + ZH)):
            assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_decode_drops_specials_and_marks_unknown(tokenizer):
    ids = tokenizer.encode("now by a")
    last = tokenizer.vocab_size - 1
    assert tokenizer.decode([last, *ids[:1], 0, *ids[1:], last, 0]) == "now by a"
    assert tokenizer.decode(torch.tensor(ids)) == "now by a"
    assert tokenizer.decode([]) == tokenizer.decode([0, last]) == ""
    unknown = tokenizer.encode("now ☃ by")
    assert unknown.count(1) == 1
    assert tokenizer.decode(unknown) == f"now {UNK_MARK} by"
    for wrong in (-1, last + 1):
        with pytest.raises(ValueError, match=f"id {wrong} "):
            tokenizer.decode([wrong])


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "model")
    loaded = Tokenizer.load(tmp_path / "model")
    assert type(loaded) is type(tokenizer)
    assert (loaded.kind, loaded.tokens) == (tokenizer.kind, tokenizer.tokens)
    lines = (tmp_path / "model" / "tokens.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [*tokenizer.tokens, ""]
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert [other.encode(t) for t in EN + ZH] == [tokenizer.encode(t) for t in EN + ZH]


def test_characters():
    tokenizer = CharTokenizer.train(["b a a", "B 好", " a"])
    # a and the space (inner ones) are there 3 times, the others once; ties by code point
    assert tokenizer.tokens[2:-1] == ["<space>", "a", "B", "b", "好"]
    assert tokenizer.encode("a b") == [3, 2, 5]
    assert tokenizer.encode("A") == [1]
    rare = CharTokenizer.train(["aab"], min_count=2)
    assert rare.tokens == ["<blank>", "<unk>", "a", "<sos/eos>"]
    capped = build_tokenizer(["aaabbc"], "char", vocab_size=5)
    assert capped.tokens == ["<blank>", "<unk>", "a", "b", "<sos/eos>"]


def test_odd_characters_survive_saving(tmp_path):
    """Line separators, a zero-width joiner, a full-width letter, a combining accent."""
    text = "a\u200db \uff21 e\u0301 \u2060 \U0001f600 #<>"
    tokenizer = CharTokenizer.train([text])
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.decode(loaded.encode("a\u2028b\x85a")) == "a b a"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_are_sentencepieces_own(kind, tmp_path):
    tokenizer = SentencePieceTokenizer.train(EN + ZH, 64, kind)
    tokenizer.save(tmp_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    assert plain.get_piece_size() == 62
    for text in EN + ZH:
        assert [tokenizer.tokens[i] for i in tokenizer.encode(text)] == plain.encode(
            text, out_type=str
        )
        assert tokenizer.decode(tokenizer.encode(text)) == plain.decode(plain.encode(text))
    assert SentencePieceTokenizer.train(EN + ZH, 64, kind).model == tokenizer.model


def test_case_and_width_stay():
    for kind in KINDS:
        tokenizer = build_tokenizer(["ＡＢＣ abc ABC ①"] * 4, kind, 14)
        assert tokenizer.decode(tokenizer.encode("ＡＢ ab AB ①")) == "ＡＢ ab AB ①"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_long_lines_are_not_left_out(kind):
    long = "abcdefgh " * 1000
    tokenizer = SentencePieceTokenizer.train([long, "zz"], 14, kind)
    assert 1 not in tokenizer.encode("hgfedcba zz")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("size", [5, 5000])
def test_impossible_sizes_name_a_possible_one(kind, size):
    with pytest.raises(ConfigError, match=rf"vocab_size: {kind} cannot make {size} .*at ") as error:
        build_tokenizer(EN, kind, size)
    possible = int(str(error.value).split()[-1])
    assert build_tokenizer(EN, kind, possible).vocab_size == possible


def test_build_errors():
    for kind in ("char", "unigram"):
        with pytest.raises(ConfigError, match="texts"):
            build_tokenizer(["", " "], kind, 10)
    with pytest.raises(ConfigError, match="kind: 'word'"):
        build_tokenizer(EN, "word")
    with pytest.raises(ConfigError, match="vocab_size: bpe needs one"):
        build_tokenizer(EN, "bpe")
    with pytest.raises(ConfigError, match="must be"):
        CharTokenizer(["<blank>", "a", "<sos/eos>"])
    with pytest.raises(ConfigError, match="more than once"):
        CharTokenizer(["<blank>", "<unk>", "a", "a", "<sos/eos>"])
    with pytest.raises(ConfigError, match="not single"):
        CharTokenizer(["<blank>", "<unk>", "ab", "<sos/eos>"])


def test_load_refuses_what_does_not_fit(tmp_path):
    def saved(kind="char"):
        build_tokenizer(EN, kind, 40).save(tmp_path)

    with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(tmp_path / "nowhere")

    saved()
    tokens = (tmp_path / "tokens.txt").read_text()
    swapped = tokens.split("\n")
    swapped[3], swapped[4] = swapped[4], swapped[3]
    (tmp_path / "tokens.txt").write_text("\n".join(swapped))
    with pytest.raises(ConfigError, match="changed after saving"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokens.txt").write_text(tokens.replace("e\n", "", 1))
    with pytest.raises(ConfigError, match=r"tokens, tokenizer\.json says"):
        Tokenizer.load(tmp_path)

    saved()
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(about | {"kind": "os.system"}))
    with pytest.raises(ConfigError, match="unknown kind 'os.system'"):
        Tokenizer.load(tmp_path)
    for broken in ("[]", "{"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ConfigError, match="JSON"):
            Tokenizer.load(tmp_path)

    saved("bpe")
    SentencePieceTokenizer.train(EN[:2], 40, "bpe").save(tmp_path / "other")
    (tmp_path / "bpe.model").write_bytes((tmp_path / "other" / "bpe.model").read_bytes())
    with pytest.raises(ConfigError, match=r"not the pieces of bpe\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"\x00garbage")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "bpe.model").unlink()
    with pytest.raises(ConfigError, match=r"bpe\.model: cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["zh_aishell.txt", "en_ljspeech.txt"])
@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_round_trip_on_real_text(data_dir, name, kind):
    lines = (data_dir / "text" / name).read_text(encoding="utf-8").split("\n")[:1500]
    size = {"char": None, "bpe": 2600, "unigram": 2600 if "zh" in name else 500}[kind]
    tokenizer = build_tokenizer(lines, kind, size)
    for line in lines:
        assert tokenizer.decode(tokenizer.encode(line)) == " ".join(line.split())

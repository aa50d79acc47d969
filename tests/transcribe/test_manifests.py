"""Decoding of a test set: its files, resuming, noise."""

import json

import numpy as np
import pytest
import torch
from lhotse import CutSet

from speechattn.config import read_yaml
from speechattn.data.augment import AddNoise
from speechattn.data.batches.batch import Item, collate
from speechattn.data.tables import read_table
from speechattn.decoding import CtcGreedySearch, JointSearch
from speechattn.decoding.config import build_search
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.transcribe import Transcriber
from speechattn.transcribe.manifests import PARTIAL, SEARCH, decode_cuts, read_partial, single
from speechattn.transcribe.recogniser import Recogniser


@pytest.fixture
def cuts(tiny_corpus):
    return tiny_corpus.folder / "cuts_train.jsonl.gz"


@pytest.fixture
def crops(tiny_corpus):
    return tiny_corpus.folder / "crops"


@pytest.fixture
def recogniser(tiny_model_dir):
    return Transcriber.from_pretrained(tiny_model_dir("av")).recogniser


def search_in(folder):
    """The search that a folder was decoded with."""
    return build_search(read_yaml(folder / SEARCH))


def test_what_it_writes(recogniser, cuts, crops, tiny_corpus, tmp_path):
    hyp = decode_cuts(recogniser, cuts, tmp_path / "d", crops=crops, batch_seconds=3.0, details=3)
    assert hyp == tmp_path / "d" / "hyp.tsv"
    names = list(tiny_corpus.texts)[:8]
    ref, hyp = read_table(tmp_path / "d" / "ref.tsv"), read_table(hyp)
    assert ref.texts == {name: tiny_corpus.texts[name] for name in names}
    assert ref.speakers == {name: name[:2] for name in names}
    assert list(hyp.texts) == names and any(hyp.texts.values())
    assert search_in(tmp_path / "d") == recogniser.search
    lines = (tmp_path / "d" / PARTIAL).read_text(encoding="utf-8").splitlines()
    found = {t["id"]: t for t in map(json.loads, lines)}
    assert {name: t["text"] for name, t in found.items()} == hyp.texts
    for transcript in found.values():
        assert [t["start"] for t in transcript["tokens"]] == sorted(
            t["start"] for t in transcript["tokens"]
        )


def test_details(recogniser, cuts, crops, tiny_corpus, tmp_path):
    decode_cuts(recogniser, cuts, tmp_path, crops=crops, details=3)
    texts = read_table(tmp_path / "hyp.tsv").texts
    files = sorted((tmp_path / "details").glob("*.npz"))
    assert len(files) == 3
    model = recogniser.model
    for file in files:
        with np.load(file) as detail:
            text, tokens = str(detail["text"]), [str(t) for t in detail["tokens"]]
            assert text == texts[file.stem]
            assert str(detail["reference"]) == tiny_corpus.texts[file.stem]
            ctc, attention, crop = detail["ctc"], detail["cross_attention"], detail["crops"]
            assert float(detail["frame_shift"]) == 0.04
        assert len(tokens) == len(recogniser.tokenizer.encode(text))
        assert ctc.shape[1] == model.vocab_size
        np.testing.assert_allclose(ctc.astype(float).sum(1), 1.0, atol=5e-3)
        assert attention.shape == (1, 2, len(tokens) + 1, len(ctc))
        np.testing.assert_allclose(attention.astype(float).sum(-1), 1.0, atol=5e-3)
        assert crop.shape[1:] == (16, 16) and crop.dtype == np.uint8
        assert 0 <= len(crop) - len(ctc) <= 2


@pytest.mark.parametrize("details", [0, 1, 100])
def test_number_of_details(recogniser, cuts, crops, tmp_path, details):
    decode_cuts(recogniser, cuts, tmp_path, crops=crops, details=details)
    assert len(list((tmp_path / "details").glob("*.npz"))) == min(details, 8)


def test_interrupted_run_goes_on(recogniser, cuts, crops, tmp_path, monkeypatch):
    decode_cuts(recogniser, cuts, tmp_path / "whole", crops=crops, batch_seconds=3.0, details=8)
    count = 0
    original = Recogniser.recognise

    def recognise(self, batch):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Recogniser, "recognise", recognise)
    with pytest.raises(KeyboardInterrupt):
        decode_cuts(recogniser, cuts, tmp_path / "cut", crops=crops, batch_seconds=3.0, details=8)
    monkeypatch.undo()
    partial = tmp_path / "cut" / PARTIAL
    done = len(partial.read_text().splitlines())
    assert 0 < done < 8
    assert not (tmp_path / "cut" / "hyp.tsv").exists()
    # Killed in the middle of a line, in the middle of a character.
    with partial.open("ab") as file:
        file.write('{"id": "s0_u0", "text": "口'.encode()[:-1])
    seen = []
    monkeypatch.setattr(
        Recogniser, "recognise", lambda self, b: seen.extend(b.ids) or original(self, b)
    )
    decode_cuts(recogniser, cuts, tmp_path / "cut", crops=crops, batch_seconds=3.0, details=8)
    assert len(seen) == 8 - done
    for name in ("hyp.tsv", "ref.tsv", "search.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for folder in ("cut", "whole"):
        assert len(list((tmp_path / folder / "details").glob("*.npz"))) == 8
    seen.clear()
    decode_cuts(recogniser, cuts, tmp_path / "cut", crops=crops)
    assert seen == []


def with_bad_sound(cuts, folder, bad):
    """The cuts, the sound of those numbered `bad` being no sound."""
    (folder / "bad.flac").write_bytes(b"this is no sound")
    changed = list(CutSet.from_file(cuts))
    for i in bad:
        changed[i].recording.sources[0].source = str(folder / "bad.flac")
    CutSet.from_cuts(changed).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz", [changed[i].id for i in bad]


def test_what_cannot_be_read_is_listed_and_has_no_text(recogniser, cuts, crops, tmp_path, caplog):
    decode_cuts(recogniser, cuts, tmp_path / "good", crops=crops, batch_seconds=3.0)
    some, bad = with_bad_sound(cuts, tmp_path, [2, 5])
    decode_cuts(recogniser, some, tmp_path / "d", crops=crops, batch_seconds=3.0)
    wanted = read_table(tmp_path / "good" / "hyp.tsv").texts
    texts = read_table(tmp_path / "d" / "hyp.tsv").texts
    assert texts == {name: "" if name in bad else text for name, text in wanted.items()}
    assert list(read_table(tmp_path / "d" / "ref.tsv").texts) == list(wanted)
    lines = (tmp_path / "d" / "failures.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines[1:]) == sorted(bad)
    assert all(name in caplog.text for name in bad)
    decode_cuts(recogniser, cuts, tmp_path / "d", crops=crops)  # mended
    assert read_table(tmp_path / "d" / "hyp.tsv").texts == wanted
    assert not (tmp_path / "d" / "failures.tsv").exists()


def test_nothing_that_can_be_read_is_an_error(recogniser, cuts, crops, tmp_path):
    some, _ = with_bad_sound(cuts, tmp_path, range(8))
    with pytest.raises(SpeechattnError, match="no utterance can be read"):
        decode_cuts(recogniser, some, tmp_path / "d", crops=crops)


def test_other_options_start_anew(recogniser, cuts, crops, tmp_path, monkeypatch):
    decode_cuts(recogniser, cuts, tmp_path, crops=crops)
    seen = []
    original = Recogniser.recognise
    monkeypatch.setattr(
        Recogniser, "recognise", lambda self, b: seen.extend(b.ids) or original(self, b)
    )
    monkeypatch.setattr(recogniser, "search", CtcGreedySearch())
    decode_cuts(recogniser, cuts, tmp_path, crops=crops)
    assert len(seen) == 8
    assert search_in(tmp_path) == CtcGreedySearch()
    assert len((tmp_path / PARTIAL).read_text().splitlines()) == 8


def test_read_partial(tmp_path):
    path = tmp_path / "t.jsonl"
    assert read_partial(path) == {}
    odd = 'a\u2028b\x85c'  # fmt: skip
    lines = [json.dumps({"id": str(i), "text": odd}, ensure_ascii=False) for i in range(2)]
    path.write_bytes(("\n".join(lines) + '\n{"id": "2"').encode())
    assert read_partial(path) == {"0": odd, "1": odd}
    assert path.read_bytes() == ("\n".join(lines) + "\n").encode()


def test_batch_size_does_not_matter(recogniser, cuts, crops, tmp_path):
    for seconds in (0.1, 3.0, 100.0):
        decode_cuts(recogniser, cuts, tmp_path / str(seconds), crops=crops, batch_seconds=seconds)
    tables = [(tmp_path / str(s) / "hyp.tsv").read_bytes() for s in (0.1, 3.0, 100.0)]
    assert tables[0] == tables[1] == tables[2]


def test_noise_is_the_same_every_time(tiny_model_dir, cuts, tiny_corpus, tmp_path, monkeypatch):
    recogniser = Transcriber.from_pretrained(tiny_model_dir("audio")).recogniser
    heard = {}
    original = Recogniser.recognise

    def recognise(self, batch):
        for name, wave, n in zip(batch.ids, batch.audio, batch.audio_lengths, strict=True):
            heard.setdefault(name, []).append(wave[:n].clone())
        return original(self, batch)

    monkeypatch.setattr(Recogniser, "recognise", recognise)
    noise = AddNoise(str(tiny_corpus.folder / "noise.wav"), (0.0, 0.0), p=1.0)
    for i, seconds in enumerate((3.0, 100.0)):
        decode_cuts(
            recogniser, cuts, tmp_path / str(i), noise=noise, batch_seconds=seconds, details=0
        )
    decode_cuts(recogniser, cuts, tmp_path / "clean", details=0)
    assert len(heard) == 8
    for first, second, clean in heard.values():
        assert torch.equal(first, second)
        ratio = clean.square().mean() / (first - clean).square().mean()
        assert ratio.item() == pytest.approx(1.0, rel=1e-3)  # 0 dB


def test_needs_crops(recogniser, cuts, tmp_path):
    with pytest.raises(ConfigError, match="--crops"):
        decode_cuts(recogniser, cuts, tmp_path)


def test_cuts_without_a_speaker(tiny_model_dir, cuts, tmp_path):
    recogniser = Transcriber.from_pretrained(tiny_model_dir("audio")).recogniser
    some = []
    for cut in CutSet.from_file(cuts):
        cut.supervisions[0].speaker = None
        some.append(cut)
    CutSet.from_cuts(some).to_file(tmp_path / "cuts.jsonl.gz")
    decode_cuts(recogniser, tmp_path / "cuts.jsonl.gz", tmp_path / "d", details=0)
    table = read_table(tmp_path / "d" / "ref.tsv")
    assert len(table.texts) == 8 and not table.speakers


def test_single():
    items = [
        Item("a", "x", [3, 4], np.ones(9, np.float32), np.ones((4, 2, 2), np.uint8)),
        Item("b", "y", [5], np.ones(5, np.float32), np.ones((6, 2, 2), np.uint8)),
    ]
    batch = collate(items)
    for i, item in enumerate(items):
        one, alone = single(batch, i), collate([item])
        assert one.ids == alone.ids and one.texts == alone.texts
        for name in ("tokens", "token_lengths", "audio", "audio_lengths", "video",
                     "video_lengths"):  # fmt: skip
            assert torch.equal(getattr(one, name), getattr(alone, name)), name


def test_nbest_and_times(tiny_model_dir, cuts, tmp_path):
    options = JointSearch(beam_size=4, nbest=3)
    recogniser = Transcriber.from_pretrained(tiny_model_dir("audio"), search=options).recogniser
    decode_cuts(recogniser, cuts, tmp_path)
    for line in (tmp_path / PARTIAL).read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        nbest = found["nbest"]
        assert len(nbest) == 3 and nbest[0]["text"] == found["text"]
        assert [h["score"] for h in nbest] == sorted((h["score"] for h in nbest), reverse=True)
        for h in nbest:
            total = 0.7 * h["scores"]["decoder"] + 0.3 * h["scores"]["ctc"]
            assert h["score"] == pytest.approx(total, abs=1e-4)
    timing = json.loads((tmp_path / "timing.json").read_text())
    seconds = sum(cut.duration for cut in CutSet.from_file(cuts))
    assert timing["input_seconds"] == pytest.approx(seconds, abs=1e-3)
    assert all(timing["seconds"][part] > 0 for part in ("load", "frontend", "encoder", "search"))


def test_other_hot_words_start_anew(tiny_model_dir, cuts, tmp_path):
    folder, words = tiny_model_dir("audio"), tmp_path / "words.txt"
    options = JointSearch(beam_size=4, hot_words_weight=1.0)
    found = []
    for content in ("ab\t50\n", "cc\t50\n"):
        words.write_text(content)
        transcriber = Transcriber.from_pretrained(folder, search=options, hot_words=words)
        recogniser = transcriber.recogniser
        found.append(read_table(decode_cuts(recogniser, cuts, tmp_path / "d")).texts)
    assert found[0] != found[1]

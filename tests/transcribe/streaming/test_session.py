"""Streams: what comes out is what the whole input gives, whatever the pieces; memory is bounded."""

import io
import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechattn import Transcriber
from speechattn.cli import main
from speechattn.data.batches.batch import Item, collate
from speechattn.data.crops.roi import RoiOptions
from speechattn.data.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer
from speechattn.decoding import CtcBeamSearch, CtcGreedySearch, GraphSearch, JointSearch
from speechattn.decoding.ctc import TokenSpan
from speechattn.decoding.ctc_beam import PrefixBeam, ctc_beam_search, trace
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.decode import DecodingGraph
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.decoding.fusion import Fusion
from speechattn.decoding.streaming.base import StreamLimits, StreamTokens
from speechattn.decoding.streaming.beam import PrefixBeamStream
from speechattn.errors import ConfigError, MediaError
from speechattn.model.directory import build_model, save_model_dir
from speechattn.model.output import ModelOutput
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.streaming.modality import ModalityStream
from speechattn.transcribe.streaming.session import StreamingSession, StreamOptions
from speechattn.transcribe.streaming.words import WordAssembler
from speechattn.transcribe.transcript import Transcript

CHUNK, LEFT = 4, 8
GREEDY = CtcGreedySearch()
INF = float("inf")
EXACT = StreamOptions(margin=INF, settle_seconds=INF, pending_seconds=1000.0)


def section(tiny_model, modality: str, **encoder) -> dict:
    """A `model:` section that can stream."""
    config = tiny_model(modality)
    for name in ("audio", "video"):
        if name in config:
            config[name]["encoder"]["init_args"] |= {"chunk_size": CHUNK, "left_context": LEFT}
            config[name]["encoder"]["init_args"] |= encoder
    if "audio" in config:
        config["audio"]["frontend"]["init_args"]["normalise"] = "global"
    return config


def build(tiny_model, tokenizer, modality: str = "audio", **encoder):
    """A model whose random weights say something."""
    torch.manual_seed(2)
    model = build_model(section(tiny_model, modality, **encoder), tokenizer.vocab_size).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("cmvn.mean"):
                value.fill_(10.0)
            elif name.endswith("cmvn.istd"):
                value.fill_(0.4)
        wave, crops = draw(60, 9)
        audio = torch.from_numpy(wave)[None], torch.tensor([len(wave)])
        video = torch.from_numpy(crops[None, :, None, 2:18, 2:18]), torch.tensor([len(crops)])
        # All units are there, and sure of themselves.
        logits = model.ctc(model.encode(*audio, *video)[0][0])  # (T, V)
        model.ctc.weight.mul_((4 / logits.std(0))[:, None])
        model.ctc.bias.sub_(model.ctc(model.encode(*audio, *video)[0][0]).mean(0))
        model.ctc.bias[0] += 2.0
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_corpus) -> Tokenizer:
    return CharTokenizer.train(["abc ab"])


@pytest.fixture(scope="module")
def transcribers(tiny_model, tokenizer):
    """By modality and decode options."""
    models = {m: build(tiny_model, tokenizer, m) for m in ("audio", "video", "av")}

    def make(modality="audio", search=GREEDY, **arguments) -> Transcriber:
        roi = RoiOptions(size=20)
        return Transcriber(Recogniser(models[modality], tokenizer, search, roi=roi, **arguments))

    return make


def draw(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sound of changing tones and pictures of changing grey, frames of 40 ms."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.integers(0, 3, frames // 4 + 1), 4)[:frames]
    hertz = np.repeat(300.0 * 3.0**level, 640)
    wave = np.repeat(rng.random(frames // 4 + 1), 2560)[: len(hertz)] * np.sin(
        2 * np.pi * np.cumsum(hertz) / 16000
    )
    wave = wave + 0.02 * rng.standard_normal(len(wave))
    crops = rng.integers(0, 60, (frames, 20, 20)) + 80 * level[:, None, None]
    return (0.5 * wave).astype(np.float32), crops.astype(np.uint8)


def pieces(x: np.ndarray, most: int, seed: int = 0):
    """Pieces of any sizes, some of them empty."""
    rng, start = np.random.default_rng(seed), 0
    while start < len(x):
        size = int(rng.integers(0, most))
        yield x[start : start + size]
        start += size


def feed(modality: str, wave: np.ndarray, crops: np.ndarray, seed: int = 0):
    """As a microphone and a camera that know nothing of each other give them."""
    sound, lips = pieces(wave, 4000, seed), pieces(crops, 6, seed)
    if modality != "av":
        yield from sound if modality == "audio" else lips
        return
    while True:
        some = next(sound, None), next(lips, None)
        if some[0] is None and some[1] is None:
            return
        yield some


def whole(transcriber: Transcriber, wave, crops) -> tuple[torch.Tensor, Transcript]:
    """Hidden frames and transcript of the whole input."""
    recogniser = transcriber.recogniser
    names = recogniser.model.modalities
    cut = crops[:, 2:18, 2:18]
    audio = wave[: len(crops) * 640] if "video" in names else wave
    audio = np.pad(audio, (0, max(len(crops) * 640 - len(audio), 0) if "video" in names else 0))
    item = Item("x", "", [], audio if "audio" in names else None, cut if "video" in names else None)
    batch = collate([item])
    with torch.inference_mode():
        hidden, lengths = recogniser.model.encode(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )
    return hidden[:, : int(lengths[0])], recogniser.recognise(batch)[0]


def hidden_of(stream: StreamingSession) -> list[torch.Tensor]:
    """The hidden frames that a stream searches from here on."""
    seen, log_probs = [], stream.model.ctc_log_probs

    def spy(hidden):
        seen.append(hidden)
        return log_probs(hidden)

    stream.model = SimpleNamespace(
        ctc_log_probs=spy, fusion=stream.model.fusion, frame_shift=stream.model.frame_shift
    )
    return seen


@pytest.mark.parametrize("modality", ["audio", "video", "av"])
@pytest.mark.parametrize("frames", [90, 83, 3])
def test_pieces_give_what_the_whole_gives(transcribers, modality, frames):
    transcriber = transcribers(modality)
    wave, crops = draw(frames)
    if modality == "av":
        wave = wave[:-3000] if frames == 90 else np.pad(wave, (0, 5000))
    hidden, transcript = whole(transcriber, wave, crops)
    assert frames == 3 or len(transcript.text) > 3
    for seed in range(2):
        stream, finals, text = StreamingSession(transcriber.recogniser), [], ""
        seen = hidden_of(stream)
        for piece in feed(modality, wave, crops, seed):
            for update in stream.accept(piece):
                finals += update.final
                text += update.text
        update = stream.finish()
        assert update.endpoint and not update.partial
        assert text + update.text == transcript.text
        got = torch.cat(seen, 1) if seen else hidden[:, :0]
        torch.testing.assert_close(got, hidden, atol=1e-5, rtol=1e-4)
        words = finals + update.final
        assert "".join(w.text for w in words) == "".join(w.text for w in transcript.words)
        assert words[0].start == pytest.approx(transcript.words[0].start) if words else True


def test_sizes_of_pieces_change_nothing_at_all(transcribers):
    wave, _ = draw(100)
    transcriber = transcribers("audio", CtcBeamSearch(beam_size=4))
    updates = [list(transcriber.stream([wave]))]
    updates += [list(transcriber.stream(pieces(wave, 3000, seed))) for seed in (1, 2)]
    assert updates[0] == updates[1] == updates[2]
    assert [u.seconds for u in updates[0]] == sorted(u.seconds for u in updates[0])
    assert updates[0][-1].seconds == pytest.approx(len(wave) / 16000)
    as_integers = (wave * 2**15).round().astype(np.int16)
    same = as_integers.astype(np.float32) / 2**15
    assert list(transcriber.stream([as_integers])) == list(transcriber.stream([same]))


@pytest.mark.parametrize(
    "search",
    [{}, {"blank_skip": 0.6}, {"length_bonus": 0.7}, {"beam_size": 2}],
    ids=lambda s: next(iter(s), "plain"),
)
def test_prefix_beam_says_what_it_says_of_the_whole(transcribers, search):
    search = {"beam_size": 5, **search}
    transcriber = transcribers("audio", CtcBeamSearch(**search))
    wave, crops = draw(120, 3)
    _, transcript = whole(transcriber, wave, crops)
    updates = list(transcriber.stream(pieces(wave, 3000), EXACT))
    assert "".join(u.text for u in updates) == transcript.text


def test_beams_in_pieces_have_the_scores_of_whole_ones():
    """Ragged: the last piece alone is padded."""
    torch.manual_seed(0)
    log_probs = (2 * torch.randn(3, 41, 9)).log_softmax(-1)
    log_probs[:, ::5, 0] += 6
    log_probs, lengths = log_probs.log_softmax(-1), torch.tensor([41, 33, 36])
    for batch, blank_skip, bonus in ((3, 1.0, 0.0), (3, 1.0, 0.5), (1, 0.9, 0.0), (1, 0.9, 0.5)):
        options = dict(beam_size=6, blank_skip=blank_skip, length_bonus=bonus)
        log_probs, lengths = log_probs[:batch], lengths[:batch]
        wanted = ctc_beam_search(log_probs, lengths, nbest=6, **options)
        beam = PrefixBeam(batch, 9, log_probs.device, **options)
        texts = [[[] for _ in range(6)] for _ in range(batch)]
        for start, stop in itertools.pairwise([0, 1, 1, 14, 30, 41]):
            part = (lengths.clamp(max=stop) - start).clamp(min=0)
            units, chosen = beam.accept(log_probs[:, start:stop], part)
            tokens, origin = trace(units, chosen, torch.arange(6).expand(batch, 6))
            texts = [
                [texts[b][o] + [t for t in row if t] for o, row in zip(*both, strict=True)]
                for b, both in enumerate(zip(origin.tolist(), tokens.tolist(), strict=True))
            ]
        score = beam.total + (beam.extra.finish()[0] if beam.extra else 0.0)
        for b, row in enumerate(score):
            order = row.argsort(descending=True).tolist()
            assert [texts[b][i] for i in order] == [h.tokens for h in wanted[b]]
            got = row[order].tolist()
            assert got == pytest.approx([h.score for h in wanted[b]], abs=1e-9)


def script(text: str, tokenizer: Tokenizer, noise: float, seed: int) -> torch.Tensor:
    """(T, V) log-probabilities that say each token of a text in a frame or two, then blanks."""
    rng = np.random.default_rng(seed)
    ids = []
    for token in tokenizer.encode(text):
        ids += [token] * int(rng.integers(1, 3)) + [0] * int(rng.integers(1, 6))
    scores = noise * rng.standard_normal((len(ids), tokenizer.vocab_size))
    scores[np.arange(len(ids)), ids] += 7.0
    return torch.from_numpy(scores).float().log_softmax(-1)


def run(search, log_probs: torch.Tensor, seed: int = 0):
    """What each chunk of any size adds, and the tokens of the end."""
    found = [search.accept(torch.from_numpy(p)) for p in pieces(log_probs.numpy(), 9, seed)]
    return found, search.finish()


WORDS = ["ab", "ba", "c", "bac", "aa"]


@pytest.fixture(scope="module")
def graph(tokenizer, tmp_path_factory):
    pytest.importorskip("kaldi_decoder")
    lexicon = Lexicon.spelled(WORDS, tokenizer)
    return build_graph(lexicon, tokenizer, tmp_path_factory.mktemp("graph"))


def test_graph_says_what_it_says_of_the_whole(transcribers, tokenizer, graph):
    options = GraphSearch(weight=0.7)
    fusion = Fusion(graph=DecodingGraph(graph))
    recogniser = transcribers("audio", options, fusion=fusion).recogniser
    rng = np.random.default_rng(0)
    for seed in range(6):
        text = " ".join(rng.choice(WORDS, 12))
        log_probs = script(text, tokenizer, 2.5, seed)
        lengths = torch.tensor([len(log_probs)])
        output = ModelOutput(log_probs[None], lengths, log_probs[None])
        wanted = options.search([output], fusion)[0][0].tokens
        limits = StreamLimits(frame_shift=0.04)
        search = options.start_stream(recogniser.model, torch.device("cpu"), fusion, limits)
        found, rest = run(search, log_probs, seed)
        spans = [s for f in found for s in f.final] + rest
        assert [s.token for s in spans] == wanted
        assert len(rest) < len(wanted) / 2 and search.size() < 10000
        for span in spans:
            seen = log_probs[span.start : span.end, span.token].exp().mean().item()
            assert span.score == pytest.approx(seen, abs=1e-5)
        for a, b in itertools.pairwise(spans):
            assert a.start < a.end <= b.start


def test_a_graph_in_a_stream(transcribers, graph):
    options = GraphSearch()
    fusion = Fusion(graph=DecodingGraph(graph))
    transcriber = transcribers("audio", options, fusion=fusion)
    wave, crops = draw(120, 1)
    _, transcript = whole(transcriber, wave, crops)
    updates = list(transcriber.stream(pieces(wave, 3000)))
    assert "".join(u.text for u in updates) == transcript.text
    assert {w.text for u in updates for w in u.final} <= set(WORDS)


@pytest.mark.parametrize("margin, settle", [(10.0, 12), (INF, 12), (1.0, INF), (INF, INF)])
def test_stable_tokens_of_a_beam_stay(tokenizer, margin, settle):
    """As sure as a trained model is, nothing that is handed out early was wrong."""
    for seed in range(4):
        log_probs = script("ab c abc ba c", tokenizer, 1.5, seed)
        search = PrefixBeamStream(
            tokenizer.vocab_size, log_probs.device, beam_size=6, margin=margin, settle=settle
        )
        found, rest = run(search, log_probs, seed)
        (wanted,) = ctc_beam_search(log_probs[None], torch.tensor([len(log_probs)]), beam_size=6)[0]
        spans = [s for f in found for s in f.final] + rest
        assert [s.token for s in spans] == wanted.tokens
        assert settle == INF == margin or len(rest) < len(wanted.tokens) / 2
        # In order, and never two in one frame.
        for a, b in itertools.pairwise(spans):
            assert a.start < a.end <= b.start


def test_a_beam_that_never_agrees_remembers_no_more_than_it_may(tokenizer):
    size = tokenizer.vocab_size
    search = PrefixBeamStream(size, torch.device("cpu"), beam_size=6, longest=30)
    torch.manual_seed(0)
    sizes = []
    for _ in range(60):
        search.accept((0.1 * torch.randn(5, size)).log_softmax(-1))
        sizes.append(search.size())
    assert max(sizes) < 40 * size + 6 * 40


def test_words_are_complete_when_the_next_begins_or_after_a_silence():
    """By hand: a space or a mark begins a word; an ideograph is one, where nothing can join it."""
    tokens = CharTokenizer.train(["he lo wr"])

    def of(words: WordAssembler, *found: tuple[StreamTokens, int]):
        return [[w.text for w in words.update(*some)[0]] for some in found]

    def spans(text: str, start: int) -> list[TokenSpan]:
        return [TokenSpan(t, start + i, start + i + 1, 1.0) for i, t in enumerate(words_of(text))]

    words_of = tokens.encode
    space = [TokenSpan(tokens.tokens.index("<space>"), 5, 6, 1.0)]
    words = WordAssembler(tokens, 0.04, silence=5)
    steps = (
        (StreamTokens(spans("hello", 0)), 5),
        (StreamTokens(space), 6),  # the space ends it
        (StreamTokens(spans("wo", 6)), 8),
        (StreamTokens(spans("r", 8)), 13),  # quiet for 4 frames
        (StreamTokens(), 14),  # for 5
    )
    assert of(words, *steps) == [[], ["hello"], [], [], ["wor"]]
    # A token that lasts on is sure, but handed out when it has ended.
    words = WordAssembler(tokens, 0.04, silence=5)
    lasting = StreamTokens([], space, certain=1)
    assert of(words, (StreamTokens(spans("hello", 0)), 5), (lasting, 6)) == [[], ["hello"]]
    # One that may change ends nothing.
    words = WordAssembler(tokens, 0.04, silence=5)
    assert of(words, (StreamTokens(spans("hello", 0), space), 6)) == [[]]
    chinese = CharTokenizer.train(["\u4f60\u597d"])
    words_of = chinese.encode
    words = WordAssembler(chinese, 0.04, silence=5)
    assert of(words, (StreamTokens(spans("\u4f60", 0)), 1)) == [["\u4f60"]]
    marked = CharTokenizer.train(["\u4f60\u597d\uff0c"])
    words_of = marked.encode
    words = WordAssembler(marked, 0.04, silence=5)
    steps = (
        (StreamTokens(spans("\u4f60", 0)), 1),
        (StreamTokens(spans("\uff0c", 1)), 2),
        (StreamTokens(spans("\u597d", 2)), 3),
    )
    assert of(words, *steps) == [[], [], ["\u4f60\uff0c"]]


def test_texts_of_pieces_make_up_the_text():
    tokenizer = SentencePieceTokenizer.train(["the cat sat on the mat"] * 3, 24, "bpe")
    ids = tokenizer.encode("the cat sat on the mat the cat")
    spans = [TokenSpan(t, 2 * i, 2 * i + 1, 1.0) for i, t in enumerate(ids)]
    words, text, said = WordAssembler(tokenizer, 0.04, silence=50), "", []
    for i, span in enumerate(spans):
        final, _, more = words.update(StreamTokens([span]), 2 * i + 2)
        text, said = text + more, said + final
    final, more = words.finish([])
    assert text + more == tokenizer.decode(ids)
    assert [w.text for w in said + final] == "the cat sat on the mat the cat".split()
    assert len(final) == 1


@pytest.mark.parametrize("search", [CtcGreedySearch(), CtcBeamSearch(beam_size=4)])
def test_memory_does_not_grow(transcribers, search):
    transcriber = transcribers("audio", search)
    wave, _ = draw(600)
    stream, sizes = StreamingSession(transcriber.recogniser), []
    for piece in pieces(wave, 3000):
        stream.accept(piece)
        sizes.append(stream.size())
    assert stream.frames > 580
    first, rest = sizes[: len(sizes) // 6], sizes[len(sizes) // 6 :]
    assert max(rest) <= 1.5 * max(first)
    # Of the encoder and of its input, to the number: some chunks, not some minutes.
    assert stream.streams["audio"].size() < 12 * 1600 + 50000


def test_video_memory_does_not_grow(transcribers):
    stream, sizes = StreamingSession(transcribers("av").recogniser), []
    wave, crops = draw(240)
    for i in range(len(crops)):  # none runs ahead
        stream.accept((wave[640 * i : 640 * i + 640], crops[i]))
        sizes.append(sum(s.size() for s in stream.streams.values()))
    assert max(sizes[len(sizes) // 3 :]) < 1.5 * max(sizes[: len(sizes) // 3])


def test_what_cannot_stream_says_so(tiny_model, tokenizer, transcribers, tiny_model_dir):
    def refused(model, search=GREEDY, settings=None, message=""):
        with pytest.raises(ConfigError, match=message):
            transcriber = Transcriber(Recogniser(model, tokenizer, search))
            next(transcriber.stream([np.zeros(100, np.float32)], settings))

    refused(build(tiny_model, tokenizer, chunk_size=0), message="audio.encoder.*chunk_size")
    dynamic = build(tiny_model, tokenizer, chunk_size=0, dynamic_chunk=True)
    refused(dynamic, message="choose a chunk_size")
    transcriber = Transcriber(Recogniser(dynamic, tokenizer, GREEDY))
    list(transcriber.stream([draw(9)[0]], StreamOptions(chunk_size=3)))
    config = section(tiny_model, "audio")
    config["audio"]["frontend"]["init_args"]["normalise"] = "utterance"
    refused(build_model(config, tokenizer.vocab_size), message="normalise: global")
    model = build(tiny_model, tokenizer)
    refused(model, JointSearch(), message="JointSearch cannot stream.*CtcBeamSearch")
    refused(model, CtcBeamSearch(risk_scale=1.0), message="risk_scale.*set it to 0")
    late = Transcriber.from_pretrained(tiny_model_dir("late"))
    with pytest.raises(ConfigError, match="one model"):
        next(late.stream([]))
    audio, video = transcribers("audio"), transcribers("video")
    for transcriber, piece, message in (
        (audio, np.zeros((3, 20, 20), np.uint8), "this model takes sound"),
        (video, np.zeros(100, np.float32), "this model takes mouth crops"),
        (audio, np.zeros((100, 2), np.float32), r"\(100, 2\): transpose"),
        (audio, np.full(100, np.nan, np.float32), "no numbers"),
        (audio, np.zeros(100, np.int64), "int64"),
        (video, np.zeros((3, 20, 24), np.uint8), "square"),
    ):
        with pytest.raises(MediaError, match=message):
            list(transcriber.stream([piece]))
    with pytest.raises(ConfigError, match="endpoint_seconds"):
        StreamOptions(endpoint_seconds=0.1)


def test_endpoints_begin_anew(transcribers, monkeypatch):
    """Utterances between silences are what they are alone."""
    transcriber = transcribers("audio")
    script = "..aa.b...." + "." * 10 + "b.c..a" + "." * 14 + "c"

    def log_probs(hidden):
        count, start = hidden.shape[1], log_probs.at
        log_probs.at += count
        ids = [".abc".find(c) for c in script[start : start + count]]
        ids = [0 if i < 1 else transcriber.recogniser.tokenizer.encode(".abc"[i])[0] for i in ids]
        ids += [0] * (count - len(ids))
        one = torch.nn.functional.one_hot(
            torch.tensor(ids), transcriber.recogniser.tokenizer.vocab_size
        )
        return (0.98 * one + 0.02 / one.shape[1]).log()[None]

    log_probs.at = 0
    stream = StreamingSession(transcriber.recogniser, StreamOptions(endpoint_seconds=0.4))
    monkeypatch.setattr(
        stream,
        "model",
        SimpleNamespace(ctc_log_probs=log_probs, fusion=None, frame_shift=0.04),
    )
    updates = [u for p in pieces(draw(48)[0], 3000) for u in stream.accept(p)] + [stream.finish()]
    texts, at = [""], []
    for update in updates:
        texts[-1] += update.text
        if update.endpoint:
            texts.append("")
            at.append(update.final)
    assert texts == ["ab", "bca", "c", ""]
    words = [w for u in updates for w in u.final]
    assert [w.start for w in words] == pytest.approx([0.08, 0.8, 1.6])
    assert [w.text for w in words] == ["ab", "bca", "c"]


def test_after_an_endpoint_the_encoder_knows_nothing_of_before(transcribers):
    model, (wave, _) = transcribers("audio").recogniser.model, draw(60)
    modality, sound = ModalityStream(model, "audio"), torch.from_numpy(wave)
    modality.push(sound)
    for _ in range(3):
        modality.advance(modality.needed)
    modality.restart()
    begun = modality.hidden.shape[1]
    for _ in range(4):
        modality.advance(modality.needed)
    stream = model.streams["audio"]
    features, _ = stream.frontend(sound[None], torch.tensor([len(sound)]))
    later = features[:, 3 * CHUNK * stream.encoder.subsampling_factor :]
    with torch.no_grad():
        wanted, _ = stream.encoder(later, torch.tensor([later.shape[1]]))
    torch.testing.assert_close(
        modality.hidden[:, begun:], wanted[:, : 4 * CHUNK], atol=1e-5, rtol=1e-4
    )


def test_command(tiny_model, tokenizer, tmp_path, capsys, monkeypatch):
    model = build(tiny_model, tokenizer)
    config = {"model": section(tiny_model, "audio"), "search": "CtcGreedySearch"}
    save_model_dir(tmp_path / "model", config, model.state_dict(), tokenizer, {})
    wave = (draw(100)[0] * 2**15).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    arguments = ["stream", "--model", str(tmp_path / "model")]
    assert main([*arguments, str(tmp_path / "a.wav")]) == 0
    out = capsys.readouterr().out
    rows = [line.split("\t") for line in out.splitlines()]
    assert len(rows) > 1 and all(float(start) < float(end) for start, end, _ in rows)
    pipe = SimpleNamespace(buffer=io.BytesIO(wave.tobytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert main(arguments) == 0
    assert capsys.readouterr().out == out
    assert main([*arguments, str(tmp_path / "a.wav"), "--format", "json"]) == 0
    updates = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [w["text"] for u in updates for w in u["final"]] == [word for *_, word in rows]
    assert main([*arguments, "--search", "JointSearch"]) == 1
    assert "CtcBeamSearch" in capsys.readouterr().err

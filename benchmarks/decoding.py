"""Claim: the joint search finds what ESPnet 202611's finds on the same weights, and faster.

A decoder of 6 x 768/3072 over 4,468 units, random weights, encoder output that is given; 22 tokens
for every 5 s. Peers: ESPnet's batched search as its recipes run it (CTC within a window of 100
frames) and with the window off, as ours. Beside the search stands its floor: the decoder's matrix
products alone, at the shapes of every step. Also the CTC prefix scores alone, the rescoring of a
batch's n-best lists by both directions against WeNet's loop, and the search with int8 and bfloat16
layers against float32, whose layers are packed as a Transcriber's are. (For a processor without
VNNI set ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and MKL_ENABLE_INSTRUCTIONS=AVX2.)

    python benchmarks/decoding.py [--quick] [--json FILE] [--only WORD]
        [--model DIR --cuts FILE [--crops DIR]]

ESPnet is found in the environment of `make test-espnet`, which `make bench` takes where it is.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from espnet_search import CtcHead, espnet, trained_rows
from rows import against_peer, in_turn, row, save, spread, times_floor
from torch import Tensor, nn

from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.decoding import CtcPrefixScorer, Hypothesis, JointSearch
from speechattn.decoding.rescoring import add_decoder, rescore
from speechattn.deploy.packing import PackedLinear, pack
from speechattn.deploy.quantization import quantize
from speechattn.importing.espnet import decoder_weights
from speechattn.model.output import ModelOutput

THREADS = 2
VOCAB, WIDTH, HEADS, UNITS, BLOCKS = 4468, 768, 12, 3072, 6
EOS = VOCAB - 1
FRAME_RATE, TOKEN_RATE = 25, 4.4  # a second
WEIGHT = 0.3  # of CTC
TARGETS = {10: 6.0, 40: 8.0}  # by beam, of single utterances
BATCH_TARGET, SCORE_TARGET, FLOOR_TARGET = 5.0, 10.0, 1.6
RESCORE_TARGET, INT8_TARGET = 5.0, 1.4


class Ctc(CtcHead):
    """A CTC head of random weights that is blank most of the time, as trained ones are."""

    def __init__(self):
        super().__init__(nn.Linear(WIDTH, VOCAB))
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.constant_(self.head.bias[:1], 12.0)


class Models:
    """Ours and ESPnet's, of the same weights."""

    def __init__(self):
        torch.manual_seed(0)
        plain = TransformerDecoder(
            VOCAB, WIDTH, WIDTH, HEADS, linear_units=UNITS, num_blocks=BLOCKS
        ).eval()
        self.ctc = Ctc().eval()
        self.espnet = espnet()
        self.theirs = None
        if self.espnet is not None:
            self.theirs = self.espnet["decoder"](
                VOCAB, WIDTH, attention_heads=HEADS, linear_units=UNITS, num_blocks=BLOCKS
            ).eval()
            # ESPnet's search would say blank; a trained decoder never does.
            nn.init.constant_(self.theirs.output_layer.bias[:1], -1e4)
            plain.load_state_dict(decoder_weights(self.theirs.state_dict()))
        self.plain = plain
        self.ours = pack(copy.deepcopy(plain))  # as a Transcriber does on a CPU

    def searches(self, lengths: Tensor, beam: int) -> dict[str, Callable]:
        """A search of each kind over the same encoder output, giving the best tokens."""
        hidden = torch.randn(len(lengths), int(lengths.max()), WIDTH)
        ratio = TOKEN_RATE / FRAME_RATE
        # ESPnet ends hypotheses one step before the longest length: were the least as long as the
        # longest, it would find none and search once more.
        least = ratio - 1 / int(lengths.min())
        options = JointSearch(
            beam_size=beam, ctc_weight=WEIGHT, min_length_ratio=ratio, max_length_ratio=ratio
        )
        evidence = ModelOutput(hidden, lengths, self.ctc.log_softmax(hidden), self.ours)

        def ours() -> list[list[int]]:
            return [nbest[0].tokens for nbest in options.search([evidence])]

        def theirs(margin: int) -> list[list[int]]:
            searched = self.espnet["search"](
                {
                    "decoder": self.theirs,
                    "ctc": self.espnet["scorer"](self.ctc, EOS, window_margin=margin),
                },
                {"decoder": 1 - WEIGHT, "ctc": WEIGHT},
                beam,
                VOCAB,
                EOS,
                EOS,
                pre_beam_score_key="full",
            )
            if len(lengths) == 1:
                found = [searched(hidden[0], maxlenratio=ratio, minlenratio=least)]
            else:
                found = searched(hidden, x_lengths=lengths, maxlenratio=ratio, minlenratio=least)
            tokens = [nbest[0].yseq[1:].tolist() if nbest else [] for nbest in found]
            return [t[: t.index(EOS)] if EOS in t else t for t in tokens]

        runs: dict[str, Callable] = {"ours": ours}
        if self.espnet is not None:
            runs["espnet, as shipped"] = lambda: theirs(100)
            runs["espnet, no window"] = lambda: theirs(0)
        return runs


def products(model: TransformerDecoder, frames: int, beam: int, steps: int) -> Callable:
    """The decoder's matrix products for each token of a search, attention to the memory included.

    The weights are the model's own, each layer's read from where it is.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | PackedLinear)]
    # Keys and values of the memory are projected once, before the search.
    once = [layer.cross_attention.key_value for layer in model.layers]
    each = [m for m in linear if not any(m is o for o in once)]
    memory = torch.rand(frames, WIDTH)
    keys = torch.rand(HEADS, frames, WIDTH // HEADS)
    inputs = {(n, size): torch.rand(n, size) for n in (1, beam) for size in (WIDTH, UNITS)}
    heads = {n: torch.rand(HEADS, n, WIDTH // HEADS) for n in (1, beam)}

    def run() -> None:
        for module in once:
            module(memory)
        for step in range(steps + 1):  # <eos> is one more
            n = beam if step else 1
            for module in each:
                module(inputs[n, module.in_features])
            for _ in range(BLOCKS):
                weights = torch.bmm(heads[n], keys.transpose(1, 2))
                torch.bmm(weights, keys)

    return run


def keep(found: dict, name: str, run: Callable) -> None:
    """Run and keeps what comes out."""
    found[name] = run()


def search_rows(models: Models, seconds: int, items: int, beam: int, rounds: int) -> list[dict]:
    """Ours against both of ESPnet's, and against the floor."""
    torch.manual_seed(1)
    frames = seconds * FRAME_RATE
    lengths = torch.linspace(frames, frames / 2, items).long()
    runs = models.searches(lengths, beam)
    found: dict[str, list[list[int]]] = {}
    kept = {name: partial(keep, found, name, run) for name, run in runs.items()}
    if items == 1:
        steps = int(frames * TOKEN_RATE / FRAME_RATE)
        kept["floor"] = products(models.ours, frames, beam, steps)
    times = in_turn(kept, rounds, warm=rounds > 1)
    what = f"batch of {items}, up to" if items > 1 else "one utterance of"
    title = f"joint search, beam {beam}, {what} {seconds} s"
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    target = TARGETS[beam] if items == 1 else BATCH_TARGET
    rows = []
    for name in ("espnet, as shipped", "espnet, no window"):
        rows.append(against_peer(f"{title}, {name}", median["ours"], median.get(name), target, "s"))
    if "espnet, no window" in found:
        same = sum(a == b for a, b in zip(found["ours"], found["espnet, no window"], strict=True))
        rows.append(row(f"{title}, same best tokens", same, items, same / items, None, "", None))
    if "floor" in median:
        wanted = FLOOR_TARGET if (beam, seconds) == (40, 10) else None
        rows.append(times_floor(title, median["ours"], median["floor"], wanted, "s"))
    return rows


def quantised_rows(models: Models, seconds: int, beam: int, rounds: int) -> list[dict]:
    """The same search with the decoder's linear layers in cheaper arithmetic."""
    torch.manual_seed(1)
    frames = seconds * FRAME_RATE
    lengths = torch.tensor([frames])
    runs = {"float32": models.searches(lengths, beam)["ours"]}
    whole = models.ours
    for scheme in ("int8", "bf16"):
        models.ours = quantize(copy.deepcopy(models.plain), scheme)
        torch.manual_seed(1)
        runs[scheme] = models.searches(lengths, beam)["ours"]
    models.ours = whole
    times = in_turn(runs, rounds)
    title = f"joint search, beam {beam}, one utterance of {seconds} s"
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        against_peer(
            f"{title}, {name} against float32", median[name], median["float32"], target, "s"
        )
        for name, target in (("int8", INT8_TARGET), ("bf16", 1.0))
    ]


def score_rows(models: Models, seconds: int, rounds: int) -> list[dict]:
    """CTC prefix scores of 40 hypotheses, 10 tokens long at the end, 60 candidates each."""
    torch.manual_seed(1)
    frames, n, steps = seconds * FRAME_RATE, 40, 10
    log_probs = models.ctc.log_softmax(torch.randn(1, frames, WIDTH))
    lengths = torch.tensor([frames])
    candidates = torch.randint(1, EOS, (steps + 1, n, 60))

    def ours() -> None:
        scorer = CtcPrefixScorer(log_probs, lengths)
        state = scorer.start()
        state = scorer.extend(state, torch.zeros(n, dtype=torch.int64), candidates[0, :, 0])
        for step in range(1, steps + 1):  # the first is for one hypothesis, and costs next to none
            scorer.score(candidates[step], state)
            state = scorer.extend(state, torch.arange(n), candidates[step, :, 0])

    def theirs() -> None:
        scorer = models.espnet["score"](log_probs.clone(), lengths, 0, EOS)
        history, state = torch.full((n, 1), EOS), None
        for step in range(steps):
            _, state = scorer(history, state, candidates[step])
            token = candidates[step, :, 0]
            state = scorer.index_select_state(state, (torch.arange(n) * VOCAB + token)[None])
            history = torch.cat([history, token[:, None]], 1)

    runs = {"ours": ours} | ({"espnet": theirs} if models.espnet is not None else {})
    times = in_turn(runs, rounds)
    title = f"CTC prefix scores, 40 hypotheses, 10 steps, {seconds} s"
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [against_peer(title, median["ours"], median.get("espnet"), SCORE_TARGET, "s")]


def rescore_rows(rounds: int) -> list[dict]:
    """Ten hypotheses of each of 16 utterances by both directions of a decoder.

    In one pass; and as WeNet does it, of which this is our own version: one utterance after
    another, the encoder's output repeated for each hypothesis, scores added token by token.
    """
    torch.manual_seed(1)
    decoder = pack(
        BidirectionalDecoder(VOCAB, 256, 256, 4, linear_units=1024, num_blocks=3, reverse_blocks=3)
    )
    frames, items, beam, u = 100, 16, 10, 12
    lengths = torch.linspace(frames, frames / 2, items).long()
    hidden = torch.randn(items, frames, 256)
    empty = hidden.new_zeros(items, frames, 1)
    nbest = []
    for _ in range(items):
        # Each differs from the best in two tokens, so that prefixes are shared about as much as in
        # the 10-best lists of a trained model (2.2 times from the left, 1.6 times from the right).
        tokens = torch.randint(1, EOS, (u,)).repeat(beam, 1)
        for other in tokens[1:]:
            other[torch.randperm(u)[:2]] = torch.randint(1, EOS, (2,))
        nbest.append([Hypothesis(h, -1.0, {"ctc": -1.0}) for h in tokens.tolist()])

    def passes(rows: list[ModelOutput], nbest: list[list[Hypothesis]]) -> list[float]:
        found = rescore(rows, add_decoder(rows[0], nbest, 0.5), 0.5, 0.5)
        return [h.score for hypotheses in found for h in hypotheses]

    def alone(b: int) -> list[ModelOutput]:
        row, t = slice(b, b + 1), int(lengths[b])
        return [ModelOutput(hidden[row, :t], lengths[row], empty[row, :t], decoder)]

    def together() -> list[float]:
        return passes([ModelOutput(hidden, lengths, empty, decoder)], nbest)

    def each_utterance() -> list[float]:
        return [score for b in range(items) for score in passes(alone(b), [nbest[b]])]

    def each_hypothesis() -> list[float]:
        return [score for b in range(items) for h in nbest[b] for score in passes(alone(b), [[h]])]

    def wenet() -> list[float]:
        scores = []
        for b in range(items):
            memory = hidden[b : b + 1, : int(lengths[b])].repeat(beam, 1, 1)
            tokens = torch.tensor([[EOS, *h.tokens] for h in nbest[b]])
            given = tokens, torch.full((beam,), u + 1), memory, lengths[b].expand(beam)
            left = decoder(*given).log_softmax(-1)
            right = decoder.reverse(*given).log_softmax(-1)
            found = []
            for i, h in enumerate(nbest[b]):
                score = left[i][u][EOS] + right[i][u][EOS]
                for j, token in enumerate(h.tokens):
                    score = score + left[i][j][token] + right[i][u - 1 - j][token]
                found.append(0.5 * h.score + 0.25 * float(score))
            scores += sorted(found, reverse=True)
        return scores

    runs = {"wenet": wenet, "utterance": each_utterance, "hypothesis": each_hypothesis}
    for peer in (wenet, each_utterance):
        torch.testing.assert_close(torch.tensor(together()), torch.tensor(peer()))
    times = in_turn({"ours": together, **runs}, rounds)
    title = "rescoring by both directions, 16 utterances of 10 hypotheses"
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    ours, *peers = (statistics.median(values) for values in times.values())
    named = ("WeNet's loop", "ours one utterance after another", "one hypothesis after another")
    return [
        against_peer(f"{title}, against {what}", ours, peer, RESCORE_TARGET, "s")
        for what, peer in zip(named, peers, strict=True)
    ]


@torch.inference_mode()
def benchmark(quick: bool, only: str) -> list[dict]:
    """All rows; `quick` is short inputs and one round."""
    #      seconds, items, beam, rounds
    # Not 30 s at beam 40: ESPnet takes a quarter of an hour for it.
    cases = [(5, 1, 10, 3), (5, 1, 40, 1), (10, 1, 10, 3), (10, 1, 40, 1), (30, 1, 10, 1),
             (10, 16, 10, 1)]  # fmt: skip
    if quick:
        cases = [(2, 1, 10, 1), (2, 2, 10, 1)]
    models, rows = Models(), []
    for seconds, items, beam, rounds in cases:
        if only in f"search {seconds} {items} {beam}":
            rows += search_rows(models, seconds, items, beam, rounds)
    if only in "quantised":
        rows += quantised_rows(models, 2 if quick else 10, 10 if quick else 40, 1 if quick else 3)
    for seconds in (2,) if quick else (5, 10, 30):
        if only in f"scores {seconds}":
            rows += score_rows(models, seconds, 1 if quick else 5)
    if only in "rescoring":
        rows += rescore_rows(1 if quick else 5)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short inputs, one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases with this in 'search seconds items beam'")
    parser.add_argument("--model", type=Path, help="compare the texts of a trained model too")
    parser.add_argument("--cuts", type=Path, help="of that model's test set")
    parser.add_argument("--crops", type=Path, help="for a model that sees")
    options = parser.parse_args()
    if options.model is not None and options.cuts is None:
        parser.error("--model needs --cuts")
    torch.set_num_threads(THREADS)
    rows = benchmark(options.quick, options.only)
    if options.model is not None and espnet() is not None:
        with torch.inference_mode():
            rows += trained_rows(options.model, options.cuts, options.crops)
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How to decode: one set of options for the recipe and for the Transcriber."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from speechattn.errors import ConfigError

METHODS = (
    "joint",
    "attention",
    "ctc_greedy",
    "ctc_beam",
    "ctc_rescore",
    "ctc_graph",
    "ctc_graph_rescore",
    "transducer_greedy",
    "transducer_beam",
)
# Methods over a decoding graph, and what may search it.
GRAPH = ("ctc_graph", "ctc_graph_rescore")
GRAPH_LIBRARIES = ("kaldi", "k2py", "k2")


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`.

    Attributes:
        method: `joint`, beam search over decoder and CTC prefix scores; `attention`, the same
            without CTC; `ctc_greedy`, the best label of each frame; `ctc_beam`, the most probable
            token sequences by CTC, with the language models and hot words below; `ctc_rescore`,
            these ranked anew with the decoder, `ctc_weight` deciding who gets how much;
            `ctc_graph`, the most probable sentence of a decoding graph, see `speechattn graph`;
            `ctc_graph_rescore`, its `beam_size` best ranked anew with the decoder, as in
            `ctc_rescore`;
            `transducer_greedy`, the best unit of a transducer again and again; `transducer_beam`,
            its most probable token sequences with one token a frame at most, by the language
            models and hot words too.
        beam_size: hypotheses kept for an utterance, K.
        ctc_weight: of the CTC prefix score in `joint`, 0..1; the decoder gets the rest. At 1 the
            decoder is not used.
        length_bonus: added to the score for each token, <eos> included as in ESPnet (but not in
            `ctc_beam` and `transducer_beam`); natural log.
        min_length_ratio: no hypothesis has fewer than int(this * frames) tokens. Not in the
            searches of CTC alone or of a transducer.
        max_length_ratio: no hypothesis has more than max(1, int(this * frames)) tokens; 0: as
            many as there are encoder frames. Not in the searches of CTC alone.
        pre_beam_ratio: int(this * beam_size) tokens of each hypothesis, the best by the decoder,
            get a CTC score; the others are out. <eos> always gets one.
        nbest: hypotheses returned for an utterance. The search ends when it can no longer
            change them, so more of them take longer.
        reverse_weight: of the right-to-left decoder in the attention score, 0..1; the
            left-to-right one gets the rest. Above 0 the search keeps at least `beam_size` of its
            hypotheses, and they are ranked anew by the score with both directions in it. Needs a
            BidirectionalDecoder; the searches of CTC alone do not look at it.
        lm_weight: of a Transformer language model's score, added to the others; 0 for none.
        lm_rescore_weight: of the same score, but given to what the search has found rather than in
            the search, which is faster and can only choose from the `beam_size` best.
        ngram_weight: of an n-gram model's score.
        hot_words_weight: of the scores that hot words get.
        internal_lm_weight: of what is taken away for the attention decoder's own language model,
            together with another language model. Not in the searches of CTC alone.
        frame_units: `ctc_beam` lets prefixes grow by so many units in a frame, the best; 0: all.
        blank_skip: frames whose blank is more probable than this are skipped by `ctc_beam`, and for
            the CTC scores of the other searches each run of them becomes one frame; 1: none.
        graph_weight: of the scores of the graph's words, beside those of CTC, in `ctc_graph`.
        graph_beam: `ctc_graph` drops what is this much worse than the best of a frame.
        graph_states: `ctc_graph` keeps so many states of a frame at most.
        graph_library: what searches the graph: `kaldi` (kaldi-decoder), `k2py`, which tells the
            best path only, or `k2`, which searches a batch at once and needs k2 installed. Streams
            have a search of their own.
        graph_lattice_beam: above 0 paths that are this much worse than the best are kept, and the
            confidence of a token is the share of them that has it; 8 where it is 0 and several
            hypotheses or a larger language model are asked for.
        graph_ngram_weight: of a larger n-gram model of words (`--graph-ngram`), whose scores take
            the place of the graph's in what was kept.
        graph_delay_penalty: taken from a token's score in each frame by which it begins after the
            middle of the utterance, and added before it: earlier tokens, as in delay-penalised CTC.
        frame_tokens: `transducer_greedy` says so many tokens in a frame at most.
        risk_scale: above 0 the best is the hypothesis of the fewest expected token errors among
            the `beam_size` best, each as probable as exp(risk_scale * score) says.
    """

    method: str = "joint"
    beam_size: int = 10
    ctc_weight: float = 0.3
    length_bonus: float = 0.0
    min_length_ratio: float = 0.0
    max_length_ratio: float = 0.0
    pre_beam_ratio: float = 1.5
    nbest: int = 1
    reverse_weight: float = 0.0
    lm_weight: float = 0.0
    lm_rescore_weight: float = 0.0
    ngram_weight: float = 0.0
    hot_words_weight: float = 0.0
    internal_lm_weight: float = 0.0
    frame_units: int = 20
    blank_skip: float = 1.0
    graph_weight: float = 1.0
    graph_beam: float = 12.0
    graph_states: int = 2000
    graph_library: str = "kaldi"
    graph_lattice_beam: float = 0.0
    graph_ngram_weight: float = 0.0
    graph_delay_penalty: float = 0.0
    frame_tokens: int = 1
    risk_scale: float = 0.0

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            allowed = (int, float) if f.type is float else f.type
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise ConfigError(
                    f"decode option {f.name}: expected {f.type.__name__}, got {value!r}"
                )
        _check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        _check(self.beam_size >= 1, "beam_size", self.beam_size, "at least 1")
        _check(0 <= self.ctc_weight <= 1, "ctc_weight", self.ctc_weight, "in 0..1")
        _check(self.min_length_ratio >= 0, "min_length_ratio", self.min_length_ratio, "0 or more")
        _check(self.max_length_ratio >= 0, "max_length_ratio", self.max_length_ratio, "0 or more")
        _check(self.pre_beam_ratio >= 1, "pre_beam_ratio", self.pre_beam_ratio, "1 or more")
        _check(self.nbest >= 1, "nbest", self.nbest, "at least 1")
        _check(0 <= self.reverse_weight <= 1, "reverse_weight", self.reverse_weight, "in 0..1")
        for name in (
            "lm_weight",
            "lm_rescore_weight",
            "ngram_weight",
            "hot_words_weight",
            "internal_lm_weight",
            "graph_lattice_beam",
            "graph_ngram_weight",
            "graph_delay_penalty",
            "risk_scale",
        ):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _check(self.graph_weight > 0, "graph_weight", self.graph_weight, "above 0")
        _check(self.graph_beam > 0, "graph_beam", self.graph_beam, "above 0")
        _check(self.graph_states > 0, "graph_states", self.graph_states, "above 0")
        known = ", ".join(GRAPH_LIBRARIES)
        _check(
            self.graph_library in GRAPH_LIBRARIES, "graph_library", self.graph_library,
            f"one of {known}",
        )  # fmt: skip
        _check(self.frame_tokens >= 1, "frame_tokens", self.frame_tokens, "at least 1")
        _check(self.frame_units >= 0, "frame_units", self.frame_units, "0 or more")
        _check(0 < self.blank_skip <= 1, "blank_skip", self.blank_skip, "above 0, at most 1")

    def save(self, path: str | Path) -> None:
        """Write YAML."""
        Path(path).write_text(yaml.safe_dump(asdict(self), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "DecodeOptions":
        """Read YAML; what is missing takes its default.

        Raises:
            ConfigError: the file is no mapping, or a key is unknown or has an unusable value.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected a mapping of options, got {values!r}")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{path}: unknown option {key!r}; known: {', '.join(known)}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _check(good: bool, key: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"decode option {key}: has to be {wanted}, got {value!r}")

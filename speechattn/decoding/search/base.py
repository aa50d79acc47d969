"""The bases of searches: what a search declares, and what all have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from speechattn.decoders import Decoder, Transducer
from speechattn.decoding.boosting import BoostScorer
from speechattn.decoding.fusion import NO_FUSION, Fusion
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.rescoring import add_lm, least_risk
from speechattn.decoding.scorers import Scorer
from speechattn.decoding.streaming.base import StreamLimits, StreamSearch
from speechattn.errors import ConfigError, require
from speechattn.lm.scorers import LmScorer, NgramScorer
from speechattn.model.output import ModelOutput

# Resources beside the models: what each is, and the options that weight it.
RESOURCES = (
    ("lm", "a Transformer language model (--lm DIR)", ("lm_weight", "lm_rescore_weight")),
    ("ngram", "an n-gram model (--ngram FILE.arpa)", ("ngram_weight",)),
    ("hot_words", "hot words (--hot-words FILE)", ("hot_words_weight",)),
)


class SearchedModel(Protocol):
    """A model, or several that are searched together.

    Attributes:
        vocab_size: V.
        decoders: the decoder of each model, or None.
        transducers: the transducer of each model, or None.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def decoders(self) -> Sequence[Decoder | None]: ...

    @property
    def transducers(self) -> Sequence[Transducer | None]: ...


@dataclass(frozen=True)
class _Searched:
    vocab_size: int
    decoders: Sequence[Decoder | None]
    transducers: Sequence[Transducer | None]


@dataclass(frozen=True, kw_only=True)
class Search(ABC):
    """A search from model outputs to hypotheses. Its fields are its options.

    A subclass is a frozen dataclass with keyword arguments (`@dataclass(frozen=True,
    kw_only=True)`). It declares its needs, checks its options in `__post_init__`, and writes
    `find`; one that can go on from chunk to chunk also `start_stream`.

    Class attributes:
        needs_decoder: each model has to have an attention decoder.
        needs_transducer: each model has to have a transducer.
        needs_graph: a decoding graph has to be given.
        single_model: only one model is read, no ensemble.
        streams: `start_stream` works.
    """

    needs_decoder: ClassVar[bool] = False
    needs_transducer: ClassVar[bool] = False
    needs_graph: ClassVar[bool] = False
    single_model: ClassVar[bool] = True
    streams: ClassVar[bool] = False

    @abstractmethod
    def find(self, outputs: Sequence[ModelOutput], fusion: Fusion) -> list[list[Hypothesis]]:
        """Search utterances with at least one frame each.

        Args:
            outputs: of one or, unless `single_model`, more models for the same B utterances.
            fusion: language models, hot words and graph.

        Returns:
            For each utterance at least one hypothesis, best first.
        """

    @torch.inference_mode()
    def search(
        self, outputs: Sequence[ModelOutput], fusion: Fusion = NO_FUSION
    ) -> list[list[Hypothesis]]:
        """Search a batch of utterances; each gets what it gets alone.

        Args:
            outputs: of one or more models. An utterance of no frames in one of them gets one
                empty hypothesis.
            fusion: language models, hot words and graph.

        Returns:
            For each utterance at least one hypothesis, best first.

        Raises:
            ConfigError: a model or a resource that the search needs is missing.
        """
        searched = _Searched(
            outputs[0].log_probs.size(-1),
            [output.decoder for output in outputs],
            [output.transducer for output in outputs],
        )
        self.check(searched, fusion)
        lengths = torch.stack([output.lengths for output in outputs])
        rows = (lengths > 0).all(0).nonzero()[:, 0]
        results = [[Hypothesis([], 0.0)] for _ in range(lengths.size(1))]
        if len(rows):
            found = self.find([output.rows(rows) for output in outputs], fusion)
            for row, hypotheses in zip(rows.tolist(), found, strict=True):
                results[row] = hypotheses
        return results

    def start_stream(
        self, model: SearchedModel, device: torch.device, fusion: Fusion, limits: StreamLimits
    ) -> StreamSearch:
        """Start the search of one utterance whose frames come chunk by chunk.

        Args:
            model: that is searched.
            device: of the frames.
            fusion: language models, hot words and graph.
            limits: when a token is certain, and how much is remembered.
        """
        raise ConfigError(self._no_stream("it reads whole utterances"))

    def check(self, model: SearchedModel, fusion: Fusion = NO_FUSION) -> None:
        """Check that model, language models and graph are what the search needs.

        Raises:
            ConfigError: it names what is missing, or what would change nothing.
        """
        self.check_model(model)
        self.check_fusion(fusion, model.vocab_size)

    def check_model(self, model: SearchedModel) -> None:
        """Check that a model has what the search needs; cheap, before hours of training.

        Raises:
            ConfigError: it names what is missing.
        """
        name = type(self).__name__
        if self.single_model and len(model.decoders) > 1:
            raise ConfigError(
                f"search: {name} reads one model and this ensemble has {len(model.decoders)}; use "
                "JointSearch"
            )
        if self.needs_transducer and None in model.transducers:
            raise ConfigError(f"search: {name} needs a transducer, and this model has none")
        if self.needs_decoder and None in model.decoders:
            raise ConfigError(
                f"search: {name} needs an attention decoder, and this model has none; use "
                "CtcBeamSearch or CtcGreedySearch"
            )

    def check_fusion(self, fusion: Fusion, vocab_size: int) -> None:
        """Check that what has a weight is there, and what is there has a weight.

        Raises:
            ConfigError: it names the option.
        """
        name = type(self).__name__
        if self.needs_graph and fusion.graph is None:
            raise ConfigError(f"search: {name} needs a decoding graph (--graph DIR)")
        if not self.needs_graph and fusion.graph is not None:
            raise ConfigError(
                f"a decoding graph (--graph DIR) would change nothing: search is {name}; use "
                "GraphSearch"
            )
        if fusion.graph is not None and fusion.graph.graph.vocab_size != vocab_size:
            raise ConfigError(
                f"the decoding graph has {fusion.graph.graph.vocab_size} units and the model "
                f"{vocab_size}: build it with the model's tokenizer"
            )
        for resource, what, options in RESOURCES:
            self._check_resource(getattr(fusion, resource), what, options, vocab_size)

    def check_stream(self) -> None:
        """Check that the search can go on from chunk to chunk.

        Raises:
            ConfigError: it names the option to change.
        """
        if not self.streams:
            raise ConfigError(self._no_stream("it reads whole utterances"))

    def _no_stream(self, why: str) -> str:
        usable = ", ".join(sorted(_streaming(Search)))  # type: ignore[type-abstract]
        return f"search: {type(self).__name__} cannot stream, {why}; use one of {usable}"

    def _check_resource(
        self, resource: Any, what: str, options: Sequence[str], vocab_size: int
    ) -> None:
        weights = {name: getattr(self, name) for name in options if hasattr(self, name)}
        used = [name for name, weight in weights.items() if weight > 0]
        if resource is None:
            if used:
                raise ConfigError(f"search.{used[0]}: {weights[used[0]]:g} needs {what}")
            return
        if not used:
            why = f"search.{next(iter(weights))} is 0" if weights else "this search takes none"
            raise ConfigError(f"{what} would change nothing: {why} ({type(self).__name__})")
        if resource.vocab_size != vocab_size:
            raise ConfigError(
                f"{what} has {resource.vocab_size} units and the model {vocab_size}: make it with "
                "the model's tokenizer"
            )


def _streaming(kind: type[Search]) -> set[str]:
    """Return the names of the searches of this package that stream."""
    found = {kind.__name__} if kind.streams and kind.__module__.startswith("speechattn.") else set()
    return found.union(*map(_streaming, kind.__subclasses__()))


@dataclass(frozen=True, kw_only=True)
class NbestSearch(Search):
    """A search that gives several hypotheses, which a second pass may rank anew.

    A subclass writes `first_pass`, and `second_pass` if it has scores of its own to add.

    Attributes:
        nbest: hypotheses returned for an utterance. More of them take longer.
        beam_size: hypotheses kept for an utterance, K. As many reach the second pass.
        lm_rescore_weight: weight of a Transformer language model's score in the second pass:
            faster than `lm_weight`, but it only chooses among the `beam_size` best; 0 for none.
        risk_scale: above 0, the hypothesis with the fewest expected token errors among the
            `beam_size` best comes first, each as probable as exp(risk_scale * score) says; 0 for
            the best score.
    """

    nbest: int = 1
    beam_size: int = 10
    lm_rescore_weight: float = 0.0
    risk_scale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nbest", "beam_size"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"search.{name}", value, "at least 1")
        for name in ("lm_rescore_weight", "risk_scale"):
            self._require_weight(name)

    def _require_weight(self, name: str) -> None:
        value = getattr(self, name)
        require(value >= 0, f"search.{name}", value, "0 or more")

    def _require_share(self, name: str) -> None:
        value = getattr(self, name)
        require(0 <= value <= 1, f"search.{name}", value, "in 0..1")

    @property
    def has_second_pass(self) -> bool:
        """Return whether hypotheses are ranked anew."""
        return self.lm_rescore_weight > 0 or self.risk_scale > 0

    def find(self, outputs: Sequence[ModelOutput], fusion: Fusion) -> list[list[Hypothesis]]:
        nbest = max(self.nbest, self.beam_size) if self.has_second_pass else self.nbest
        found = self.second_pass(outputs, self.first_pass(outputs, fusion, nbest), fusion)
        return [hypotheses[: self.nbest] for hypotheses in found]

    @abstractmethod
    def first_pass(
        self, outputs: Sequence[ModelOutput], fusion: Fusion, nbest: int
    ) -> list[list[Hypothesis]]:
        """Find up to `nbest` hypotheses of each utterance, best first."""

    def second_pass(
        self, outputs: Sequence[ModelOutput], found: list[list[Hypothesis]], fusion: Fusion
    ) -> list[list[Hypothesis]]:
        """Rank the hypotheses of the first pass anew, best first."""
        if self.lm_rescore_weight > 0:
            assert fusion.lm is not None  # `check` saw to it
            found = add_lm(fusion.lm, found, self.lm_rescore_weight)
        if self.risk_scale > 0:
            found = least_risk(found, self.risk_scale)
        return found

    def check_stream(self) -> None:
        super().check_stream()
        for name in ("lm_rescore_weight", "risk_scale"):
            self._require_off_in_stream(name)

    def _require_off_in_stream(self, name: str) -> None:
        if getattr(self, name) > 0:
            raise ConfigError(
                f"search.{name}: it ranks whole utterances, so the search cannot stream; set it "
                "to 0"
            )


@dataclass(frozen=True, kw_only=True)
class FusedSearch(NbestSearch):
    """A search whose hypotheses language models and hot words score as they grow.

    Attributes:
        lm_weight: weight of a Transformer language model's score; 0 for none.
        ngram_weight: weight of an n-gram model's score.
        hot_words_weight: weight of the scores of hot words.
        length_bonus: added to the score for each token, natural log.
    """

    lm_weight: float = 0.0
    ngram_weight: float = 0.0
    hot_words_weight: float = 0.0
    length_bonus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lm_weight", "ngram_weight", "hot_words_weight"):
            self._require_weight(name)

    def check_fusion(self, fusion: Fusion, vocab_size: int) -> None:
        super().check_fusion(fusion, vocab_size)
        if self.lm_weight > 0 and self.lm_rescore_weight > 0:
            raise ConfigError(
                "search.lm_weight and search.lm_rescore_weight would count the language model "
                "twice; set one of them to 0"
            )

    def scorers(
        self, outputs: Sequence[ModelOutput], fusion: Fusion
    ) -> dict[str, tuple[Scorer, float]]:
        """Return the scorers of all tokens with their weights, by name; no weight is 0."""
        return self.scorers_of(len(outputs[0].lengths), fusion)

    def scorers_of(self, batch: int, fusion: Fusion) -> dict[str, tuple[Scorer, float]]:
        """Return the scorers that need no model's output, for B utterances."""
        found: dict[str, tuple[Scorer, float]] = {}
        if self.lm_weight > 0 and fusion.lm:
            found["lm"] = LmScorer(fusion.lm, batch), self.lm_weight
        if self.ngram_weight > 0 and fusion.ngram:
            found["ngram"] = NgramScorer(fusion.ngram, batch), self.ngram_weight
        if self.hot_words_weight > 0 and fusion.hot_words:
            found["hot_words"] = BoostScorer(fusion.hot_words, batch), self.hot_words_weight
        return found

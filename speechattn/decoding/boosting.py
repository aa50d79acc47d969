"""Boosting of words and phrases that a user expects: a graph of contexts with back-off.

Legend: N hypotheses, V units, S states, E arcs, P phrases.

Every token with which a hypothesis goes on in a phrase adds a bonus at once, or the phrase would
lose in the beam before it is whole; a hypothesis that leaves it unfinished gives the bonus back. As
the `ContextGraph` of icefall, and "on-the-fly biasing" before it (Williams et al., "Contextual
Speech Recognition in End-to-End Neural Network Systems using Beam Search", Interspeech 2018).

All phrases are matched at once, wherever they begin, by the automaton of Aho and Corasick (1975).
What a text of tokens has been given when it ends is, exactly,

    the sum of score * len(phrase) over every place of every phrase in the text

(phrases within phrases count too). On the way there it also holds an advance: the largest
score * k of the phrases of which its last k tokens are the beginning but not the whole. That is
where this is not icefall's: there a phrase that has just ended holds its advance for one more
token, twice its bonus. The sum is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from speechattn.errors import ConfigError
from speechattn.lm.backoff import BackoffArcs
from speechattn.units import UNK


@dataclass(frozen=True)
class ContextGraph:
    """Phrases to boost. A state is the longest end of the text that begins a phrase.

    Attributes:
        arcs: the automaton.
        advance: (S,) float32, what a hypothesis in a state holds and may have to give back.
        gain: (S,) float32, the advance and what the phrases that end in a state have added.
        arc_gain: (E + 1,) float32, `gain` where each arc leads to.
        bonus: the most that one token adds.
    """

    arcs: BackoffArcs
    advance: Tensor
    gain: Tensor
    arc_gain: Tensor
    bonus: float

    @classmethod
    def build(
        cls,
        phrases: Sequence[Sequence[int]],
        vocab_size: int,
        score_per_token: float = 1.0,
        scores: Sequence[float] | None = None,
    ) -> "ContextGraph":
        """Return the graph of phrases.

        Args:
            phrases: tokens of each, in 2..V-2. Of a phrase that is there twice the higher score
                holds.
            vocab_size: V.
            score_per_token: what a token of a phrase adds, above 0; natural log.
            scores: the same for each phrase, instead.

        Raises:
            ConfigError: a phrase is empty or has tokens that cannot be spelt, or a score is none.
        """
        if scores is None:
            scores = [score_per_token] * len(phrases)
        if len(scores) != len(phrases):
            raise ConfigError(f"boosting: {len(scores)} scores for {len(phrases)} phrases")
        trie = _Trie()
        for phrase, score in zip(phrases, scores, strict=True):
            if not phrase or any(not UNK < token < vocab_size - 1 for token in phrase):
                raise ConfigError(
                    f"boosting: phrase {list(phrase)} has to be of one token or more, each in "
                    f"2..{vocab_size - 2}; is it spelt with the model's units?"
                )
            if not 0 < score < float("inf"):
                raise ConfigError(f"boosting: a score has to be above 0 and finite, got {score!r}")
            trie.add(phrase, score)
        return trie.graph(vocab_size)

    @property
    def vocab_size(self) -> int:
        """Return V."""
        return len(self.arcs.root)

    def to(self, device: torch.device | str) -> "ContextGraph":
        """Copy to another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bonus"}
        return replace(self, **{name: value.to(device) for name, value in values.items()})

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """Return the states (N,) after tokens (N,); <sos/eos> leads to the first, 0."""
        return self.arcs.step(state, token)

    def scores(self, state: Tensor) -> Tensor:
        """Return what every next token adds, (N, V); <eos> what is given back."""
        held = -self.advance[state]  # (N,)
        row = self.gain[self.arcs.root] + held[:, None]  # (N, V)
        for context in reversed(self.arcs.chain(state)):
            self.arcs.write(row, context, self.arc_gain, held)
        return row


class BoostScorer:
    """A context graph as a scorer of all tokens; the state of a hypothesis is one number.

    Scores may be above 0.

    Args:
        graph: on the device of the search.
        batch: B.

    Attributes:
        bonus: the most that a token adds. No hypothesis gains more than that, times its weight, in
            each step still to come.
    """

    def __init__(self, graph: ContextGraph, batch: int):
        self.graph = graph
        self.batch = batch
        self.bonus = graph.bonus

    def start(self) -> Tensor:
        return torch.zeros(self.batch, dtype=torch.int64, device=self.graph.gain.device)

    def score(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.graph.step(state, token)
        return self.graph.scores(state), state

    def select(self, state: Tensor, index: Tensor) -> Tensor:
        return state[index]


class _Trie:
    """Phrases by their beginnings, while the graph is built; state 0 is the empty one."""

    def __init__(self):
        self.next: list[dict[int, int]] = [{}]
        self.whole = [0.0]  # what the phrase that ends here adds
        self.advance = [0.0]  # the most of the phrases that go on from here

    def add(self, phrase: Sequence[int], score: float) -> None:
        state = 0
        for length, token in enumerate(phrase):
            self.advance[state] = max(self.advance[state], score * length)
            if token not in self.next[state]:
                self.next[state][token] = len(self.next)
                self.next.append({})
                self.whole.append(0.0)
                self.advance.append(0.0)
            state = self.next[state][token]
        self.whole[state] = max(self.whole[state], score * len(phrase))

    def graph(self, vocab_size: int) -> ContextGraph:
        # Breadth first: what a state backs off to is shorter, and done before it.
        backoff = [0] * len(self.next)
        whole, advance = list(self.whole), list(self.advance)
        queue = list(self.next[0].values())
        for state in queue:
            shorter = backoff[state]
            whole[state] += whole[shorter]
            advance[state] = max(advance[state], advance[shorter])
            for token, child in self.next[state].items():
                context = shorter
                while context and token not in self.next[context]:
                    context = backoff[context]
                backoff[child] = self.next[context].get(token, 0)
                queue.append(child)
        root = torch.zeros(vocab_size, dtype=torch.int64)
        for token, child in self.next[0].items():
            root[token] = child
        arcs = sorted(
            (state * vocab_size + token, child)
            for state, children in enumerate(self.next[1:], 1)
            for token, child in children.items()
        )
        key = torch.tensor([key for key, _ in arcs], dtype=torch.int64)
        target = torch.tensor([child for _, child in arcs], dtype=torch.int64)
        graph = BackoffArcs.of(root, torch.tensor(backoff), key, target)
        held = torch.tensor(advance)
        gain = held + torch.tensor(whole)
        arc_gain = gain[graph.target]
        steps = torch.cat([gain[root], arc_gain[:-1] - held[key // vocab_size]])
        return ContextGraph(graph, held, gain, arc_gain, float(steps.max()))

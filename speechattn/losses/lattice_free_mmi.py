"""Maximum mutual information over all that can be said, with CTC's topology.

A model is to find what was said more probable than everything else together, which CTC, each of
whose frames is a distribution by itself, never compares it with:

    log p(text) P(text) - log sum over all texts of p(text) P(text)

p(text) is CTC's and P(text) a language model's, both of them in a decoding graph of units:
lattice-free MMI (Povey et al. 2016) with CTC's states, the CTC-CRF of Xiang and Ou (1911.08747).
k2 computes the second sum by `intersect_dense`; here it is `graph_total`.

P(text) of what was said changes with no parameter and is left out, so that the loss may be below 0.
"""

import torch
from torch import Tensor, nn

from speechattn.decoding.fst.graph import Graph
from speechattn.errors import ConfigError
from speechattn.kernels.lattice.graph_total import GraphMatrices, graph_total
from speechattn.losses.delay_penalised_ctc import delay_penalised_ctc_loss


class LatticeFreeMmi(nn.Module):
    """The CTC of a `JointLoss` that is to tell texts apart.

    Args:
        graph: the folder of a graph of units, as `speechattn graph --units` makes it from texts.
        ctc_share: of plain CTC, added to it; without some a model that starts from nothing
            learns badly (0.1 in 1911.08747).
    """

    def __init__(self, graph: str, ctc_share: float = 0.1):
        super().__init__()
        if not 0.0 <= ctc_share < float("inf"):
            raise ConfigError(f"ctc_share has to be 0 or more, got {ctc_share!r}")
        loaded = Graph.load(graph)
        self.ctc_share = ctc_share
        self.vocab_size = loaded.vocab_size
        try:
            self._graph = GraphMatrices.from_arcs(loaded.arcs)
        except ValueError as error:
            raise ConfigError(f"{graph}: {error}") from error

    def forward(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        """A scalar, averaged over the batch; items too short for their text count 0.

        Args:
            log_probs: (B, T, V), blank at 0.
            lengths: (B,).
            tokens: (B, U).
            token_lengths: (B,).

        Raises:
            ConfigError: the graph is for other units.
        """
        if log_probs.shape[2] != self.vocab_size:
            raise ConfigError(
                f"loss.ctc.graph is of {self.vocab_size} units and the model has "
                f"{log_probs.shape[2]}: build it with the model's tokenizer"
            )
        if self._graph.label.device != log_probs.device:
            self._graph = self._graph.to(log_probs.device)
        said = delay_penalised_ctc_loss(log_probs, lengths, tokens, token_lengths)
        everything = graph_total(log_probs, lengths, self._graph)
        loss = (1 + self.ctc_share) * said + everything
        return torch.where(said.isfinite() & everything.isfinite(), loss, 0.0).sum() / len(loss)

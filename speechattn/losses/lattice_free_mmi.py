"""Lattice-free maximum mutual information (LF-MMI) with CTC's topology.

It makes the transcript more probable than all other texts together, with which CTC, normalised
frame by frame, never compares it:

    log p(text) P(text) - log sum over all texts of p(text) P(text)

p(text) is CTC's and P(text) a language model's, both in a decoding graph of units: LF-MMI (Povey et
al. 2016) with CTC's states, the CTC-CRF of Xiang and Ou (1911.08747). k2 computes the second sum by
`intersect_dense`; here it is `graph_total`.

P of the transcript depends on no parameter and is left out, so the loss may be below 0.
"""

import torch
from torch import Tensor

from speechattn.decoding.fst.graph import Graph
from speechattn.errors import ConfigError
from speechattn.kernels.lattice.graph_total import GraphMatrices, graph_total
from speechattn.losses.criterion import CtcCriterion
from speechattn.losses.delay_penalised_ctc import delay_penalised_ctc_loss
from speechattn.losses.ranges import check_range


class LatticeFreeMmi(CtcCriterion):
    """LF-MMI as the CTC of a `JointLoss`.

    Args:
        graph: the folder of a graph of units, as `speechattn graph --units` makes it from texts.
        ctc_share: of plain CTC, added to it; without some a model learns badly from scratch
            (0.1 in 1911.08747).

    Raises:
        ConfigError: the graph cannot be used, or is of other units.
    """

    def __init__(self, graph: str, ctc_share: float = 0.1):
        super().__init__()
        check_range("ctc_share", ctc_share)
        loaded = Graph.load(graph)
        self.ctc_share = ctc_share
        self.vocab_size = loaded.vocab_size
        try:
            self._graph = GraphMatrices.from_arcs(loaded.arcs)
        except ValueError as error:
            raise ConfigError(f"{graph}: {error}") from error

    def losses(
        self, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> Tensor:
        if log_probs.shape[2] != self.vocab_size:
            raise ConfigError(
                f"loss.ctc.graph has {self.vocab_size} units and the model "
                f"{log_probs.shape[2]}: build it with the model's tokenizer"
            )
        if self._graph.label.device != log_probs.device:
            self._graph = self._graph.to(log_probs.device)
        transcript = delay_penalised_ctc_loss(log_probs, lengths, tokens, token_lengths)
        total = graph_total(log_probs, lengths, self._graph)
        loss = (1 + self.ctc_share) * transcript + total
        return torch.where(transcript.isfinite() & total.isfinite(), loss, torch.inf)

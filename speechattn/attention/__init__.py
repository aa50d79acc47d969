"""Attention mechanisms, one per file.

Legend: B utterances, T frames, D width, H heads, Dh = D / H width of a head, Hkv heads of keys and
values, c frames of a step, L frames in a cache. In decoders: K hypotheses of an utterance, N = B K
hypotheses (those of an utterance adjacent), U tokens, T frames of the memory, M nodes of a tree.
"""

from speechattn.attention.agent import AgentSelfAttention
from speechattn.attention.base import AttentionFactory, AttentionState, SelfAttention
from speechattn.attention.block_sparse import BlockSparseSelfAttention
from speechattn.attention.cache import AttentionCache
from speechattn.attention.circular import CircularSelfAttention
from speechattn.attention.core_context import CoreContextSelfAttention, CoreState
from speechattn.attention.cross import CrossAttention, CrossAttentionFactory, SoftmaxCrossAttention
from speechattn.attention.decoder_base import TokenAttention, TokenAttentionFactory
from speechattn.attention.dynamic_convolution import DynamicConvolutionCrossAttention
from speechattn.attention.echo import EchoSelfAttention
from speechattn.attention.efficient import EfficientSelfAttention
from speechattn.attention.gated_linear import GatedLinearSelfAttention
from speechattn.attention.gmm import GmmCrossAttention
from speechattn.attention.latent import LatentTokenAttention
from speechattn.attention.lightning import LightningSelfAttention, LinearState
from speechattn.attention.local import LocalSelfAttention
from speechattn.attention.multi_token import MultiTokenSelfAttention
from speechattn.attention.positions import RelativePositions, relative_positions
from speechattn.attention.rat import RecurrentSelfAttention, RecurrentState
from speechattn.attention.relative import RelativeSelfAttention
from speechattn.attention.softmax import SoftmaxSelfAttention
from speechattn.attention.token_softmax import SoftmaxTokenAttention

__all__ = [
    "AgentSelfAttention",
    "AttentionCache",
    "AttentionFactory",
    "AttentionState",
    "BlockSparseSelfAttention",
    "CircularSelfAttention",
    "CoreContextSelfAttention",
    "CoreState",
    "CrossAttention",
    "CrossAttentionFactory",
    "DynamicConvolutionCrossAttention",
    "EchoSelfAttention",
    "EfficientSelfAttention",
    "GatedLinearSelfAttention",
    "GmmCrossAttention",
    "LatentTokenAttention",
    "LightningSelfAttention",
    "LinearState",
    "LocalSelfAttention",
    "MultiTokenSelfAttention",
    "RecurrentSelfAttention",
    "RecurrentState",
    "RelativePositions",
    "RelativeSelfAttention",
    "SelfAttention",
    "SoftmaxCrossAttention",
    "SoftmaxSelfAttention",
    "SoftmaxTokenAttention",
    "TokenAttention",
    "TokenAttentionFactory",
    "relative_positions",
]

"""Multiway dynamic dense connections: models whose blocks read sums of all earlier states.

Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170.
"""

from paperlab.mudd import analysis
from paperlab.mudd._complexity import complexity, reallocated_ffn_dims
from paperlab.mudd._functions import connection_weights, depth_aggregate
from paperlab.mudd._model import MuddFormer, Trace
from paperlab.mudd._modules import ConnectionWeightGenerator, DepthAggregate
from paperlab.mudd._vit import MuddViT

__all__ = [
    "ConnectionWeightGenerator",
    "DepthAggregate",
    "MuddFormer",
    "MuddViT",
    "Trace",
    "analysis",
    "complexity",
    "connection_weights",
    "depth_aggregate",
    "reallocated_ffn_dims",
]

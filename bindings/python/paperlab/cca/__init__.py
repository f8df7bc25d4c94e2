"""Core-context-aware attention: one core token for each group of tokens far back, raw tokens near.

Source: CCA (Chen et al., "Core Context Aware Transformers for Long Context Language Modeling",
ICML 2025, arXiv:2412.12465).
"""

from paperlab.cca import baselines
from paperlab.cca._apply import apply, remove
from paperlab.cca._cache import KVCache
from paperlab.cca._functions import attention, cost, effective_attention, mask, pool

__all__ = [
    "KVCache",
    "apply",
    "attention",
    "baselines",
    "cost",
    "effective_attention",
    "mask",
    "pool",
    "remove",
]

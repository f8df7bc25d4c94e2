"""The streaming cache of core-context attention."""

import torch

from paperlab import _core
from paperlab.cca import _options
from paperlab.cca._options import Pooling, WeightsPer


class KVCache:
    """Attends to tokens as they come; keeps core tokens and the last raw ones, nothing else.

    Each row's result is that of attention() over all tokens so far, however they were divided into
    calls: a group is pooled as its last token comes, so no query is kept. No gradients. For one
    caller at a time.

    group_size, window, pooling, weights_per, keep_first: as in attention(), with its errors; the
    boundary is exact.
    Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465); the cache's design is ours.
    """

    def __init__(
        self,
        group_size: int = 16,
        window: int = 1024,
        pooling: Pooling = "attention",
        weights_per: WeightsPer = "query_head",
        *,
        keep_first: int = 0,
    ) -> None:
        self._cache = _core.CcaKvCache(
            _options.options(
                "KVCache",
                group_size,
                window,
                pooling=pooling,
                weights_per=weights_per,
                keep_first=keep_first,
            )
        )

    def prefill(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Appends t >= 0 tokens and returns their attention [B, H, t, D]; any number of calls.

        q: [B, H, t, D], float32, float64 or bfloat16, any strides, rotated; k, v:
        [B, G, t, D], H % G == 0, of q's dtype; or arrays. The first call with tokens fixes B, H, G,
        D, the dtype and the device.

        Raises ValueError if a shape, device or layout is not as above or not as in the first call,
        TypeError for a dtype or type; nothing has changed then.
        """
        name = "KVCache.prefill"
        return self._cache.prefill(
            _options.tensor(name, "q", q),
            _options.tensor(name, "k", k),
            _options.tensor(name, "v", v),
        )

    def step(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The same for exactly one token: q [B, H, 1, D], k and v [B, G, 1, D]."""
        name = "KVCache.step"
        return self._cache.step(
            _options.tensor(name, "q", q),
            _options.tensor(name, "k", k),
            _options.tensor(name, "v", v),
        )

    @property
    def length(self) -> int:
        """L, tokens so far."""
        return self._cache.length

    @property
    def stored_vectors(self) -> int:
        """Core and raw vectors that a next token may need: floor(L / g) + L - g j(L).

        With keep_first n: floor((L - n) / g) + L - g j(L).
        """
        return self._cache.stored_vectors

    @property
    def bytes(self) -> int:
        """Bytes allocated for keys and values.

        For each batch row at most twice those of the stored vectors, 64 core entries per core head
        and s + g + 64 raw entries per key head (keep_first above 64: so many core entries).
        """
        return self._cache.num_bytes

    def reset(self) -> None:
        """Forgets all tokens and gives the memory back; another shape or dtype may follow."""
        self._cache.reset()

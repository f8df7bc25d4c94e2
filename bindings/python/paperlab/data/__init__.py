"""Real text by domain, from named Debian packages: fetched once, then offline.

    ./paperlab data list | fetch NAME | stats NAME | tokens NAME

    corpus = paperlab.data.load("manual-pages")
    corpus["de"]["train"][0]  # the first document, UTF-8 bytes
    corpus.sha256  # the manifest's hash, for results

    tokens = paperlab.data.tokenize("manual-pages", "bytes", separator=0)
    tokens["de"]["train"]  # all its documents' tokens, a memory-mapped array
    data = paperlab.data.Sampler(tokens, length=256, batch_size=16, seed=1)
    data(0)  # LongTensor [16, 257]: the batch of step 0

A recipe says which files of which packages make a domain. `fetch` takes the packages from the
system's apt sources without root, reads them as a stream and never looks at installed files.
Markup is stripped, links, untranslated pages and duplicates are dropped, and documents are split
by their SHA-256 into train, valid and test (90, 5 and 5 %).

The cache (PAPERLAB_CACHE) holds data/RECIPE/manifest.json: for each domain its packages with
version and SHA-256, documents and bytes by split, what was dropped and why, and `folder`. Equal
packages give equal manifests on every machine. In data/RECIPE/FOLDER lie, for each split,

    SPLIT.bin   the documents' UTF-8 bytes back to back, without separators; no document has a NUL
    SPLIT.npy   uint64 little-endian [N + 1]: document i is the bytes offsets[i] .. offsets[i + 1]

and for pictures SPLIT_images.npy (uint8 [N, height, width]) and SPLIT_labels.npy (uint8 [N]).

Tokens lie in tokens/RECIPE/TOKENIZER-KEY, with a manifest of their own, as

    DOMAIN/SPLIT.npy            uint8, uint16 or uint32 [N]: the documents' tokens back to back
    DOMAIN/SPLIT_documents.npy  uint64 [D + 1]: document i is tokens offsets[i] .. offsets[i + 1]
"""

import importlib
from typing import TYPE_CHECKING, Any

from paperlab.data._corpus import Corpus, Documents, Images, load, load_images
from paperlab.data._fetch import fetch
from paperlab.data._recipes import RECIPES
from paperlab.data._store import cache_folder

if TYPE_CHECKING:
    from paperlab.data._sampler import Sampler
    from paperlab.data._tokens import Count, Tokens, tokenize, train_bpe

__all__ = [
    "Corpus",
    "Count",
    "Documents",
    "Images",
    "Sampler",
    "Tokens",
    "cache_folder",
    "fetch",
    "load",
    "load_images",
    "recipes",
    "tokenize",
    "train_bpe",
]

# Loaded on first use: they need the compiled core, which takes a second.
_TOKENS = {"Sampler": "_sampler"} | dict.fromkeys(
    ("Count", "Tokens", "tokenize", "train_bpe"), "_tokens"
)


def recipes() -> dict[str, list[str]]:
    """The domains of each recipe."""
    return {name: list(recipe.domains) for name, recipe in RECIPES.items()}


def __getattr__(name: str) -> Any:
    if name in _TOKENS:
        return getattr(importlib.import_module(f"paperlab.data.{_TOKENS[name]}"), name)
    raise AttributeError(f"module 'paperlab.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

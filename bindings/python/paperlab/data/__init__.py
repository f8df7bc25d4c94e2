"""Real text by domain, from named Debian packages: fetched once, then offline.

    ./paperlab data list | fetch NAME | stats NAME

    corpus = paperlab.data.load("manual-pages")
    corpus["de"]["train"][0]  # the first document, UTF-8 bytes
    corpus.sha256  # the manifest's hash, for results

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
"""

from paperlab.data._corpus import Corpus, Documents, Images, load, load_images
from paperlab.data._fetch import fetch
from paperlab.data._recipes import RECIPES
from paperlab.data._store import cache_folder

__all__ = [
    "Corpus",
    "Documents",
    "Images",
    "cache_folder",
    "fetch",
    "load",
    "load_images",
    "recipes",
]


def recipes() -> dict[str, list[str]]:
    """The domains of each recipe."""
    return {name: list(recipe.domains) for name, recipe in RECIPES.items()}

"""Real models: fetched and converted once, then offline.

    ./paperlab fetch smollm2 | fetch list

    model = paperlab.nn.load(paperlab.models.fetch("smollm2"))

The cache (PAPERLAB_CACHE) holds models/NAME, a Hugging Face directory, and models/NAME.gguf, the
file from which it was converted. The SHA-256 of what is fetched stands in the source.
"""

from paperlab.models._fetch import fetch, gguf_path, path
from paperlab.models._recipes import MODELS

__all__ = ["fetch", "gguf_path", "names", "path"]


def names() -> list[str]:
    """The models that are known."""
    return list(MODELS)

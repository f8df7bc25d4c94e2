"""Models of other formats, or of another dtype, into a Hugging Face directory.

    ./paperlab convert FILE.gguf DIR [--dtype float32|bfloat16|float16] [--force]
    ./paperlab convert MODEL_DIR DIR --dtype bfloat16

    paperlab.convert.gguf("model.gguf", "model")
    paperlab.convert.checkpoint("model", "half", dtype="bfloat16")
    model = paperlab.nn.load("model")

Known architectures of a GGUF file: llama (Llama, SmolLM2, Mistral in this form) and qwen2.
"""

from paperlab.convert._checkpoint import checkpoint
from paperlab.convert._gguf import gguf

__all__ = ["checkpoint", "gguf"]

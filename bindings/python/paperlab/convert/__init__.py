"""Models of other formats into a Hugging Face directory.

    ./paperlab convert FILE.gguf DIR [--dtype float32|bfloat16|float16] [--force]

    paperlab.convert.gguf("model.gguf", "model")
    model = paperlab.nn.load("model")

Known architectures of a GGUF file: llama (Llama, SmolLM2, Mistral in this form) and qwen2.
"""

from paperlab.convert._gguf import gguf

__all__ = ["gguf"]

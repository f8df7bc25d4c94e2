"""A small base model whose weights are a formula, and adapters on it."""

from pathlib import Path

import torch
from paperlab import lora, nn

GOLDEN = Path(__file__).parent.parent / "data" / "peft"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOKENS = torch.arange(2 * 7).reshape(2, 7) * 11 % 48


def noise(shape, seed):
    """Numbers in -1..1 that only their place and `seed` decide."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def base(dtype=torch.float32, **settings):
    model = nn.from_config(CONFIG | settings, dtype=torch.float32)
    with torch.no_grad():
        for i, value in enumerate(model.parameters()):
            value.copy_(noise(value.shape, i) * (1.0 if value.ndim == 1 else 0.3))
    return model.to(dtype)


def random_adapter(model, **options):
    """An adapter whose B is not zero."""
    adapter = lora.attach(model, **options)
    with torch.no_grad():
        for i, matrix in enumerate(adapter.parameters()):
            matrix.copy_(noise(matrix.shape, 100 + i) * 0.5)
    return adapter

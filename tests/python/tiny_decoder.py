"""Small model directories with a tokenizer whose tokens are bytes."""

import itertools
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from paperlab import nn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END, USER = 256, 257  # special tokens; token b < 256 is the byte b
VOCAB_SIZE = 258
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({c: b for b, c in enumerate(byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(text, special=True) for text in ("<|end|>", "<|user|>")]
    )
    return tokenizer


def save(model: nn.Decoder, directory: Path, tokenizer: Tokenizer | None = None) -> Path:
    model.save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def random_model(**settings: Any) -> nn.Decoder:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return nn.from_config(config | settings, seed=1)


def chain_model(text: bytes, **settings: Any) -> nn.Decoder:
    """After a byte of the text, each of which occurs once, comes its next one; then the end."""
    width = 260  # of one-hot states; a multiple of the heads
    config = {"hidden_size": width, "head_dim": 8, "num_hidden_layers": 1, "eos_token_id": END}
    model = random_model(**config, **settings)
    steps = [*text, END]
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                value.zero_()
        model.get_parameter("model.embed_tokens.weight").copy_(torch.eye(VOCAB_SIZE, width))
        for token, following in itertools.pairwise(steps):
            model.get_parameter("lm_head.weight")[following, token] = 1.0
    return model

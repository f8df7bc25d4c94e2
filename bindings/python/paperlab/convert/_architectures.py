"""What a GGUF file's metadata and tensors are called in a Hugging Face directory.

Sources: the GGUF specification's standardised keys; the published conversion from Hugging Face to
GGUF, which permutes the rows of q and k in `llama` and stores llama3's rotary scaling as
`rope_freqs.weight`. Everything that would change the model's numbers is either taken over or
refused.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paperlab.convert._header import Header, TensorInfo, Value

Config = dict[str, Any]

ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """A form of decoder under its name in `general.architecture`."""

    class_name: str  # of transformers
    model_type: str
    has_biases: bool  # of q, k and v
    is_permuted: bool  # in a head of q and k the rows (0, d/2, 1, d/2 + 1, ...) follow each other
    has_head_dim: bool  # config.json names it; else it is hidden_size / num_attention_heads
    settings: Config = field(default_factory=dict)  # what no key of the file says


ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        "llama",
        has_biases=False,
        is_permuted=True,
        has_head_dim=True,
        settings={"attention_bias": False, "mlp_bias": False},
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        "qwen2",
        has_biases=True,
        is_permuted=False,
        has_head_dim=False,
        settings={"use_sliding_window": False},
    ),
}

# Keys of a token id: in the file, in config.json and generation_config.json.
TOKEN_IDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
}


@dataclass(frozen=True)
class Source:
    """A tensor to be written, and where it comes from."""

    name: str  # in the Hugging Face directory
    info: TensorInfo
    head_rows: int | None = None  # rows of a head, where they are permuted


class Settings:
    """The keys of an architecture; what nobody has asked for is unknown."""

    def __init__(self, header: Header, architecture: str) -> None:
        self._header = header
        self._prefix = f"{architecture}."
        self._known: set[str] = set()

    def error(self, key: str, required: str, value: object) -> ValueError:
        return self._header.error(f"{self._prefix}{key} must be {required}, got {value!r:.60}")

    def _value(self, key: str) -> Value | None:
        self._known.add(self._prefix + key)
        return self._header.metadata.get(self._prefix + key)

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        value = self._value(key)
        if value is None:
            if default is None:
                raise self._header.error(f"has no {self._prefix}{key}")
            return default
        if type(value) is not int or not low <= value < 1 << 31:
            raise self.error(key, f"an integer of at least {low}", value)
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._value(key)
        if value is None:
            if default is None:
                raise self._header.error(f"has no {self._prefix}{key}")
            return default
        if type(value) not in (int, float) or not 0.0 < float(value) < math.inf:  # type: ignore[arg-type]
            raise self.error(key, "a finite number > 0", value)
        return float(value)  # type: ignore[arg-type]

    def only(self, key: str, *allowed: Value) -> None:
        """The key, if it is there, must have one of these values."""
        value = self._value(key)
        if value is not None and value not in allowed:
            raise self.error(key, " or ".join(repr(x) for x in allowed), value)

    def text(self, key: str, default: str) -> str:
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def has(self, key: str) -> bool:
        return self._value(key) is not None

    def check_all_known(self) -> None:
        unknown = sorted(
            key
            for key in self._header.metadata
            if key.startswith(self._prefix) and key not in self._known
        )
        if unknown:
            shown = ", ".join(f"{key!a:.60}" for key in unknown[:4])
            known = ", ".join(sorted(key.removeprefix(self._prefix) for key in self._known))
            raise self._header.error(
                f"the setting {shown} could change the results and is not known; known are {known}"
            )


def architecture_of(header: Header) -> Architecture:
    """The architecture; raises ValueError with the known ones."""
    name = header.metadata.get("general.architecture")
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise header.error(f"holds no model, but general.type {kind!r:.40}")
    parts = header.metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise header.error(f"is one of {parts!r:.20} parts of a model; merge them first")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise header.error(f"unknown architecture {name!r:.40}; known are {known}")
    return ARCHITECTURES[name]


def read_config(header: Header) -> Config:
    """config.json without `dtype`. Numbers of float32 keep their value in double."""
    architecture = architecture_of(header)
    settings = Settings(header, str(header.metadata["general.architecture"]))
    width = settings.integer("embedding_length")
    heads = settings.integer("attention.head_count")
    groups = settings.integer("attention.head_count_kv", heads)
    if heads % groups:
        raise settings.error("attention.head_count_kv", f"a divisor of {heads} heads", groups)
    head_dim = _head_dim(settings, architecture, width, heads)
    config: Config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **architecture.settings,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": settings.integer("feed_forward_length"),
        "max_position_embeddings": settings.integer("context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": settings.integer("block_count"),
        "num_key_value_heads": groups,
        "rms_norm_eps": settings.positive("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "use_cache": True,
        "vocab_size": settings.integer("vocab_size", len(_tokens(header))),
    }
    if architecture.has_head_dim:
        config["head_dim"] = head_dim
    config |= _rope(header, settings, head_dim, config["max_position_embeddings"])
    settings.only("expert_count", 0)
    settings.only("expert_used_count", 0)
    settings.only("tensor_data_layout", "Meta AI original pth")
    settings.check_all_known()
    name = header.metadata.get("general.name")
    if isinstance(name, str):
        config["_model_name_or_path"] = name  # transformers' own reader keeps it so
    return config | token_ids(header)


def _tokens(header: Header) -> list[str]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise header.error("has no tokenizer.ggml.tokens, a list of strings")
    return tokens


def token_ids(header: Header) -> dict[str, int]:
    """Those of bos, eos, pad and unk that the file names, each inside the vocabulary."""
    num_tokens = len(_tokens(header))
    ids: dict[str, int] = {}
    for key, name in TOKEN_IDS.items():
        value = header.metadata.get(key)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < num_tokens:
            raise header.error(f"{key} must be in 0..{num_tokens - 1}, got {value!r:.40}")
        ids[name] = value
    return ids


def _head_dim(settings: Settings, architecture: Architecture, width: int, heads: int) -> int:
    """The size of a head: all of it is rotated, and keys and values have it too."""
    if width % heads and not settings.has("rope.dimension_count"):
        raise settings.error("embedding_length", f"a multiple of {heads} heads", width)
    head_dim = settings.integer("rope.dimension_count", width // heads)
    if head_dim % 2:
        raise settings.error("rope.dimension_count", "even", head_dim)
    if not architecture.has_head_dim and head_dim * heads != width:
        raise settings.error("rope.dimension_count", f"{width} / {heads} heads", head_dim)
    settings.only("attention.key_length", head_dim)
    settings.only("attention.value_length", head_dim)
    return head_dim


def _rope(header: Header, settings: Settings, head_dim: int, context: int) -> Config:
    """The rotary base and scaling, under the names of transformers 5 and of transformers 4."""
    base = settings.positive("rope.freq_base", 10000.0)
    scaling = _scaling(settings, context)
    if ROPE_FREQS in header.tensors:
        if scaling:
            raise header.error(f"{ROPE_FREQS} and rope.scaling.type exclude each other")
        scaling = _llama3_scaling(header, base, head_dim)
    parameters = {"rope_theta": base, "rope_type": "default", **scaling}
    both: Config = {"rope_parameters": parameters, "rope_theta": base}
    return both | ({"rope_scaling": parameters} if scaling else {})


def _scaling(settings: Settings, context: int) -> Config:
    """What the metadata say of scaling; empty for none."""
    old_factor = settings.positive("rope.scale_linear", 1.0)
    factor = settings.positive("rope.scaling.factor", old_factor)
    original = settings.integer("rope.scaling.original_context_length", context)
    settings.only("rope.scaling.attn_factor", 1.0)
    settings.only("rope.scaling.finetuned", True, False)
    settings.only("rope.scaling.yarn_log_multiplier", 0.0)
    kind = settings.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise settings.error("rope.scaling.type", "'none', 'linear' or 'yarn'", kind)
    if kind == "none" or factor == 1.0:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}


def _llama3_scaling(header: Header, base: float, head_dim: int) -> Config:
    """The llama3 scaling whose divisors of the frequencies are this tensor; all have these bounds.

    With wavelength l = 2 pi base^(2i/d): 1 below 8192/4, the factor above 8192/1, and between them
    1 / ((1 - s)/factor + s) with s = (8192/l - 1) / (4 - 1).
    """
    low, high, original = 1.0, 4.0, 8192
    info = header.tensors[ROPE_FREQS]
    if info.type != 0 or info.shape != (head_dim // 2,):
        raise header.error(f"{ROPE_FREQS} must be float32 [{head_dim // 2}], got {info.shape}")
    with header.path.open("rb") as file:
        file.seek(info.offset)
        divisors = np.frombuffer(file.read(info.row_bytes), "<f4").astype(np.float64)
    factor = float(divisors.max())
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    share = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    with np.errstate(all="ignore"):
        expected = 1.0 / ((1.0 - share) / factor + share)
    if not np.allclose(divisors, expected, rtol=1e-4, atol=0.0):
        raise header.error(f"{ROPE_FREQS} is not llama3's scaling, the only one that is known")
    if factor == 1.0:
        return {}
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def plan(header: Header, config: Config) -> list[Source]:
    """All tensors of the model; ValueError if one is missing, unknown or of another shape."""
    architecture = architecture_of(header)
    num_layers = config["num_hidden_layers"]
    if num_layers > len(header.tensors):
        raise header.error(f"has {len(header.tensors)} tensors for {num_layers} layers")
    if len(_tokens(header)) > config["vocab_size"]:
        raise header.error(
            f"has {len(_tokens(header))} tokens for a vocabulary of {config['vocab_size']}"
        )
    sources: list[Source] = []
    used = {ROPE_FREQS}
    for name, hf_name, shape, head_rows in _expected(architecture, config):
        info = header.tensors.get(name)
        if info is None:
            raise header.error(f"has no tensor {name!r}")
        if info.shape != shape:
            raise header.error(f"tensor {name!r} must be {list(shape)}, got {list(info.shape)}")
        used.add(name)
        sources.append(Source(hf_name, info, head_rows))
    unknown = [name for name in header.tensors if name not in used]
    if unknown:
        shown = ", ".join(f"{name!a:.60}" for name in unknown[:4])
        raise header.error(f"a model of this form has no tensor {shown}")
    return sources


def _expected(
    architecture: Architecture, config: Config
) -> Iterator[tuple[str, str, tuple[int, ...], int | None]]:
    """Name in the file, name in the directory, shape, rows of a permuted head."""
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "token_embd.weight", "model.embed_tokens.weight", (vocabulary, width), None
    yield "output_norm.weight", "model.norm.weight", (width,), None
    if not config["tie_word_embeddings"]:
        yield "output.weight", "lm_head.weight", (vocabulary, width), None
    for layer in range(config["num_hidden_layers"]):
        for name, hf_name, shape, head_rows in _expected_in_layer(architecture, config):
            yield f"blk.{layer}.{name}", f"model.layers.{layer}.{hf_name}", shape, head_rows


def _expected_in_layer(
    architecture: Architecture, config: Config
) -> Iterator[tuple[str, str, tuple[int, ...], int | None]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", width // heads)
    for letter, count in (("q", heads), ("k", groups), ("v", groups)):
        rows = count * head_dim
        head_rows = head_dim if architecture.is_permuted and letter != "v" else None
        hf_name = f"self_attn.{letter}_proj"
        yield f"attn_{letter}.weight", f"{hf_name}.weight", (rows, width), head_rows
        if architecture.has_biases:
            yield f"attn_{letter}.bias", f"{hf_name}.bias", (rows,), None
    yield "attn_output.weight", "self_attn.o_proj.weight", (width, heads * head_dim), None
    yield "attn_norm.weight", "input_layernorm.weight", (width,), None
    yield "ffn_norm.weight", "post_attention_layernorm.weight", (width,), None
    yield "ffn_gate.weight", "mlp.gate_proj.weight", (inner, width), None
    yield "ffn_up.weight", "mlp.up_proj.weight", (inner, width), None
    yield "ffn_down.weight", "mlp.down_proj.weight", (width, inner), None

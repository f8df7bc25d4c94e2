"""Writes the fuzzer's corpus, small files that are right or wrong in one way: make_corpus.py [DIR].

Needs NumPy. The committed files are what it writes.
"""

import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def safetensors(
    header: object, data: bytes = b"", pad: int = 0, length: int | None = None
) -> bytes:
    """A file with this header: an object, or its text."""
    text = header if isinstance(header, str) else json.dumps(header)
    raw = text.encode() + b" " * pad
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    two = {"a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [], 24, 26)}
    yield "two", safetensors(two, bytes(26))
    yield "padded", safetensors(two, bytes(26), pad=5)
    yield (
        "metadata",
        safetensors({"__metadata__": {"format": "pt", "k": "\u00e9\n"}, **two}, bytes(26)),
    )
    yield "empty", safetensors({})
    yield "no_elements", safetensors({"a": entry("I64", [0, 4], 0, 0)})
    names = (
        "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split()
    )
    widths = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8]
    types, at = {}, 0
    for name, width in zip(names, widths, strict=True):
        types[name.lower()] = entry(name, [2], at, at + 2 * width)
        at += 2 * width
    yield "types", safetensors(types, bytes(at))
    packed = {"x": entry("F4", [2, 8], 0, 8), "y": entry("F6_E2M3", [4], 8, 11)}
    yield "packed", safetensors(packed, bytes(11))
    yield "gap", safetensors({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3))
    yield (
        "overlap",
        safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)),
    )
    yield "trailing", safetensors(two, bytes(27))
    yield "truncated", safetensors(two, bytes(25))
    yield "huge_shape", safetensors({"a": entry("F64", [2**40, 2**40], 0, 8)}, bytes(8))
    yield "huge_length", safetensors("{}", length=2**63)
    yield "negative", safetensors({"a": entry("U8", [-1], 0, 1)}, bytes(1))
    yield "fraction", safetensors('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"x")
    yield "deep", safetensors('{"a":' + "[" * 500 + "]" * 500 + "}")
    one = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    yield "twice", safetensors("{" + one + "," + one + "}", b"x")
    yield (
        "index",
        json.dumps(
            {"metadata": {"total_size": 26}, "weight_map": {"a": "x-1.safetensors", "b": "y"}}
        ).encode(),
    )
    yield "index_escape", b'{"weight_map": {"a": "../secret"}}'


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npz(write: object = np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    write(file, **arrays)
    return file.getvalue()


def npy_files() -> Iterator[tuple[str, bytes]]:
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    yield "c", npy(grid)
    yield "fortran", npy(np.asfortranarray(grid))
    for version in ((1, 0), (2, 0), (3, 0)):
        yield f"version_{version[0]}", npy(grid, version)
    yield "scalar", npy(np.array(3, np.int64))
    yield "bool", npy(np.array([True, False]))
    yield "complex", npy(np.array([1 + 2j], np.complex64))
    yield "no_elements", npy(np.zeros((0, 3), np.uint16))
    yield "big_endian", npy(grid.astype(">f4"))
    yield "truncated", npy(grid)[:-1]
    yield "fields", npy(np.zeros(1, [("x", "<f4")]))
    yield "npz", npz(a=grid, b=np.arange(3))
    yield "npz_compressed", npz(np.savez_compressed, a=grid)
    yield "npz_empty", b"PK\5\6" + bytes(18)


Config = dict[str, object]
SMALL: Config = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def other_models() -> dict[str, Config]:
    """With other names for their sizes, learned positions or no decoder at all."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 32}
    distil = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "vocab_size": 32}
    opt = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    relative: Config = {"relative_attention": True, "position_buckets": 8, "share_att_key": True}
    relative |= {"pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3}
    picture: Config = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    blocks = {key: SMALL[key] for key in list(SMALL)[1:5]}
    labels = {"0": "a", "1": "b", "2": "c"}

    def model(kind: str, architecture: str, *parts: Config, **settings: object) -> Config:
        config: Config = {"model_type": kind, "architectures": [architecture]}
        for part in parts:
            config |= part
        return config | settings

    return {
        "gpt2": model("gpt2", "GPT2LMHeadModel", dict(sizes), reorder_and_upcast_attn=True),
        "opt": model("opt", "OPTForCausalLM", dict(opt), word_embed_proj_dim=8),
        "gemma3": model("gemma3_text", "Gemma3ForCausalLM", SMALL, head_dim=4, sliding_window=8),
        "bert": model("bert", "BertForMaskedLM", SMALL, type_vocab_size=2),
        "distilbert": model("distilbert", "DistilBertForSequenceClassification", dict(distil)),
        "roberta": model("roberta", "RobertaForTokenClassification", SMALL, type_vocab_size=1),
        "deberta": model("deberta-v2", "DebertaV2ForMaskedLM", SMALL, relative),
        "vit": model("vit", "ViTForImageClassification", blocks, picture, id2label=labels),
    }


def config_files() -> Iterator[tuple[str, bytes]]:
    small = SMALL
    scaled = {"factor": 4.0, "original_max_position_embeddings": 16}
    models: dict[str, Config] = {
        "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **small},
        "llama_all": {
            **small,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "head_dim": 6,
            "hidden_act": "gelu_new",
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-5,
            "eos_token_id": [2, 3],
            "pad_token_id": None,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
        "linear_4": {"model_type": "llama", **small, "rope_theta": 5e5}
        | {"rope_scaling": {"type": "linear", "factor": 2}},
        "dynamic": {"model_type": "llama", **small}
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "llama3": {"model_type": "llama", **small}
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **scaled,
            }
        },
        "yarn": {"model_type": "qwen3", **small, "num_key_value_heads": 1}
        | {"rope_parameters": {"rope_type": "yarn", "beta_fast": 32, "mscale": 0.7, **scaled}},
        "mistral": {"model_type": "mistral", **small}
        | {"sliding_window": 8, "num_key_value_heads": 2},
        "qwen2": {"model_type": "qwen2", **small, "num_key_value_heads": 4}
        | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "qwen2_layers": {"model_type": "qwen2", **small, "num_key_value_heads": None}
        | {
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "gpt_neox": {"model_type": "gpt_neox", **small, "rotary_pct": 0.5, "rotary_emb_base": 100},
        "gpt_neox_5": {"model_type": "gpt_neox", **small, "use_parallel_residual": False}
        | {"rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 1e4}},
        "unknown": {"model_type": "llama", **small, "softcap": 3.0},
        "huge": {"model_type": "llama", **small, "hidden_size": 2**64 - 1},
        "product": {"model_type": "llama"}
        | dict.fromkeys(("vocab_size", "hidden_size"), 2**31 - 1)
        | {"num_attention_heads": 1},
    }
    for name, config in (models | other_models()).items():
        yield name, json.dumps(config).encode()
    yield "deep", b'{"model_type":' + b"[" * 500
    yield "no_object", b"[]"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus"
    kinds = (("safetensors", safetensors_files()), ("npy", npy_files()), ("config", config_files()))
    for kind, files in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, content in files:
            (folder / kind / f"{name}.bin").write_bytes(content)


if __name__ == "__main__":
    main()

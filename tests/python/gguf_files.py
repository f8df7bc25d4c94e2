"""Small GGUF files: models with random weights and tokenizers of a few hundred tokens."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
TEXTS = [
    "the other thing  with  spaces", "caf\u00e9 \u0444\u0443\u043d\u043a\u0446\u0438\u044f 12345",
    "\n\ttabs\r\n", "<|im_start|>the<|im_end|>", "", " leading", "\u65e5\u672c\u8a9e",
]  # fmt: skip


def byte_tokens() -> list[str]:
    """The 256 letters of a byte-level vocabulary, in the order of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letter = {byte: chr(byte) for byte in plain}
    letter |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letter[byte] for byte in range(256)]


MERGES = ["t h", "th e", "\u0120 the", "i n", "in g", "\u0120 \u0120", "o n", "1 2", "12 3"]
TOKENS = [*SPECIAL, *byte_tokens(), *(merge.replace(" ", "") for merge in MERGES)]


def add_byte_level(writer: gguf.GGUFWriter, pre: str = "smollm") -> None:
    """A tokenizer of type gpt2."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


PIECES = [
    "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
    *"\u2581etaoinshrdlucmfwyp", "th", "he", "the", "\u2581t", "\u2581the", "in",
]  # fmt: skip


def add_sentencepiece(writer: gguf.GGUFWriter) -> None:
    """A tokenizer of type llama: scores instead of merges, bytes, a beginning token."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(PIECES) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def shapes(
    *, biases: bool, width: int, inner: int, heads: int, groups: int, layers: int, vocabulary: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model without a head of its own."""
    keys = groups * width // heads
    names: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, width), "output_norm.weight": (width,),
    }  # fmt: skip
    for layer in range(layers):
        block = {
            "attn_norm.weight": (width,), "ffn_norm.weight": (width,),
            "attn_q.weight": (width, width), "attn_k.weight": (keys, width),
            "attn_v.weight": (keys, width), "attn_output.weight": (width, width),
            "ffn_gate.weight": (inner, width), "ffn_up.weight": (inner, width),
            "ffn_down.weight": (width, inner),
        }  # fmt: skip
        if biases:
            block |= {"attn_q.bias": (width,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        names |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return names


def quantized(values: np.ndarray, kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Blocks of a type; random ones (with finite scales) where gguf cannot quantise."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*values.shape[:-1], values.shape[-1] // block * size)
        return rng.integers(0, 0x38, shape, dtype=np.uint8)


def write_model(
    path: Path,
    *,
    architecture: str = "llama",
    kind: Type = Type.F32,
    tied: bool = True,
    width: int = 64,
    inner: int = 96,
    heads: int = 4,
    groups: int = 2,
    layers: int = 2,
    sentencepiece: bool = False,
    pre: str = "smollm",
    settings: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray | None] | None = None,
    seed: int = 1,
) -> Path:
    """Writes a model; `settings` are further keys, `drop` are keys left out.

    tensors: float32 tensors to be added or to take the place of random ones; None leaves one out.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny 1")
    writer.add_file_type(0)
    sizes = {"width": width, "inner": inner, "heads": heads, "groups": groups, "layers": layers}
    keys = _keys(architecture, **sizes)
    for key, value in (keys | (settings or {})).items():
        if key.removeprefix(f"{architecture}.") not in drop:
            _add(writer, key, value)
    if sentencepiece:
        add_sentencepiece(writer)
    elif "tokenizer" not in drop:
        add_byte_level(writer, pre)
    vocabulary = len(PIECES) if sentencepiece else len(TOKENS)
    names = shapes(biases=architecture == "qwen2", vocabulary=vocabulary, **sizes)
    if not tied:
        names["output.weight"] = (vocabulary, width)
    for name, shape in (names | dict.fromkeys(tensors or {}, ())).items():
        x = rng.standard_normal(shape, np.float32)
        if name in (tensors or {}):
            if (own := (tensors or {})[name]) is not None:
                writer.add_tensor(name, own)
        elif len(shape) == 2 and kind != Type.F32:
            writer.add_tensor(name, quantized(x, kind, rng), raw_dtype=kind)
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _keys(
    architecture: str, width: int, inner: int, heads: int, groups: int, layers: int
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context_length": 128, "block_count": layers, "embedding_length": width,
        "feed_forward_length": inner, "attention.head_count": heads,
        "attention.head_count_kv": groups, "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    if architecture != "qwen2":
        values["rope.dimension_count"] = width // heads
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


# --- by hand, for files that no writer makes ------------------------------------------------------


def text(value: bytes) -> bytes:
    """A string of the format."""
    return struct.pack("<Q", len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", kind) + value


def info(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; `dims` as they stand in the file, the fastest first."""
    return (
        text(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def raw_file(
    entries: list[bytes],
    infos: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    num_entries: int | None = None,
    num_infos: int | None = None,
) -> bytes:
    """A file of these parts; the counts can lie."""
    keys = len(entries) if num_entries is None else num_entries
    tensors = len(infos) if num_infos is None else num_infos
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    header += b"".join(entries) + b"".join(infos)
    return header + b"\0" * (-len(header) % 32) + data


ARCHITECTURE = entry(b"general.architecture", 8, text(b"llama"))

"""Models larger than memory: loaded, scored, converted, saved with the memory of a few layers."""

import json
import struct
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("limited_data.py")


def config_of(width, inner, layers):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "head_dim": 64,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }


def shapes_of_layer(width, inner):
    attention = {f"self_attn.{x}_proj": (width, width) for x in "qkvo"}
    ffn = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    norms = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    return attention | {f"mlp.{name}": shape for name, shape in ffn.items()} | norms


def write_model(folder, width, inner, layers):
    """A model whose layers are all the same random numbers, written without a wait for the disk.

    Returns the size of a layer in bytes.
    """
    (folder / "config.json").write_text(json.dumps(config_of(width, inner, layers)))
    shapes = shapes_of_layer(width, inner)
    names = {f"model.layers.{i}.{n}": shape for i in range(layers) for n, shape in shapes.items()}
    names |= {"model.embed_tokens": (64, width), "lm_head": (64, width), "model.norm": (width,)}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in names.items():
        size = 4 * torch.Size(shape).numel()
        header[f"{name}.weight"] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(1)
    layer = b"".join(
        (torch.randn(shape, generator=generator) / width**0.5).numpy().tobytes()
        for shape in shapes.values()
    )
    rest = torch.randn(2 * 64 * width + width, generator=generator).numpy().tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(layers):
            file.write(layer)
        file.write(rest)
    return len(layer)


def check(folder, run_python, width, inner, layers):
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    layer = write_model(source, width, inner, layers)
    # A matrix in float32 and bfloat16 is 0.3 of it; besides activations, and what allocators keep.
    limit = 2 * layer
    assert (source / "model.safetensors").stat().st_size > 1.5 * limit
    done = run_python([str(PROGRAM), str(source), str(out), str(limit)])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    scores, peaks = result["scores"], result["peaks"]
    assert scores["streamed"] == scores["loaded"] == scores["saved"]
    assert scores["streamed bfloat16"] == scores["loaded bfloat16"] != scores["streamed"]
    assert all(peak <= limit for peak in peaks.values()), (limit, peaks)
    assert peaks["convert"] <= 32 << 20, peaks
    return peaks


def test_a_model_of_64_mib(tmp_path, run_python):
    check(tmp_path, run_python, width=512, inner=1408, layers=6)


@pytest.mark.slow
def test_a_model_of_1_gib(tmp_path, run_python):
    check(tmp_path, run_python, width=1024, inner=2816, layers=21)

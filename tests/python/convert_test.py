"""GGUF files become what transformers' own loader makes of them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

import gguf  # noqa: E402
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf_files import TEMPLATE, TEXTS, write_model  # noqa: E402
from paperlab import convert, io  # noqa: E402
from paperlab.convert import _gguf  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

FILES = [
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip


def is_known(kind: Type) -> bool:
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return kind != Type.F32


KINDS = list(filter(is_known, Type))


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


def from_transformers(path: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, **options
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.view(torch.uint8).equal(
        b.contiguous().view(torch.uint8)
    )  # fmt: skip


def assert_same_tensors(directory: Path, model: Any) -> None:
    ours = io.load_file(directory / "model.safetensors")
    theirs = dict(model.named_parameters())  # a tied head once
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert same_bits(tensor, theirs[name].detach()), name


def assert_same_configs(directory: Path, model: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(directory)
    of_the_call = ("quantization_config", "_name_or_path", "architectures")
    theirs = {k: v for k, v in model.config.to_dict().items() if k not in of_the_call}
    assert theirs == {key: config.to_dict().get(key) for key in theirs}
    assert config.architectures == [type(model).__name__]
    generation = transformers.GenerationConfig.from_pretrained(directory)
    theirs = model.generation_config.to_dict()
    assert theirs == {key: generation.to_dict().get(key) for key in theirs}


def assert_same_tokens(directory: Path, path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = transformers.AutoTokenizer.from_pretrained(directory)
    raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours(text).input_ids == ids and raw.encode(text).ids == ids, text
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"groups": 4, "kind": Type.F16},
        {"groups": 1, "kind": Type.Q8_0, "tied": False},
        {"kind": Type.Q4_1, "layers": 3, "inner": 160},
        {"sentencepiece": True},
        {"sentencepiece": True, "tied": False, "kind": Type.BF16},
        {"pre": "llama-bpe"},
        {"architecture": "qwen2", "pre": "qwen2"},
        {"architecture": "qwen2", "pre": "qwen2", "tied": False, "kind": Type.Q8_0},
        {"drop": ("rope.dimension_count", "rope.freq_base")},
        {"settings": {"llama.vocab_size": 268, "llama.expert_count": 0}},
    ],
    ids=str,
)
def test_a_directory_is_what_transformers_reads(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_model(tmp_path / "a model.gguf", **options)
    directory = convert.gguf(path, tmp_path / "out" / "model")
    assert directory == tmp_path / "out" / "model"
    assert sorted(os.listdir(directory)) == FILES and os.listdir(directory.parent) == ["model"]
    model = from_transformers(path)
    assert_same_tensors(directory, model)
    assert_same_configs(directory, model)
    assert_same_tokens(directory, path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_dequantised(tmp_path: Path, kind: Type) -> None:
    assert len(KINDS) >= 24
    path = write_model(
        tmp_path / "m.gguf", kind=kind, width=256, inner=256, layers=1, heads=4, groups=2
    )
    directory = convert.gguf(path, tmp_path / "out")
    assert_same_tensors(directory, from_transformers(path))


def test_as_many_key_heads_as_heads_need_no_key(tmp_path: Path) -> None:
    """transformers would leave the rows of q and k permuted here."""
    drop = ("attention.head_count_kv",)
    paths = [
        write_model(tmp_path / "with.gguf", groups=4),
        write_model(tmp_path / "without.gguf", groups=4, drop=drop),
    ]
    one, two = (
        io.load_file(convert.gguf(p, p.with_suffix("")) / "model.safetensors") for p in paths
    )
    assert all(same_bits(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    path = write_model(tmp_path / "m.gguf", kind=Type.Q8_0)
    directory = convert.gguf(str(path), str(tmp_path / "out"), dtype=dtype)
    model = from_transformers(path, dtype=getattr(torch, dtype))
    assert_same_tensors(directory, model)
    assert_same_configs(directory, model)


def test_the_model_runs_the_same(tmp_path: Path) -> None:
    """The rows of q and k are in order: logits are equal to those of the file."""
    path = write_model(tmp_path / "m.gguf")
    directory = convert.gguf(path, tmp_path / "out")
    tokens = torch.arange(24)[None]
    ours = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, from_transformers(path)(tokens).logits)


def test_the_json_files(tmp_path: Path) -> None:
    directory = convert.gguf(write_model(tmp_path / "m.gguf"), tmp_path / "out")
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert "rope_scaling" not in config
    generation = json.loads((directory / "generation_config.json").read_text())
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert tokenizer["chat_template"] == TEMPLATE and tokenizer["eos_token"] == "<|im_end|>"
    assert not {"gguf_file", "is_local", "name_or_path"} & set(tokenizer)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", kind=Type.Q4_0)
    one, two = (convert.gguf(path, tmp_path / name) for name in ("one", "two"))
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_files_beside_the_model_are_not_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    expected = convert.gguf(path, tmp_path / "out")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{")
    directory = convert.gguf(path, tmp_path / "again")
    assert all((directory / n).read_bytes() == (expected / n).read_bytes() for n in FILES)


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.gguf")
    whole = io.load_file(convert.gguf(path, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(_gguf, "_MAX_SHARD_BYTES", 100_000)
    directory = convert.gguf(path, tmp_path / "out")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2 and names[0].startswith("model-00001-of-")
    parts = [io.load_file(directory / name) for name in names]
    ours = {name: tensor for part in parts for name, tensor in part.items()}
    assert set(ours) == set(whole) and all(same_bits(ours[n], whole[n]) for n in whole)
    lines: list[str] = []
    convert.gguf(path, directory, notice=lines.append)
    assert lines == [f"{directory} is a finished conversion of this file"]
    (directory / names[1]).unlink()
    with pytest.raises(ValueError, match="is there and is not empty"):
        convert.gguf(path, directory)


def test_memory_is_that_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors come in pieces, heads of q and k whole; the result does not depend on their size."""
    path = write_model(tmp_path / "m.gguf", kind=Type.Q8_0, tied=False)
    whole = convert.gguf(path, tmp_path / "whole") / "model.safetensors"
    monkeypatch.setattr(_gguf, "_PIECE_BYTES", 4 * 64 * 16)  # 16 rows of 64 numbers
    sizes: list[int] = []
    dequantized = _gguf._dequantized

    def spy(rows: np.ndarray, kind: int) -> np.ndarray:
        values = dequantized(rows, kind)
        sizes.append(values.nbytes)
        return values

    monkeypatch.setattr(_gguf, "_dequantized", spy)
    pieces = convert.gguf(path, tmp_path / "pieces") / "model.safetensors"
    assert pieces.read_bytes() == whole.read_bytes()
    assert len(sizes) > 50 and max(sizes) == 4 * 64 * 16


# --- rotary scalings, which transformers' reader leaves out -------------------------------------


def llama3_divisors(factor: float, base: float, dim: int) -> np.ndarray:
    """1 up to a wavelength of 2048, the factor from 8192 on, in float32 as the converter has it."""
    freqs = 1.0 / base ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
    values = []
    for wavelength in 2 * np.pi / freqs:
        smooth = (8192 / wavelength - 1) / 3
        if wavelength < 2048:
            values.append(1.0)
        elif wavelength > 8192:
            values.append(factor)
        else:
            values.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(values, np.float32)


def test_llama3_scaling(tmp_path: Path) -> None:
    divisors = llama3_divisors(8.0, 500000.0, 64)
    path = write_model(
        tmp_path / "m.gguf", width=256, settings={"llama.rope.freq_base": 500000.0},
        tensors={"rope_freqs.weight": divisors},
    )  # fmt: skip
    directory = convert.gguf(path, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq, plain / torch.from_numpy(divisors), rtol=1e-5, atol=0
    )
    assert_same_tensors(directory, from_transformers(path))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.factor": 1.0}, {"rope_type": "default"}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.attn_factor": 1.0,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_scalings_of_the_metadata(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    named = {f"qwen2.{key}": value for key, value in settings.items()}
    path = write_model(tmp_path / "m.gguf", architecture="qwen2", pre="qwen2", settings=named)
    directory = convert.gguf(path, tmp_path / "out")
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_theta": 10000.0, **expected}
    is_scaled = "factor" in expected
    assert config.get("rope_scaling") == (config["rope_parameters"] if is_scaled else None)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    found = model.config.rope_parameters
    assert {key: found[key] for key in expected} == expected and found["rope_theta"] == 10000.0

"""Weights in torch's own format: read whole or in shards, what is wrong is named, no code runs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from paperlab.mudd import MuddFormer
from safetensors.torch import load_file, save_file

MODEL = Path(__file__).parent.parent / "data" / "mudd" / "muddformer"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A directory of its own with the model."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / file, tmp_path / file)
    return tmp_path


@pytest.fixture
def sharded(copied: Path) -> Path:
    """The same model as pytorch_model.bin in two shards with an index."""
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, of_file in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in of_file}, copied / file)
        weight_map |= dict.fromkeys(of_file, file)
    (copied / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return copied


def test_bin_shards(sharded: Path) -> None:
    wanted = MuddFormer.from_pretrained(MODEL).state_dict()
    loaded = MuddFormer.from_pretrained(sharded)
    assert not loaded.training
    assert set(loaded.state_dict()) == set(wanted)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[name])
    # A single file goes before shards, and safetensors before both.
    (sharded / "pytorch_model.bin").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: "):
        MuddFormer.from_pretrained(sharded)
    shutil.copy(MODEL / "model.safetensors", sharded)
    MuddFormer.from_pretrained(sharded)


BAD_INDICES: list[tuple[Any, str]] = [
    ("{", "must be JSON"),
    ("[" * 100000, "must be JSON"),
    ('{"weight_map": {"a": "x.bin", "a": "y.bin"}}', "'a' twice"),
    ("[]", "weight_map"),
    ({"weight_map": {}}, "weight_map"),
    ({"weight_map": ["a"]}, "weight_map"),
    ({"weight_map": {"a": 3}}, "tensor 'a' must be a name without a folder, got 3"),
    ({"weight_map": {"a": "../x.bin"}}, r"without a folder, got '\.\./x\.bin'"),
    ({"weight_map": {"a": "/x.bin"}}, "without a folder"),
    ({"weight_map": {"a": ".."}}, "without a folder"),
    ({"weight_map": {"a": "x.bin\0"}}, "without a folder"),
]


@pytest.mark.parametrize(("content", "message"), BAD_INDICES, ids=range(len(BAD_INDICES)))
def test_wrong_indices_of_bin_shards(sharded: Path, content: Any, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (sharded / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin\.index\.json: .*{message}"):
        MuddFormer.from_pretrained(sharded)


def test_bin_shards_that_are_not_as_the_index_says(sharded: Path) -> None:
    index = sharded / "pytorch_model.bin.index.json"
    first, second = sorted(sharded.glob("pytorch_model-*.bin"))
    whole = json.loads(index.read_text())["weight_map"]
    name = next(name for name, file in whole.items() if file == first.name)

    def fails(weight_map: dict[str, str], message: str) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=message):
            MuddFormer.from_pretrained(sharded)

    less = {key: value for key, value in whole.items() if key != name}
    fails(less, f"{first.name}: tensor '{name}' .*does not list it")
    fails(whole | {name: second.name}, f"{first.name}: tensor '{name}' .*has it in {second.name}")
    fails(whole | {"more": second.name}, f"{second.name}: has no tensor 'more'")
    index.write_text(json.dumps({"weight_map": whole}))
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{second.name}: .*bin\.index\.json"):
        MuddFormer.from_pretrained(sharded)


def _wrong(kind: str) -> torch.Tensor:
    if kind == "meta":
        return torch.empty(4, device="meta")
    if kind == "quantized":
        return torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8)
    return torch.eye(4).to_sparse(layout=getattr(torch, kind))


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr", "meta", "quantized"])
def test_tensors_without_plain_data(sharded: Path, kind: str) -> None:
    file = sharded / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(file)
    name = next(iter(tensors))
    torch.save(tensors | {name: _wrong(kind)}, file)
    with pytest.raises(ValueError, match=rf"{file.name}: '{name}' must be .*{kind}"):
        MuddFormer.from_pretrained(sharded)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.complex64], ids=str)
def test_types_that_are_no_weights(copied: Path, dtype: torch.dtype, form: str) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["dense_bs.1"] = tensors["dense_bs.1"].to(dtype)
    (copied / "model.safetensors").unlink()
    if form == "bin":
        torch.save(tensors, copied / "pytorch_model.bin")
    else:
        save_file(tensors, copied / "model.safetensors")
    message = f"model.{form}: tensor 'dense_bs.1':? must be float32, float64, bfloat16 or float16"
    with pytest.raises(ValueError, match=message):
        MuddFormer.from_pretrained(copied)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/paperlab-evil",))


def test_bin_files_run_no_code(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    evil = Path("/tmp/paperlab-evil")
    evil.unlink(missing_ok=True)
    for content in ({"output.weight": _Evil()}, [1, 2], {"a": 3}, {1: torch.zeros(1)}):
        torch.save(content, copied / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
            MuddFormer.from_pretrained(copied)
    (copied / "pytorch_model.bin").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        MuddFormer.from_pretrained(copied)
    assert not evil.exists()

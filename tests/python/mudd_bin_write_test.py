"""save_pretrained in torch's format and in shards: the same bits come back, all or nothing."""

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from paperlab import nn
from paperlab.mudd import MuddFormer
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent.parent / "data" / "mudd"
NAMES = ("muddformer", "muddformer-plain", "muddpythia")
LARGEST = 60_000  # bytes: above any tensor of these models, below all of them


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(folder: Path, model: MuddFormer) -> None:
    read = MuddFormer.from_pretrained(folder, dtype=None).state_dict()
    wanted = model.state_dict()
    assert list(read) == list(wanted)
    for name, value in wanted.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_one_file_holds_the_published_names_and_bits(name: str, tmp_path: Path) -> None:
    model = MuddFormer.from_pretrained(DATA / name, dtype=None)
    model.save_pretrained(tmp_path / "a" / "b", safe_serialization=False)
    folder = tmp_path / "a" / "b"
    assert files_of(folder) == ["config.json", "pytorch_model.bin"]
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (DATA / name / "config.json").read_text()
    )
    tensors = loaded(folder / "pytorch_model.bin")
    original = load_file(DATA / name / "model.safetensors")
    assert set(tensors) == set(original)
    assert all(torch.equal(value, original[key]) for key, value in tensors.items())
    assert_same(folder, model)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("size", [LARGEST, "60KB"])
def test_shards_and_index_are_those_of_the_hub(form: str, size: int | str, tmp_path: Path) -> None:
    model = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=None)
    safe = form == "safetensors"
    model.save_pretrained(tmp_path, max_shard_size=size, safe_serialization=safe)
    stem = "model" if safe else "pytorch_model"
    state = dict(sorted(model.state_dict().items()))
    pattern = f"{stem}{{suffix}}.{form}"
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=pattern, max_shard_size=LARGEST
    )
    assert len(split.filename_to_tensors) > 2
    index = f"{stem}.{form}.index.json"
    assert files_of(tmp_path) == sorted(["config.json", index, *split.filename_to_tensors])
    wanted = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    text = (tmp_path / index).read_text()
    assert json.loads(text) == wanted
    if not safe:
        assert text == json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    for file, names in split.filename_to_tensors.items():
        shard = load_file(tmp_path / file) if safe else loaded(tmp_path / file)
        assert sorted(shard) == sorted(names)
        assert sum(value.nbytes for value in shard.values()) <= LARGEST
    assert_same(tmp_path, model)


def test_a_tensor_above_the_size_has_a_file_of_its_own(tmp_path: Path) -> None:
    model = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=None)
    model.save_pretrained(tmp_path, max_shard_size=1, safe_serialization=False)
    shards = [path for path in tmp_path.glob("*.bin") if len(loaded(path)) == 1]
    assert len(shards) == len(model.state_dict())
    assert_same(tmp_path, model)


def test_weights_of_an_earlier_checkpoint_are_not_read_instead(tmp_path: Path) -> None:
    old = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=None)
    new = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=torch.float64)
    with torch.no_grad():
        for value in new.parameters():
            value.mul_(1.5)
    (tmp_path / "README.md").write_text("mine")
    forms: list[dict[str, Any]] = [
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": LARGEST},
        {},
        {"max_shard_size": LARGEST},
    ]
    for first in forms:
        for second in forms:
            old.save_pretrained(tmp_path, **first)
            new.save_pretrained(tmp_path, **second)
            assert_same(tmp_path, new)
    new.save_pretrained(tmp_path, safe_serialization=False)
    assert files_of(tmp_path) == ["README.md", "config.json", "pytorch_model.bin"]


def test_a_tied_head_is_written_by_both_names(tmp_path: Path) -> None:
    config = json.loads((DATA / NAMES[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(DATA / NAMES[0] / "model.safetensors")
    tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    model = MuddFormer.from_pretrained(tmp_path, dtype=None)
    for size in ("5GB", LARGEST):
        model.save_pretrained(tmp_path / "out", max_shard_size=size, safe_serialization=False)
        assert_same(tmp_path / "out", model)
    model.save_pretrained(tmp_path / "out", safe_serialization=False)
    assert set(loaded(tmp_path / "out" / "pytorch_model.bin")) == set(tensors)


def test_a_view_is_written_without_the_rest_of_its_memory(tmp_path: Path) -> None:
    model = MuddFormer(19, 3, 16, 2, 24, ffn_round=4, seed=1, dtype=torch.bfloat16)
    module = model.get_submodule("norm")
    size = model.get_parameter("norm.weight").shape[0]
    module.weight = torch.nn.Parameter(torch.ones(1_000_000, size, dtype=torch.bfloat16).t()[:, 7])
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 200_000
    assert_same(tmp_path, model)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", ["5GB", LARGEST])
def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, size: int | str) -> None:
    model = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=None)
    old, there = tmp_path / "old", tmp_path / "there"
    model.save_pretrained(there)
    shutil.copytree(there, old)
    double = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=torch.float64)
    options: dict[str, Any] = {"max_shard_size": size, "safe_serialization": False}
    for target in (there, tmp_path / "new" / "folder"):
        with file_size_limit(8000), pytest.raises(OSError, match=r"pytorch_model.*\.bin"):
            double.save_pretrained(target, **options)
    assert files_of(there) == files_of(old)
    assert all((there / f).read_bytes() == (old / f).read_bytes() for f in files_of(old))
    assert not (tmp_path / "new").exists()
    (there / "pytorch_model.bin").mkdir()
    (there / "pytorch_model.bin.index.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"pytorch_model\.bin"):
        double.save_pretrained(there, **options)
    assert_same(there, model)


def test_an_interrupted_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MuddFormer.from_pretrained(DATA / NAMES[0], dtype=None)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": value}
        for value in (0, -1, 1.5, True, None, "5", "GB", "5gb", "-1GB", "0KB", "nanGB", "1e99TB")
    ]
    + [{"safe_serialization": value} for value in (0, None, "no")],
    ids=str,
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    model = MuddFormer(19, 3, 16, 2, 24, ffn_round=4, seed=1)
    name = next(iter(options))
    for more in ({}, {"safe_serialization": False}):
        with pytest.raises((ValueError, TypeError), match=f"^save_pretrained: {name} must be"):
            model.save_pretrained(tmp_path / "out", **(more | options))
    assert not (tmp_path / "out").exists()


def test_decoders_have_shards_too(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 19, "hidden_size": 16, "intermediate_size": 24}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = nn.from_config(config)
    model.save_pretrained(tmp_path, max_shard_size="3KiB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    read = nn.load(tmp_path).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in model.state_dict().items())

"""Directories in the published layout: loaded, compared with the official numbers, written back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from paperlab import nn, train
from paperlab.mudd import MuddFormer
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent.parent / "data" / "mudd"
NAMES = ("muddformer", "muddformer-plain", "muddpythia")


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / name / "expected.safetensors")


def largest(x: torch.Tensor, y: torch.Tensor) -> float:
    assert x.shape == y.shape
    return float((x - y).detach().abs().max())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A directory of its own with the first model."""
    target = tmp_path / "model"
    target.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(DATA / NAMES[0] / file, target / file)
    return target


@pytest.mark.parametrize("name", NAMES)
def test_official_logits_and_intermediates(name: str) -> None:
    model = MuddFormer.from_pretrained(DATA / name, dtype=torch.float64)
    wanted = expected(name)
    trace = model.trace(wanted["tokens"])
    assert largest(model(wanted["tokens"]), wanted["logits"]) < 1e-9
    assert largest(trace.logits, wanted["logits"]) < 1e-9
    layers = len(trace.weights)
    for number, state in enumerate(trace.states):
        assert largest(state, wanted[f"block_output.{number}"]) < 1e-9
    for layer in range(layers):
        weights = trace.weights[layer]
        assert weights is not None
        assert largest(weights, wanted[f"weights.{layer}"]) < 1e-9
        ways = "QKVR" if layer < layers - 1 else "R"
        streams = torch.stack([trace.streams[layer + 1][way] for way in ways])
        assert largest(streams, wanted[f"streams.{layer}"]) < 1e-9
    inputs: dict[str, torch.Tensor] = {}
    with model.on_linear_input(lambda layer, x: inputs.update({layer: x})):
        model(wanted["tokens"])
    parameters = dict(model.named_parameters())
    for layer in range(layers):
        out = f"layers.{layer}.attention.wo"
        bias = parameters.get(f"{out}.bias")
        attended = torch.nn.functional.linear(inputs[out], parameters[f"{out}.weight"], bias)
        assert largest(attended, wanted[f"attention_output.{layer}"]) < 1e-9


# The official figures: how far the tanh form in the generators moves the logits.
@pytest.mark.parametrize(("name", "moved"), list(zip(NAMES, (2.0e-3, 5.8e-4, 2.9e-3), strict=True)))
def test_the_form_of_the_generators_gelu_shows(name: str, moved: float, tmp_path: Path) -> None:
    config = json.loads((DATA / name / "config.json").read_text()) | {"paperlab_gelu": "tanh"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(DATA / name / "model.safetensors", tmp_path)
    wanted = expected(name)
    logits = MuddFormer.from_pretrained(tmp_path, dtype=torch.float64)(wanted["tokens"])
    assert float(f"{largest(logits, wanted['logits']):.1e}") == moved


@pytest.mark.parametrize("name", NAMES)
def test_official_loss_and_gradients(name: str) -> None:
    model = MuddFormer.from_pretrained(DATA / name, dtype=torch.float64)
    wanted = expected(name)
    tokens = wanted["tokens"]
    loss = torch.nn.functional.cross_entropy(
        model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    assert abs(float(loss.detach()) - float(wanted["loss"])) < 1e-12
    loss.backward()
    gradients = load_file(DATA / name / "gradients.safetensors")
    assert set(gradients) == {n for n, _ in model.named_parameters()}
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        # Stored as float32: 6e-8 of each number.
        limit = 4e-7 * max(float(gradients[parameter].abs().max()), 1e-3)
        assert largest(value.grad, gradients[parameter].double()) < limit, parameter


@pytest.mark.parametrize("name", NAMES)
def test_official_continuations(name: str) -> None:
    model = MuddFormer.from_pretrained(DATA / name, dtype=torch.float64)
    wanted = expected(name)
    length = int(wanted["generate.prompt_length"])
    tokens = wanted["generate.tokens"]
    prompt = tokens[:, :length]
    assert torch.equal(model.generate(prompt, max_new_tokens=tokens.shape[1] - length), tokens)
    cache = model.new_cache(batch_size=tokens.shape[0], max_length=tokens.shape[1])
    chunks = wanted["tokens"].split([4, 1, wanted["tokens"].shape[1] - 5], 1)
    assert largest(torch.cat([model(c, cache) for c in chunks], 1), wanted["logits"]) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near(name: str) -> None:
    model = MuddFormer.from_pretrained(DATA / name)
    wanted = expected(name)
    logits = model(wanted["tokens"])
    assert logits.dtype == torch.float32
    # The official code with an accurate rotary table is 6e-6 away.
    assert largest(logits.double(), wanted["logits"]) < 2e-5
    half = MuddFormer.from_pretrained(DATA / name, dtype=torch.bfloat16)
    assert largest(half(wanted["tokens"]).double(), wanted["logits"]) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_come_back(name: str, tmp_path: Path) -> None:
    MuddFormer.from_pretrained(DATA / name).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((DATA / name / "config.json").read_text())
    before = load_file(DATA / name / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    for tensor, value in before.items():
        assert torch.equal(value, after[tensor])


def test_shards_and_bin_files(copied: Path, tmp_path: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    wanted = MuddFormer.from_pretrained(copied).state_dict()
    names = sorted(tensors)
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(copied / "config.json", shards)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, of_file in parts.items():
        save_file({n: tensors[n] for n in of_file}, shards / file)
    index = {"weight_map": {n: file for file, of_file in parts.items() for n in of_file}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    single = tmp_path / "bin"
    single.mkdir()
    shutil.copy(copied / "config.json", single)
    torch.save(tensors, single / "pytorch_model.bin")
    for directory in (shards, single):
        loaded = MuddFormer.from_pretrained(directory)
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, wanted[name])
        assert not loaded.training
    assert next(MuddFormer.from_pretrained(single, dtype=torch.float64).parameters()).dtype == (
        torch.float64
    )


def test_shards_that_are_not_as_the_index_says(copied: Path) -> None:
    model = MuddFormer.from_pretrained(copied)
    model.save_pretrained(copied, max_shard_size="40KB")
    index = copied / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(whole.values()))[:2]
    name = next(name for name, file in whole.items() if file == first)
    # transformers would take such a tensor, whatever the index says.
    shard = load_file(copied / second)
    for extra, message in ((name, f"has it in .*{first}"), ("more", "does not list it")):
        save_file(shard | {extra: torch.zeros(3)}, copied / second)
        with pytest.raises(ValueError, match=f"{second}: tensor '{extra}' must be .*{message}"):
            MuddFormer.from_pretrained(copied)


@pytest.mark.parametrize("name", NAMES)
def test_the_general_loader_names_this_one(name: str) -> None:
    message = r"config\.json.*model_type.*; paperlab\.mudd\.MuddFormer\.from_pretrained loads it$"
    with pytest.raises(ValueError, match=message):
        nn.load(DATA / name)


def _corrupt(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    changed = dict(tensors)
    if kind == "missing":
        del changed["dense_bs.1"]
    elif kind == "unknown":
        changed["dense_bs.9"] = torch.zeros(3)
    elif kind == "misshapen":
        changed["dense_bs.1"] = torch.zeros(4, 4)
    elif kind == "NaN":
        changed["dense_bs.1"] = torch.full_like(changed["dense_bs.1"], float("nan"))
    return changed


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["missing", "unknown", "misshapen", "NaN"])
def test_wrong_tensors_are_named(copied: Path, kind: str, form: str) -> None:
    tensors = _corrupt(load_file(copied / "model.safetensors"), kind)
    (copied / "model.safetensors").unlink()
    if form == "bin":
        torch.save(tensors, copied / "pytorch_model.bin")
    else:
        save_file(tensors, copied / "model.safetensors")
    name = "dense_bs.9" if kind == "unknown" else "dense_bs.1"
    with pytest.raises(ValueError, match=name):
        MuddFormer.from_pretrained(copied)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_caches_are_skipped(copied: Path, form: str) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["layer_cache.layer_cache"] = torch.zeros(5, 1, 1, 32)
    for layer in range(4):
        for cache in ("k_cache", "v_cache"):
            tensors[f"layers.{layer}.attention.kv_cache.{cache}"] = torch.zeros(1, 4, 64, 8)
    (copied / "model.safetensors").unlink()
    if form == "bin":
        torch.save(tensors, copied / "pytorch_model.bin")
    else:
        save_file(tensors, copied / "model.safetensors")
    wanted = MuddFormer.from_pretrained(DATA / NAMES[0]).state_dict()
    loaded = MuddFormer.from_pretrained(copied).state_dict()
    assert set(loaded) == set(wanted)


@pytest.mark.parametrize("name", ["k_cache", "foo.layer_cache", "layers.0.attention.wq.k_cache"])
def test_what_is_no_cache_is_not_skipped(copied: Path, name: str) -> None:
    tensors = load_file(copied / "model.safetensors") | {name: torch.zeros(2)}
    (copied / "model.safetensors").unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=name):
        MuddFormer.from_pretrained(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_layer", "4"), ("model_type", "llama"), ("dense_type", "x"), ("norm_eps", 0)],
)
def test_wrong_settings_are_named(copied: Path, key: str, value: Any) -> None:
    config = json.loads((copied / "config.json").read_text())
    config[key] = value
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json.*{key}|config.json.*d_model|{key}"):
        MuddFormer.from_pretrained(copied)


def test_missing_files() -> None:
    with pytest.raises(FileNotFoundError):
        MuddFormer.from_pretrained("/no/such/place")
    with pytest.raises(TypeError):
        MuddFormer.from_pretrained(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        MuddFormer.from_pretrained(DATA / NAMES[0], dtype=torch.int8)


def test_grouped_key_heads(tmp_path: Path) -> None:
    """One key and value head for all query heads equals as many copies of it."""
    source = DATA / NAMES[0]
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    size = config["head_dim"]
    grouped, full = dict(tensors), dict(tensors)
    for layer in range(config["n_layer"]):
        for matrix in ("wk", "wv"):
            name = f"layers.{layer}.attention.{matrix}.weight"
            grouped[name] = tensors[name][:size].clone()
            full[name] = tensors[name][:size].repeat(config["n_head"], 1)
    logits = []
    for number, (heads, weights) in enumerate([(1, grouped), (config["n_head"], full)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config | {"n_local_heads": heads}))
        save_file(weights, directory / "model.safetensors")
        model = MuddFormer.from_pretrained(directory, dtype=torch.float64)
        logits.append(model(expected(NAMES[0])["tokens"]))
    assert largest(*logits) < 1e-12


VARIANTS: list[dict[str, Any]] = [
    {},
    {"variant": "base"},
    {"variant": "static"},
    {"variant": "dynamic", "gelu": "tanh"},
    {"variant": "multiway_static", "ways": "QV"},
    {"variant": "hyper_connections", "num_streams": 3},
    {"variant": "lime"},
    {"dilation": 2, "period": 2},
    {"window": 2, "hidden_round": 64, "last_hidden_expand": 1},
    {"pre_post_norm": True},
    {"pre_post_norm": "later_revision", "qk_norm": True},
    {"parallel_block": True, "norm_eps": 1e-5},
    {"parallel_block": True, "variant": "base", "ffn_reallocation": True},
    {"parallel_block": True, "variant": "hyper_connections", "num_streams": 2},
    {"parallel_block": True, "variant": "lime"},
    {"ffn_reallocation": False, "rope_base": 500.0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_is_written_and_read_back(options: dict[str, Any], tmp_path: Path) -> None:
    settings = {"ffn_round": 4} | options
    model = MuddFormer(19, 3, 16, 2, 24, **settings, seed=1)
    model.save_pretrained(tmp_path / "model")
    again = MuddFormer.from_pretrained(tmp_path / "model")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(model(tokens), again(tokens))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in again.named_parameters()]
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    half = MuddFormer.from_pretrained(tmp_path / "model", dtype=None)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 9))

    def data(step: int) -> torch.Tensor:
        return torch.stack([text[7 * step + 31 * row :][:13] for row in range(4)])

    def model() -> MuddFormer:
        return MuddFormer(128, 3, 16, 2, 24, ffn_round=4, seed=2)

    options: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "constant", "clip_norm": 1.0}
    whole, first, second = model(), model(), model()
    wanted = train.fit(whole, data, steps=6, **options)
    train.fit(first, data, steps=4, out=tmp_path / "run", checkpoint_every=2, **options)
    run = train.fit(second, data, steps=6, out=tmp_path / "run", checkpoint_every=2, **options)
    assert run["loss"] == wanted["loss"]
    assert wanted["loss"][-1] < wanted["loss"][0]
    again = MuddFormer.from_pretrained(tmp_path / "run" / "checkpoint-00000006")
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
        assert torch.equal(value, second.state_dict()[name])

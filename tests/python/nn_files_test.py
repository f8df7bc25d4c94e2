"""paperlab.nn: directories that transformers wrote and reads, and new models."""

import json
import math
import os
import shutil

import decoder_models as models
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from decoder_models import DECODERS
from paperlab import nn

BATCH = models.tokens(2, 9)


def bits(tensor):
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])


def arrays(directory):
    """name -> tensor of all files of weights."""
    known = {}
    for file in sorted(directory.glob("*.safetensors")):
        known |= safetensors.torch.load_file(file)
    return known


def settings_in(directory, name="config.json"):
    return json.loads((directory / name).read_text())


def saved_by_transformers(name, directory, dtype=torch.float32, **options):
    model = models.theirs(name, models.ours(name).to(dtype), dtype)
    model.save_pretrained(directory, **options)
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_there_and_back(name, tmp_path):
    other = saved_by_transformers(name, tmp_path / "theirs")
    model = nn.load(tmp_path / "theirs")
    assert not model.training and all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "ours")
    before, after = (arrays(tmp_path / d) for d in ("theirs", "ours"))
    assert {*before} == {*after}
    assert all(torch.equal(bits(before[n]), bits(after[n])) for n in before)
    assert {n for n, _ in model.named_parameters()} <= {*before}
    for file in ("config.json", "generation_config.json"):
        assert settings_in(tmp_path / "ours", file) == settings_in(tmp_path / "theirs", file)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(again(BATCH).logits, other(BATCH).logits)
        logits = model(BATCH)
        assert (logits - other(BATCH).logits).abs().max() <= 1e-4 * logits.abs().max()
    assert torch.equal(nn.load(tmp_path / "ours")(BATCH), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama_biases_tied", "neox"])
def test_every_dtype_stays_bit_for_bit(name, dtype, tmp_path):
    saved_by_transformers(name, tmp_path / "theirs", dtype)
    model = nn.load(tmp_path / "theirs")
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path / "ours")
    before, after = (arrays(tmp_path / d) for d in ("theirs", "ours"))
    assert {*before} == {*after}
    assert all(torch.equal(bits(before[n]), bits(after[n])) for n in before)
    assert settings_in(tmp_path / "ours") == settings_in(tmp_path / "theirs")
    wide = nn.load(tmp_path / "theirs", dtype="double")
    for (n, p), q in zip(model.named_parameters(), wide.parameters(), strict=True):
        assert q.dtype == torch.float64 and torch.equal(p.double(), q), n
    wide.save_pretrained(tmp_path / "wide")
    assert settings_in(tmp_path / "wide")["dtype" if models.IS_NEW else "torch_dtype"] == "float64"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto")
    assert again.dtype == torch.float64


def test_shards(tmp_path):
    saved_by_transformers("llama", tmp_path / "theirs", max_shard_size="40KB")
    assert len([*(tmp_path / "theirs").glob("*.safetensors")]) > 2
    model = nn.load(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    before, after = (arrays(tmp_path / d) for d in ("theirs", "ours"))
    assert {*before} == {*after}
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "40KB"}])
def test_into_its_own_directory(options, tmp_path):
    saved_by_transformers("qwen2", tmp_path, **options)
    (tmp_path / "tokenizer.json").write_bytes(b"{}\n")
    (tmp_path / "mine.txt").write_text("stays")
    model = nn.load(tmp_path)
    wanted = model(BATCH)
    for _ in range(2):
        model.save_pretrained(tmp_path)
        assert torch.equal(model(BATCH), wanted)
        assert torch.equal(nn.load(tmp_path)(BATCH), wanted)
    with torch.no_grad():
        model.tensor("embed").mul_(2)
    assert torch.equal(nn.load(tmp_path)(BATCH), wanted)  # the file does not change with it
    model.save_pretrained(tmp_path)
    assert torch.equal(nn.load(tmp_path)(BATCH), model(BATCH))
    assert (tmp_path / "tokenizer.json").read_bytes() == b"{}\n"
    assert (tmp_path / "mine.txt").read_text() == "stays"
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.suffix]


def test_the_tokenizers_files_are_copied_byte_for_byte(tmp_path):
    saved_by_transformers("llama", tmp_path / "theirs")
    names = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
    for name in names:
        (tmp_path / "theirs" / name).write_bytes(os.urandom(100))
    nn.load(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    for name in names:
        a, b = (tmp_path / d / name for d in ("theirs", "ours"))
        assert a.read_bytes() == b.read_bytes()


def test_the_model_outlives_its_directory_and_a_deepcopy_the_model(tmp_path):
    import copy

    saved_by_transformers("llama", tmp_path)
    model = nn.load(os.fsencode(tmp_path))
    wanted = model(BATCH)
    other = copy.deepcopy(model)
    shutil.rmtree(tmp_path)
    assert torch.equal(model(BATCH), wanted)
    del model
    assert torch.equal(other(BATCH), wanted)


def test_training_a_loaded_model_leaves_its_file(tmp_path):
    saved_by_transformers("llama", tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = nn.load(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(BATCH).square().mean().backward()
    optimizer.step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save_pretrained(tmp_path / "new")
    assert torch.equal(nn.load(tmp_path / "new")(BATCH), model(BATCH))


def test_a_directory_of_older_transformers(tmp_path):
    saved_by_transformers("llama_llama3", tmp_path)
    wanted = nn.load(tmp_path)(BATCH)
    config = settings_in(tmp_path)
    rope = config.pop("rope_parameters", None) or {
        **config.pop("rope_scaling"),
        "rope_theta": config["rope_theta"],
    }
    config["torch_dtype"] = config.pop("dtype", config.get("torch_dtype"))
    config["rope_theta"] = rope.pop("rope_theta")
    for key in ("rope_type", "type"):
        config["rope_scaling"] = {**rope, key: rope["rope_type"]}
        if key == "type":
            del config["rope_scaling"]["rope_type"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = nn.load(tmp_path)
        assert torch.equal(model(BATCH), wanted) and model.config == config
        model.save_pretrained(tmp_path / "again")
        assert settings_in(tmp_path / "again") == config


# New models.


@pytest.mark.parametrize("name", DECODERS)
def test_a_new_model_has_the_names_and_shapes_of_transformers(name):
    model = nn.from_config(models.settings(name))
    other = transformers.AutoModelForCausalLM.from_config(models.hf_config(name))
    mine = {models.name_in_transformers(n, other): p.shape for n, p in model.named_parameters()}
    assert mine == {n: p.shape for n, p in other.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(BATCH).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_a_new_model_is_saved_and_read(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.from_config(models.settings("neox"), dtype=dtype, seed=4)
        model.save_pretrained(tmp_path / str(dtype))
        again = nn.load(tmp_path / str(dtype))
        assert torch.equal(again(BATCH), model(BATCH))
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype))


def standard_deviations(name, init):
    """parameter -> that of its values, by the formulas."""
    config = models.hf_config(name)
    width, layers = config.hidden_size, config.num_hidden_layers
    result = {}
    for n, p in nn.from_config(models.settings(name)).named_parameters():
        if p.dim() != 2:
            result[n] = 0.0
        elif init == "normal":
            result[n] = config.initializer_range
        elif init == "xavier":
            result[n] = math.sqrt(2 / sum(p.shape))
        else:
            names = ("o_proj", "down_proj", "dense", "dense_4h_to_h")
            is_output = n.split(".")[-2] in names
            of_output = {
                "gpt_neox": 2 / (layers * math.sqrt(width)),
                "gpt2": config.initializer_range / math.sqrt(2 * layers),
            }
            others = {"gpt_neox": math.sqrt(2 / (5 * width)), "gpt2": config.initializer_range}
            result[n] = (of_output if is_output else others)[init]
    return result


@pytest.mark.parametrize("init", ["normal", "gpt_neox", "gpt2", "xavier"])
@pytest.mark.parametrize("name", ["llama_biases_tied", "qwen3", "neox"])
def test_initial_values(name, init):
    wanted = standard_deviations(name, init)
    model = nn.from_config(models.settings(name), init=init, seed=5, dtype=torch.float64)
    assert [*wanted] == [n for n, _ in model.named_parameters()]
    seen = set()
    for n, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == float(not n.endswith("bias"))).all(), n
            continue
        size = p.numel()  # mean, standard deviation and kurtosis to 5 of their standard errors
        z = p.detach() / wanted[n]
        assert abs(z.mean()) < 5 / math.sqrt(size), n
        assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / size), n
        assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / size), n
        seen.add(tuple(z.flatten()[:4].tolist()))
    assert len(seen) == sum(p.dim() == 2 for p in model.parameters())  # none repeats another


def test_initial_values_are_a_function_of_the_seed():
    def values(threads, **options):
        torch.set_num_threads(threads)
        return [*nn.from_config(models.settings("llama"), **options).parameters()]

    before = torch.get_num_threads()
    try:
        runs = [values(1, seed=3), values(2, seed=3), values(1, seed=4)]
        rounded = values(1, seed=3, dtype="bfloat16")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(*runs[::2], strict=True) if a.dim() == 2)
    exact = nn.from_config(models.settings("llama"), seed=3, dtype=torch.float64)
    for a, b, c in zip(exact.parameters(), runs[0], rounded, strict=True):
        assert torch.equal(a.float(), b) and torch.equal(a.to(torch.bfloat16), c)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    values(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_settings_given_are_copied():
    settings = models.settings("llama")
    model = nn.from_config(settings)
    settings["hidden_size"] = np.nan
    assert model.config["hidden_size"] == 48
    model.config["hidden_size"] = 1
    assert model.config["hidden_size"] == 48


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_of_half_types_are_written_byte_for_byte(dtype, tmp_path):
    """Numbers of all kinds but NaN: subnormal ones, both zeros, infinities."""
    model = models.ours("llama", torch.float32)
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, -1e-40], dtype=dtype)
    numbers = torch.cat([special, numbers[~numbers.isnan()]])
    first, tensors = 0, {}
    for name, value in model.named_parameters():
        places = torch.arange(first, first + value.numel()) * 7 % len(numbers)
        tensors[name] = numbers[torch.where(places < 7 * 6, places // 7, places)]
        tensors[name] = tensors[name].reshape(value.shape)
        first += value.numel()
    source, out = tmp_path / "source", tmp_path / "out"
    model.to(dtype).save_pretrained(source)
    safetensors.torch.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    for options in ({}, {"dtype": dtype}, {"mmap": False}):
        nn.load(source, **options).save_pretrained(out)
        for file in ("model.safetensors", "config.json"):
            assert (out / file).read_bytes() == (source / file).read_bytes()

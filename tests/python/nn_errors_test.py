"""paperlab.nn: wrong arguments and directories are refused by name, and change nothing."""

import json
import shutil
import struct

import decoder_models as models
import numpy as np
import pytest
import safetensors.torch
import torch
from paperlab import nn

BATCH = models.tokens(2, 9)
RAGGED = [[1, 2], [3]]
META = torch.zeros(2, 9, device="meta", dtype=torch.int64)


@pytest.fixture(scope="module")
def model():
    return models.ours("llama")


@pytest.fixture(scope="module")
def unchanged(model):
    """Checks that the model computes what it did at first."""
    wanted = model(BATCH).detach()
    return lambda: torch.equal(model(BATCH), wanted)


TOKENS = {
    "floats": (BATCH.float(), "integers"),
    "bools": (BATCH.bool(), "integers"),
    "complex": (BATCH.to(torch.complex64), "integers"),
    "array of floats": (np.ones((2, 3)), "integers"),
    "array of objects": (np.array([[None]]), "integers"),
    "array of bools": (np.ones((2, 3), bool), "integers"),
    "none": (None, r"\[B, T\]"),
    "text": ("ab", r"\[B, T\]"),
    "ragged": (RAGGED, "unequal length"),
    "one dimension": (BATCH[0], r"\[B, T\].*got \[9\]"),
    "three dimensions": (BATCH[None], r"\[B, T\].*got \[1, 2, 9\]"),
    "a number": (3, r"\[B, T\].*got \[\]"),
    "list of one dimension": ([1, 2], r"\[B, T\]"),
    "empty list": ([], r"\[B, T\]"),
    "sparse": (BATCH.to_sparse(), "strided"),
    "meta": (META, "meta"),
    "too large": (torch.tensor([[3, 97]]), "vocab_size 97.*got token 97"),
    "much too large": (torch.tensor([[2**62, 0]]), f"vocab_size 97.*got token {2**62}"),
    "negative": (torch.tensor([[3, -1]]), "vocab_size 97.*got token -1"),
    "negative of few bits": (torch.tensor([[3, -7]], dtype=torch.int8), "got token -7"),
}


@pytest.mark.parametrize("call", ["forward", "hidden", "generate"])
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens(model, unchanged, call, kind):
    tokens, part = TOKENS[kind]
    with pytest.raises((ValueError, TypeError), match=f"tokens must .*{part}"):
        getattr(model, call)(tokens, **({"max_new_tokens": 2} if call == "generate" else {}))
    assert unchanged()


@pytest.mark.parametrize("tokens", [BATCH[:, :0], BATCH[:0], [[]]], ids=str)
def test_without_tokens_there_is_no_last_one(model, unchanged, tokens):
    with pytest.raises(ValueError, match=r"generate: tokens must be .*B and T >= 1"):
        model.generate(tokens, max_new_tokens=2)
    if len(tokens) > 0:
        with pytest.raises(ValueError, match=r"forward: tokens must be .*T >= 1"):
            model(tokens, last_only=True)
    assert unchanged()


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 8),
        torch.ones(9),
        torch.ones(1, 9),
        torch.ones(2, 1, 9, 9),
        torch.tensor(1),
        torch.ones(2, 9).to_sparse(),
        META,
        np.ones((3, 9)),
        np.full((2, 9), "a"),
        np.full((2, 9), None),
        RAGGED,
        "ab",
        3,
    ],
)
def test_masks(model, unchanged, mask):
    for call in (model, model.hidden, lambda t, m: model.generate(t, 2, attention_mask=m)):
        with pytest.raises((ValueError, TypeError), match="attention_mask"):
            call(BATCH, mask)
    assert unchanged()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"cache": "a"}, "forward: cache must be"),
        ({"cache": {}}, "forward: cache must be"),
        ({"last_only": "a"}, "forward: last_only must be"),
        ({"last_only": 1}, "forward: last_only must be"),
        ({"token_type_ids": torch.zeros(2, 9)}, "forward: token_type_ids must be"),
    ],
)
def test_other_arguments_of_forward(model, unchanged, options, part):
    with pytest.raises((ValueError, TypeError), match=part):
        model(BATCH, **options)
    assert unchanged()


_BAD_NUMBERS = [-1, 2.0, True, "a", None, 2**63, float("nan")]
GENERATE = [
    *[({"max_new_tokens": n}, "max_new_tokens") for n in [*_BAD_NUMBERS, 56]],
    *[({"prefill_chunk": n}, "prefill_chunk") for n in _BAD_NUMBERS],
    *[({"seed": n}, "seed") for n in [-1, 2.0, True, "a", None, 2**64]],
    *[({"temperature": x}, "temperature") for x in [-0.1, float("nan"), float("inf"), "a", None]],
    *[({"top_p": x}, "top_p") for x in [0.0, -0.5, 1.0001, float("nan"), "a", None]],
    *[
        ({"eos_token_id": x}, "eos_token_id")
        for x in [-1, 5.0, "a", True, [3, -1], [None], object()]
    ],
    *[({"eos_token_id": x}, "eos_token_id") for x in [[3, 4.0], [[3]], torch.tensor(2.0)]],
    *[({"pad_token_id": x}, "pad_token_id") for x in [-1, 97, 2.0, "a", True, [3]]],
    *[({"on_tokens": x}, "on_tokens must be callable") for x in [3, "a"]],
    ({"attention_mask": torch.zeros(2, 9)}, "attention_mask must leave a token"),
    ({"attention_mask": torch.ones(2, 9).tril(-1)}, "attention_mask must leave a token"),
]


@pytest.mark.parametrize(("options", "part"), GENERATE)
def test_generate(model, unchanged, options, part):
    calls = []
    options = {"max_new_tokens": 3, "on_tokens": calls.append, **options}
    with (
        model.on_linear_input(lambda name, x: calls.append(name)),
        pytest.raises((ValueError, TypeError), match=f"generate: {part}"),
    ):
        model.generate(BATCH, **options)
    assert not calls  # before any work
    assert unchanged()


def test_ids_of_any_integer_type(model):
    batch = model.generate(BATCH, 5, eos_token_id=None)
    end = int(batch[0, 11])
    wanted = model.generate(BATCH, 5, eos_token_id=end, pad_token_id=3)
    for kind in (np.int64(end), torch.tensor(end), torch.tensor([end]), (end,), np.array([end])):
        result = model.generate(BATCH, 5, eos_token_id=kind, pad_token_id=np.int32(3))
        assert torch.equal(result, wanted)
    assert torch.equal(model.generate(BATCH, 5, eos_token_id=[]), batch)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("x",), "role must be one of embed, head, norm"),
        (("x", 0), "role must be one of attention_norm"),
        ((3,), "role must be a str"),
        ((None,), "role must be a str"),
        (("q",), "without a layer"),
        (("o", None, 1), "without a layer"),
        (("embed", 0), "with a layer"),
        (("q", 2), r"layer.*0\.\.1.*got 2"),
        (("q", -1), "layer must be.*got -1"),
        (("q", 1.0), "layer must be an integer"),
        (("q", True), "layer must be an integer"),
        (("q", 0, 6), r"head.*0\.\.5.*got 6"),
        (("k", 0, 2), r"head.*0\.\.1.*got 2"),
        (("v", 0, -1), "head must be.*got -1"),
        (("v", 0, "a"), "head must be an integer"),
        (("gate", 0, 0), "head for q, k, v and o"),
        (("norm", 0, 0), "head for q, k, v and o"),
        (("head", None, 0), "head for q, k, v and o"),
    ],
)
def test_tensor(model, arguments, part):
    with pytest.raises((ValueError, TypeError), match=f"tensor: .*{part}"):
        model.tensor(*arguments)


@pytest.mark.parametrize(
    "sizes", [(0, 3), (3, 0), (-1, 3), (1.5, 3), (2, "a"), (True, 3), (3, None)]
)
def test_new_cache(model, sizes):
    with pytest.raises(
        (ValueError, TypeError), match=r"new_cache: (batch_size|max_length) must be"
    ):
        model.new_cache(*sizes)


def test_paths(model, tmp_path):
    for value in (3, None, [tmp_path]):
        with pytest.raises(TypeError, match="load: directory must be a path"):
            nn.load(value)
        with pytest.raises(TypeError, match="save_pretrained: directory must be a path"):
            model.save_pretrained(value)
    for call in (nn.load, model.save_pretrained):
        with pytest.raises(ValueError, match="directory must not contain a zero byte"):
            call("a\0b")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OSError, match="file: Not a directory"):
        model.save_pretrained(file)
    assert file.read_text() == "x"
    for missing in (tmp_path / "none", ""):
        with pytest.raises(FileNotFoundError):
            nn.load(missing)
    with pytest.raises(OSError, match="file"):
        nn.load(file)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        nn.load(tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.complex64, "int64", "nothing", "", 3, object()]
)
def test_dtypes(dtype, tmp_path):
    for call in (
        lambda: nn.load(tmp_path, dtype=dtype),
        lambda: nn.from_config(models.settings("llama"), dtype=dtype),
    ):
        with pytest.raises(ValueError, match="dtype must be float32"):
            call()


BAD_SETTINGS = [
    ({"hidden_size": -1}, "hidden_size"),
    ({"hidden_size": 2.5}, "hidden_size"),
    ({"num_key_value_heads": 4}, "num_key_value_heads"),
    ({"num_attention_heads": 5}, "num_attention_heads|hidden_size"),
    ({"head_dim": 5}, "head_dim"),
    ({"head_dim": 300}, "head_dim"),
    ({"vocab_size": "a"}, "vocab_size"),
    ({"hidden_act": "mish"}, "hidden_act.*silu.*relu"),
    ({"model_type": "mamba"}, "model_type.*llama, mistral, qwen2, qwen3, gpt_neox"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures.*LlamaForCausalLM"),
    ({"logit_scale": 0.5}, "logit_scale"),
    ({"rms_norm_eps": float("nan")}, "config must be"),
    ({"hidden_act": "\ud800"}, "config must be"),
    ({"unknown": {1: object()}}, "config must be"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
]


@pytest.mark.parametrize(("changes", "part"), BAD_SETTINGS)
def test_settings(changes, part):
    with pytest.raises((ValueError, TypeError), match=part):
        nn.from_config({**models.settings("llama"), **changes})


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_refused_settings_leave_the_memory_whole(kind, run_python):
    # Nested values, so that a second destruction of them ends the process.
    code = """
import sys
from paperlab import nn
strange = {"model_type": sys.argv[1], "strange": [{"a": ["b" * 99, {"c": [1, 2]}]}] * 9}
for _ in range(200):
    try:
        nn.from_config(strange)
    except ValueError:
        continue
    raise SystemExit("not refused")
"""
    done = run_python(["-c", code, kind])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"config": None}, "config must be a mapping"),
        ({"config": "a"}, "config must be a mapping"),
        ({"config": {}}, "model_type"),
        ({"init": "zeros"}, "init must be"),
        ({"init": 3}, "init must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.0}, "seed must be"),
        ({"dtype": torch.float16}, "dtype must be float32, float64 or bfloat16"),
    ],
)
def test_from_config(arguments, part):
    arguments = {"config": models.settings("llama"), **arguments}
    with pytest.raises((ValueError, TypeError), match=part):
        nn.from_config(arguments.pop("config"), **arguments)


# Directories.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "llama"
    models.ours("llama", torch.float32).save_pretrained(directory)
    return directory


@pytest.fixture
def directory(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def change_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(directory, change):
    file = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


def write_index(directory, files):
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def huge_header(directory):
    file = directory / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])


def missing_shard(directory):
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    names = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(tensors)}
    write_index(directory, names)


UP = "model.layers.1.mlp.up_proj.weight"


def no_number(directory):
    change_weights(directory, lambda t: t[UP].view(-1)[83].fill_(float("nan")))


BROKEN = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
    "truncated weights": (truncate, r"model\.safetensors"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), r"model\.safetensors"),
    "a huge header": (huge_header, r"model\.safetensors"),
    "a missing shard": (missing_shard, "model-00002-of-00002"),
    "NaN": (no_number, rf"model\.safetensors.*{UP}.*NaN at index \[1, 35\]"),
    "a missing tensor": (lambda d: change_weights(d, lambda t: t.pop(UP)), UP),
    "an unknown tensor": (
        lambda d: change_weights(d, lambda t: t.update(more=torch.ones(1))),
        "more",
    ),
    "a wrong shape": (
        lambda d: change_weights(d, lambda t: t.update({UP: t[UP].T.contiguous()})),
        f"{UP}.*48",
    ),
    "a wrong type": (lambda d: change_weights(d, lambda t: t.update({UP: t[UP].int()})), UP),
    "another vocabulary": (lambda d: change_config(d, vocab_size=98), "embed_tokens.*98|98.*embed"),
    "other sizes": (lambda d: change_config(d, intermediate_size=81), "mlp"),
    "more layers": (lambda d: change_config(d, num_hidden_layers=3), r"layers\.2"),
    "fewer layers": (lambda d: change_config(d, num_hidden_layers=1), r"layers\.1"),
    "an unknown architecture": (
        lambda d: change_config(d, architectures=["NoForCausalLM"]),
        r"config\.json.*architectures.*LlamaForCausalLM",
    ),
    "an unknown type": (lambda d: change_config(d, model_type="x"), "model_type.*llama.*gpt_neox"),
    "an unknown setting": (lambda d: change_config(d, new_scale=2.0), r"config\.json.*new_scale"),
    "a config that is no object": (lambda d: (d / "config.json").write_text("[]"), "config"),
    "a config that is no JSON": (lambda d: (d / "config.json").write_text("{"), "config"),
    "a config that is no UTF-8": (
        lambda d: (d / "config.json").write_bytes(b'{"model_type": "\xff"}'),
        r"config\.json",
    ),
    "a config that is a folder": (
        lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()),
        r"config\.json",
    ),
    "a generation config that is no JSON": (
        lambda d: (d / "generation_config.json").write_bytes(b"\xff"),
        r"generation_config\.json",
    ),
    "ends that are no ids": (
        lambda d: (d / "generation_config.json").write_text('{"eos_token_id": "a"}'),
        r"generation_config\.json.*eos_token_id",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_directories(directory, kind):
    nn.load(directory)
    damage, part = BROKEN[kind]
    damage(directory)
    with pytest.raises((ValueError, OSError), match=f"(?s){part}"):
        nn.load(directory)


def test_a_refused_save_leaves_what_was_there(directory):
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    model = models.ours("llama", torch.float32, seed=8)
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    with pytest.raises(OSError, match=r"config\.json"):
        model.save_pretrained(directory)
    (directory / "config.json").rmdir()
    (directory / "config.json").write_bytes(before["config.json"])
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before

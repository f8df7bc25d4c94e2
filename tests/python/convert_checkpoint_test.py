"""paperlab.convert.checkpoint: a Hugging Face directory with numbers of another type."""

import json

import decoder_models as models
import pytest
import safetensors.torch
import torch
from paperlab import convert, nn
from paperlab.convert import _checkpoint
from paperlab.convert._command import main

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "merges.txt", "vocab.txt", "spm.model")
SHARDS = {"shard": "model-00001-of-00002.safetensors"}


@pytest.fixture
def source(tmp_path):
    """A directory of a decoder, with files of a tokenizer and one that no model has."""
    folder = tmp_path / "source"
    models.ours("llama", torch.float32).save_pretrained(folder)
    for name in TOKENIZER:
        (folder / name).write_bytes(name.encode())
    (folder / "mine.txt").write_text("mine")
    return folder


def tensors_of(folder):
    known = {}
    for file in sorted(folder.glob("*.safetensors")):
        known |= safetensors.torch.load_file(file)
    return known


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
def test_every_number_is_rounded_once(before, after, source, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_PIECE", 101)
    start = tmp_path / "start"
    nn.load(source, dtype=before).save_pretrained(start)
    out = convert.checkpoint(start, tmp_path / "out", dtype=after)
    assert out == tmp_path / "out"
    wanted = {name: x.to(DTYPES[after]) for name, x in tensors_of(start).items()}
    got = tensors_of(out)
    assert {*got} == {*wanted}
    assert all(got[n].dtype == x.dtype and torch.equal(got[n], x) for n, x in wanted.items())
    key = "torch_dtype" if "torch_dtype" in config_of(start) else "dtype"
    assert config_of(out) == config_of(start) | {key: after}
    assert {p.dtype for p in nn.load(out).parameters()} == {DTYPES[after]}
    if before == after:
        name = "model.safetensors"
        assert (out / name).read_bytes() == (start / name).read_bytes()
    assert not (tmp_path / "out.tmp").exists()


def test_the_other_files_are_copied(source, tmp_path):
    lines = []
    out = convert.checkpoint(source, tmp_path / "a" / "out", dtype="float16", notice=lines.append)
    for name in (*TOKENIZER, "generation_config.json"):
        if (source / name).exists():
            assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / "mine.txt").exists()
    assert len(lines) == 1 and "tensors" in lines[0]
    model = models.ours("llama", torch.float32)
    wanted = model.half()(models.tokens(2, 5))
    assert torch.equal(nn.load(out)(models.tokens(2, 5)), wanted)


def test_shards_on_both_sides(source, tmp_path):
    nn.load(source).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    whole = convert.checkpoint(tmp_path / "shards", tmp_path / "whole", dtype="bfloat16")
    again = convert.checkpoint(source, tmp_path / "again", dtype="bfloat16", max_shard_size="20KB")
    assert [p.name for p in whole.glob("*.safetensors")] == ["model.safetensors"]
    assert len([*again.glob("*.safetensors")]) > 2
    one, two = tensors_of(whole), tensors_of(again)
    assert {*one} == {*two} and all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(nn.load(again)(models.tokens(1, 4)), nn.load(whole)(models.tokens(1, 4)))


def rewrite(folder, **tensors):
    path = folder / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | tensors, path, {"format": "pt"})


def test_integers_and_infinities_stay(source, tmp_path):
    special = torch.tensor([0.0, -0.0, 1e-45, torch.inf, -torch.inf, 65504.0])
    rewrite(source, ids=torch.arange(5), mask=torch.tensor([True, False]), special=special)
    got = tensors_of(convert.checkpoint(source, tmp_path / "out", dtype="float16"))
    assert got["ids"].dtype == torch.int64 and got["ids"].tolist() == [*range(5)]
    assert got["mask"].dtype == torch.bool and got["mask"].tolist() == [True, False]
    assert got["special"].tolist() == special.half().tolist()
    assert torch.signbit(got["special"]).tolist() == torch.signbit(special).tolist()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.tensor([1.0, torch.nan])}, "tensor 'x' holds NaN"),
        ({"x": torch.tensor([[1.0], [7e4]])}, "tensor 'x' has numbers that float16 cannot hold"),
        ({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "tensor 'x' must be .* got F8_E4M3"),
    ],
)
def test_tensors_that_are_refused(tensors, message, source, tmp_path):
    rewrite(source, **tensors)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        convert.checkpoint(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ("[" * 100_000, "not JSON"),
        ('{"quantization_config": {"bits": 4}}', "quantization_config: weights must not be"),
    ],
)
def test_settings_that_are_refused(text, message, source, tmp_path):
    (source / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        convert.checkpoint(source, tmp_path / "out", dtype="float16")


def test_the_dtype_stands_where_the_settings_have_it(source, tmp_path):
    config = config_of(source)
    for i, old in enumerate(({"torch_dtype": "float32"}, {"dtype": "x", "torch_dtype": "y"}, {})):
        (source / "config.json").write_text(json.dumps(config | old))
        out = convert.checkpoint(source, tmp_path / str(i), dtype="bfloat16")
        expected = dict.fromkeys(old or ["dtype"], "bfloat16")
        assert config_of(out) == config | expected


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map must map"),
        ({"weight_map": {}}, "weight_map must map"),
        ({"weight_map": {"x": "../y.safetensors"}}, "weight_map must map"),
        ({"weight_map": {"x": 3}}, "weight_map must map"),
        ({"weight_map": {"x": SHARDS["shard"]}}, "weight_map must be what the files hold"),
    ],
)
def test_indices_that_are_refused(index, message, source, tmp_path):
    (source / "model.safetensors").rename(source / SHARDS["shard"])
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json: {message}"):
        convert.checkpoint(source, tmp_path / "out", dtype="float16")


def test_what_is_there_stays_unless_it_is_forced(source, tmp_path):
    out = tmp_path / "out"
    convert.checkpoint(source, out, dtype="float16")
    with pytest.raises(ValueError, match="is there and is not empty"):
        convert.checkpoint(source, out, dtype="bfloat16")
    assert config_of(out).get("dtype", config_of(out).get("torch_dtype")) == "float16"
    convert.checkpoint(source, out, dtype="bfloat16", force=True)
    assert {x.dtype for x in tensors_of(out).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="holds the file that is to be converted"):
        convert.checkpoint(out, out, dtype="float16", force=True)


def test_arguments_that_are_refused(source, tmp_path):
    out = tmp_path / "out"
    for options, message in (
        ({"dtype": "int8"}, "convert.checkpoint: dtype must be"),
        ({"dtype": "float64"}, "convert.checkpoint: dtype must be"),
        ({"force": 1}, "convert.checkpoint: force must be"),
        ({"max_shard_size": "5XB"}, "convert.checkpoint: max_shard_size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.checkpoint(source, out, **({"dtype": "float16"} | options))
    with pytest.raises(TypeError, match="checkpoint: source must be"):
        convert.checkpoint(3, out, dtype="float16")
    with pytest.raises(ValueError, match="checkpoint: directory must be a path"):
        convert.checkpoint(source, "", dtype="float16")
    with pytest.raises(FileNotFoundError):
        convert.checkpoint(tmp_path / "nowhere", out, dtype="float16")
    (source / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        convert.checkpoint(source, out, dtype="float16")
    assert not out.exists()


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(source), str(out), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert {x.dtype for x in tensors_of(out).values()} == {torch.bfloat16}
    assert main([str(source), str(out), "--dtype", "float16"]) == 1
    assert "is there and is not empty" in capsys.readouterr().err
    assert main([str(source), str(out), "--dtype", "float16", "--force"]) == 0


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ENCODERS = {
    "BertForMaskedLM": {"model_type": "bert", "vocab_size": 30, "max_position_embeddings": 12},
    "DebertaV2ForSequenceClassification": {
        "model_type": "deberta-v2",
        "vocab_size": 30,
        "max_position_embeddings": 12,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
    },
    "ViTForImageClassification": {"model_type": "vit", "image_size": 8, "patch_size": 4},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name, tmp_path):
    config = SMALL | ENCODERS[name] | {"architectures": [name]}
    model = nn.from_config(config, seed=3)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "preprocessor_config.json").write_text("{}")
    out = convert.checkpoint(tmp_path / "source", tmp_path / "out", dtype="bfloat16")
    assert (out / "preprocessor_config.json").read_text() == "{}"
    before, after = tensors_of(tmp_path / "source"), tensors_of(out)
    assert {n: x.bfloat16().tolist() for n, x in before.items()} == {
        n: x.tolist() for n, x in after.items()
    }
    read = nn.load(out)
    assert type(read) is type(model) and {p.dtype for p in read.parameters()} == {torch.bfloat16}
    rows = torch.arange(2 * 3 * 64).reshape(2, 3, 8, 8) % 7 / 7.0
    given = rows if name.startswith("ViT") else torch.arange(10).reshape(2, 5)
    wanted = model.bfloat16()(given)
    assert torch.equal(read(given), wanted)

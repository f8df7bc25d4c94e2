"""paperlab.nn: directories of encoders, their parts by role, and what is refused by name."""

import json
import math
import shutil

import encoder_models as models
import paperlab
import pytest
import torch
import transformers
from encoder_models import CASES, TEXT, one_thread  # noqa: F401, a fixture
from safetensors.torch import load_file, save_file


def bits(tensor):
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(sizes[tensor.element_size()])


def settings_in(directory):
    return json.loads((directory / "config.json").read_text())


def write(directory, tensors, settings):
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


def inputs(name):
    return models.tokens() if name in TEXT else models.pixels(name)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    pair = models.pair(name)
    model = paperlab.nn.load(pair.directory)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    file = "model.safetensors"
    assert (tmp_path / file).read_bytes() == (pair.directory / file).read_bytes()
    assert settings_in(tmp_path) == settings_in(pair.directory)
    stored = load_file(tmp_path / file)
    assert {n for n, _ in model.named_parameters()} == {*stored}
    assert all(torch.equal(bits(p), bits(stored[n])) for n, p in model.named_parameters())
    assert model.config == settings_in(pair.directory)
    again = type(pair.theirs).from_pretrained(tmp_path).double()
    with torch.no_grad():
        got, wanted = again(inputs(name)), pair.theirs(inputs(name))
    assert torch.equal(got[0], wanted[0])


def test_a_new_model_is_read_by_transformers(tmp_path):
    for name in ("roberta_masked", "deberta_convolution", "distilbert_sequence"):
        settings = models.settings(name)
        made = paperlab.nn.from_config(settings, seed=4, dtype="float64")
        made.save_pretrained(tmp_path / name)
        other = type(models.pair(name).theirs).from_pretrained(tmp_path / name).double().eval()
        with torch.no_grad():
            wanted, got = other(models.tokens()).logits, made(models.tokens())
        models.check_close(got, wanted, 1e-11)
        embedding = made.tensor("embed")
        padding = settings["pad_token_id"]
        assert (embedding[padding] == 0).all() and (embedding[padding + 1] != 0).all()
    with pytest.raises(ValueError, match="init must be normal for an encoder, got xavier"):
        paperlab.nn.from_config(models.settings("bert_masked"), init="xavier")


# Tensors of other heads, old buffers, and names that TensorFlow gave to norms.
def test_tensors_that_a_model_leaves_aside_are_saved_again(tmp_path):
    pair = models.pair("bert_masked")
    stored = load_file(pair.directory / "model.safetensors")
    old = {}
    for name, value in stored.items():
        for new, former in (
            ("LayerNorm.weight", "LayerNorm.gamma"),
            ("LayerNorm.bias", "LayerNorm.beta"),
        ):
            name = name.replace(new, former)
        old[name] = value
    old["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = stored["cls.predictions.bias"].clone()
    old["bert.pooler.dense.weight"] = torch.randn(24, 24)
    old["bert.pooler.dense.bias"] = torch.randn(24)
    old["cls.seq_relationship.weight"] = torch.randn(2, 24)
    buffer = {"bert.embeddings.position_ids": torch.arange(24)[None]}
    directory = write(tmp_path / "old", {**old, **buffer}, settings_in(pair.directory))
    model = paperlab.nn.load(directory)
    assert {n for n, _ in model.named_parameters()} == {*stored}
    single = paperlab.nn.load(pair.directory)
    assert torch.equal(model(models.tokens()), single(models.tokens()))
    model.save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert {*saved} == {*old}
    assert all(torch.equal(saved[n], old[n]) for n in old)


def test_a_model_without_head_reads_names_with_and_without_its_prefix(tmp_path):
    pair = models.pair("minilm")
    stored = load_file(pair.directory / "model.safetensors")
    prefixed = {f"bert.{n}": v for n, v in stored.items() if not n.startswith("pooler")}
    model = paperlab.nn.load(write(tmp_path / "in", prefixed, settings_in(pair.directory)))
    assert {n for n, _ in model.named_parameters()} == {n for n in stored if "pooler" not in n}
    single = paperlab.nn.load(pair.directory)
    assert torch.equal(model(models.tokens()), single(models.tokens()))
    model.save_pretrained(tmp_path / "out")
    assert {*load_file(tmp_path / "out" / "model.safetensors")} == {*prefixed}


# As released microsoft/deberta-v3-base: a model with the tensors of its head and no architectures.
@pytest.mark.parametrize("absent", [{}, {"architectures": None}, {"architectures": []}])
def test_files_without_architectures_are_of_the_model_itself(absent, tmp_path):
    pair = models.pair("deberta_masked")
    settings = {k: v for k, v in settings_in(pair.directory).items() if k != "architectures"}
    stored = load_file(pair.directory / "model.safetensors")
    head = {n: v for n, v in stored.items() if n.startswith("cls.")}
    old = {
        "mask_predictions.dense.weight": torch.randn(24, 24),
        "classifier.weight": torch.randn(2, 24),
        "deberta.embeddings.position_embeddings.weight": torch.randn(24, 24),
    }
    directory = write(tmp_path / "in", {**stored, **old}, {**settings, **absent})
    model = paperlab.nn.load(directory, dtype="float64")
    states = pair.ours.hidden(models.tokens())
    assert torch.equal(model(models.tokens()), states)
    theirs = transformers.AutoModel.from_pretrained(pair.directory).double()
    with torch.no_grad():
        models.check_close(model(models.tokens()), theirs(models.tokens())[0], 1e-11)
    names = {n for n, _ in model.named_parameters()}
    assert names == {n.removeprefix("deberta.") for n in stored if n not in head}
    model.save_pretrained(tmp_path / "out")
    assert {*load_file(tmp_path / "out" / "model.safetensors")} == {*stored, *old}
    assert settings_in(tmp_path / "out") == {**settings, **absent, "dtype": "float64"}
    made = paperlab.nn.from_config({**settings, **absent}, seed=1)
    assert made(models.tokens()).shape == states.shape


def test_the_names_of_vit_in_files_and_in_memory(tmp_path):
    pair = models.pair("vit")
    state = {n: p.float() for n, p in pair.theirs.state_dict().items()}
    later = paperlab.nn.load(write(tmp_path / "in", state, settings_in(pair.directory)))
    other = pair.ours.other_linear_names()
    assert len(other) == 12 and {*other} < {*pair.ours.linear_names()}
    assert all(models.file_name(memory + ".weight") == n + ".weight" for n, memory in other.items())
    assert later.other_linear_names() == {memory: name for name, memory in other.items()}
    assert models.pair("vit_states").ours.other_linear_names()["encoder.layer.1.output.dense"] == (
        "layers.1.mlp.fc2"
    )
    assert models.pair("bert_masked").ours.other_linear_names() == {}


def test_vit_keeps_the_names_of_its_file(tmp_path):
    pair = models.pair("vit")
    state = {n: p.float() for n, p in pair.theirs.state_dict().items()}
    model = paperlab.nn.load(write(tmp_path / "in", state, settings_in(pair.directory)))
    assert [n for n, _ in model.named_parameters()] == [*state]
    image = models.pixels("vit")
    assert torch.equal(model(image), paperlab.nn.load(pair.directory)(image))
    model.save_pretrained(tmp_path / "out")
    assert {*load_file(tmp_path / "out" / "model.safetensors")} == {*state}


def test_files_of_tokenizers_and_image_processors_go_along(tmp_path):
    shutil.copytree(models.pair("vit").directory, tmp_path / "in")
    for file in ("vocab.txt", "spm.model", "preprocessor_config.json"):
        (tmp_path / "in" / file).write_text(file)
    paperlab.nn.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    for file in ("vocab.txt", "spm.model", "preprocessor_config.json"):
        assert (tmp_path / "out" / file).read_text() == file


_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "attention.output.LayerNorm",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}
_DEBERTA = {
    **_BERT,
    "q": "attention.self.query_proj",
    "position_q": "attention.self.pos_query_proj",
    "position_k": "attention.self.pos_key_proj",
    "k": "attention.self.key_proj",
    "v": "attention.self.value_proj",
}
_VIT = {
    "q": "attention.attention.query",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "norm": "layernorm_before",
    "ffn_norm": "layernorm_after",
}
_DISTIL = {"q": "attention.q_lin", "o": "attention.out_lin", "down": "ffn.lin2"}
ROLES = {
    "bert_masked": ("bert.encoder.layer.1.", _BERT),
    "roberta_sequence": ("roberta.encoder.layer.1.", _BERT),
    "minilm": ("encoder.layer.1.", _BERT),
    "distilbert_tokens": ("distilbert.transformer.layer.1.", _DISTIL),
    "deberta_new_head": ("deberta.encoder.layer.1.", _DEBERTA),
    "vit": ("vit.encoder.layer.1.", _VIT),
}
OUTSIDE = {
    "bert_masked": {
        "embed": "bert.embeddings.word_embeddings.weight",
        "head": "bert.embeddings.word_embeddings.weight",
        "type_embed": "bert.embeddings.token_type_embeddings.weight",
        "head_dense": "cls.predictions.transform.dense.weight",
    },
    "bert_untied": {"head": "cls.predictions.decoder.weight"},
    "roberta_sequence": {
        "head": "classifier.out_proj.weight",
        "pooler": "classifier.dense.weight",
        "position_embed": "roberta.embeddings.position_embeddings.weight",
    },
    "minilm": {"embed": "embeddings.word_embeddings.weight", "pooler": "pooler.dense.weight"},
    "distilbert_tokens": {"head": "classifier.weight"},
    "deberta_new_head": {
        "relative_embed": "deberta.encoder.rel_embeddings.weight",
        "relative_norm": "deberta.encoder.LayerNorm.weight",
        "embed_norm": "deberta.embeddings.LayerNorm.weight",
    },
    "vit": {
        "embed": "vit.embeddings.patch_embeddings.projection.weight",
        "norm": "vit.layernorm.weight",
        "class_token": "vit.embeddings.cls_token",
        "head": "classifier.weight",
    },
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_of_a_layer_are_views_of_its_parameters(name):
    model = models.pair(name).ours
    values = dict(model.named_parameters())
    prefix, roles = ROLES[name]
    for role, leaf in roles.items():
        weight = values[f"{prefix}{leaf}.weight"]
        got = model.tensor(role, 1)
        assert torch.equal(got, weight) and got.data_ptr() == weight.data_ptr()
        if role in ("q", "k", "v", "o", "position_q", "position_k"):
            heads = len(weight) // (size := head_size(name))
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                wanted = weight[:, part] if role == "o" else weight[part]
                assert torch.equal(model.tensor(role, 1, head), wanted)
            (grad,) = torch.autograd.grad(model.tensor(role, 1, 1).sum(), weight)
            assert grad.sum() == wanted.numel()


def head_size(name):
    config = models.settings(name)
    width = config.get("hidden_size") or config["dim"]
    return width // (config.get("num_attention_heads") or config["n_heads"])


@pytest.mark.parametrize("name", OUTSIDE)
def test_roles_outside_of_the_layers(name):
    model = models.pair(name).ours
    values = dict(model.named_parameters())
    for role, parameter in OUTSIDE[name].items():
        got = model.tensor(role)
        assert torch.equal(got, values[parameter])
        assert got.data_ptr() == values[parameter].data_ptr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gate", 0), "role must be one of q, k, v, o, up, down, norm.* with a layer, got 'gate'"),
        (("norm",), "role must be one of embed, head, position_embed.* got 'norm'"),
        (("q",), "without a layer, got 'q'"),
        (("q", 2), "layer in 0..1, got 2"),
        (("q", 0, 2), "head in 0..1, got 2"),
        (("up", 0, 0), "head for q, k, v and o alone"),
    ],
)
def test_parts_that_an_encoder_has_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.pair("bert_masked").ours.tensor(*arguments)


TOO_LONG = torch.zeros(1, 25, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bert_masked", ([[1, 59]],), r"vocab_size 59\), got token 59"),
        ("bert_masked", ([[1, -7]],), "got token -7"),
        ("bert_masked", (torch.zeros(2, 3),), "tokens must be integers"),
        ("bert_masked", ([1, 2],), r"tokens must be \[B, T\]"),
        ("bert_masked", (TOO_LONG,), r"tokens must be at most 24 \(max_positions\), got 25"),
        ("roberta_tokens", (TOO_LONG[:, :20],), "tokens must be at most 19"),
        ("bert_masked", ([[1, 2]], torch.ones(1, 3)), "attention_mask must be of the shape"),
        ("bert_masked", ([[1, 2]], None, [[0, 2]]), r"type_vocab_size 2\), got 2"),
        ("bert_masked", ([[1, 2]], None, [[0, -1]]), "token_type_ids must be in 0..1"),
        ("bert_masked", ([[1, 2]], None, [[0]]), "token_type_ids must be of the shape of tokens"),
        ("bert_masked", ([[1, 2]], None, [[0.5, 1.0]]), "token_type_ids must be"),
        ("bert_sequence", (torch.zeros(2, 0, dtype=torch.int64),), "T >= 1"),
    ],
)
def test_bad_tokens_are_refused(name, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        models.pair(name).ours(*arguments)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert_masked", {"is_decoder": True}, "setting 'is_decoder' must be false"),
        ("bert_masked", {"position_embedding_type": "relative_key"}, "'position_embedding_type'"),
        ("bert_masked", {"hidden_act": "mish"}, "setting 'hidden_act' must be one of"),
        ("bert_masked", {"hidden_size": 25}, "'hidden_size' must be a multiple of num_attention"),
        ("bert_masked", {"architectures": ["BertForPreTraining"]}, "begins with one of BertModel"),
        ("bert_masked", {"architectures": "BertModel"}, "setting 'architectures' must be a list"),
        ("bert_masked", {"embedding_size": 12}, "setting 'embedding_size' .* is not known"),
        ("bert_masked", {"pad_token_id": 59}, "'pad_token_id' must be null or a token id"),
        ("bert_masked", {"quantization_config": {}}, "quantized weights are not read"),
        ("bert_masked", {"num_hidden_layers": 0}, "'num_hidden_layers' must be an integer from 1"),
        ("bert_masked", {"hidden_size": 2**30, "vocab_size": 2**30}, "at most 1e13 parameters"),
        ("bert_sequence", {"num_labels": 9}, "setting 'num_labels' must be as many"),
        ("roberta_masked", {"pad_token_id": None}, "'pad_token_id' must be a token id"),
        ("roberta_masked", {"max_position_embeddings": 2}, "more than pad_token_id"),
        ("distilbert_masked", {"n_heads": 5}, "setting 'dim' must be a multiple of n_heads"),
        ("deberta_masked", {"pos_att_type": ["p2p"]}, "'pos_att_type' must be c2p, p2c"),
        ("deberta_masked", {"norm_rel_ebd": "rms"}, "'norm_rel_ebd' must be layer_norm or none"),
        ("deberta_masked", {"embedding_size": 12}, "setting 'embedding_size' must be 24"),
        ("deberta_masked", {"conv_kernel_size": 2}, "'conv_kernel_size' must be odd"),
        ("deberta_masked", {"position_buckets": 30}, "setting 'position_buckets' must be"),
        ("vit", {"image_size": [8]}, "'image_size' must be an integer >= 1 or a list"),
        ("vit", {"hidden_size": 2}, "'hidden_size' must be at least num_attention_heads"),
        ("vit", {"head_dim": 2**31 - 1, "num_hidden_layers": 10000}, "at most 1e13 parameters"),
        ("vit", {"patch_size": 13}, "setting 'patch_size' must be at most image_size"),
        ("vit", {"architectures": ["ViTForMaskedImageModeling"]}, "ViTForImageClassification"),
    ],
)
def test_settings_that_are_refused(name, changes, message, tmp_path):
    source = models.pair(name).directory
    shutil.copy(source / "model.safetensors", tmp_path)
    settings = {**settings_in(source), **changes}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message) as error:
        paperlab.nn.load(tmp_path)
    assert "config.json" in str(error.value)


def test_tensors_that_are_refused(tmp_path):
    source = models.pair("bert_sequence").directory
    stored, settings = load_file(source / "model.safetensors"), settings_in(source)
    name = "bert.encoder.layer.1.output.dense.weight"
    broken = {n: v.clone() for n, v in stored.items()}
    broken[name][2, 3] = math.nan
    cases = {
        "nan": (broken, rf"tensor '{name}' holds NaN at index \[2, 3\]"),
        "less": ({n: v for n, v in stored.items() if n != name}, f"lacks the tensors '{name}'"),
        "more": ({**stored, "cls.extra": torch.ones(2)}, "has unknown tensors 'cls.extra'"),
        "shape": ({**stored, name: torch.ones(24, 41)}, r"must be \[24, 40\], got \[24, 41\]"),
    }
    for folder, (tensors, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            paperlab.nn.load(write(tmp_path / folder, tensors, settings))
    tied = models.pair("bert_masked").directory
    other = load_file(tied / "model.safetensors")
    other["cls.predictions.decoder.weight"] = torch.zeros(models.VOCABULARY, 24)
    with pytest.raises(ValueError, match=r"must be equal to 'bert\.embeddings\.word_embeddings"):
        paperlab.nn.load(write(tmp_path / "tied", other, settings_in(tied)))


def test_an_encoder_is_no_decoder():
    ours = models.pair("bert_masked").ours
    with pytest.raises(ValueError, match="must be a causal decoder, got one of model_type 'bert'"):
        paperlab.nn.as_decoder(ours)
    with pytest.raises(ValueError, match="model must classify sequences or pictures"):
        paperlab.train.fit(ours, lambda step: models.tokens(), steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"model_type.*; encoders are bert, roberta, distilbert"):
        paperlab.nn.from_config({"model_type": "t5"})
    assert ours.num_labels == 2
    assert ours.max_positions == 24

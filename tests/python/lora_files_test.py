"""paperlab.lora: directories in peft's layout. The layout is written down here once more."""

import json
import shutil

import lora_cases as cases
import pytest
import safetensors
import safetensors.torch
import torch
from lora_cases import GOLDEN, TOKENS
from paperlab import lora, nn

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def change(folder, **settings):
    path = folder / FILES[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def tensors_of(folder):
    return safetensors.torch.load_file(folder / FILES[1])


def test_an_adapter_of_peft(tmp_path):
    model = cases.base()
    adapter = lora.load(model, GOLDEN)
    assert adapter.settings.use_rslora and adapter.settings.dropout == 0.1
    wanted = safetensors.torch.load_file(GOLDEN / "expected.safetensors")["logits"]
    plain = cases.base()(TOKENS)
    # float32 of both: some 10 roundings of 6e-8 in sums of up to 40 numbers.
    assert (model(TOKENS) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (plain - wanted).abs().max() > 0.1 * wanted.abs().max()
    lora.save(model, tmp_path / "new" / "folder")
    for name in FILES:
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (GOLDEN / name).read_bytes()
    lora.merge(model)
    assert (model(TOKENS) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    lora.save(model, tmp_path)  # a merged one is the same adapter
    assert (tmp_path / FILES[1]).read_bytes() == (GOLDEN / FILES[1]).read_bytes()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)


def test_what_a_new_adapter_looks_like(tmp_path):
    model = cases.base()
    targets = ["q_proj", "lm_head"]
    adapter = cases.random_adapter(
        model, r=3, alpha=12, target_modules=targets, rank_pattern={"lm_head": 2}, dropout=0.25
    )
    lora.save(model, tmp_path)
    with safetensors.safe_open(tmp_path / FILES[1], "pt") as file:
        assert file.metadata() == {"format": "pt"}
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    assert shapes == {
        layer.format(0, "A"): [3, 32],
        layer.format(0, "B"): [32, 3],
        layer.format(1, "A"): [3, 32],
        layer.format(1, "B"): [32, 3],
        "base_model.model.lm_head.lora_A.weight": [2, 32],
        "base_model.model.lm_head.lora_B.weight": [48, 2],
    }
    assert json.loads((tmp_path / FILES[0]).read_text()) == {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 12,
        "lora_dropout": 0.25,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 3,
        "rank_pattern": {"lm_head": 2},
        "revision": None,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    other = cases.base()
    again = lora.load(other, tmp_path)
    assert again.settings == adapter.settings
    assert torch.equal(other(TOKENS), model(TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_type_stays_bit_for_bit(dtype, folder, tmp_path):
    stored = {name: x.to(dtype) for name, x in tensors_of(folder).items()}
    safetensors.torch.save_file(stored, folder / FILES[1], {"format": "pt"})
    model = cases.base()
    adapter = lora.load(model, folder)
    assert {p.dtype for p in adapter.parameters()} == {dtype}
    logits = model(TOKENS)
    lora.save(model, tmp_path / "out")
    assert (tmp_path / "out" / FILES[1]).read_bytes() == (folder / FILES[1]).read_bytes()
    lora.detach(model)
    wide = lora.load(model, folder, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    # The same numbers, with products in float32; in float64 of float64.
    assert (model(TOKENS) - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_the_base_of_an_adapted_head_must_be_the_models(folder):
    change(folder, target_modules=["lm_head"], rank_pattern={})
    model = cases.base()
    key = "base_model.model.lm_head."
    tensors = {
        f"{key}lora_A.weight": torch.zeros(4, 32),
        f"{key}lora_B.weight": torch.zeros(48, 4),
        f"{key}base_layer.weight": model.get_parameter("lm_head.weight").detach().clone(),
    }
    safetensors.torch.save_file(tensors, folder / FILES[1], {"format": "pt"})
    assert lora.load(model, folder).names == ["lm_head"]
    lora.save(model, folder / "again")
    assert (folder / "again" / FILES[1]).read_bytes() == (folder / FILES[1]).read_bytes()
    lora.detach(model)
    tensors[f"{key}base_layer.weight"][3, 4] += 1
    safetensors.torch.save_file(tensors, folder / FILES[1])
    with pytest.raises(ValueError, match=r"base_layer.weight' must be the model's own weight"):
        lora.load(model, folder)


VIT = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_channels": 1,
    "image_size": 8,
    "patch_size": 4,
}
# A layer's name in files and in the memory of transformers 5, where peft takes names from.
VIT_NAMES = {
    "vit.encoder.layer.1.attention.attention.query": "vit.layers.1.attention.q_proj",
    "vit.encoder.layer.1.attention.output.dense": "vit.layers.1.attention.o_proj",
    "vit.encoder.layer.0.intermediate.dense": "vit.layers.0.mlp.fc1",
    "vit.encoder.layer.1.output.dense": "vit.layers.1.mlp.fc2",
    "classifier": "classifier",
}


def test_modules_that_are_saved_whole(tmp_path):
    """As peft has a classifier: its parameters are trained and stand in the file."""
    model = nn.from_config(VIT, seed=1)
    before = model.get_parameter("classifier.weight").detach().clone()
    adapter = lora.attach(model, target_modules=["query"], modules_to_save=["classifier", "score"])
    assert [list(p.shape) for p in adapter.parameters()[-2:]] == [[2, 16], [2]]
    assert all(p.requires_grad for p in adapter.parameters())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters()):
            parameter.copy_(cases.noise(parameter.shape, i))
    lora.save(model, tmp_path)
    config = json.loads((tmp_path / FILES[0]).read_text())
    assert config["modules_to_save"] == ["classifier", "score"]
    stored = tensors_of(tmp_path)
    head = {name for name in stored if "lora" not in name}
    assert head == {f"base_model.model.classifier.{x}" for x in ("weight", "bias")}
    other = nn.from_config(VIT, seed=1)
    lora.load(other, tmp_path)
    pixels = cases.noise((2, 1, 8, 8), 1).float()
    logits = model(pixels)
    assert torch.equal(other(pixels), logits)
    lora.merge(other)
    lora.detach(other, keep_merged=True)
    assert (other(pixels) - logits).abs().max() <= 1e-5 * logits.abs().max()
    lora.detach(model)
    assert torch.equal(model.get_parameter("classifier.weight"), before)
    assert torch.equal(model(pixels), nn.from_config(VIT, seed=1)(pixels))
    assert all(p.requires_grad for p in model.parameters())
    for name, value in (("weight", torch.zeros(3, 16)), ("bias", torch.tensor([1, torch.nan]))):
        changed = stored | {f"base_model.model.classifier.{name}": value}
        safetensors.torch.save_file(changed, tmp_path / FILES[1])
        with pytest.raises(ValueError, match=rf"{FILES[1]}: tensor 'base_model.*{name}' "):
            lora.load(model, tmp_path)
    with pytest.raises(ValueError, match=r"attach: modules_to_save must name modules .*\['x'\]"):
        lora.attach(model, target_modules=["query"], modules_to_save=["x"])
    tied = cases.base(tie_word_embeddings=True)
    with pytest.raises(ValueError, match="must not hold the matrix of a tied head"):
        lora.attach(tied, modules_to_save=["embed_tokens"])
    assert torch.equal(tied(TOKENS), cases.base(tie_word_embeddings=True)(TOKENS))


@pytest.mark.parametrize("is_new", [False, True])
def test_names_of_either_version(is_new, tmp_path):
    """They are read as they are written, and the rank is looked up by the name in the file."""
    targets = [*(VIT_NAMES.values() if is_new else VIT_NAMES)]
    options = {"r": 2, "target_modules": targets, "rank_pattern": {targets[0]: 3}}
    model = nn.from_config(VIT, seed=1)
    adapter = cases.random_adapter(model, **options)
    assert sorted(adapter.names) == sorted(VIT_NAMES)
    lora.save(model, tmp_path / "one")
    stored = tensors_of(tmp_path / "one")
    assert {*stored} == {f"base_model.model.{n}.lora_{x}.weight" for n in targets for x in "AB"}
    assert stored[f"base_model.model.{targets[0]}.lora_A.weight"].shape == (3, 16)
    other = nn.from_config(VIT, seed=1)
    assert sorted(lora.load(other, tmp_path / "one").names) == sorted(VIT_NAMES)
    pixels = cases.noise((2, 1, 8, 8), 1).float()
    assert torch.equal(other(pixels), model(pixels))
    lora.save(other, tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    sizes = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    neox = nn.from_config(sizes | {"model_type": "gpt_neox", "num_attention_heads": 2})
    lora.attach(neox, target_modules=["lm_head" if is_new else "embed_out"])
    assert lora.of(neox).names == ["embed_out"]
    lora.save(neox, tmp_path / "neox")
    assert all(("lm_head" in name) == is_new for name in tensors_of(tmp_path / "neox"))
    lora.detach(neox)
    assert lora.load(neox, tmp_path / "neox").names == ["embed_out"]
    with pytest.raises(ValueError, match=r"must name linear layers .*query.* got 'q_prof'"):
        lora.attach(nn.from_config(VIT), target_modules=["q_prof"])


def test_targets_that_nobody_names_are_peft_s_own(folder):
    change(folder, target_modules=None, rank_pattern={})
    stored = {n: x for n, x in tensors_of(folder).items() if "down_proj" not in n}
    for letter, shape in (("A", (4, 32)), ("B", (32, 4))):
        key = f"base_model.model.model.layers.1.self_attn.q_proj.lora_{letter}.weight"
        stored[key] = torch.zeros(shape)
    safetensors.torch.save_file(stored, folder / FILES[1])
    names = lora.load(cases.base(), folder).names
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be 'LORA', got 'LOHA'"),
        ({"bias": "all"}, "bias must be 'none', got 'all'"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out must be True or False, got 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be .*, got 'pissa'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of str or None, got 'lm_"),
        ({"modules_to_save": ["lm_head"]}, r"has no tensor 'base_model.model.lm_head.weight'"),
        ({"modules_to_save": ["mlp"]}, "has no tensor 'base_model.model.model.layers.0.mlp.gate"),
        ({"modules_to_save": ["proj"]}, "must not hold a layer of target_modules, got model.layer"),
        (
            {"modules_to_save": ["model.layers"]},
            r"must match .* outside modules_to_save \['model.layers'\], got '.*q_proj",
        ),
        ({"use_dora": True}, "use_dora = True could change the results"),
        ({"lora_bias": True}, "lora_bias = True could change"),
        ({"layers_to_transform": [0]}, r"layers_to_transform = \[0\] could change"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"of_tomorrow": {"x": 1}}, "of_tomorrow = .* could change"),
        ({"r": 0}, "r must be in 1"),
        ({"r": "8"}, "r must be an integer"),
        ({"r": 3}, r"lora_A.weight' must be \[3, 32\] .* got \[4, 32\]"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"lora_dropout": 1.5}, "lora_dropout must be >= 0 and < 1"),
        ({"target_modules": ["q_proj"]}, "no layer of target_modules has the tensors"),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, "has no tensor .*up_proj.lora_A"),
        ({"target_modules": ["c_attn"]}, "target_modules must name linear layers"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"rank_pattern": {"(?i)q_proj": 2}}, "rank_pattern must hold regular expressions"),
        ({"rank_pattern": {"a{99999999999}": 2}}, "rank_pattern must hold regular expressions"),
        ({"target_modules": r".*(q)\1"}, "target_modules must hold .* groupref is not supported"),
        ({"target_modules": "(?>q).*"}, "target_modules must hold .* atomic_group is not"),
        ({"target_modules": "(" * 60 + ".*" + ")" * 60}, "nested at most 50 deep"),
        ({"target_modules": "(" * 9999}, "target_modules must hold regular expressions"),
        ({"target_modules": "q" * 99_999}, "more than 65536 letters"),
        ({"alpha_pattern": {"q" * 299_999: 2}}, "alpha_pattern must have at most 262144 letters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_are_refused(settings, message, folder):
    change(folder, **settings)
    check_refused(folder, message)


def check_refused(folder, message):
    model = cases.base()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=message) as caught:
        lora.load(model, folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(TOKENS), cases.base()(TOKENS))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "{}"])
def test_configs_that_are_none(text, folder):
    (folder / FILES[0]).write_text(text)
    check_refused(folder, FILES[0])


@pytest.mark.parametrize("what", ["shape", "nan", "integers", "missing", "extra", "cut"])
def test_tensors_that_are_refused(what, folder):
    stored = tensors_of(folder)
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    message = r"v_proj.lora_B.weight'"
    if what == "shape":
        stored[key] = stored[key].T.contiguous()
        message += r" must be \[16, 4\] .* got \[4, 16\]"
    elif what == "nan":
        stored[key][3, 1] = torch.nan
        message += " holds NaN"
    elif what == "integers":
        stored[key] = stored[key].to(torch.int32)
    elif what == "missing":
        del stored[key]
    elif what == "extra":
        stored["base_model.model.model.norm.weight"] = torch.ones(32)
        message = "no layer of target_modules has the tensors 'base_model.model.model.norm.weight'"
    safetensors.torch.save_file(stored, folder / FILES[1])
    if what == "cut":
        path = folder / FILES[1]
        path.write_bytes(path.read_bytes()[:-1])
        message = FILES[1]
    check_refused(folder, message)


def test_files_that_are_missing(folder):
    model = cases.base()
    with pytest.raises(FileNotFoundError):
        lora.load(model, folder / "nowhere")
    (folder / FILES[1]).rename(folder / "adapter_model.bin")
    check_refused(folder, r"adapter_model.bin: pickled; save it as adapter_model.safetensors")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError):
        lora.load(model, folder)
    with pytest.raises(TypeError, match="load: directory must be a path"):
        lora.load(model, 3)
    with pytest.raises(ValueError, match="load: dtype must be"):
        lora.load(model, folder, dtype="int8")


def test_saving_refuses_nan_and_what_is_no_folder(tmp_path):
    model = cases.base()
    with pytest.raises(ValueError, match="save: model must have an adapter"):
        lora.save(model, tmp_path / "out")
    adapter = lora.attach(model)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        lora.save(model, tmp_path / "file")
    with torch.no_grad():
        adapter.parameters()[0][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"save: base_model.*lora_A.weight must hold numbers"):
        lora.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_peft_itself_reads_and_writes_the_same(tmp_path):
    peft = pytest.importorskip("peft", reason="an optional check against the package peft")
    import transformers

    model = cases.base()
    model.save_pretrained(tmp_path / "base")
    cases.random_adapter(model, target_modules=["q_proj", "down_proj"], r=4, use_rslora=True)
    lora.save(model, tmp_path / "ours")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    other = peft.PeftModel.from_pretrained(other, tmp_path / "ours")
    with torch.no_grad():
        logits = other(TOKENS).logits
    assert (model(TOKENS) - logits).abs().max() <= 1e-5 * logits.abs().max()
    other.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / FILES[1]).read_bytes() == (
        tmp_path / "ours" / FILES[1]
    ).read_bytes()
    lora.detach(model)
    lora.load(model, tmp_path / "theirs")
    assert (model(TOKENS) - logits).abs().max() <= 1e-5 * logits.abs().max()

"""paperlab.lora: layers of modules_to_save that target_modules names too, as peft has them."""

import json

import lora_cases as cases
import pytest
import safetensors.torch
from lora_files_test import FILES, VIT, VIT_NAMES, tensors_of
from paperlab import lora, nn

ROBERTA = {
    "architectures": ["RobertaForSequenceClassification"],
    "model_type": "roberta",
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
DISTILBERT = {
    "architectures": ["DistilBertForSequenceClassification"],
    "model_type": "distilbert",
    "vocab_size": 48,
    "dim": 16,
    "hidden_dim": 24,
    "n_layers": 1,
    "n_heads": 2,
    "max_position_embeddings": 24,
}
LAYER = "roberta.encoder.layer.0"
DENSE = [f"{LAYER}.{x}dense" for x in ("attention.output.", "intermediate.", "output.")]
QKV = [f"{LAYER}.attention.self.{x}" for x in ("query", "key", "value")]
Q_PROJ = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
DISTIL_LAYER = "distilbert.transformer.layer.0"
DISTIL_NAMES = [f"{DISTIL_LAYER}.{x}" for x in ("attention.q_lin", "ffn.lin1")]


@pytest.mark.parametrize(
    ("config", "targets", "saved", "names"),
    [
        (ROBERTA, ["dense"], ["classifier", "score"], DENSE),
        (ROBERTA, "all-linear", ["classifier", "score"], QKV + DENSE),
        (ROBERTA, ["query", "classifier.dense"], ["classifier"], QKV[:1]),
        (cases.CONFIG, ["q_proj", "lm_head"], ["lm_head"], Q_PROJ),
        (cases.CONFIG, r".*(q_proj|lm_head)", ["lm_head"], Q_PROJ),
        (VIT, [*VIT_NAMES], ["classifier"], [*VIT_NAMES][:-1]),
        (VIT, [*VIT_NAMES.values()], ["classifier"], [*VIT_NAMES][:-1]),
        (DISTILBERT, ["q_lin", "lin1", "classifier"], ["classifier"], DISTIL_NAMES),
    ],
    ids=str.split("dense all-linear inside head expression vit vit-new distilbert"),
)
def test_a_target_in_a_saved_module_gets_no_matrices(config, targets, saved, names, tmp_path):
    """peft leaves it out of the adapter and has it in target_modules: a directory made by hand."""
    model = nn.from_config(config, seed=1)
    stored = {name: VIT_NAMES.get(name, name) for name in names}
    if targets != [*VIT_NAMES.values()]:
        stored = {name: name for name in names}
    tensors = {}
    for i, (name, key) in enumerate(stored.items()):
        wide, deep = model.get_parameter(f"{name}.weight").shape
        tensors[f"base_model.model.{key}.lora_A.weight"] = cases.noise((2, deep), i).float()
        tensors[f"base_model.model.{key}.lora_B.weight"] = cases.noise((wide, 2), 9 + i).float()
    for name, value in model.named_parameters():
        if any(f".{end}." in f".{name}" or name.startswith(f"pre_{end}") for end in saved):
            tensors[f"base_model.model.{name}"] = cases.noise(value.shape, 5).float()
    settings = {"lora_alpha": 4, "modules_to_save": saved, "peft_type": "LORA", "r": 2}
    folder = tmp_path / "by_peft"
    folder.mkdir()
    text = json.dumps(settings | {"target_modules": targets}, indent=2, sort_keys=True)
    (folder / FILES[0]).write_text(text)
    safetensors.torch.save_file(tensors, folder / FILES[1], {"format": "pt"})
    adapter = lora.load(model, folder)
    assert sorted(adapter.names) == sorted(names)
    lora.save(model, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    new = nn.from_config(config, seed=1)
    options = {"r": 2, "alpha": 4, "target_modules": targets, "modules_to_save": saved}
    assert sorted(cases.random_adapter(new, **options).names) == sorted(names)
    lora.save(new, tmp_path / "new")
    assert {*tensors_of(tmp_path / "new")} == {*tensors}
    assert json.loads((tmp_path / "new" / FILES[0]).read_text())["target_modules"] == targets
    lora.load(nn.from_config(config), tmp_path / "new")


def test_a_target_must_remain_outside_saved_modules():
    model = nn.from_config(DISTILBERT)
    message = "attach: target_modules must match a linear layer outside modules_to_save"
    with pytest.raises(ValueError, match=rf"{message} \['classifier'\], got \('classifier',\)"):
        lora.attach(model, target_modules=["classifier"], modules_to_save=["classifier"])
    # The end of a name that is no part of it: peft has no such adapter.
    with pytest.raises(ValueError, match=r"must not hold a layer of .*, got pre_classifier"):
        lora.attach(model, target_modules="all-linear", modules_to_save=["classifier"])
    assert all(p.requires_grad for p in model.parameters())

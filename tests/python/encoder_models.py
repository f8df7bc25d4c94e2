"""Small encoders of every architecture with random weights: transformers' and ours beside it."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import paperlab
import pytest
import torch
import transformers

VOCABULARY = 59
LABELS = 3
LENGTH = 13

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
_DISTIL = {
    "vocab_size": VOCABULARY,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 24,
}
_VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
}
# transformers divides DeBERTa's logits by a root in float32; (number of terms) x (lanes of a head)
# is a square here, whose root is exact.
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 6,
    "max_relative_positions": 16,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "share_att_key": True,
}
_ONE_TERM = {"hidden_size": 16}  # 2 x 8 lanes

# Name: class, settings.
CASES = {
    "bert_masked": ("BertForMaskedLM", _SIZES),
    "bert_untied": ("BertForMaskedLM", {**_SIZES, "tie_word_embeddings": False}),
    "bert_sequence": ("BertForSequenceClassification", {**_SIZES, "num_labels": LABELS}),
    "bert_two_labels": ("BertForSequenceClassification", {**_SIZES, "hidden_act": "relu"}),
    "bert_tokens": ("BertForTokenClassification", {**_SIZES, "num_labels": LABELS}),
    "bert_states": ("BertModel", _SIZES),
    "minilm": (
        "BertModel",
        {**_SIZES, "hidden_size": 36, "num_attention_heads": 12, "num_hidden_layers": 3},
    ),
    "roberta_masked": ("RobertaForMaskedLM", {**_SIZES, "hidden_act": "gelu_new"}),
    "roberta_untied": ("RobertaForMaskedLM", {**_SIZES, "tie_word_embeddings": False}),
    "roberta_sequence": (
        "RobertaForSequenceClassification",
        {**_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": LABELS},
    ),
    "roberta_tokens": ("RobertaForTokenClassification", {**_SIZES, "pad_token_id": 4}),
    "roberta_states": ("RobertaModel", _SIZES),
    "distilbert_masked": ("DistilBertForMaskedLM", {**_DISTIL, "sinusoidal_pos_embds": True}),
    "distilbert_untied": ("DistilBertForMaskedLM", {**_DISTIL, "tie_word_embeddings": False}),
    "distilbert_sequence": (
        "DistilBertForSequenceClassification",
        {**_DISTIL, "num_labels": LABELS},
    ),
    "distilbert_tokens": ("DistilBertForTokenClassification", _DISTIL),
    "distilbert_states": ("DistilBertModel", {**_DISTIL, "activation": "relu"}),
    "deberta_masked": ("DebertaV2ForMaskedLM", {**_SIZES, **_RELATIVE}),
    "deberta_new_head": (
        "DebertaV2ForMaskedLM",
        {**_SIZES, **_RELATIVE, "legacy": False, "share_att_key": False},
    ),
    "deberta_untied": (
        "DebertaV2ForMaskedLM",
        {**_SIZES, **_RELATIVE, "tie_word_embeddings": False},
    ),
    "deberta_sequence": (
        "DebertaV2ForSequenceClassification",
        {**_SIZES, **_RELATIVE, "num_labels": LABELS, "position_buckets": -1},
    ),
    "deberta_convolution": (
        "DebertaV2ForTokenClassification",
        {
            **_SIZES,
            **_RELATIVE,
            "conv_kernel_size": 3,
            "conv_groups": 2,
            "conv_act": "gelu",
            "pooler_hidden_act": "tanh",
        },
    ),
    "deberta_one_layer": (
        "DebertaV2Model",
        {**_SIZES, **_RELATIVE, "num_hidden_layers": 1, "conv_kernel_size": 5},
    ),
    "deberta_c2p": (
        "DebertaV2Model",
        {
            **_SIZES,
            **_RELATIVE,
            **_ONE_TERM,
            "pos_att_type": "C2P",
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "position_biased_input": True,
            "type_vocab_size": 2,
        },
    ),
    "deberta_p2c": (
        "DebertaV2Model",
        {**_SIZES, **_RELATIVE, **_ONE_TERM, "pos_att_type": ["p2c"], "share_att_key": False},
    ),
    "deberta_no_words": (
        "DebertaV2Model",
        {**_SIZES, **_RELATIVE, "hidden_size": 32, "pos_att_type": "", "share_att_key": False},
    ),
    "deberta_absolute": (
        "DebertaV2ForSequenceClassification",
        {**_SIZES, "hidden_size": 32, "type_vocab_size": 2},
    ),
    "vit": ("ViTForImageClassification", {**_VIT, "num_labels": LABELS}),
    "vit_oblong": (
        "ViTForImageClassification",
        {**_VIT, "image_size": [13, 8], "patch_size": [3, 4], "qkv_bias": False},
    ),
    "vit_wide_heads": (
        "ViTForImageClassification",
        {**_VIT, "num_attention_heads": 5, "head_dim": 6},
    ),
    "vit_states": ("ViTModel", {**_VIT, "pooler_output_size": 10}),
}
TEXT = [name for name in CASES if not name.startswith("vit")]
BERT = [name for name in TEXT if not name.startswith("deberta")]
DEBERTA = [name for name in TEXT if name.startswith("deberta")]
VIT = [name for name in CASES if name.startswith("vit")]

_MEMORY_TO_FILE = (
    ("vit.layers.", "vit.encoder.layer."),
    (".attention.q_proj", ".attention.attention.query"),
    (".attention.k_proj", ".attention.attention.key"),
    (".attention.v_proj", ".attention.attention.value"),
    (".attention.o_proj", ".attention.output.dense"),
    (".mlp.fc1", ".intermediate.dense"),
    (".mlp.fc2", ".output.dense"),
)


def file_name(name):
    """The name in files of what transformers 5 calls `name` in memory; of ViT's blocks another."""
    if name.startswith("layers."):
        return file_name("vit." + name).removeprefix("vit.")
    if name.startswith("vit.layers."):
        for memory, file in _MEMORY_TO_FILE:
            name = name.replace(memory, file)
    return name


def randomise(model, seed=3):
    """Weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.dim() == 1:
                is_norm = name.endswith("weight")
                value.copy_((1.0 if is_norm else 0.0) + 0.2 * noise)
            elif "embed" in name and "projection" not in name:
                value.copy_(noise)
            else:
                value.copy_(noise * 1.5 * value[0].numel() ** -0.5)
    return model


def transformers_model(name, **changes):
    """transformers' model in float32, without dropout."""
    kind, settings = CASES[name]
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**{**settings, **changes})).eval()
    return randomise(model)


@dataclasses.dataclass
class Pair:
    """A directory that transformers wrote, its model and ours, both float64."""

    directory: Path
    theirs: torch.nn.Module
    ours: torch.nn.Module

    def logits(self, *inputs, **arguments):
        """What transformers computes."""
        out = self.theirs(*inputs, **arguments)
        return out.logits if "logits" in out else out.last_hidden_state


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small spend their time in waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_FOLDERS = tempfile.TemporaryDirectory(prefix="encoders")


@functools.cache
def pair(name):
    directory = Path(_FOLDERS.name) / name
    model = transformers_model(name)
    model.save_pretrained(directory)
    return Pair(directory, model.double(), paperlab.nn.load(directory, dtype="float64"))


def settings(name):
    """What config.json holds."""
    return json.loads((pair(name).directory / "config.json").read_text())


def tokens(batch=4, length=LENGTH, seed=0):
    """Token ids; some are those that models take for padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    ids[0, -3:] = 1
    return ids


def types(name, batch=4, length=LENGTH):
    """Types of tokens below the model's number of them; None: it has none."""
    count = settings(name).get("type_vocab_size", 0)
    if not count:
        return None
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, count, (batch, length), generator=generator)


def masks(length=LENGTH):
    """name -> the mask [4, length]: rows with none, some and all but one token hidden."""
    left, right, holes = (torch.ones(4, length, dtype=torch.int64) for _ in range(3))
    for row, count in ((1, length // 2), (2, length - 1), (3, 1)):
        left[row, :count] = 0
        right[row, length - count :] = 0
    holes[1, 1::3] = 0
    holes[2, [0, 2, length - 1]] = 0
    holes[3, : length // 2] = 0
    both = left.clone()
    both[1, -2:] = 0
    return {"left": left, "right": right, "both": both, "holes": holes}


def pixels(name, batch=3, dtype=torch.float64):
    config = settings(name)
    size = config["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    generator = torch.Generator().manual_seed(5)
    shape = (batch, config["num_channels"], height, width)
    return torch.randn(shape, generator=generator, dtype=dtype)


def check_close(got, wanted, share, what=""):
    """Equal up to a share of the largest value."""
    assert got.shape == wanted.shape, what
    assert got.isfinite().all(), what
    assert (got - wanted).abs().max() <= share * wanted.abs().max(), what


def gradients(model, logits):
    """name in files -> the gradient of a fixed weighted sum of the logits; zeros where none is."""
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * weight).sum(), values, allow_unused=True)
    return {
        file_name(name): torch.zeros_like(value) if grad is None else grad
        for name, value, grad in zip(names, values, found, strict=True)
    }

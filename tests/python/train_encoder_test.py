"""`train.fit` of encoders against torch.optim in a plain loop over a plain definition."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_cases as cases
from paperlab import nn, train
from torch.nn import functional
from training_cases import RATE

LABELS, WIDTH, HEADS, PATCH, SIDE = 3, 8, 2, 2, 6
STEPS = 3
TOLERANCE = 1e-12  # sums of some hundred doubles in another order, as in train_fit_test.py
VIT: dict[str, Any] = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_channels": 1,
    "num_labels": LABELS,
    "initializer_range": 0.3,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 17,
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 9,
    "num_labels": LABELS,
    "initializer_range": 0.3,
}
Parameters = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


def vit(dtype: str = "float64", seed: int = 1) -> nn.ImageEncoder:
    model = nn.from_config(VIT, dtype=dtype, seed=seed)
    assert isinstance(model, nn.ImageEncoder)
    return model


def bert(dtype: str = "float64", seed: int = 1, **settings: Any) -> nn.Encoder:
    model = nn.from_config(BERT | settings, dtype=dtype, seed=seed)
    assert isinstance(model, nn.Encoder)
    return model


def pictures(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, LABELS, (4,), generator=generator)
    noise = torch.randn(4, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return noise + labels.view(4, 1, 1, 1), labels


def texts(step: int) -> tuple[torch.Tensor, ...]:
    tokens = cases.counting(step, 4, 6) % 17
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    types = (torch.arange(tokens.shape[1]) > tokens[:, :1] % 5).long()
    return tokens, tokens[:, 0] % LABELS, mask, types


def vit_logits(p: Parameters, pixels: torch.Tensor) -> torch.Tensor:
    """By the definition: x + f(norm x), the class's state after a last norm, a linear head."""

    def named(ending: str) -> list[torch.Tensor]:
        return [p[f"{ending}.{kind}"] for kind in ("weight", "bias")]

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), *named(name), eps=1e-12)

    x = functional.conv2d(pixels, *named("vit.embeddings.patch_embeddings.projection"), PATCH)
    x = x.flatten(2).transpose(1, 2)
    first = p["vit.embeddings.cls_token"].expand(len(x), -1, -1)
    x = torch.cat([first, x], 1) + p["vit.embeddings.position_embeddings"]
    for layer in range(2):
        name = f"vit.encoder.layer.{layer}"
        y = normed(x, f"{name}.layernorm_before")
        q, k, v = (
            functional.linear(y, *named(f"{name}.attention.attention.{part}"))
            .unflatten(2, (HEADS, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = (q @ k.transpose(2, 3) / math.sqrt(WIDTH / HEADS)).softmax(3) @ v
        seen = seen.transpose(1, 2).flatten(2)
        x = x + functional.linear(seen, *named(f"{name}.attention.output.dense"))
        y = normed(x, f"{name}.layernorm_after")
        y = functional.gelu(functional.linear(y, *named(f"{name}.intermediate.dense")))
        x = x + functional.linear(y, *named(f"{name}.output.dense"))
    return functional.linear(normed(x, "vit.layernorm")[:, 0], *named("classifier"))


def by_torch(
    parameters: Parameters,
    loss_of: Callable[[Parameters, int], torch.Tensor],
    optimizer: str,
) -> list[float]:
    """Changes the parameters in a plain loop; returns the losses."""
    trained = [value for value in parameters.values() if value.requires_grad]
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9)
    else:
        chosen = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.1)
    losses = []
    for step in range(STEPS):
        loss = loss_of(parameters, step)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    return losses


# eps: an element of a gradient that is rounding alone, as a key's bias has, stays small.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9},
    "adamw": {"eps": 1e-3, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_the_definition(name: str, accumulate: int) -> None:
    model = vit()
    for key, value in model.named_parameters():
        value.requires_grad_("layer.0.output" not in key)
    expected = {
        key: value.detach().clone().requires_grad_(value.requires_grad)
        for key, value in model.named_parameters()
    }

    def loss_of(parameters: Parameters, step: int) -> torch.Tensor:
        pixels, labels = pictures(step)
        return functional.cross_entropy(vit_logits(parameters, pixels), labels)

    losses = by_torch(expected, loss_of, name)
    options = OPTIMIZERS[name] | {"steps": STEPS, "learning_rate": RATE, "accumulate": accumulate}
    history = train.fit(model, pictures, **options)
    assert history["loss"] == pytest.approx(losses, rel=TOLERANCE)
    for key, value in model.named_parameters():
        torch.testing.assert_close(
            value.detach(), expected[key].detach(), rtol=0, atol=TOLERANCE, msg=key
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tokens_with_a_mask_and_types(name: str) -> None:
    model, other = bert(), bert(problem_type="single_label_classification")

    def loss_of(_: Parameters, step: int) -> torch.Tensor:
        tokens, labels, mask, types = texts(step)
        return functional.cross_entropy(other(tokens, mask, types), labels)

    losses = by_torch(dict(other.named_parameters()), loss_of, name)
    options = OPTIMIZERS[name] | {"steps": STEPS, "learning_rate": RATE, "accumulate": 2}
    history = train.fit(model, texts, **options)
    assert history["loss"] == pytest.approx(losses, rel=TOLERANCE)
    for key, value in other.named_parameters():
        mine = model.get_parameter(key).detach()
        torch.testing.assert_close(mine, value.detach(), rtol=0, atol=TOLERANCE, msg=key)


def test_masks_and_types_may_be_left_out() -> None:
    tokens, labels, mask, types = (x.numpy() for x in texts(0))
    losses = set()
    for given in ((), (None, types), (mask,), (mask, None), (mask, types.astype(np.uint8))):
        expected = functional.cross_entropy(bert()(tokens, *given), torch.from_numpy(labels))
        data: Any = (tokens, labels, *given)
        history = train.fit(bert(), lambda _, data=data: data, steps=1, learning_rate=RATE)
        assert history["loss"] == pytest.approx([expected.item()], rel=TOLERANCE)
        losses.add(history["loss"][0])
    assert len(losses) == 4


def test_arrays_bfloat16_and_other_devices_dtypes() -> None:
    def arrays(step: int) -> Any:
        pixels, labels = pictures(step)
        return pixels.numpy(), labels.numpy().astype(np.uint8)

    options: dict[str, Any] = {"steps": 40, "learning_rate": RATE}
    wanted = train.fit(vit(), pictures, **options)
    assert train.fit(vit(), arrays, **options) == wanted
    half = train.fit(vit("float32"), pictures, precision="bfloat16", **options)
    # The rounding of bfloat16, 2^-9 relative, of a loss of about one nat.
    assert half["loss"][0] == pytest.approx(wanted["loss"][0], rel=2**-6)
    assert sum(half["loss"][-8:]) < 0.8 * sum(half["loss"][:8])


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "learning_rate": RATE, "schedule": "cosine"}
    whole = vit("float32")
    expected = train.fit(whole, pictures, **options)
    options["out"] = tmp_path
    train.fit(vit("float32"), pictures, on_step=lambda record: record.step < 2, **options)
    resumed = vit("float32", seed=9)
    assert train.fit(resumed, pictures, **options) == expected
    (path,) = tmp_path.glob("checkpoint-00000006")
    saved = nn.load(path)
    for key, value in whole.named_parameters():
        assert torch.equal(value, resumed.get_parameter(key))
        assert torch.equal(value, saved.get_parameter(key))
    other = nn.from_config(VIT | {"num_attention_heads": 4})
    with pytest.raises(ValueError, match="a model with num_attention_heads 2, got 4"):
        train.fit(other, pictures, **options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda x, y: x, TypeError, r"must return \(rows, labels\) or .*, got Tensor"),
        (lambda x, y: (x,), TypeError, "got 1 values"),
        (lambda x, y: (x, y, None, None, None), TypeError, "got 5 values"),
        (lambda x, y: (x, y + 3), ValueError, r"labels in 0..num_labels - 1 \(2\), got [345]"),
        (lambda x, y: (x, y - 3), ValueError, r"labels in 0..num_labels - 1 \(2\), got -3"),
        (lambda x, y: (x, y.float()), TypeError, "labels must be integers, got torch.float32"),
        (lambda x, y: (x, y[:3]), ValueError, r"labels \[4\], one a row, got \[3\]"),
        (lambda x, y: (x, y[:, None]), ValueError, r"labels must be \[B\], got \[4, 1\]"),
        (lambda x, y: (x.byte(), y), TypeError, "pixels must be floating, got torch.uint8"),
        (lambda x, y: (x.byte().numpy(), y), TypeError, "pixels must be floating, got uint8"),
        (lambda x, y: (x[:, :, 1:], y), ValueError, r"pixels \[B, 1, 6, 6\] with B >= 1, got \[4"),
        (lambda x, y: (x * math.inf, y), ValueError, "return finite pixels"),
        (lambda x, y: (x, y, y), ValueError, "no mask with pixels"),
        (lambda x, y: (x, y, None, y[:, None]), ValueError, "no token_type_ids with pixels"),
        (lambda x, y: (x, y, None, y), ValueError, r"token_type_ids must be \[B, T\], got \[4\]"),
        (lambda x, y: (x, y, None, x[0, 0]), TypeError, "token_type_ids must be integers, got"),
        (lambda x, y: (x[:3], y[:3]), ValueError, r"accumulate must divide the batch's rows \(3\)"),
    ],
)
def test_bad_batches_are_named_and_change_nothing(
    tmp_path: Path, given: Any, error: type[Exception], message: str
) -> None:
    model = vit()
    out = tmp_path / "out"
    with pytest.raises(error, match=f"^fit: .*{message}"):
        train.fit(
            model,
            lambda step: given(*pictures(0)),
            steps=1,
            learning_rate=RATE,
            accumulate=2,
            out=out,
        )
    assert not out.exists()
    for key, value in vit().named_parameters():
        assert torch.equal(value, model.get_parameter(key))


def test_models_without_labels_of_sequences_are_refused() -> None:
    tokens = bert(architectures=["BertForTokenClassification"])
    with pytest.raises(
        ValueError, match=r"^fit: model must classify .*, got an encoder with label"
    ):
        train.fit(tokens, texts, steps=1, learning_rate=RATE)
    with pytest.raises(ValueError, match=r"^fit: model must have num_labels >= 2, got 1"):
        train.fit(bert(num_labels=1), texts, steps=1, learning_rate=RATE)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", ""])
def test_losses_of_other_problems_are_refused(kind: str) -> None:
    with pytest.raises(
        ValueError,
        match=f'^fit: problem_type must be single_label_classification or absent, got "{kind}"$',
    ):
        train.fit(bert(problem_type=kind), texts, steps=1, learning_rate=RATE)


def test_types_of_tokens_that_the_model_does_not_have() -> None:
    def data(change: int) -> Any:
        tokens, labels, _, types = texts(0)
        return lambda step: (tokens, labels, None, types + change)

    model = bert(type_vocab_size=2)
    for change, got in ((1, 2), (-1, -1)):
        with pytest.raises(
            ValueError, match=rf"^fit: .* token_type_ids in 0..type_vocab_size - 1 \(1\), got {got}"
        ):
            train.fit(model, data(change), steps=1, learning_rate=RATE)
    settings = {
        "model_type": "distilbert",
        "architectures": ["DistilBertForSequenceClassification"],
        "vocab_size": 17,
        "dim": WIDTH,
        "hidden_dim": 12,
        "n_layers": 1,
        "n_heads": HEADS,
        "max_position_embeddings": 9,
        "num_labels": LABELS,
    }
    untyped = nn.from_config(settings, dtype="float64")
    history = train.fit(untyped, data(1), steps=1, learning_rate=RATE)  # not read
    assert math.isfinite(history["loss"][0])


def test_a_loss_that_is_not_finite_names_the_tensor() -> None:
    model = vit()

    def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 1:
            with torch.no_grad():
                model.get_parameter("vit.encoder.layer.1.output.dense.weight").fill_(1e308)
        return pictures(step)

    with pytest.raises(
        ValueError, match=r"^fit: step 1: the loss must be finite.*the input of 'classifier' is the"
    ):
        train.fit(model, data, steps=2, learning_rate=RATE)
    assert all(value.grad is None for value in model.parameters())

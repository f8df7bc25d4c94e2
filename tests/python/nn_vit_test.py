"""paperlab.nn: ViT gives the logits and gradients of transformers; pixels that are refused."""

import encoder_models as models
import paperlab
import pytest
import torch
from encoder_models import VIT, check_close, one_thread  # noqa: F401, a fixture

EXACT = 1e-11  # as of the encoders of tokens (nn_encoder_test.py)


@pytest.mark.parametrize("name", VIT)
def test_logits_and_gradients_are_those_of_transformers(name):
    pair = models.pair(name)
    image = models.pixels(name).requires_grad_()
    wanted, logits = pair.logits(image), pair.ours(image)
    check_close(logits, wanted, EXACT)
    expected, found = models.gradients(pair.theirs, wanted), models.gradients(pair.ours, logits)
    assert [*found] == [*expected]
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).abs().max() <= 10 * EXACT * (
            1 + gradient.abs().max()
        ), parameter
    grads = [
        torch.autograd.grad(pair_logits.square().sum(), image)[0]
        for pair_logits in (pair.logits(image), pair.ours(image))
    ]
    check_close(grads[1], grads[0], 10 * EXACT)


@pytest.mark.parametrize("name", VIT)
def test_float32_and_pixels_of_any_form(name):
    pair, image = models.pair(name), models.pixels(name)
    single = paperlab.nn.load(pair.directory)
    assert isinstance(single, paperlab.nn.ImageEncoder)
    with torch.no_grad():
        exact, logits = pair.ours(image), single(image)
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().max() <= 1e-5 * exact.abs().max()
        assert torch.equal(single(image.numpy()), logits)
        assert torch.equal(single(image.float()), logits)
        assert torch.equal(single(image.transpose(2, 3).contiguous().transpose(2, 3)), logits)
        assert single(image[:0]).shape == (0, *logits.shape[1:])
        states = pair.theirs(image, output_hidden_states=True)
        assert single.hidden(image).shape[1] == states.hidden_states[0].shape[1]


def test_training_gives_the_weights_of_transformers():
    pair, image = models.pair("vit"), models.pixels("vit")
    theirs = models.transformers_model("vit").double()
    ours = paperlab.nn.load(pair.directory, dtype="float64")
    labels = torch.tensor([0, 2, 1])
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(4):
            out = model(image)
            logits = out if isinstance(out, torch.Tensor) else out.logits
            loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert losses[1] < 0.9 * torch.nn.functional.cross_entropy(pair.ours(image), labels).item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :1], r"pixels must be \[B, 2, 12, 12\], got \[3, 1, 12, 12\]"),
        (lambda x: x[..., :8], r"got \[3, 2, 12, 8\]"),
        (lambda x: x[0], r"got \[2, 12, 12\]"),
        (lambda x: x.to(torch.uint8), "pixels must be floating, got torch.uint8"),
        (lambda x: x.to(torch.uint8).numpy(), "pixels must be floating, got uint8"),
        (lambda x: x.to_sparse(), "pixels must be strided"),
    ],
)
def test_pixels_that_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        models.pair("vit").ours(change(models.pixels("vit")))


def test_a_new_model_is_a_function_of_the_seed():
    config = models.settings("vit")
    first, second, other = (
        paperlab.nn.from_config(config, seed=seed, dtype="float64") for seed in (1, 1, 2)
    )
    image = models.pixels("vit")
    assert torch.equal(first(image), second(image)) and not torch.equal(first(image), other(image))
    weight = first.get_parameter("vit.encoder.layer.0.intermediate.dense.weight")
    assert 0.015 < weight.std() < 0.025  # initializer_range 0.02, 960 values
    assert (first.get_parameter("vit.layernorm.weight") == 1).all()
    assert (first.get_parameter("classifier.bias") == 0).all()

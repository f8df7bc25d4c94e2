"""paperlab.mudd.MuddViT against its definition in plain float64 torch, and at its start."""

import copy
import math

import pytest
import torch
from mudd_definition import Definition, gelu
from paperlab import _core, nn, train
from paperlab.mudd import MuddViT

SIZES = {
    "image_size": [7, 9],
    "patch_size": [2, 3],
    "num_channels": 2,
    "num_labels": 5,
    "num_layers": 3,
    "d_model": 24,
    "num_heads": 4,
    "d_ff": 20,
}
POSITIONS = "vit.embeddings.position_embeddings"
# float64, sums of up to some 100 numbers through 3 blocks.
EXACT = 1e-11


class VitDefinition(Definition):
    """Blocks of transformers' ViT between a decoder's aggregates; no class token."""

    def __init__(self, parameters, **options):
        super().__init__({**parameters, "layers.0": None}, **options)
        blocks = [n for n in parameters if n.startswith("vit.encoder.layer.")]
        self.layers = 1 + max(int(n.split(".")[3]) for n in blocks)

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        y = centred / torch.sqrt(variance + self.eps)
        return y * self.p[name + ".weight"] + self.p[name + ".bias"]

    def block(self, layer, qkvr, route):
        at = f"vit.encoder.layer.{layer}."
        own = [at + "layernorm_before", *(f"layers.{layer}.attention_norms.{i}" for i in (1, 2))]
        names = own if own[1] + ".weight" in self.p else own[:1] * 3
        xs = [self.norm(n, x) for n, x in zip(names, qkvr[:3], strict=True)]
        heads = []
        for part, x in zip(("query", "key", "value"), xs, strict=True):
            y = self.linear(f"{at}attention.attention.{part}", x)
            heads.append(y.unflatten(-1, (self.o["num_heads"], -1)).transpose(1, 2))
        q, k, v = heads
        mix = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        out = self.linear(at + "attention.output.dense", (mix @ v).transpose(1, 2).flatten(2))
        y = qkvr[3] + out
        hidden = self.linear(at + "intermediate.dense", self.norm(at + "layernorm_after", y))
        return y + self.linear(at + "output.dense", gelu(hidden, "exact"))

    def states_of(self, pixels):
        weight = self.p["vit.embeddings.patch_embeddings.projection.weight"]
        bias = self.p["vit.embeddings.patch_embeddings.projection.bias"]
        x = torch.nn.functional.conv2d(pixels, weight, bias, stride=weight.shape[2:])
        x = x.flatten(2).transpose(1, 2) + self.p[POSITIONS]
        self.states, qkvr = [x], [x] * 4
        for layer in range(self.layers):
            self.states.append(self.block(layer, qkvr, None))
            qkvr = self.aggregate(layer) if self.is_dense else [self.states[-1]] * 4
        return self.norm("vit.layernorm", qkvr[3])

    def __call__(self, pixels):
        return self.linear("classifier", self.states_of(pixels).mean(1))


def new(seed=0, spread=0.2, **options):
    """A model in float64 whose parameters are all random."""
    model = MuddViT(**SIZES, **options, seed=seed, dtype="float64")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(spread * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


def pixels(batch=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn((batch, 2, 7, 9), generator=generator, dtype=torch.float64)


def definition(model, **options):
    return VitDefinition(dict(model.named_parameters()), **{"num_heads": 4, **options})


CASES = {
    "base": {"variant": "base"},
    "eq10": {"pre_post_norm": True},
    "plain": {"pre_post_norm": False},
    "later": {"pre_post_norm": "later_revision"},
    "static": {"variant": "static", "pre_post_norm": False},
    "dynamic": {"variant": "dynamic", "pre_post_norm": True},
    "multiway_static": {"variant": "multiway_static", "pre_post_norm": True},
    "ways": {"ways": "QV", "gelu": "tanh"},
    "window": {"window": 1, "hidden_round": 8},
    "sparse": {"dilation": 2, "period": 2, "last_hidden_expand": 1},
    "mudd": {"variant": "mudd", "ffn_round": 4},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_states_and_gradients_are_those_of_the_definition(name):
    options = CASES[name]
    model, image = new(**options), pixels().requires_grad_()
    told = {"variant": "multiway_dynamic", "pre_post_norm": True, **options}
    plain = definition(model, **told)
    wanted, logits = plain(image), model(image)
    assert logits.shape == (3, 5)
    assert (logits - wanted).abs().max() <= EXACT * wanted.abs().max()
    states = plain.states_of(image)
    assert (model.hidden(image) - states).abs().max() <= EXACT * states.abs().max()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    values = [*trained.values(), image]
    expected, found = (
        torch.autograd.grad(x.square().sum(), values, allow_unused=True) for x in (wanted, logits)
    )
    assert {n for n, _ in model.named_parameters()} - {*trained} == {POSITIONS}
    for parameter, want, got in zip([*trained, "pixels"], expected, found, strict=True):
        if want is None:  # the definition does not read the sources of a sparse connection
            assert got is None or not got.any(), parameter
            continue
        assert (got - want).abs().max() <= 10 * EXACT * (1 + want.abs().max()), parameter


@pytest.mark.parametrize("norms", [True, False])
def test_a_new_model_is_the_plain_vit_of_that_seed(norms):
    plain = MuddViT(**SIZES, variant="base", seed=3, dtype="float64")
    model = MuddViT(**SIZES, pre_post_norm=norms, seed=3, dtype="float64")
    image = pixels()
    assert torch.equal(model(image), plain(image))
    assert torch.equal(model(image), MuddViT(**SIZES, seed=3, dtype="float64")(image))
    assert not torch.equal(model(image), MuddViT(**SIZES, seed=4, dtype="float64")(image))
    more = {n for n, _ in model.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert {n.split(".")[0] for n in more} == {"layers", "dense_bs", "dynamic_dense"} | (
        {"source_norms", "post_norms"} if norms else set()
    )


def test_positions_are_fixed_sines_and_cosines():
    model = MuddViT(**SIZES, dtype="float64")
    table = model.get_parameter(POSITIONS)
    assert not table.requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if n != POSITIONS)
    rows, columns = 3, 3
    for row in range(rows):
        for column in range(columns):
            wanted = []
            for number in (column, row):
                angles = [number * 10000.0 ** (-k / 5) for k in range(6)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            got = table[0, row * columns + column]
            assert (got - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-14
    narrow = MuddViT(**{**SIZES, "d_model": 4, "num_heads": 2}, dtype="float64")
    first = narrow.get_parameter(POSITIONS)[0, 1]
    wanted = torch.tensor([math.sin(1), math.cos(1), 0, 1], dtype=torch.float64)
    assert torch.allclose(first, wanted, rtol=1e-15)


def test_a_training_step_and_a_copy_leave_the_positions():
    model, image = new(pre_post_norm=True), pixels()
    before = model.get_parameter(POSITIONS).clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(image), torch.tensor([0, 4, 2]))
    loss.backward()
    optimizer.step()
    again = torch.nn.functional.cross_entropy(model(image), torch.tensor([0, 4, 2]))
    assert again < loss
    assert torch.equal(model.get_parameter(POSITIONS), before)
    assert model.get_parameter(POSITIONS).grad is None
    other = copy.deepcopy(model)
    assert torch.equal(other(image), model(image))
    assert not other.get_parameter(POSITIONS).requires_grad
    fresh = MuddViT(**SIZES, dtype="float64")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(image), model(image))
    assert model.config["variant"] == "multiway_dynamic" and model.config["pre_post_norm"] is True
    with pytest.raises(NotImplementedError, match="no published layout"):
        model.save_pretrained("nowhere")


def test_fit_trains_all_but_the_positions():
    model, image = MuddViT(**SIZES, seed=2, dtype="float64"), pixels()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    history = train.fit(
        model, lambda step: (image, torch.tensor([0, 4, 2])), steps=4, learning_rate=0.01
    )
    assert history["loss"][-1] < history["loss"][0]
    same = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert same == {POSITIONS}


def test_the_parts_of_an_image_encoder():
    model = new()
    assert isinstance(model, nn.ImageEncoder)
    assert model.num_labels == 5 and model.max_positions == 9
    weight = model.get_parameter("vit.encoder.layer.1.attention.attention.query.weight")
    assert torch.equal(model.tensor("q", 1, 2), weight[12:18])
    with pytest.raises(ValueError, match=r"role must be one of embed, .* got 'class_token'"):
        model.tensor("class_token")
    assert model.other_linear_names()["vit.encoder.layer.2.intermediate.dense"] == (
        "vit.layers.2.mlp.fc1"
    )
    single = MuddViT(**SIZES, seed=0)
    single.load_state_dict({n: p.float() for n, p in model.state_dict().items()})
    with torch.no_grad():
        exact, logits = model(pixels()), single(pixels())
    assert (logits - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert single(pixels(0)).shape == (0, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 26, "num_heads": 2}, "d_model must be a multiple of num_heads .* and of 4"),
        ({"num_heads": 5}, r"multiple of num_heads \(5\)"),
        ({"patch_size": 8}, r"patch_size \(height\), at most the picture's, must be an integer"),
        ({"image_size": [7, 9, 2]}, "image_size must be one number, or height and width"),
        ({"num_labels": 0}, r"num_labels must be in 1\.\."),
        ({"d_model": 1200, "num_heads": 4}, "the head's width .* from 1 to 256"),
        ({"variant": "lime"}, "variant must be one of base, static"),
        ({"gelu": "fast"}, "gelu must be one of exact, tanh"),
        ({"ways": "VQ"}, "ways must be some of the letters"),
        ({"window": 2, "dilation": 2}, "window needs a dilation of 1"),
        ({"norm_eps": 0.0}, "norm_eps must be"),
        ({"pre_post_norm": "both"}, "pre_post_norm must be False, True"),
        ({"image_size": 2**31 - 1, "patch_size": 1}, "at most 1e13 parameters"),
        ({"dtype": "float16"}, "dtype"),
        ({"num_layers": 1.5}, "num_layers must be an integer"),
    ],
)
def test_options_that_are_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        MuddViT(**{**SIZES, **changes})
    assert str(error.value).startswith("MuddViT: ")


def test_what_only_cpp_can_ask_for():
    config = _core.MuddConfig()
    config.num_layers = config.num_heads = config.d_ff = 1
    config.d_model = 4
    config.set_variant("lime")
    with pytest.raises(ValueError, match="variant must be base or one of dense connections"):
        _core.new_mudd_vit(config, [1, 2, 2, 1, 1], 2, 0, "float32")

"""Whole models with tensors on a GPU that is not there: fake tensors know devices and shapes alone.

An operation that mixed devices, or read a tensor's memory, would be an error. Gradients of fake
tensors on a GPU need one, so those are taken of fake tensors on the CPU.
"""

import contextlib

import mudd_models
import paperlab
import pytest
import torch
import training_cases as cases
from paperlab import cca, nn
from torch._subclasses.fake_tensor import FakeTensorMode

HAS_GPU = torch.cuda.is_available()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")

MODELS = {
    "llama": lambda: cases.model("float32"),
    "neox": lambda: cases.model(
        "bfloat16", model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], rotary_pct=1.0
    ),
    "half": lambda: cases.model("float32").half(),
    "cca": lambda: cca.apply(cases.model("float32"), 3, 4),
    "cca_kept": lambda: cca.apply(cases.model("float32"), 2, 3, keep_first=1, pooling="max"),
    "mudd": lambda: mudd_models.new().float(),
    "normed": lambda: mudd_models.new(pre_post_norm=True),
    "sparse": lambda: mudd_models.new(dilation=2, period=2, parallel_block=True).bfloat16(),
    "static": lambda: mudd_models.new(variant="static"),
    "hyper": lambda: mudd_models.new(variant="hyper_connections"),
    "lime": lambda: mudd_models.new(variant="lime"),
}


@contextlib.contextmanager
def fake_tensors():
    # Rotary tables are real tensors on the CPU until they are moved.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def placed(model, device):
    """The model with fake parameters on a device."""
    for name, value in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        fake = torch.empty(value.shape, dtype=value.dtype, device=device)
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(fake, value.requires_grad))
    return model


def zeros(*shape, dtype=torch.int64, device="cuda"):
    return torch.zeros(shape, dtype=dtype, device=device)


@without_gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_forward_pass_on_a_gpu(name):
    model = MODELS[name]()
    with fake_tensors(), torch.no_grad():
        placed(model, "cuda")
        logits = model(zeros(2, 9))
        assert (logits.device.type, logits.shape) == ("cuda", (2, 9, model.vocab_size))
        assert logits.dtype == next(model.parameters()).dtype
        if not name.startswith("cca"):  # where padding lies is a value
            masked = model(zeros(2, 9), attention_mask=zeros(2, 9, dtype=torch.bool))
            assert masked.device.type == "cuda"


@without_gpu
@pytest.mark.parametrize("name", MODELS)
def test_steps_with_a_cache_on_a_gpu(name):
    model = MODELS[name]()
    with fake_tensors(), torch.no_grad():
        placed(model, "cuda")
        cache = model.new_cache(2, 20)
        for count in (9, 1, 3, 1):
            last = model(zeros(2, count), cache=cache, last_only=True)
            assert (last.device.type, last.shape) == ("cuda", (2, 1, model.vocab_size))
        assert cache.length == 14
        tokens = model.generate(zeros(2, 3), 4, eos_token_id=None)
        assert (tokens.device.type, tokens.shape) == ("cuda", (2, 7))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_without_memory(name):
    model = MODELS[name]()
    with fake_tensors():
        placed(model, "cpu")
        model(zeros(2, 9, device="cpu")).float().logsumexp(-1).sum().backward()
        for value in model.parameters():
            assert value.grad.shape == value.shape and value.grad.dtype == value.dtype


@without_gpu
def test_the_streaming_cache_and_the_baselines_on_a_gpu():
    with fake_tensors():
        q = zeros(2, 4, 33, 8, dtype=torch.bfloat16)
        k = zeros(2, 2, 33, 8, dtype=torch.bfloat16)
        results = [
            cca.attention(q, k, k, 4, 6),
            cca.attention(q.half(), k.half(), k.half(), 4, 6),
            cca.effective_attention(q, k, 4, 6),
            *cca.pool(q, k, k, 4),
            cca.baselines.full(q, k, k),
            cca.baselines.sliding_window(q, k, k, 5),
            cca.baselines.streaming_llm(q, k, k, 2, 6),
            cca.baselines.lm_infinite(q, k, k, 3, 8, 8),
            cca.baselines.a_shape(q, k, k, 3, 5),
            cca.baselines.vertical_slash(q, k, k, 5, 5),
        ]
        cache = cca.KVCache(4, 6)
        results += [cache.prefill(q, k, k), cache.step(q[:, :, :1], k[:, :, :1], k[:, :, :1])]
        assert all(result.device.type == "cuda" for result in results)
        with pytest.raises(ValueError, match="q must be on the cache's device cuda:0, got cpu"):
            cache.step(*(zeros(2, h, 1, 8, dtype=torch.bfloat16, device="cpu") for h in (4, 2, 2)))


@without_gpu
def test_a_cache_of_another_device_is_refused():
    for model in (cases.model("float32"), cca.apply(cases.model("float32"), 3, 4)):
        with fake_tensors(), torch.no_grad():
            placed(model, "cpu")
            cache = model.new_cache(1, 8)
            placed(model, "cuda")
            with pytest.raises(ValueError, match=r"cache must be of the model's .* device"):
                model(zeros(1, 3), cache=cache)
            assert cache.length == 0


def test_devices_that_are_not_there(tmp_path):
    model = cases.model("float32")
    model.save_pretrained(tmp_path)
    tokens = cases.counting(0)
    for device in (None, "cpu", torch.device("cpu")):
        for other in (
            nn.load(tmp_path, device=device),
            nn.from_config(cases.CONFIG, device=device),
        ):
            assert next(other.parameters()).device.type == "cpu"
    assert torch.equal(nn.load(tmp_path, device="cpu")(tokens), model(tokens))
    refused = ["mps", "gpu", "cuda:99", 3.5]
    for device in refused if HAS_GPU else [*refused, "cuda", torch.device("cuda:0")]:
        with pytest.raises(ValueError, match=r"^load: device must be"):
            nn.load(tmp_path, device=device)
        with pytest.raises(ValueError, match=r"^from_config: device must be"):
            nn.from_config(cases.CONFIG, device=device)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_model_moves_to_the_gpu_and_back(tmp_path):
    model = cases.model("float64")
    tokens = cases.counting(0)[:, :9]
    wanted = model(tokens).detach()
    model.save_pretrained(tmp_path)
    moved = nn.load(tmp_path, device="cuda")
    # In float64 the same sums in another order.
    torch.testing.assert_close(moved(tokens).detach().cpu(), wanted, rtol=1e-10, atol=1e-11)
    model.to("cuda")
    torch.testing.assert_close(model(tokens).detach(), moved(tokens).detach())
    history = paperlab.train.fit(model, cases.counting, steps=3, learning_rate=cases.RATE)
    reference = nn.load(tmp_path)
    on_cpu = paperlab.train.fit(reference, cases.counting, steps=3, learning_rate=cases.RATE)
    assert history["loss"] == pytest.approx(on_cpu["loss"], rel=1e-8)
    assert model.to("cpu")(tokens).device.type == "cpu"
    generated = moved.generate(tokens, 5, eos_token_id=None)
    assert torch.equal(generated.cpu(), nn.load(tmp_path).generate(tokens, 5, eos_token_id=None))

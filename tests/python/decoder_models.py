"""Small decoders of every architecture with random weights, and what a decoder is by definition."""

import functools
import json
import math

import paperlab
import torch
import transformers
from torch.nn import functional

VOCABULARY = 97
END = 5
WINDOW = 6
IS_NEW = int(transformers.__version__.split(".")[0]) >= 5

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_GQA = {"num_key_value_heads": 2}
TRAINED = 16  # positions before a rope's scaling begins


def rope(kind, **parameters):
    """The setting of a rope's scaling, as this version of transformers takes it."""
    parameters = {"rope_type": kind, "factor": 4.0, **parameters}
    if IS_NEW:
        return {"rope_parameters": {"rope_theta": 5000.0, **parameters}}
    return {"rope_theta": 5000.0, "rope_scaling": parameters}


def _share(share):
    return {"partial_rotary_factor": share} if IS_NEW else {}


def _partial(share):
    if not IS_NEW:
        return {"rotary_pct": share}
    given = {"rope_type": "default", "rope_theta": 10000.0, **_share(share)}
    return {"rope_parameters": given}


_ORIGINAL = {"original_max_position_embeddings": TRAINED}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ORIGINAL}
_NEOX = {"hidden_dropout": 0.0, "attention_dropout": 0.0, **_partial(0.25)}

# Name: model type, changes of its settings.
CASES = {
    "llama": ("llama", _GQA),
    "llama_biases_tied": (
        "llama",
        {
            **_GQA,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 10,
            "tie_word_embeddings": True,
        },
    ),
    "llama_one_key_head": ("llama", {"num_key_value_heads": 1, "head_dim": 14}),
    "llama_gelu": ("llama", {"num_key_value_heads": 6, "hidden_act": "gelu"}),
    "llama_linear": ("llama", {**_GQA, **rope("linear"), "max_position_embeddings": TRAINED}),
    "llama_dynamic": ("llama", {**_GQA, **rope("dynamic"), "max_position_embeddings": TRAINED}),
    "llama_llama3": ("llama", {**_GQA, **rope("llama3", **_LLAMA3)}),
    "llama_yarn": ("llama", {**_GQA, **rope("yarn", **_ORIGINAL)}),
    "mistral": ("mistral", {**_GQA, "sliding_window": WINDOW}),
    "mistral_full": ("mistral", {**_GQA, "sliding_window": None}),
    "qwen2": (
        "qwen2",
        {**_GQA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**_GQA, "head_dim": 10, "attention_bias": True}),
    "neox": ("gpt_neox", _NEOX),
    "neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False, **_partial(1.0)}),
    "neox_half": ("gpt_neox", {**_NEOX, **_partial(0.5), "tie_word_embeddings": True}),
    "neox_odd": ("gpt_neox", {**_NEOX, "num_attention_heads": 4, **_partial(0.4)}),  # 4 of 12
    "neox_no_bias": ("gpt_neox", {**_NEOX, "attention_bias": False}),
    "neox_linear": ("gpt_neox", {**_NEOX, **rope("linear", **_share(0.5))}),
}
for _name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"):
    CASES[f"neox_{_name}"] = ("gpt_neox", {**_NEOX, "hidden_act": _name})
DECODERS = list(CASES)
SOME = ["llama", "llama_biases_tied", "mistral", "qwen2", "qwen3", "neox", "neox_sequential"]


def hf_config(name, **changes):
    model_type, settings = CASES[name]
    return transformers.AutoConfig.for_model(model_type, **{**_SIZES, **settings, **changes})


def settings(name, **changes):
    """What config.json would hold."""
    return json.loads(hf_config(name, **changes).to_json_string())


def randomise(model, seed=3):
    """Weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.dim() == 1:
                value.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
            else:
                value.copy_(noise * (1.0 if "embed_" in name else 1.5 * value.shape[-1] ** -0.5))
    return model


def ours(name, dtype=torch.float64, seed=3, **changes):
    return randomise(paperlab.nn.from_config(settings(name, **changes), dtype=dtype), seed)


def values_of(model, dtype=torch.float64):
    """name -> a copy of the parameter that requires a gradient."""
    return {
        n: p.detach().to(dtype, copy=True).requires_grad_() for n, p in model.named_parameters()
    }


def name_in_transformers(name, theirs):
    """transformers 5 calls GPT-NeoX's head lm_head in memory, its files do not."""
    known = dict(theirs.named_parameters())
    return name if name in known else name.replace("embed_out", "lm_head")


def theirs(name, model, dtype=torch.float64, **changes):
    """transformers' model with the values of ours."""
    other = transformers.AutoModelForCausalLM.from_config(hf_config(name, **changes)).eval()
    other.to(dtype)
    state = {name_in_transformers(n, other): p.detach() for n, p in model.named_parameters()}
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("lm_head" in key or "embed_out" in key for key in missing.missing_keys)
    assert other.config.tie_word_embeddings or not missing.missing_keys
    return other


def tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(100 * seed + 10 * batch + length)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


def masks(length):
    """name -> the mask [4, length]: rows with none, some, all but one and all tokens hidden."""
    left, right, holes = (torch.ones(4, length, dtype=torch.int64) for _ in range(3))
    for row, count in ((1, length // 2), (2, length - 1), (3, length)):
        left[row, :count] = 0
        right[row, length - count :] = 0
    holes[1, 1::3] = 0
    holes[2, [0, 2, length - 1]] = 0
    holes[3, : length // 2] = 0
    return {"left": left, "right": right, "holes": holes}


def _rope_settings(config):
    if hasattr(config, "rope_parameters"):
        return dict(config.rope_parameters)
    scaling = dict(getattr(config, "rope_scaling", None) or {"rope_type": "default"})
    share = getattr(config, "rotary_pct", 1.0)
    return {"rope_theta": config.rope_theta, "partial_rotary_factor": share, **scaling}


def _yarn(base, size, plain, p):
    def pair(turns):  # the pair of lanes that turns so often within the trained length
        trained = p["original_max_position_embeddings"]
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair(32.0)), 0), min(math.ceil(pair(1.0)), size - 1)
    place = torch.arange(size // 2, dtype=torch.float64)
    ramp = ((place - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain / p["factor"] * ramp + plain * (1 - ramp), 0.1 * math.log(p["factor"]) + 1


def frequencies(config, size, length):
    """Of each pair of lanes, and what cosines and sines are multiplied by; float64."""
    p = _rope_settings(config)
    base, kind = p["rope_theta"], p["rope_type"]
    if kind == "dynamic":
        trained = config.max_position_embeddings
        stretch = p["factor"] * max(length, trained) / trained - (p["factor"] - 1)
        base = base * stretch ** (size / (size - 2))
    plain = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    if kind == "linear":
        return plain / p["factor"], 1.0
    if kind == "yarn":
        return _yarn(base, size, plain, p)
    if kind == "llama3":
        turns = p["original_max_position_embeddings"] * plain / (2 * math.pi)
        share = (turns - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
        share = share.clamp(0, 1)
        return plain * (share + (1 - share) / p["factor"]), 1.0
    return plain, 1.0


def _rotate(x, frequency, factor):
    """x [T, H, D]: lanes i and i + R/2 of the first R turn by position * frequency[i]."""
    half = len(frequency)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * frequency
    cos, sin = (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
    "gelu_new": functools.partial(functional.gelu, approximate="tanh"),
}


def _attend(config, q, k, v, window):
    """[T, H, D] after causal softmax attention over the last `window` keys."""
    length, heads, size = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= window)
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(size)
    return torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)


def _rms(x, weight, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class _Definition:
    """The formulas for one sequence; `calls` are the names and inputs of the linear layers."""

    def __init__(self, config, values):
        self.config, self.values, self.calls = config, values, []
        self.is_neox = config.model_type == "gpt_neox"

    def linear(self, name, x):
        self.calls.append((name, x))
        return functional.linear(x, self.values[f"{name}.weight"], self.values.get(f"{name}.bias"))

    def norm(self, name, x):
        weight = self.values[f"{name}.weight"]
        if self.is_neox:
            bias = self.values[f"{name}.bias"]
            return functional.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps)
        return _rms(x, weight, self.config.rms_norm_eps)

    def queries_keys_values(self, block, x, size):
        if self.is_neox:
            fused = self.linear(f"{block}.query_key_value", x).unflatten(-1, (-1, 3, size))
            return fused.unbind(-2)
        split = [
            self.linear(f"{block}.{n}_proj", x).unflatten(-1, (-1, size)) for n in ("q", "k", "v")
        ]
        if self.config.model_type == "qwen3":
            for i, n in enumerate(("q", "k")):
                weight = self.values[f"{block}.{n}_norm.weight"]
                split[i] = _rms(split[i], weight, self.config.rms_norm_eps)
        return split

    def attention(self, block, x, window):
        config = self.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        q, k, v = self.queries_keys_values(block, x, size)
        share = _rope_settings(config).get("partial_rotary_factor", 1.0) if self.is_neox else 1.0
        frequency, factor = frequencies(config, int(size * share), len(x))
        q, k = _rotate(q, frequency, factor), _rotate(k, frequency, factor)
        heads = _attend(config, q, k, v, window).flatten(1)
        return self.linear(f"{block}.{'dense' if self.is_neox else 'o_proj'}", heads)

    def feed_forward(self, block, x):
        name = self.config.hidden_act
        activation = _ACTIVATIONS.get(name, _ACTIVATIONS["gelu_new"])
        if self.is_neox:
            wide = activation(self.linear(f"{block}.dense_h_to_4h", x))
            return self.linear(f"{block}.dense_4h_to_h", wide)
        gate = activation(self.linear(f"{block}.gate_proj", x))
        return self.linear(f"{block}.down_proj", gate * self.linear(f"{block}.up_proj", x))

    def window(self, layer):
        config = self.config
        if config.model_type == "mistral":
            return config.sliding_window or math.inf
        is_windowed = getattr(config, "layer_types", None) and config.model_type == "qwen2"
        has = is_windowed and config.layer_types[layer] == "sliding_attention"
        return config.sliding_window if has else math.inf

    def logits(self, row):
        root = "gpt_neox" if self.is_neox else "model"
        embedding = self.values[f"{root}.embed_{'in' if self.is_neox else 'tokens'}.weight"]
        x = embedding[row]
        for layer in range(self.config.num_hidden_layers):
            block, window = f"{root}.layers.{layer}", self.window(layer)
            mixer = f"{block}.{'attention' if self.is_neox else 'self_attn'}"
            attended = self.attention(mixer, self.norm(f"{block}.input_layernorm", x), window)
            x, before = x + attended, x
            is_parallel = self.is_neox and self.config.use_parallel_residual
            inner = self.norm(f"{block}.post_attention_layernorm", before if is_parallel else x)
            x = x + self.feed_forward(f"{block}.mlp", inner)
        x = self.norm(f"{root}.{'final_layer_norm' if self.is_neox else 'norm'}", x)
        head = "embed_out" if self.is_neox else "lm_head"
        if f"{head}.weight" in self.values:
            return self.linear(head, x)
        self.calls.append(("lm_head", x))
        return x @ embedding.T


def definition(config, values, batch, mask=None):
    """Logits [B, T, V] of float64 values; each row's visible tokens alone, zeros at the others."""
    rows = []
    for i, row in enumerate(batch):
        visible = torch.ones_like(row, dtype=torch.bool) if mask is None else mask[i] != 0
        out = torch.zeros(len(row), config.vocab_size, dtype=torch.float64)
        if visible.any():
            out = out.index_put((visible,), _Definition(config, values).logits(row[visible]))
        rows.append(out)
    return torch.stack(rows)


def linear_calls(config, values, row):
    """The names and inputs [T, in] of the linear layers in the order of their use."""
    model = _Definition(config, values)
    model.logits(row)
    return model.calls

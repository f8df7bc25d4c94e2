"""The real model: SmolLM2-135M-Instruct from its GGUF file, beside transformers' own loader.

Fetched once (`./paperlab fetch smollm2`); skipped where it cannot be.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from paperlab import data, io, models, nn  # noqa: E402
from paperlab import eval as evaluation  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "de", "ru", "ja")


@pytest.fixture(scope="module")
def directory() -> Path:
    """The converted model."""
    try:
        return models.fetch("smollm2")
    except OSError as error:
        pytest.skip(f"smollm2 is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="module")
def gguf_file(directory: Path) -> Path:
    """The file from which it was converted."""
    return models.gguf_path("smollm2")


@pytest.fixture(scope="module")
def hf_model(gguf_file: Path) -> Any:
    """What transformers makes of the file, in float32."""
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name
    )


@pytest.fixture(scope="module")
def manual_pages() -> data.Corpus:
    """Manual pages in four languages."""
    try:
        return data.load("manual-pages", LANGUAGES)
    except FileNotFoundError:
        missing = data.fetch("manual-pages", LANGUAGES)
        if missing:
            pytest.skip(f"manual-pages cannot be fetched: {missing}")
        return data.load("manual-pages", LANGUAGES)


@pytest.fixture(scope="module")
def lines(manual_pages: data.Corpus) -> list[str]:
    """250 lines of each language that are not empty, as they are, from all over the test split."""
    chosen: list[str] = []
    for language in LANGUAGES:
        text = b"\n".join(manual_pages[language]["test"]).decode()
        every = [line for line in text.split("\n") if line.strip()]
        chosen += every[:: len(every) // 250][:250]
    return chosen


def test_every_tensor_is_that_of_transformers(directory: Path, hf_model: Any) -> None:
    ours = io.load_file(directory / "model.safetensors")
    theirs = dict(hf_model.named_parameters())
    assert set(ours) == set(theirs) and len(ours) == 272
    for name, tensor in ours.items():
        other = theirs[name].detach()
        assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
        assert torch.equal(tensor.view(torch.int32), other.view(torch.int32)), name


def test_the_config_is_that_of_transformers(directory: Path, hf_model: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(directory).to_dict()
    of_the_call = ("quantization_config", "_name_or_path", "architectures")
    theirs = {k: v for k, v in hf_model.config.to_dict().items() if k not in of_the_call}
    assert {key: config.get(key) for key in theirs} == theirs
    generation = transformers.GenerationConfig.from_pretrained(directory).to_dict()
    theirs = hf_model.generation_config.to_dict()
    assert {key: generation.get(key) for key in theirs} == theirs


def test_tokens_of_four_languages(directory: Path, gguf_file: Path, lines: list[str]) -> None:
    auto = transformers.AutoTokenizer
    ours = auto.from_pretrained(directory)
    raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
    theirs = auto.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert len(lines) == 1000 and sum(map(len, lines)) > 30_000
    for line in lines:
        ids = theirs(line).input_ids
        assert ours(line).input_ids == ids and raw.encode(line).ids == ids, line
        assert ours.decode(ids) == line and max(ids) < 49152
    talk = [{"role": "user", "content": "What does ls do?"}]
    options = {"add_generation_prompt": True, "tokenize": False}
    assert ours.apply_chat_template(talk, **options) == theirs.apply_chat_template(talk, **options)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.fixture(scope="module")
def decoder(directory: Path) -> nn.Decoder:
    """Our decoder of the same weights."""
    return nn.load(directory)


@pytest.fixture(scope="module")
def pages(directory: Path, manual_pages: data.Corpus) -> list[torch.Tensor]:
    """The first 1,025 tokens of four English manual pages that are so long, held out."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    encoded = (tokenizer.encode(d.decode()).ids for d in manual_pages["en"]["test"])
    return [torch.tensor(ids[:1025]) for ids in encoded if len(ids) >= 1025][:4]


def test_logits_are_those_of_transformers(
    decoder: nn.Decoder, hf_model: Any, pages: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        ours, theirs = (m(pages[0][None, :1024]) for m in (decoder, hf_model))
    assert (ours - theirs.logits).abs().max().item() <= 1e-3


def test_a_greedy_continuation_is_that_of_transformers(
    decoder: nn.Decoder, hf_model: Any, pages: list[torch.Tensor]
) -> None:
    for page in pages[:2]:
        prompt = page[None, :128]
        theirs = hf_model.generate(prompt, max_new_tokens=64, do_sample=False)
        assert decoder.generate(prompt, 64).tolist() == theirs.tolist()


def test_perplexity_is_that_of_transformers_and_plausible(
    decoder: nn.Decoder, hf_model: Any, pages: list[torch.Tensor]
) -> None:
    assert len(pages) == 4
    ours = [evaluation.score(decoder, page, context=1024).nll for page in pages]
    theirs = []
    for page in pages:
        with torch.no_grad():
            logits = hf_model(page[None, :1024]).logits[0]
        theirs.append(torch.nn.functional.cross_entropy(logits, page[1:], reduction="none"))
    ours_mean, theirs_mean = (torch.cat(nll).double().mean().exp().item() for nll in (ours, theirs))
    assert f"{ours_mean:.4g}" == f"{theirs_mean:.4g}"
    at_512 = torch.cat([nll[512:] for nll in ours]).mean().item()
    assert at_512 < 3.0, "nats/token at positions 512-1023"

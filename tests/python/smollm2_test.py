"""The real model: SmolLM2-135M-Instruct from its GGUF file, beside transformers' own loader.

Fetched once (`./paperlab fetch smollm2`); skipped where it cannot be.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from paperlab import data, io, models  # noqa: E402
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

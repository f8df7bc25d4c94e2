"""The real model with core-context attention: SmolLM2-135M-Instruct, as in smollm2_test.

Fetched once (`./paperlab fetch smollm2`); skipped where it cannot be.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from paperlab import cca, models, nn  # noqa: E402
from paperlab.integrations import transformers as integration  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

TEXT = "The core of a long text is often short, and what comes last matters most. "


@pytest.fixture(scope="module")
def directory() -> Path:
    """The converted model."""
    try:
        return models.fetch("smollm2")
    except OSError as error:
        pytest.skip(f"smollm2 is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="module")
def decoder(directory: Path) -> nn.Decoder:
    return nn.load(directory)


@pytest.fixture(scope="module")
def prompt(directory: Path) -> torch.Tensor:
    """300 tokens [1, 300]."""
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT * 30).ids
    return torch.tensor([ids[:300]])


def test_a_window_that_holds_everything_gives_the_same_text(
    decoder: nn.Decoder, prompt: torch.Tensor
) -> None:
    text = decoder.generate(prompt, 24, eos_token_id=None)
    cca.apply(decoder)  # g 16, s 1024
    assert torch.equal(decoder.generate(prompt, 24, eos_token_id=None), text)
    cca.remove(decoder)
    assert torch.equal(decoder.generate(prompt, 24, eos_token_id=None), text)


def test_the_text_of_the_cache_is_that_of_the_whole(
    decoder: nn.Decoder, prompt: torch.Tensor
) -> None:
    """By logits: those of the token that came are the largest, but for float32's rounding."""
    cca.apply(decoder, 16, 64)
    text = decoder.generate(prompt, 24, prefill_chunk=70, eos_token_id=None)
    with torch.no_grad():
        logits = decoder(text[:, :-1])[0, 299:]
    chosen = logits.gather(1, text[0, 300:, None])[:, 0]
    assert (logits.amax(1) - chosen).max() <= 1e-3
    cca.remove(decoder)


def test_logits_are_those_of_transformers_by_name(
    directory: Path, decoder: nn.Decoder, prompt: torch.Tensor
) -> None:
    integration.register()
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="paperlab_cca"
    )
    theirs.config.cca_window = 64
    batch = prompt.expand(2, -1).clone()
    mask = torch.ones_like(batch)
    mask[1, :37] = 0
    cca.apply(decoder, 16, 64)
    with torch.no_grad():
        ours, wanted = decoder(batch, mask), theirs(batch, attention_mask=mask).logits
        full = cca.remove(decoder)(batch, mask)
    visible = mask[..., None]
    assert ((ours - wanted) * visible).abs().max() <= 1e-3
    assert ((ours - full) * visible).abs().max() > 1.0

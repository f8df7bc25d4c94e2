"""Text to tokens to scores, in Python."""

import math
from pathlib import Path

import pytest
import torch

tokenizers = pytest.importorskip("tokenizers")

import tiny_decoder  # noqa: E402
from paperlab import eval as evaluation  # noqa: E402
from paperlab import nn  # noqa: E402
from tiny_decoder import END, random_model, save  # noqa: E402
from tokenizers import Tokenizer, processors  # noqa: E402

ZHONG = "\u4e2d"


def test_encode_counts_the_bytes_that_are_scored() -> None:
    tokenizer = tiny_decoder.byte_tokenizer()
    cases = {"ab": 1, "\u00e9b": 3, f"a{ZHONG}": 3, "\U0001f600": 4, " a": 1, "a": 0, "": 0}
    for text, num_bytes in cases.items():
        encoded = evaluation.encode(tokenizer, text)
        assert encoded.tokens.dtype == torch.int64
        assert (encoded.tokens.tolist(), encoded.num_bytes) == ([*text.encode()], num_bytes)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", END)]
    )
    encoded = evaluation.encode(tokenizer, f"{ZHONG}b")
    assert (encoded.tokens.tolist()[0], encoded.num_bytes) == (END, 4)


def test_joined_scores_are_those_of_the_parts() -> None:
    one = evaluation.Scores(torch.tensor([1.0, 2.0]).double(), torch.tensor([1, 2]))
    two = evaluation.Scores(torch.tensor([4.0]).double(), torch.tensor([1]))
    both = evaluation.Scores.joined([one, two])
    assert both.nll.tolist() == [1, 2, 4] and both.position.tolist() == [1, 2, 1]
    assert both.summary() == {"nll": 7.0, "tokens": 3, "perplexity": math.exp(7 / 3)}


def test_the_parts_in_python(tmp_path: Path) -> None:
    directory = save(random_model(), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    content = f"{ZHONG} a text of some length. " * 9
    text = evaluation.encode(tokenizer, content)
    scores = evaluation.score(nn.load(directory), text.tokens, context=32)
    summary = scores.summary(num_bytes=text.num_bytes)
    assert summary["tokens"] == len(content.encode()) - 1 and summary["bits_per_byte"] > 0

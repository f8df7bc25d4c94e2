"""Text that grows token by token: whole characters, and together what all tokens say."""

import random

import pytest

tokenizers = pytest.importorskip("tokenizers")

import tiny_decoder  # noqa: E402
from paperlab import _tokenizer  # noqa: E402
from tiny_decoder import END  # noqa: E402
from tokenizers import Tokenizer, decoders, models  # noqa: E402


def pieces(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> list[str]:
    stream = _tokenizer.Stream(tokenizer, prompt)
    return [stream.add(token) for token in tokens]


def test_a_stream_of_any_bytes_is_the_text_of_all_of_them() -> None:
    tokenizer = tiny_decoder.byte_tokenizer()
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choice("a \u00e9\u4e2d\U0001f600") for _ in range(8))
        tokens = list(text.encode())
        if rng.random() < 0.5:
            tokens[rng.randrange(len(tokens))] = rng.choice([END, 0xFF, 0xE4, 0x80])
        whole = tokenizer.decode([*b"so", *tokens])[2:]
        assert "".join(pieces(tokenizer, [*b"so"], tokens)) == whole.rstrip("\ufffd")


def sentence_tokenizer() -> Tokenizer:
    """As in SentencePiece: `_` (U+2581) is a space, what is not known is written as bytes."""
    vocabulary = [("<unk>", 0.0), ("\u2581so", -1.0), ("\u2581a", -1.0), ("b", -1.0)]
    vocabulary += [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_a_stream_keeps_the_space_before_a_word_and_whole_characters() -> None:
    tokenizer = sentence_tokenizer()
    so, a, b = 1, 2, 3
    zhong = [4 + byte for byte in "\u4e2d".encode()]
    assert tokenizer.decode([so, a, b, *zhong]) == "so ab\u4e2d"
    assert pieces(tokenizer, [so], [a, b]) == [" a", "b"]
    tokens = [a, *zhong, *zhong, *zhong, b, a]
    expected = [" a", *["", "", "\u4e2d"] * 3, "b", " a"]
    assert pieces(tokenizer, [so], tokens) == expected
    assert pieces(tokenizer, zhong, [*zhong, a]) == ["", "", "\u4e2d", " a"]
    assert pieces(tokenizer, [so], [zhong[0], a])[0] == ""

"""GGUF files that are damaged, hostile or of unknown form: one error each, before anything is
written, without much memory or time.
"""

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf import GGMLQuantizationType as Type
from gguf_files import (
    ARCHITECTURE,
    TOKENS,
    entry,
    info,
    raw_file,
    text,
    write_model,
)
from paperlab import convert
from paperlab.convert._command import main


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that would be converted."""
    return write_model(tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Path | bytes], str]:
    """Converts a file, which must fail at once and leave nothing; returns the message."""

    def convert_it(file: Path | bytes) -> str:
        path = tmp_path / "bad.gguf"
        if isinstance(file, bytes):
            path.write_bytes(file)
        elif file != path:
            file.rename(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        with pytest.raises(ValueError, match=r"^.*bad\.gguf: ") as error:
            convert.gguf(path, tmp_path / "out")
        assert time.process_time() - start < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
        assert os.listdir(tmp_path) == ["bad.gguf"]
        message = str(error.value)
        assert "\n" not in message and len(message) < 800
        return message

    return convert_it


# --- the header ---------------------------------------------------------------------------------

HUGE = 1 << 60
ARRAY_OF = struct.Struct("<IQ")

HEADERS = {
    "empty": (b"", "does not start with 'GGUF'"),
    "short magic": (b"GG", "does not start with 'GGUF'"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not start with 'GGUF'"),
    "magic alone": (b"GGUF", "is truncated: the version needs 4 bytes at byte 4"),
    "version 1": (raw_file([], [], version=1), "has GGUF version 1; known are 2 and 3"),
    "version 4": (raw_file([], [], version=4), "has GGUF version 4"),
    "big endian": (raw_file([], [], version=3 << 24), "in the other byte order"),
    "keys": (raw_file([], [], num_entries=HUGE), "number of metadata keys cannot be 11529"),
    "tensors": (raw_file([], [], num_infos=HUGE), "the number of tensors cannot be 11529"),
    "too many keys": (raw_file([ARCHITECTURE], [], num_entries=9), "metadata keys cannot be 9"),
    "no metadata": (raw_file([], []), "unknown architecture None; known are llama, qwen2"),
    "key length": (raw_file([struct.pack("<Q", HUGE) + b"x" * 40], []), "cannot have 11529"),
    "key beyond": (raw_file([struct.pack("<Q", 999) + b"x" * 40], []), "is truncated: a metadata"),
    "key bytes": (raw_file([entry(b"\xff\xfe", 4, bytes(4))], []), "a metadata key is not UTF-8"),
    "twice": (raw_file([ARCHITECTURE] * 2, []), "'general.architecture' is there twice"),
    "text length": (
        raw_file([entry(b"a", 8, struct.pack("<Q", HUGE)) + bytes(40)], []),
        "metadata 'a' cannot have 11529",
    ),
    "text bytes": (raw_file([entry(b"a", 8, text(b"\xc3\x28"))], []), "'a' is not UTF-8"),
    "value type": (raw_file([entry(b"a", 13, bytes(40))], []), "'a' has the unknown type 13"),
    "array type": (raw_file([entry(b"a", 9, ARRAY_OF.pack(99, 1) + bytes(40))], []), "type 99"),
    "nested array": (raw_file([entry(b"a", 9, ARRAY_OF.pack(9, 1) + bytes(99))], []), "type 9"),
    "array length": (
        raw_file([entry(b"a", 9, ARRAY_OF.pack(4, HUGE) + bytes(40))], []),
        "the length of metadata 'a' cannot be 11529",
    ),
    "array beyond": (
        raw_file([entry(b"a", 9, ARRAY_OF.pack(10, 32) + bytes(40))], []),
        "is truncated: metadata 'a' needs 256 bytes",
    ),
    "texts": (
        raw_file([entry(b"a", 9, ARRAY_OF.pack(8, HUGE) + bytes(40))], []),
        "the length of metadata 'a' cannot be 11529",
    ),
    "texts beyond": (
        raw_file([entry(b"a", 9, ARRAY_OF.pack(8, 3) + text(b"x") + b"\x09" * 30)], []),
        "metadata 'a' cannot have 651061555542690057 bytes",
    ),
    "texts bytes": (
        raw_file([entry(b"a", 9, ARRAY_OF.pack(8, 1) + text(b"\x80"))], []),
        "metadata 'a' is not UTF-8: b'\\x80'",
    ),
    "alignment 0": (
        raw_file([entry(b"general.alignment", 4, bytes(4))], []),
        "general.alignment must be a power of two, got 0",
    ),
    "alignment text": (
        raw_file([entry(b"general.alignment", 8, text(b"32"))], []),
        "general.alignment must be a power of two, got '32'",
    ),
    "dimensions": (
        raw_file([], [text(b"t") + struct.pack("<I", 1 << 30) + bytes(40)]),
        "tensor 't' cannot have 1073741824 dimensions",
    ),
    "size": (raw_file([], [info(b"t", (1 << 40, 1 << 40))]), "'t' cannot have the shape"),
    "size 0": (raw_file([], [info(b"t", (4, 0))]), "tensor 't' cannot have the shape [0, 4]"),
    "tensor type": (raw_file([], [info(b"t", (4,), 77)], bytes(64)), "'t' has the unknown type 77"),
    "removed type": (raw_file([], [info(b"t", (4,), 4)], bytes(64)), "'t' has the unknown type 4"),
    "rows": (raw_file([], [info(b"t", (33, 2), 3)], bytes(64)), "rows of a multiple of 32"),
    "offset": (raw_file([], [info(b"t", (4,), 0, HUGE)], bytes(64)), "is truncated: tensor 't'"),
    "tensor beyond": (raw_file([], [info(b"t", (17,))], bytes(64)), "is truncated: tensor 't'"),
    "tensor name": (raw_file([], [info(b"\xff", (4,))], bytes(64)), "tensor's name is not UTF-8"),
    "tensor twice": (raw_file([], [info(b"t", (4,))] * 2, bytes(64)), "tensor 't' is there twice"),
    "overlap": (
        raw_file([], [info(b"t", (8,)), info(b"u", (8,), 0, 16)], bytes(64)),
        "tensors 't' and 'u' overlap",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_bad_header(refused: Callable[[bytes], str], name: str) -> None:
    content, message = HEADERS[name]
    assert message in refused(content)


def test_a_large_hole_costs_nothing(tmp_path: Path) -> None:
    """A sparse file of a terabyte, in which each huge count would fit."""
    for entries in (
        [entry(b"a", 9, ARRAY_OF.pack(0, 1 << 38))],
        [entry(b"a", 9, ARRAY_OF.pack(8, 1 << 34))],
        [entry(b"a", 8, struct.pack("<Q", 1 << 38))],
    ):
        path = tmp_path / "hole.gguf"
        path.write_bytes(raw_file(entries, []))
        os.truncate(path, 1 << 40)
        start = time.process_time()
        with pytest.raises(ValueError, match="cannot"):
            convert.gguf(path, tmp_path / "out")
        assert time.process_time() - start < 1


def test_every_truncation_is_refused(
    tmp_path: Path, good: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "m.gguf"
    for length in [*range(0, 200, 3), *rng.integers(200, len(good) - 32, 60)]:
        path.write_bytes(good[:length])
        assert main([str(path), str(tmp_path / "out")]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and "m.gguf: " in captured.err
        assert os.listdir(tmp_path) == ["m.gguf"]


def test_random_changes_never_end_in_a_traceback(
    tmp_path: Path, good: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of the header are changed: an error of one line, or a whole directory."""
    rng = np.random.default_rng(4)
    header = good.index(b"blk.1.ffn_down.weight")
    path, out = tmp_path / "m.gguf", tmp_path / "out"
    codes = []
    for _ in range(150):
        content = bytearray(good)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            content[place] = rng.choice([0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.integers(256)])
        path.write_bytes(content)
        codes.append(main([str(path), str(out), "--force"]))
        captured = capsys.readouterr()
        assert captured.err.count("\n") == codes[-1] and codes[-1] in (0, 1)
        assert set(os.listdir(tmp_path)) <= {"m.gguf", "out"}
    assert 0 < sum(codes) < len(codes)


# --- the model ----------------------------------------------------------------------------------

F32 = np.float32
WRONG = {
    "architecture": ({"architecture": "falcon"}, "unknown architecture 'falcon'; known are llama"),
    "experts": ({"settings": {"llama.expert_count": 8}}, "llama.expert_count must be 0, got 8"),
    "adapter": ({"settings": {"general.type": "adapter"}}, "holds no model, but general.type"),
    "split": ({"settings": {"split.count": 3}}, "is one of 3 parts of a model; merge them first"),
    "unknown key": (
        {"settings": {"llama.logit_scale": 0.5}},
        "the setting 'llama.logit_scale' could change the results and is not known; known are att",
    ),
    "window": ({"settings": {"llama.attention.sliding_window": 64}}, "'llama.attention.sliding_w"),
    "longrope": (
        {"settings": {"llama.rope.scaling.type": "longrope"}},
        "llama.rope.scaling.type must be 'none', 'linear' or 'yarn', got 'longrope'",
    ),
    "yarn factor": (
        {"settings": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 1.5}},
        "llama.rope.scaling.attn_factor must be 1.0, got 1.5",
    ),
    "factor": (
        {"settings": {"llama.rope.scaling.factor": float("nan")}},
        "llama.rope.scaling.factor must be a finite number > 0",
    ),
    "partial": (
        {"settings": {"llama.attention.key_length": 32}},
        "llama.attention.key_length must be 16, got 32",
    ),
    "no layers": ({"drop": ("block_count",)}, "has no llama.block_count"),
    "no epsilon": ({"drop": ("attention.layer_norm_rms_epsilon",)}, "has no llama.attention.layer"),
    "layers": ({"settings": {"llama.block_count": 1 << 30}}, "20 tensors for 1073741824 layers"),
    "fewer layers": ({"settings": {"llama.block_count": 1}}, "has no tensor 'blk.1.attn_norm.weig"),
    "zero heads": (
        {"settings": {"llama.attention.head_count": 0}},
        "llama.attention.head_count must be an integer of at least 1, got 0",
    ),
    "heads by layer": (
        {"settings": {"llama.attention.head_count_kv": [2, 2]}},
        "llama.attention.head_count_kv must be an integer of at least 1, got [2, 2]",
    ),
    "groups": ({"settings": {"llama.attention.head_count_kv": 3}}, "must be a divisor of 4 heads"),
    "odd head": (
        {"settings": {"llama.rope.dimension_count": 15}},
        "llama.rope.dimension_count must be even, got 15",
    ),
    "text": ({"settings": {"llama.context_length": "128"}}, "llama.context_length must be an int"),
    "theta": ({"settings": {"llama.rope.freq_base": 0.0}}, "rope.freq_base must be a finite"),
    "missing": (
        {"tensors": {"blk.1.ffn_up.weight": None}},
        "has no tensor 'blk.1.ffn_up.weight'",
    ),
    "shape": (
        {"tensors": {"blk.0.attn_k.weight": np.zeros((64, 64), F32)}},
        "tensor 'blk.0.attn_k.weight' must be [32, 64], got [64, 64]",
    ),
    "vocabulary": (
        {"settings": {"llama.vocab_size": 300}},
        "tensor 'token_embd.weight' must be [300, 64], got [268, 64]",
    ),
    "small vocabulary": ({"settings": {"llama.vocab_size": 100}}, "has 268 tokens for a vocabu"),
    "extra": (
        {"tensors": {"blk.0.attn_q.bias": np.zeros(64, F32)}},
        "a model of this form has no tensor 'blk.0.attn_q.bias'",
    ),
    "no bias": (
        {"architecture": "qwen2", "pre": "qwen2", "tensors": {"blk.0.attn_k.bias": None}},
        "has no tensor 'blk.0.attn_k.bias'",
    ),
    "integers": (
        {"tensors": {"output_norm.weight": np.zeros(64, np.int32)}},
        "tensor 'output_norm.weight' has a type that gguf cannot dequantise",
    ),
    "NaN": (
        {"tensors": {"blk.1.attn_v.weight": np.full((32, 64), np.nan, F32)}},
        "tensor 'blk.1.attn_v.weight' (model.layers.1.self_attn.v_proj.weight) holds NaN",
    ),
    "infinity": (
        {"tensors": {"output_norm.weight": np.array([np.inf] + [1] * 63, F32)}},
        "tensor 'output_norm.weight' (model.norm.weight) holds an infinity",
    ),
    "rope_freqs": (
        {"tensors": {"rope_freqs.weight": np.array([1, 1, 1, 1, 2, 3, 4, 8], F32)}},
        "rope_freqs.weight is not llama3's scaling, the only one that is known",
    ),
    "rope_freqs NaN": (
        {"tensors": {"rope_freqs.weight": np.full(8, np.nan, F32)}},
        "rope_freqs.weight is not llama3's scaling",
    ),
    "rope_freqs shape": (
        {"tensors": {"rope_freqs.weight": np.ones(16, F32)}},
        "rope_freqs.weight must be float32 [8], got (16,)",
    ),
    "two scalings": (
        {
            "tensors": {"rope_freqs.weight": np.ones(8, F32)},
            "settings": {"llama.rope.scaling.factor": 4.0},
        },
        "rope_freqs.weight and rope.scaling.type exclude each other",
    ),
    "no tokenizer": ({"drop": ("tokenizer",)}, "has no tokenizer.ggml.tokens, a list of strings"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model(refused: Callable[[Path], str], tmp_path: Path, name: str) -> None:
    options, message = WRONG[name]
    assert message in refused(write_model(tmp_path / "bad.gguf", **options))


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    values = np.ones(64, F32)
    values[3] = 1e6
    path = write_model(tmp_path / "m.gguf", tensors={"output_norm.weight": values})
    with pytest.raises(ValueError, match=r"'output_norm\.weight' .* that float16 cannot hold"):
        convert.gguf(path, tmp_path / "out", dtype="float16")
    assert os.listdir(tmp_path) == ["m.gguf"]
    convert.gguf(path, tmp_path / "out", dtype="bfloat16")


def test_nan_in_the_scale_of_a_block(refused: Callable[[Path], str], tmp_path: Path) -> None:
    path = write_model(tmp_path / "bad.gguf", kind=Type.Q8_0)
    content = bytearray(path.read_bytes())
    content[-34:-32] = b"\xff\x7f"  # the last block: a float16 scale, then 32 bytes
    path.write_bytes(content)
    assert "(model.layers.1." in (message := refused(path)) and message.endswith("holds NaN")


# --- the tokenizer ------------------------------------------------------------------------------

Key = dict[str, Any]
TOKENIZERS = {
    "merges": ({"tokenizer.ggml.merges": ["t h e"]}, "tokenizer.ggml.merges: 't h e' joins no two"),
    "unknown merge": ({"tokenizer.ggml.merges": ["t q"]}, "merges: 't q' joins no two tokens"),
    "merge numbers": ({"tokenizer.ggml.merges": [1, 2]}, "merges must be a list of strings"),
    "types": ({"tokenizer.ggml.token_type": [1, 2]}, "token_type must be a list of 268 numbers"),
    "bos": ({"tokenizer.ggml.bos_token_id": 268}, "bos_token_id must be in 0..267, got 268"),
    "eos": ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id must be in 0..267, got '2'"),
    "template": ({"tokenizer.chat_template": 3}, "tokenizer.chat_template must be a string"),
    "model": (
        {"tokenizer.ggml.model": "bert"},
        "transformers makes no tokenizer of it: ValueError: Cannot build a tokenizer",
    ),
    "one text": ({"tokenizer.ggml.tokens": "tokens"}, "has no tokenizer.ggml.tokens, a list of"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_wrong_tokenizer(refused: Callable[[Path], str], tmp_path: Path, name: str) -> None:
    changes, message = TOKENIZERS[name]
    keys: Key = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": ["t h"], "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    path = write_model(tmp_path / "bad.gguf", drop=("tokenizer",), settings=keys | changes)
    assert message in refused(path)


def test_neither_merges_nor_scores(refused: Callable[[Path], str], tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS}
    path = write_model(tmp_path / "bad.gguf", drop=("tokenizer",), settings=keys)
    assert "neither tokenizer.ggml.merges nor tokenizer.ggml.scores" in refused(path)

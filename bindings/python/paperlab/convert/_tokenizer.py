"""The tokenizer in a GGUF file's metadata, through transformers' own converter."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from paperlab.convert._architectures import token_ids
from paperlab.convert._header import Header, Value

FILES = ("tokenizer.json", "tokenizer_config.json")

# What transformers notes about the call, not about the tokenizer.
_NOISE = ("gguf_file", "is_local", "local_files_only", "name_or_path")


def check(header: Header) -> None:
    """Raises ValueError where transformers' converter would fail in a way of its own."""
    metadata = header.metadata
    tokens = _texts(header, "tokenizer.ggml.tokens")
    token_ids(header)
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        value = metadata.get(key)
        if value is not None and (not isinstance(value, list) or len(value) != len(tokens)):
            raise header.error(f"{key} must be a list of {len(tokens)} numbers, one a token")
    if "tokenizer.ggml.merges" in metadata:
        vocabulary = set(tokens)
        for merge in _texts(header, "tokenizer.ggml.merges"):
            parts = merge.split(" ")
            if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary:
                raise header.error(f"tokenizer.ggml.merges: {merge!a:.60} joins no two tokens")
    elif "tokenizer.ggml.scores" not in metadata:
        raise header.error("has neither tokenizer.ggml.merges nor tokenizer.ggml.scores")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise header.error("tokenizer.chat_template must be a string")


def _texts(header: Header, key: str) -> list[str]:
    value: Value | None = header.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise header.error(f"{key} must be a list of strings")
    return value  # type: ignore[return-value]


def write(header: Header, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Raises ValueError, naming the file, if transformers cannot make a tokenizer of it, and
    ImportError if transformers is missing.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError(
            "convert.gguf: the tokenizer needs the package transformers: pip install transformers"
        ) from None
    # In a folder of its own: files beside the GGUF file would be taken for the tokenizer's.
    with tempfile.TemporaryDirectory() as folder, _silent(transformers):
        (Path(folder) / "model.gguf").symlink_to(header.path.absolute())
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        except (OSError, MemoryError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise header.error(f"transformers makes no tokenizer of it: {reason}") from None
    try:
        tokenizer.save_pretrained(directory, save_jinja_files=False)
    except OSError:
        raise
    except Exception as error:  # the compiled part of tokenizers knows no OSError
        raise OSError(f"{directory / FILES[0]}: {' '.join(str(error).split())}") from None
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in _NOISE:
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _silent(transformers: object) -> Iterator[None]:
    """Without transformers' warnings, which would mix with the one line of an error."""
    logging = transformers.logging  # type: ignore[attr-defined]
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)

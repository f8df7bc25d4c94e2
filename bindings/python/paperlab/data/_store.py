"""The cache on disk: one folder a recipe, one manifest, one folder a domain.

A domain's folder is complete before it gets its name, which holds a hash of its content; the
manifest, written by rename, says which folders count. Whatever a killed process leaves behind is
named *.tmp or is not in the manifest, and the next fetch removes it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlab.data._recipes import SPLITS, TOOL_VERSION, Recipe

MANIFEST = "manifest.json"

Record = dict[str, Any]


def cache_folder() -> Path:
    """PAPERLAB_CACHE, or ~/.cache/paperlab."""
    chosen = os.environ.get("PAPERLAB_CACHE", "")
    if chosen:
        return Path(chosen).absolute()
    outer = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(outer) if outer.startswith("/") else Path.home() / ".cache") / "paperlab"


def recipe_folder(cache: Path, recipe: Recipe) -> Path:
    """Where a recipe's domains lie."""
    return cache / "data" / recipe.name


def manifest_text(recipe: str, domains: Mapping[str, Record]) -> str:
    """The manifest of these domains; equal domains give equal bytes on every machine."""
    content = {"recipe": recipe, "tool": TOOL_VERSION, "domains": dict(domains)}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> dict[str, Record]:
    """The records of the domains; empty if nothing was fetched; ValueError if it is no manifest."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        domains = content["domains"]
        if not all(isinstance(record, dict) for record in domains.values()):
            raise TypeError
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: {error.msg}") from None
    except (KeyError, TypeError, AttributeError, UnicodeError):
        raise ValueError(f"{path}: not a manifest") from None
    return dict(domains)


def write_manifest(folder: Path, recipe: str, domains: Mapping[str, Record]) -> None:
    """Replaces the manifest by rename."""
    temporary = folder / f"{MANIFEST}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(manifest_text(recipe, domains))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def is_current(folder: Path, recipe: Recipe, domain: str, records: Mapping[str, Record]) -> bool:
    """Whether a domain is stored whole, made by today's rules."""
    record = records.get(domain, {})
    if record.get("rules") != recipe.domains[domain].rules:
        return False
    try:
        return all(
            (folder / record["folder"] / name).stat().st_size == file["bytes"]
            for name, file in record["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def write_texts(folder: Path, splits: Mapping[str, Sequence[bytes]]) -> Record:
    """Writes documents as SPLIT.bin and SPLIT.npy; the manifest's record of counts and files."""
    files: Record = {}
    for split in SPLITS:
        documents = splits.get(split, ())
        ends = np.cumsum([0, *map(len, documents)], dtype=np.uint64)
        (folder / f"{split}.bin").write_bytes(b"".join(documents))
        np.save(folder / f"{split}.npy", ends.astype("<u8"))
    for path in sorted(folder.iterdir()):
        files[path.name] = file_record(path)
    return {
        "documents": {split: len(splits.get(split, ())) for split in SPLITS},
        "bytes": {split: files[f"{split}.bin"]["bytes"] for split in SPLITS},
        "files": files,
    }


def write_images(folder: Path, splits: Mapping[str, tuple[Any, Any]]) -> Record:
    """Writes pictures and labels as SPLIT_images.npy and SPLIT_labels.npy."""
    for split, (images, labels) in splits.items():
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", labels)
    return {
        "documents": {split: len(labels) for split, (_, labels) in splits.items()},
        "bytes": {split: int(images.nbytes) for split, (images, _) in splits.items()},
        "files": {path.name: file_record(path) for path in sorted(folder.iterdir())},
    }


def file_record(path: Path) -> Record:
    """Size and hash of a file, whose bytes are on the disk afterwards."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def check_hash(path: Path, wanted: str) -> None:
    """Raises ValueError unless the file's SHA-256 is as a manifest says."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ValueError(f"{path}: has the SHA-256 {found}, the manifest says {wanted}")


def store_domain(folder: Path, domain: str, write: Callable[[Path], Record]) -> Record:
    """Lets `write` fill a temporary folder, then names it by its content; adds `folder`."""
    temporary = folder / f"{domain}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        record = write(temporary)
        hashes = json.dumps(record["files"], sort_keys=True)
        name = f"{domain}-{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"
        shutil.rmtree(folder / name, ignore_errors=True)  # not in the manifest, or not whole
        temporary.replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record | {"folder": name}


def remove_leftovers(folder: Path, records: Mapping[str, Record]) -> None:
    """Removes folders that the manifest does not name, and temporary files."""
    named = {record.get("folder") for record in records.values()}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.endswith(".tmp"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(cache: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """One fetch at a time in a cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "data.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            notice("waiting for another fetch into the same cache")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_once(path: Path) -> Iterator[None]:
    """One writer at a time: BlockingIOError, naming the file, for a second one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another process writes these tokens"
            raise BlockingIOError(error.errno, reason, str(path)) from None
        yield

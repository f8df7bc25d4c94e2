"""What was fetched, memory-mapped."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from paperlab.data import _store
from paperlab.data._fetch import fetch
from paperlab.data._recipes import (
    SPLITS,
    Recipe,
    chosen_domains,
    is_bundled,
    is_of_images,
    recipe_named,
)
from paperlab.data._store import Record

UInt8 = npt.NDArray[np.uint8]


class Documents(Sequence[bytes]):
    """The documents of a split, UTF-8 bytes each.

    text: uint8 [bytes], all of them back to back, without separators. offsets: uint64 [N + 1];
    document i is text[offsets[i]:offsets[i + 1]]. Both are read-only; text is memory-mapped.
    """

    def __init__(self, text: UInt8, offsets: npt.NDArray[np.uint64]) -> None:
        self.text = text
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self.text[int(self.offsets[i]) : int(self.offsets[i + 1])].tobytes()

    def __repr__(self) -> str:
        return f"Documents({len(self)} documents, {len(self.text)} bytes)"


class _Stored:
    """What both kinds of recipes know of themselves."""

    def __init__(self, folder: Path, recipe: Recipe, records: Mapping[str, Record]) -> None:
        text = _store.manifest_text(recipe.name, records)
        self.name = recipe.name
        self.manifest = dict(records)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.missing: dict[str, str] = {}
        self.paths: dict[str, Path] = {}
        for domain, record in records.items():
            if "missing" in record:
                self.missing[domain] = record["missing"]
            else:
                self.paths[domain] = folder / record["folder"]

    def verify(self) -> None:
        """Reads every file; raises ValueError naming the first whose hash is not the manifest's."""
        for domain, path in self.paths.items():
            for name, record in self.manifest[domain]["files"].items():
                _store.check_hash(path / name, record["sha256"])


class Corpus(_Stored, Mapping[str, Mapping[str, Documents]]):
    """Domain -> split (train, valid, test) -> documents.

    name: the recipe. manifest: its record of each domain that was asked for. sha256: the hash of
    that manifest, for results; where all domains were asked for, that of the file manifest.json.
    missing: reason by domain that could not be fetched. paths: folder by domain. Hashes of files
    are compared by `verify` only, which `tokenize` calls.
    """

    def __init__(self, folder: Path, recipe: Recipe, records: Mapping[str, Record]) -> None:
        super().__init__(folder, recipe, records)
        self._domains = {
            domain: {split: _open_split(path, split, records[domain]) for split in SPLITS}
            for domain, path in self.paths.items()
        }

    def __getitem__(self, domain: str) -> Mapping[str, Documents]:
        if domain in self.missing:
            raise KeyError(f"{domain} is missing: {self.missing[domain]}")
        return self._domains[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)


class Images(_Stored, Mapping[str, tuple[UInt8, UInt8]]):
    """Split -> (images uint8 [N, height, width], labels uint8 [N]), read-only, memory-mapped.

    name, manifest, sha256 and paths as in Corpus. folder: what C++ reads (data/images.h).
    """

    def __init__(self, folder: Path, recipe: Recipe, records: Mapping[str, Record]) -> None:
        super().__init__(folder, recipe, records)
        self.folder = folder
        self._splits = {
            split: _open_images(path, split, count)
            for domain, path in self.paths.items()
            for split, count in records[domain]["documents"].items()
        }

    def __getitem__(self, split: str) -> tuple[UInt8, UInt8]:
        return self._splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def load(
    name: str, domains: Sequence[str] | None = None, *, cache: Path | str | None = None
) -> Corpus:
    """The documents of a fetched recipe of text; domains in the recipe's order.

    name: a recipe. domains: some of its domains; None for all. cache: the folder; None for
    PAPERLAB_CACHE. Domains that could not be fetched are left out and named in `missing`. The
    recipe `sample` needs no fetch.

    Raises ValueError on an unknown name, a recipe of pictures or a damaged cache,
    FileNotFoundError if a domain was never fetched.
    """
    return load_for("data.load", name, domains, cache)


def load_for(
    function: str, name: str, domains: Sequence[str] | None, cache: Path | str | None
) -> Corpus:
    """`load` for a function whose name the errors say."""
    recipe = recipe_named(function, name)
    if is_of_images(recipe):
        raise ValueError(f"{function}: {name} holds pictures; data.load_images reads it")
    chosen = chosen_domains(function, recipe, domains)
    if is_bundled(recipe):
        fetch(name, chosen, cache=cache)
    return Corpus(*_stored_records(function, recipe, domains, cache))


def load_images(name: str, *, cache: Path | str | None = None) -> Images:
    """The pictures of a fetched recipe: fashion-mnist or digits. Errors as of `load`.

    The recipe `sample-images` needs no fetch.
    """
    recipe = recipe_named("data.load_images", name)
    if not is_of_images(recipe):
        raise ValueError(f"data.load_images: {name} holds text; data.load reads it")
    if is_bundled(recipe):
        fetch(name, cache=cache)
    folder, recipe, records = _stored_records("data.load_images", recipe, None, cache)
    for reason in (record["missing"] for record in records.values() if "missing" in record):
        raise FileNotFoundError(f"data.load_images: {name} could not be fetched: {reason}")
    return Images(folder, recipe, records)


def _stored_records(
    function: str, recipe: Recipe, domains: Sequence[str] | None, cache: Path | str | None
) -> tuple[Path, Recipe, dict[str, Record]]:
    """Folder and records of the domains, each of which is stored whole or known as missing."""
    folder = _store.recipe_folder(_store.cache_folder() if cache is None else Path(cache), recipe)
    records = _store.read_manifest(folder)
    chosen = chosen_domains(function, recipe, domains)
    for domain in chosen:
        is_missing = "missing" in records.get(domain, {})
        if not is_missing and not _store.is_current(folder, recipe, domain, records):
            state = "out of date or damaged" if domain in records else "absent"
            raise FileNotFoundError(
                f"{function}: {recipe.name}: domain {domain} is {state} in '{folder}'; "
                f"./paperlab data fetch {recipe.name} brings it"
            )
    return folder, recipe, {domain: records[domain] for domain in chosen}


def _open_split(folder: Path, split: str, record: Record) -> Documents:
    path = folder / f"{split}.bin"
    size = path.stat().st_size
    text = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    offsets = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    steps_up = offsets.ndim == 1 and len(offsets) and (offsets[1:] >= offsets[:-1]).all()
    if (
        offsets.dtype != np.dtype("<u8")
        or not steps_up
        or (int(offsets[0]), int(offsets[-1])) != (0, size)
        or len(offsets) != record["documents"][split] + 1
    ):
        raise ValueError(f"data.load: {folder / split}.npy does not belong to {split}.bin")
    text.flags.writeable = False
    return Documents(text, offsets)


def _open_images(folder: Path, split: str, count: int) -> tuple[UInt8, UInt8]:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / f"{split}_labels.npy", mmap_mode="r", allow_pickle=False)
    if images.shape[:1] != (count,) or labels.shape != (count,):
        raise ValueError(f"data.load_images: {folder / split}_*.npy do not hold {count} images")
    return images, labels

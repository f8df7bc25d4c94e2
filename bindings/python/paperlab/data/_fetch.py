"""Makes the domains of a recipe: packages in, documents out, a record for the manifest."""

import contextlib
import importlib.resources
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from paperlab.data import _store
from paperlab.data._documents import (
    DroppedError,
    bundled_parts,
    normalized_hash,
    read_document,
    split_of,
)
from paperlab.data._images import read_digits, read_glyphs, read_idx
from paperlab.data._packages import (
    DamagedPackageError,
    DebFile,
    PackageCache,
    PackageError,
    read_files,
)
from paperlab.data._recipes import SPLITS, Domain, Recipe, chosen_domains, recipe_named
from paperlab.data._store import Record

Notice = Callable[[str], None]


def fetch(
    name: str,
    domains: Sequence[str] | None = None,
    *,
    cache: Path | str | None = None,
    notice: Notice | None = None,
) -> dict[str, str]:
    """Fetches and stores what is not there yet; returns the missing domains with their reasons.

    name: a recipe, see `recipes()`. domains: some of its domains; None for all.
    cache: the folder; None for PAPERLAB_CACHE. notice: called with each line of progress.

    A domain that cannot be made does not stop the others; its reason is in the manifest too, and
    the next call tries it again. Domains that are there are left alone, without any network.
    Raises ValueError on an unknown name, OSError if the cache cannot be written.
    """
    say: Notice = notice or (lambda line: None)
    recipe = recipe_named("data.fetch", name)
    wanted = chosen_domains("data.fetch", recipe, domains)
    cache = _store.cache_folder() if cache is None else Path(cache)
    folder = _store.recipe_folder(cache, recipe)
    if all(_store.is_current(folder, recipe, domain, _records(folder)) for domain in wanted):
        return {}
    with _store.locked(cache, say):
        folder.mkdir(parents=True, exist_ok=True)
        records = _records(folder)
        with contextlib.closing(PackageCache(cache, say)) as packages:
            for domain in wanted:
                if _store.is_current(folder, recipe, domain, records):
                    continue
                records[domain] = _make(recipe, domain, folder, packages)
                _store.write_manifest(folder, recipe.name, records)
                say(_summary(domain, records[domain]))
        _store.remove_leftovers(folder, records)
    return {domain: records[domain]["missing"] for domain in wanted if "missing" in records[domain]}


def _records(folder: Path) -> dict[str, Record]:
    """What the manifest says; a damaged one counts as absent and is written anew."""
    try:
        return _store.read_manifest(folder)
    except ValueError:
        return {}


def _summary(domain: str, record: Record) -> str:
    if "missing" in record:
        return f"{domain}: missing"
    documents, size = sum(record["documents"].values()), sum(record["bytes"].values())
    return f"{domain}: {documents:,} documents, {size / 1e6:.1f} MB"


def _make(recipe: Recipe, name: str, folder: Path, packages: PackageCache) -> Record:
    domain = recipe.domains[name]
    try:
        debs = [packages.get(package) for package in domain.packages]
        record = _store.store_domain(folder, name, lambda into: _write(domain, debs, into))
    except DamagedPackageError as error:
        if packages.forget(error.path):
            return _make(recipe, name, folder, packages)
        return {"missing": str(error)}
    except PackageError as error:
        return {"missing": str(error)}
    return record | {"rules": domain.rules, "packages": [deb.record() for deb in debs]}


def _write(domain: Domain, debs: Sequence[DebFile], folder: Path) -> Record:
    """Fills a domain's folder."""
    if domain.reader == "idx":
        return _store.write_images(folder, read_idx(_contents(debs, domain)))
    if domain.reader == "digits":
        return _store.write_images(folder, read_digits(_contents(debs, domain)))
    if domain.reader == "drawn":
        return _store.write_images(folder, read_glyphs(_bundled_text(domain.files)))
    if domain.reader == "bundled":
        return _store.write_texts(folder, _bundled(domain.files))
    splits, dropped = _documents(debs, domain)
    return _store.write_texts(folder, splits) | {"dropped": dict(sorted(dropped.items()))}


def _contents(debs: Sequence[DebFile], domain: Domain) -> dict[str, bytes]:
    found = {
        path.rpartition("/")[2]: data
        for deb in debs
        for path, data in read_files(deb, domain.files)
        if data is not None
    }
    if not found:
        raise PackageError(f"{debs[0].name}: holds no file {domain.files}")
    return found


def _documents(
    debs: Sequence[DebFile], domain: Domain
) -> tuple[dict[str, list[bytes]], Counter[str]]:
    """Documents by split, each split in the order of their hashes, and why others were dropped."""
    kept: dict[bytes, bytes] = {}
    dropped: Counter[str] = Counter()
    for deb in debs:
        for _, data in read_files(deb, domain.files):
            try:
                if data is None:
                    raise DroppedError("link")
                text = read_document(data, domain)
                key = normalized_hash(text)
                if key in kept:
                    raise DroppedError("duplicate")
                kept[key] = text.encode()
            except DroppedError as reason:
                dropped[str(reason)] += 1
    if not kept:
        raise PackageError(f"{debs[0].name}: holds no document of this domain")
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for _, document in sorted(kept.items()):
        splits[split_of(document)].append(document)
    return splits, dropped


def _bundled(name: str) -> dict[str, list[bytes]]:
    """The documents of a file that comes with the package: a line `==== SPLIT` before each."""
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for split, document in bundled_parts(_bundled_text(name)):
        splits[split].append(document.encode())
    return splits


def _bundled_text(name: str) -> str:
    source = importlib.resources.files("paperlab.data").joinpath("sample", name)
    return source.read_text(encoding="utf-8")

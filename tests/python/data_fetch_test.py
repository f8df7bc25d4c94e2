"""Fetching and loading: what is stored, offline calls, missing packages, interruptions."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fake_archive import Archive, data_tar, deb, page
from paperlab import data
from paperlab.data import _recipes, _store

UKRAINIAN = "\u043f\u0440\u043e\u0433\u0440\u0430\u043c\u0430 " * 40
CHINESE = "\u7a0b\u5e8f\u8aaa\u660e" * 60


@pytest.fixture
def two(archive: Archive) -> Archive:
    """Packages for the domains uk and zh of manual-pages."""
    archive.add_pages("uk", *(f"page{i}" for i in range(60)), text=UKRAINIAN)
    archive.add_pages("zh_CN", *(f"page{i}" for i in range(5)), text=CHINESE)
    return archive


def folder_of(archive: Archive, recipe: str = "manual-pages") -> Path:
    return archive.cache / "data" / recipe


def manifest_of(archive: Archive, recipe: str = "manual-pages") -> dict:
    return json.loads((folder_of(archive, recipe) / "manifest.json").read_text())


def test_what_is_stored_is_what_is_loaded(two: Archive) -> None:
    lines: list[str] = []
    assert data.fetch("manual-pages", ["zh", "uk"], notice=lines.append) == {}
    assert [line.split(",")[0] for line in lines] == [
        "fetched manpages-zh 1.0-1", "zh: 5 documents", "fetched manpages-uk 1.0-1",
        "uk: 60 documents",
    ]  # fmt: skip
    corpus = data.load("manual-pages", ["uk", "zh"])
    assert list(corpus) == ["zh", "uk"] and corpus.missing == {}
    splits = corpus["uk"]
    documents = [document for split in splits.values() for document in split]
    expected = {f"NAME\npage{i} {UKRAINIAN.strip()}\n".encode() for i in range(60)}
    assert len(documents) == 60 and set(documents) == expected
    assert list(splits) == ["train", "valid", "test"]
    for split, kept in splits.items():
        assert all(_split(document) == split for document in kept)
    assert len(splits["train"]) > 45


def _split(document: bytes) -> str:
    share = int(hashlib.sha256(document).hexdigest()[:16], 16) / 2**64
    return "train" if share < 0.9 else "valid" if share < 0.95 else "test"


def test_the_format_on_disk(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    corpus = data.load("manual-pages", ["uk"])
    record = manifest_of(two)["domains"]["uk"]
    folder = folder_of(two) / record["folder"]
    assert corpus.paths["uk"] == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "test.bin", "test.npy", "train.bin", "train.npy", "valid.bin", "valid.npy",
    ]  # fmt: skip
    for split, documents in corpus["uk"].items():
        offsets = np.load(folder / f"{split}.npy")
        text = (folder / f"{split}.bin").read_bytes()
        assert offsets.dtype.str == "<u8" and offsets[0] == 0 and offsets[-1] == len(text)
        assert record["documents"][split] == len(documents) == len(offsets) - 1
        assert record["bytes"][split] == len(text)
        for name in (f"{split}.bin", f"{split}.npy"):
            content = (folder / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            assert record["files"][name] == {"bytes": len(content), "sha256": digest}
        assert b"".join(documents) == text and b"\0" not in text


def test_documents_are_a_sequence(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    train = data.load("manual-pages", ["uk"])["uk"]["train"]
    assert train[-1] == train[len(train) - 1] and train[1:3] == [train[1], train[2]]
    assert train.text.dtype == np.uint8 and not train.text.flags.writeable
    assert isinstance(train.text, np.memmap)
    with pytest.raises(IndexError):
        train[len(train)]
    assert repr(train) == f"Documents({len(train)} documents, {len(train.text)} bytes)"


def test_the_manifest_names_the_packages(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    deb_file = next(two.folder.glob("manpages-uk_*.deb")).read_bytes()
    assert manifest_of(two)["domains"]["uk"]["packages"] == [
        {
            "name": "manpages-uk",
            "version": "1.0-1",
            "architecture": "all",
            "sha256": hashlib.sha256(deb_file).hexdigest(),
            "bytes": len(deb_file),
        }
    ]
    assert manifest_of(two)["tool"] == _recipes.TOOL_VERSION


def test_the_hash_is_that_of_the_manifest(two: Archive, tmp_path: Path) -> None:
    data.fetch("manual-pages", ["uk"])
    alone = data.load("manual-pages", ["uk"]).sha256
    path = folder_of(two) / "manifest.json"
    assert alone == hashlib.sha256(path.read_bytes()).hexdigest()
    data.fetch("manual-pages", ["zh"])
    both = data.load("manual-pages", ["uk", "zh"]).sha256
    assert both == hashlib.sha256(path.read_bytes()).hexdigest() != alone
    assert data.load("manual-pages", ["uk"]).sha256 == alone
    # Another machine, another order: the same bytes.
    other = tmp_path / "other"
    data.fetch("manual-pages", ["zh"], cache=str(other))
    data.fetch("manual-pages", ["uk"], cache=other)
    assert (other / "data/manual-pages/manifest.json").read_bytes() == path.read_bytes()


def test_a_second_call_does_nothing_and_works_offline(two: Archive) -> None:
    data.fetch("manual-pages", ["uk", "zh"])
    two.set("offline")
    calls = two.calls
    before = {path: path.stat().st_mtime_ns for path in two.cache.rglob("*")}
    lines: list[str] = []
    assert data.fetch("manual-pages", ["uk", "zh"], notice=lines.append) == {}
    assert (two.calls, lines) == (calls, [])
    assert {path: path.stat().st_mtime_ns for path in two.cache.rglob("*")} == before


def test_a_second_call_needs_no_right_to_write(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    (two.cache / "data.lock").unlink()
    (two.cache / "data.lock").mkdir()  # nobody can open it
    assert data.fetch("manual-pages", ["uk"]) == {}


def test_duplicates_links_and_untranslated_pages_are_dropped_and_counted(archive: Archive) -> None:
    pages = {f"usr/share/man/uk/man1/{name}.1.gz": page(text) for name, text in {
        "a": f"a {UKRAINIAN}", "b": f"a\n{UKRAINIAN}", "c": "the English page of it " * 40,
        "d": "\u0444", "e": f"e {UKRAINIAN}",
    }.items()}  # fmt: skip
    pages["usr/share/man/uk/man1/f.1.gz"] = b"\x1f\x8b"[:0] + _gzip(b".so man1/a.1\n")
    pages["usr/share/man/uk/man1/g.1"] = b"\xff\xfe\0"
    pages["usr/share/doc/x"] = b"other"
    tar = data_tar(pages, {"usr/share/man/uk/man1/h.1.gz": "a.1.gz"})
    (archive.folder / "manpages-uk_1_all.deb").write_bytes(deb("manpages-uk", tar))
    assert data.fetch("manual-pages", ["uk"]) == {}
    record = manifest_of(archive)["domains"]["uk"]
    assert sum(record["documents"].values()) == 2
    assert record["dropped"] == {
        "duplicate": 1, "link": 2, "short": 1, "undecodable": 1, "untranslated": 1,
    }  # fmt: skip


def _gzip(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content)


def test_a_missing_package_leaves_the_other_domains(two: Archive) -> None:
    two.clear("manpages-uk_1.0-1_all.deb")
    missing = data.fetch("manual-pages", ["zh", "uk"])
    assert missing == {"uk": "manpages-uk: Unable to locate package manpages-uk"}
    assert manifest_of(two)["domains"]["uk"] == {"missing": missing["uk"]}
    corpus = data.load("manual-pages", ["zh", "uk"])
    assert list(corpus) == ["zh"] and corpus.missing == missing
    with pytest.raises(KeyError, match="uk is missing: manpages-uk: Unable"):
        corpus["uk"]
    # The next call tries it again, and it alone.
    two.add_pages("uk", "a", text=UKRAINIAN)
    calls = len(two.calls)
    assert data.fetch("manual-pages", ["zh", "uk"]) == {}
    assert two.calls[calls:] == ["apt-get download -q manpages-uk"]


def test_one_missing_package_of_two_makes_the_domain_missing(archive: Archive) -> None:
    archive.add_pages("de", "a", text="der die das und " * 50)
    assert data.fetch("manual-pages", ["de"])["de"].startswith("manpages-de-dev: Unable")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "holds no document"),
        ({"usr/share/man/uk/man1/../a": b"x"}, "damaged package: a path leads out"),
        ({"usr/share/man/uk/man1/a.1.gz": b"no gzip"}, "damaged package"),
    ],
)
def test_a_bad_package_is_a_missing_domain(
    archive: Archive, files: dict[str, bytes], reason: str
) -> None:
    archive.add("manpages-uk", files)
    assert reason in data.fetch("manual-pages", ["uk"])["uk"]
    assert archive.calls == ["apt-get download -q manpages-uk"]
    assert [path.name for path in folder_of(archive).iterdir()] == ["manifest.json"]


def test_a_package_damaged_in_the_cache_is_fetched_again(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    before = manifest_of(two)
    shutil.rmtree(folder_of(two))
    path = next((two.cache / "packages").glob("manpages-uk_*"))
    path.write_bytes(path.read_bytes()[:-2000])
    assert data.fetch("manual-pages", ["uk"]) == {} and manifest_of(two) == before
    assert two.calls == ["apt-get download -q manpages-uk"] * 2


def test_domains_are_made_anew_offline_where_the_rules_have_changed(
    two: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.fetch("manual-pages", ["uk"])
    old = manifest_of(two)["domains"]["uk"]
    two.set("offline")
    monkeypatch.setattr(_recipes, "TOOL_VERSION", 99)
    with pytest.raises(FileNotFoundError, match=r"out of date .* ./paperlab data fetch manual"):
        data.load("manual-pages", ["uk"])
    assert data.fetch("manual-pages", ["uk"]) == {}
    new = manifest_of(two)["domains"]["uk"]
    assert new["rules"] != old["rules"] and new["folder"] == old["folder"]
    assert data.load("manual-pages", ["uk"])


def test_files_that_lack_bytes_are_made_anew(two: Archive) -> None:
    data.fetch("manual-pages", ["uk", "zh"])
    before = manifest_of(two)
    two.set("offline")
    path = folder_of(two) / before["domains"]["uk"]["folder"] / "train.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FileNotFoundError, match="domain uk is out of date or damaged"):
        data.load("manual-pages", ["uk"])
    assert data.fetch("manual-pages", ["uk"]) == {}
    assert path.read_bytes() == content and manifest_of(two) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"domains": 3}', '{"domains": {"uk": 3}}'])
def test_a_damaged_manifest(two: Archive, text: str) -> None:
    data.fetch("manual-pages", ["uk"])
    path = folder_of(two) / "manifest.json"
    content = path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: "):
        data.load("manual-pages", ["uk"])
    two.set("offline")
    assert data.fetch("manual-pages", ["uk"]) == {} and path.read_text() == content


@pytest.mark.parametrize(
    "offsets",
    [
        np.array([0, 5], "<u8"),
        np.array([], "<u8"),
        np.zeros((1, 1), "<u8"),
        np.array([0.0]),
    ],
)
def test_offsets_that_do_not_belong_to_the_text(
    two: Archive, monkeypatch: pytest.MonkeyPatch, offsets: np.ndarray
) -> None:
    data.fetch("manual-pages", ["uk"])
    monkeypatch.setattr(_store, "is_current", lambda *_: True)
    folder = folder_of(two) / manifest_of(two)["domains"]["uk"]["folder"]
    np.save(folder / "valid.npy", offsets)
    with pytest.raises(ValueError, match=r"valid\.npy does not belong to valid\.bin"):
        data.load("manual-pages", ["uk"])


def test_load_says_what_to_do_before_a_fetch(archive: Archive) -> None:
    with pytest.raises(FileNotFoundError, match=r"domain c is absent in .*data fetch code brings"):
        data.load("code")
    assert not archive.cache.exists()


def test_the_sample_needs_no_fetch(archive: Archive) -> None:
    corpus = data.load("sample")
    assert list(corpus) == ["en", "de", "ru", "ja", "c", "python"]
    for splits in corpus.values():
        assert [len(documents) >= 1 for documents in splits.values()] == [True] * 3
    assert b"#include" in b"".join(corpus["c"]["train"])
    assert data.load("sample", ["ja"])["ja"]["test"][0].decode().startswith("\u304a")
    assert archive.calls == []
    compile(corpus["python"]["train"][1], "sample", "exec")


def test_recipes_are_listed() -> None:
    assert data.recipes()["code"] == ["c", "python"] and len(data.recipes()) == 7


def test_temporary_files_and_old_folders_are_removed(two: Archive) -> None:
    data.fetch("manual-pages", ["uk"])
    folder = folder_of(two)
    (folder / "zh.tmp").mkdir()
    (folder / "zh-0123").mkdir()
    (folder / "manifest.json.tmp").write_text("x")
    data.fetch("manual-pages", ["zh"])
    names = {record["folder"] for record in manifest_of(two)["domains"].values()}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *names}
    assert not list(two.cache.rglob("*.tmp")) and not list(two.cache.rglob("*.bin.*"))
    assert not list((two.cache / "apt").rglob("*.bin"))


def test_a_full_disk_leaves_what_was_there(two: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    data.fetch("manual-pages", ["zh"])
    before = manifest_of(two)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            data.fetch("manual-pages", ["zh", "uk"])
    assert manifest_of(two) == before and not list(two.cache.rglob("*.tmp"))
    assert data.load("manual-pages", ["zh"])
    assert data.fetch("manual-pages", ["zh", "uk"]) == {}


def test_a_killed_fetch_is_resumed(two: Archive, tmp_path: Path) -> None:
    """SIGKILL at many moments: the manifest names whole domains only, the end result is equal."""
    data.fetch("manual-pages", ["zh", "uk"], cache=tmp_path / "whole")
    whole = (tmp_path / "whole/data/manual-pages/manifest.json").read_bytes()
    two.set("slow", "0.05")
    arguments = ("fetch", "manual-pages", "--domains", "zh,uk")
    start = time.monotonic()
    assert two.start(*arguments).wait(60) == 0
    seconds = time.monotonic() - start
    for step in range(8):
        shutil.rmtree(two.cache)
        process = two.start(*arguments)
        time.sleep(seconds * step / 8)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        manifest = folder_of(two) / "manifest.json"
        for domain in manifest_of(two)["domains"] if manifest.exists() else ():
            assert data.load("manual-pages", [domain])
        assert data.fetch("manual-pages", ["zh", "uk"]) == {}
        assert manifest.read_bytes() == whole
        assert not list(two.cache.rglob("*.tmp"))


def test_an_interrupt_ends_with_130_and_leaves_no_temporary_files(two: Archive) -> None:
    two.set("slow", "20")
    process = two.start("fetch", "manual-pages", "--domains", "uk")
    _wait_for(lambda: bool(list(two.cache.rglob("*.tmp"))))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert not list(two.cache.rglob("*.tmp"))


def test_two_fetches_at_once_share_the_work(two: Archive) -> None:
    two.set("slow", "0.4")
    arguments = ("fetch", "manual-pages", "--domains", "uk")
    processes = [two.start(*arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert two.calls == ["apt-get download -q manpages-uk"]
    assert sum("waiting for another fetch" in out for out, _ in outputs) <= 1


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_real_manual_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nine languages of the real archive; from the cache of the machine where they are there."""
    try:
        corpus = data.load("manual-pages")
    except FileNotFoundError:
        if shutil.which("apt-get") is None:
            pytest.skip("not in the cache, and there is no apt-get")
        missing = data.fetch("manual-pages", cache=tmp_path)
        if len(missing) == 9:
            pytest.skip(f"not in the cache, and cannot be fetched: {missing['en']}")
        corpus = data.load("manual-pages", cache=str(tmp_path))
    assert corpus.missing == {}
    for domain, record in corpus.manifest.items():
        assert sum(record["bytes"].values()) > 2e6, domain
        assert all(len(documents) >= 7 for documents in corpus[domain].values()), domain
        for documents in corpus[domain].values():
            documents.text.tobytes().decode("utf-8")
    total = sum(sum(record["bytes"].values()) for record in corpus.manifest.values())
    assert 45e6 < total < 80e6
    text = b"".join(corpus["en"]["train"])
    assert text.count(b"\nSYNOPSIS\n") > 500
    assert text.count(b"\n.SH") < 5 and text.count(b"\\fB") < 5  # pages about roff show some

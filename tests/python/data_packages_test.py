"""Reading packages: damaged and hostile ones, links, limits; fetching them with apt-get."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from fake_archive import Archive, data_tar, deb
from paperlab.data import _packages
from paperlab.data._packages import (
    DamagedPackageError,
    PackageCache,
    PackageError,
    describe,
    read_files,
)
from paperlab.data._recipes import Package

ALL = r"usr/.*"


def read(path: Path, tar: bytes, pattern: str = ALL) -> list[tuple[str, bytes | None]]:
    path.write_bytes(deb("name", tar))
    return list(read_files(describe(path), pattern))


@pytest.fixture
def path(archive: Archive) -> Path:
    return archive.folder / "name_1.0-1_all.deb"


def test_files_are_found_by_their_whole_path(path: Path) -> None:
    files = {"usr/a.h": b"a", "usr/b.gz": gzip.compress(b"b"), "etc/c": b"c", "x/usr/d": b"d"}
    assert read(path, data_tar(files)) == [("usr/a.h", b"a"), ("usr/b.gz", b"b")]
    assert read(path, data_tar(files), r"usr/a") == []


def test_links_have_no_content(path: Path) -> None:
    tar = data_tar({"usr/a": b"a"}, {"usr/b": "/etc/passwd", "usr/c": "../../etc/passwd"})
    assert read(path, tar) == [("usr/a", b"a"), ("usr/b", None), ("usr/c", None)]


def test_hard_links_and_devices_have_no_content(path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"usr/{kind.decode()}")
            member.type, member.linkname = kind, "etc/passwd"
            archive.addfile(member)
    assert read(path, buffer.getvalue()) == [("usr/1", None)]


@pytest.mark.parametrize("name", ["../usr/a", "usr/../../a", "/usr/a", "usr/.."])
def test_a_path_that_leads_out_is_refused(path: Path, name: str) -> None:
    with pytest.raises(DamagedPackageError, match=r"^name: damaged package: .* leads out"):
        read(path, data_tar({name: b"a"}))


def test_nothing_is_written(path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    read(path, data_tar({"usr/a": b"a", "usr/b/c": b"b"}))
    assert sorted(tmp_path.rglob("*")) == sorted({*before, path})


def header(size: int, kind: bytes = b"0", name: str = "usr/big") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("tar", "reason"),
    [
        (header(_packages.MAX_FILE_BYTES + 1) + b"x" * 512, "has 67108865 bytes"),
        (header(1 << 50) + b"x" * 512, "has 1125899906842624 bytes"),
        (header(1 << 40, b"x"), "a header of 1099511627776 bytes"),
        (header(1 << 40, b"L"), "a header of"),
        (header(-5), "header"),
        (header(600) + b"x" * 512, ""),
        (header(1)[:300], ""),
        (b"\xff" * 1024, ""),
    ],
)
def test_a_hostile_or_truncated_tar_is_refused(path: Path, tar: bytes, reason: str) -> None:
    with pytest.raises(DamagedPackageError, match=f"name: damaged package: .*{reason}"):
        read(path, tar)


def test_a_large_package_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packages, "MAX_PACKAGE_BYTES", 50_000)
    assert read(path, data_tar({"usr/a": b"a" * 20_000}))
    with pytest.raises(PackageError, match="more than 50000 bytes unpacked"):
        read(path, data_tar({"etc/a": b"a" * 60_000}))


def test_inflation_is_limited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packages, "MAX_FILE_BYTES", 1000)
    fits = gzip.compress(b"a" * 400) + gzip.compress(b"b" * 600)
    assert read(path, data_tar({"usr/a.gz": fits})) == [("usr/a.gz", b"a" * 400 + b"b" * 600)]
    with pytest.raises(PackageError, match="inflates to more than 1000 bytes"):
        read(path, data_tar({"usr/a.gz": fits + gzip.compress(b"c")}))


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"abc" * 99)[:-12]], ids=["no gzip", "cut short"]
)
def test_a_broken_gzip_file_is_refused(path: Path, content: bytes) -> None:
    with pytest.raises(DamagedPackageError, match=r"usr/a\.gz'"):
        read(path, data_tar({"usr/a.gz": content}))


def test_a_truncated_package_is_refused_wherever_it_ends(path: Path) -> None:
    whole = deb("name", data_tar({"usr/a": bytes(range(256)) * 40}))
    for size in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedPackageError):
            list(read_files(describe(path), ALL))


def test_what_is_no_package_is_refused(path: Path) -> None:
    for content in (b"", b"text", b"!<arch>\n"):
        path.write_bytes(content)
        with pytest.raises(DamagedPackageError, match=r"name_1\.0-1_all\.deb: "):
            describe(path)


def cache_of(archive: Archive) -> tuple[PackageCache, list[str]]:
    lines: list[str] = []
    return PackageCache(archive.cache, lines.append), lines


def test_a_package_is_fetched_once(archive: Archive) -> None:
    archive.add("hello", {"usr/a": b"a"}, version="1:2.0-1")
    cache, lines = cache_of(archive)
    first = cache.get(Package("hello"))
    assert lines == [f"fetched hello 1:2.0-1, {first.size / 1e6:.1f} MB"]
    archive.set("offline")
    again, _ = cache_of(archive)
    assert again.get(Package("hello")) == first
    assert archive.calls == ["apt-get download -q hello"]
    assert [path.name for path in (archive.cache / "packages").iterdir()] == [first.path.name]


def test_another_name_with_the_same_beginning_is_another_package(archive: Archive) -> None:
    archive.add("hello-dev", {"usr/a": b"a"})
    cache, _ = cache_of(archive)
    cache.get(Package("hello-dev"))
    with pytest.raises(PackageError, match=r"^hello: Unable to locate package hello$"):
        cache.get(Package("hello"))


def test_stale_lists_are_replaced_by_our_own_once(archive: Archive) -> None:
    archive.add("hello", {"usr/a": b"a"})
    archive.add("world", {"usr/a": b"a"})
    archive.set("stale")
    cache, lines = cache_of(archive)
    cache.get(Package("hello"))
    cache.get(Package("world"))
    assert archive.calls == [
        "apt-get download -q hello",
        "apt-get update -q",
        "apt-get download -q hello",
        "apt-get download -q world",
    ]
    assert lines[0] == "the system's package lists do not serve; fetching a set of our own"
    assert (archive.cache / "apt/own/lists").is_dir()


def test_a_dependency_is_followed_by_its_pattern(archive: Archive) -> None:
    depends = "Package: meta\nDepends: libx1 (>= 2), libpython3.12-stdlib (= 3), zlib\n"
    (archive.folder / "meta.show").write_text(depends)
    archive.add("libpython3.12-stdlib", {"usr/a": b"a"})
    package = Package("meta", r"libpython3\.\d+-stdlib")
    assert cache_of(archive)[0].get(package).name == "libpython3.12-stdlib"
    archive.set("offline")
    assert cache_of(archive)[0].get(package).name == "libpython3.12-stdlib"
    unreachable = "Could not resolve the mirror"
    with pytest.raises(PackageError, match=f"^other: {unreachable}; {unreachable}$"):
        cache_of(archive)[0].get(Package("other", "nothing"))
    archive.clear("offline")
    with pytest.raises(PackageError, match=r"^meta: it names no such dependency"):
        cache_of(archive)[0].get(Package("meta", "nothing"))


def test_a_package_of_another_name_is_refused(archive: Archive) -> None:
    archive.add("world", {"usr/a": b"a"}).rename(archive.folder / "hello_1_all.deb")
    with pytest.raises(PackageError, match="hello: apt-get delivered the package 'world'"):
        cache_of(archive)[0].get(Package("hello"))
    assert not list((archive.cache / "packages").iterdir())


def test_a_damaged_package_in_the_cache_is_fetched_again(archive: Archive) -> None:
    archive.add("hello", {"usr/a": b"a"})
    first = cache_of(archive)[0].get(Package("hello"))
    first.path.write_bytes(b"broken")
    assert cache_of(archive)[0].get(Package("hello")) == first


def test_without_apt_the_reason_says_so(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PackageError, match="apt-get is not here; packages need Debian or Ubuntu"):
        cache_of(archive)[0].get(Package("hello"))

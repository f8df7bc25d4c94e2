"""Debian packages without root: fetched by apt-get, read as a stream, never installed.

Package lists: the system's, as long as apt-get can download by them; else a set of our own in the
cache, from the system's sources. What was fetched stays in the cache, so that a domain can be made
anew offline.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from paperlab.data._recipes import Package

MAX_FILE_BYTES = 1 << 26  # of a file that is read, after decompression
MAX_PACKAGE_BYTES = 1 << 31  # of a whole unpacked package
_MAX_HEADER_BYTES = 1 << 16  # of a long name or an extended header

# apt's hooks of an update speak to services of the system.
_APT_CONFIGURATION = """#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class PackageError(Exception):
    """A package that cannot be fetched or read; the message has its name."""


class DamagedPackageError(PackageError):
    """A package that was fetched, but cannot be read."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class DebFile:
    """A fetched package."""

    path: Path
    name: str
    version: str
    architecture: str
    sha256: str
    size: int

    def record(self) -> dict[str, str | int]:
        """What the manifest says of it."""
        return {
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "bytes": self.size,
        }


class PackageCache:
    """Packages in a folder; `notice` is called with a line of progress."""

    def __init__(self, cache: Path, notice: Callable[[str], None]) -> None:
        self._folder = cache / "packages"
        self._state = cache / "apt"
        self._notice = notice
        self._uses_own_lists = False
        self._fetched: set[Path] = set()
        self._update_errors: list[str] = []

    def close(self) -> None:
        """Removes what apt-get can make anew: its caches are larger than the packages."""
        for path in self._state.glob("*/*.bin"):
            path.unlink(missing_ok=True)

    def get(self, package: Package) -> DebFile:
        """The package, fetched unless it is here; raises PackageError."""
        pattern = re.compile(package.dependency or re.escape(package.name))
        for path in self._present(pattern):
            try:
                return describe(path)
            except DamagedPackageError:
                path.unlink()  # fetched again below
        name = self._dependency(package) if package.dependency else package.name
        path = self._download(name)
        self._fetched.add(path)
        found = describe(path)
        if found.name != name:
            path.unlink()
            raise PackageError(f"{name}: apt-get delivered the package '{found.name}'")
        self._notice(f"fetched {name} {found.version}, {found.size / 1e6:.1f} MB")
        return found

    def forget(self, path: Path) -> bool:
        """Removes a damaged package, to be fetched again; False if this object fetched it."""
        if path in self._fetched:
            return False
        path.unlink(missing_ok=True)
        return True

    def _present(self, pattern: re.Pattern[str]) -> list[Path]:
        """Fetched packages of that name, the latest first."""
        paths = [
            path
            for path in self._folder.glob("*.deb")
            if pattern.fullmatch(path.name.partition("_")[0])
        ]
        return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def _dependency(self, package: Package) -> str:
        shown = self._with_lists("apt-cache", "show", "--no-all-versions", package.name)
        depends = re.search(r"^Depends: (.*)$", shown.stdout, re.MULTILINE)
        for word in re.findall(r"[a-z0-9][a-z0-9+.-]*", depends[1] if depends else ""):
            if re.fullmatch(package.dependency, word):
                return str(word)
        raise PackageError(f"{package.name}: {self._why(shown) or 'it names no such dependency'}")

    def _download(self, name: str) -> Path:
        """Fetches into a folder of its own and moves the finished file out of it."""
        folder = self._folder / f"{name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            done = self._with_lists("apt-get", "download", "-q", name, cwd=folder)
            files = list(folder.glob("*.deb"))
            if done.returncode != 0 or len(files) != 1:
                raise PackageError(f"{name}: {self._why(done) or 'apt-get delivered no file'}")
            target = self._folder / files[0].name
            files[0].replace(target)
            return target
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _with_lists(
        self, *command: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs by the system's lists and, where that fails, once more by fresh lists of our own."""
        done = self._apt(*command, cwd=cwd)
        if done.returncode == 0 or self._uses_own_lists:
            return done
        self._notice("the system's package lists do not serve; fetching a set of our own")
        self._uses_own_lists = True
        # A source that fails is of no matter where another one has the package.
        updated = self._apt("apt-get", "update", "-q")
        lines = updated.stderr.splitlines()
        self._update_errors = [line for line in lines if line.startswith(("E:", "W: Failed"))]
        return self._apt(*command, cwd=cwd)

    def _why(self, done: subprocess.CompletedProcess[str]) -> str:
        """The reason of a failure, with that of the update before it; or nothing."""
        errors = [_reason(done), *(line[2:].strip()[:200] for line in self._update_errors[-1:])]
        return "; ".join(filter(None, errors)) if done.returncode else ""

    def _apt(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        lists = "own" if self._uses_own_lists else "system"
        state = self._state / lists
        for folder in (state / "lists/partial", state / "archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()  # empty: nothing counts as installed
        configuration = state / "apt.conf"
        configuration.write_text(_APT_CONFIGURATION, encoding="ascii")
        options = {
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "APT::Sandbox::User": "root",  # nobody else can write to the cache
            "Acquire::Languages": "none",
            "Acquire::Retries": 2,
            "Acquire::http::Timeout": 30,
            "Acquire::https::Timeout": 30,
        }
        if self._uses_own_lists:
            options |= {"Dir::State": state, "Dir::State::lists": "lists"}
        words = [command[0], "-c", str(configuration)]
        for key, value in options.items():
            words += ["-o", f"{key}={value}"]
        return _run([*words, *command[1:]], cwd)


def _run(words: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise PackageError(f"{words[0]} is not here; packages need Debian or Ubuntu") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last error that a program printed, or nothing."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:"))] or lines
    return errors[-1].removeprefix("E:").strip()[:200] if errors and done.returncode else ""


def describe(path: Path) -> DebFile:
    """Name, version and checksum of a package file; raises PackageError."""
    done = _run(["dpkg-deb", "-f", str(path), "Package", "Version", "Architecture"])
    fields = dict(re.findall(r"^(\w+): (\S+)$", done.stdout, re.MULTILINE))
    if done.returncode != 0 or len(fields) != 3:
        raise DamagedPackageError(
            path, f"{path.name}: {_reason(done) or 'its control file is incomplete'}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DebFile(
        path,
        fields["Package"],
        fields["Version"],
        fields["Architecture"],
        digest,
        path.stat().st_size,
    )


class _Member(tarfile.TarInfo):
    """A member whose header does not ask for memory without bounds."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        is_header = member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
        if member.size < 0 or (is_header and member.size > _MAX_HEADER_BYTES):
            raise PackageError(f"a header of {member.size} bytes")
        return member


class _Limited:
    """A stream that ends with an error beyond MAX_PACKAGE_BYTES."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_PACKAGE_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise PackageError(f"more than {MAX_PACKAGE_BYTES} bytes unpacked")
        return data


def read_files(deb: DebFile, pattern: str) -> Iterator[tuple[str, bytes | None]]:
    """Path and content of the files whose whole path matches; None for links.

    Compressed files (.gz) are inflated. Nothing is written. Raises PackageError on a damaged
    package, on paths that lead out of it, and on sizes beyond the limits.
    """
    expression = re.compile(pattern)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(deb.path)],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        stream = _Limited(process.stdout)
        try:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:  # type: ignore[call-overload]
                yield from _matching(archive, expression)
            while stream.read(1 << 16):
                pass
        except (tarfile.TarError, EOFError, PackageError) as error:
            raise DamagedPackageError(deb.path, f"{deb.name}: damaged package: {error}") from None
        if process.wait() != 0:
            errors.seek(0)
            reason = errors.read(500).decode(errors="replace").strip().splitlines()
            raise DamagedPackageError(
                deb.path, f"{deb.name}: damaged package: {' '.join(reason[-1:])}"
            )


def _matching(
    archive: tarfile.TarFile, expression: re.Pattern[str]
) -> Iterator[tuple[str, bytes | None]]:
    for member in archive:
        path = member.name.removeprefix("./")
        if path.startswith("/") or ".." in path.split("/"):
            raise PackageError(f"a path leads out of it: {path!a:.100}")
        if not expression.fullmatch(path):
            continue
        if member.issym() or member.islnk():
            yield path, None
        elif member.isreg():
            if member.size > MAX_FILE_BYTES:
                raise PackageError(f"{path!a:.100} has {member.size} bytes")
            file = archive.extractfile(member)
            data = file.read() if file else b""
            if len(data) != member.size:
                raise PackageError(f"{path!a:.100} is cut off")
            yield path, _inflate(path, data) if path.endswith(".gz") else data


def _inflate(path: str, data: bytes) -> bytes:
    """The content of a gzip file of one or more members."""
    content = b""
    while data:
        inflater = zlib.decompressobj(wbits=31)
        try:
            content += inflater.decompress(data, MAX_FILE_BYTES + 1 - len(content))
        except zlib.error as error:
            raise PackageError(f"{path!a:.100}: {error}") from None
        if len(content) > MAX_FILE_BYTES:
            raise PackageError(f"{path!a:.100} inflates to more than {MAX_FILE_BYTES} bytes")
        if not inflater.eof:
            raise PackageError(f"{path!a:.100} is cut off")
        data = inflater.unused_data
    return content

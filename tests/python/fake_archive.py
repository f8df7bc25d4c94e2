"""An archive of fake Debian packages with an apt-get that serves it, without any network."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

# download NAME: copies NAME_*.deb. With `stale` in the archive, only after an update; with
# `offline`, never. Calls are written to `log`. A file `slow` holds the seconds of a download.
APT_GET = """#!/usr/bin/env bash
archive={archive}
while [[ $1 == -* ]]; do shift 2; done
printf '%s %s\\n' "$(basename "$0")" "$*" >>"$archive/log"
[[ ! -e $archive/offline ]] || {{ echo 'E: Could not resolve the mirror' >&2; exit 100; }}
case $1 in
  update) touch "$archive/updated"; exit 0 ;;
  show) cat "$archive/${{@: -1}}.show" 2>/dev/null && exit 0 ;;
  download)
    [[ ! -e $archive/slow ]] || sleep "$(<"$archive/slow")"
    [[ -e $archive/stale && ! -e $archive/updated ]] ||
      {{ cp "$archive/${{@: -1}}"_*.deb . 2>/dev/null && exit 0; }} ;;
esac
echo 'W: Something else' >&2
echo "E: Unable to locate package ${{@: -1}}" >&2
exit 100
"""

# `paperlab.data` alone, without torch and the compiled core: processes that start at once.
LIGHT = """
import sys, types
package = types.ModuleType("paperlab")
package.__path__ = [{package!r}]
sys.modules["paperlab"] = package
from paperlab.data._command import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Archive:
    """Packages in a folder; PATH and PAPERLAB_CACHE point to fakes."""

    folder: Path
    cache: Path

    def add(self, name: str, files: dict[str, bytes], version: str = "1.0-1") -> Path:
        path = self.folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
        path.write_bytes(deb(name, data_tar(files), version))
        return path

    def add_pages(self, language: str, *names: str, text: str) -> Path:
        """A package of manual pages man1/NAME.1.gz, each with its name in the text."""
        folder = f"usr/share/man/{language}/man1" if language != "en" else "usr/share/man/man1"
        pages = {f"{folder}/{name}.1.gz": page(f"{name} {text}") for name in names}
        return self.add(f"manpages-{language.partition('_')[0]}", pages)

    @property
    def calls(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def set(self, state: str, value: str = "") -> None:
        (self.folder / state).write_text(value)

    def clear(self, state: str) -> None:
        (self.folder / state).unlink(missing_ok=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`paperlab data ARGUMENTS` in a process of its own."""
        import paperlab

        program = LIGHT.format(package=str(Path(paperlab.__file__).parent))
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An empty archive."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    folder, programs = tmp_path / "archive", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    for name in ("apt-get", "apt-cache"):
        (programs / name).write_text(APT_GET.format(archive=f"'{folder}'"))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "the cache"))  # spaces work
    return Archive(folder, tmp_path / "the cache")


def page(text: str, title: str = "SOMETHING") -> bytes:
    """A compressed manual page."""
    return gzip.compress(f".TH {title} 1\n.SH NAME\n{text}\n".encode(), mtime=0)


def data_tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A tar archive with paths as dpkg writes them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path if path.startswith(("/", "..")) else f"./{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for path, target in (links or {}).items():
            member = tarfile.TarInfo(f"./{path}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def deb(name: str, tar: bytes, version: str = "1.0-1") -> bytes:
    """A package: an ar archive of a version, the control file and the data."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@e>\n"
    control += "Description: none\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": gzip.compress(data_tar({"control": control.encode()}), mtime=0),
        "data.tar.gz": gzip.compress(tar, mtime=0),
    }
    content = b"!<arch>\n"
    for member, data in members.items():
        header = f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        content += header.encode() + data + b"\n" * (len(data) % 2)
    return content

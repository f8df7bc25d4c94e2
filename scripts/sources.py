"""The files that belong to the project, for the checks of lint."""

import importlib.util
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CPP_SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}

# What .gitignore and git leave out, for a tree without git.
_IGNORED = set(".git .venv .deps build results dist .mypy_cache .ruff_cache .pytest_cache".split())


def project_files(root: Path = ROOT) -> list[Path]:
    """Tracked files and new ones that git does not ignore, as paths below `root`; sorted."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0 and (root / ".git").exists():
        names = [Path(name) for name in listing.stdout.split("\0") if name]
    else:
        names = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        names = [name for name in names if not _is_ignored(name)]
    return sorted(name for name in names if (root / name).is_file())


def tool_of_wheel(name: str) -> Path:
    """The program of a PyPI wheel, `clang-tidy` or `clang-format`, wherever it is installed."""
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed; ./paperlab setup --develop installs it")
    return Path(spec.origin).parent / "data" / "bin" / name


def _is_ignored(name: Path) -> bool:
    folders = name.parts[:-1]
    # Committed results lie below experiments/ and bench/; only the one at the top is ignored.
    return (bool(folders) and folders[0] in _IGNORED) or "__pycache__" in folders


def staged_files(root: Path = ROOT) -> list[Path]:
    """Files of the next commit."""
    listing = subprocess.run(
        ["git", "-C", str(root), "diff", "--cached", "--name-only", "-z", "--diff-filter=d"],
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(Path(name) for name in listing.stdout.split("\0") if name)

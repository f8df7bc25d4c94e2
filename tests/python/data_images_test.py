"""Pictures: Fashion-MNIST's idx files and scikit-learn's digits."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from fake_archive import Archive
from paperlab import data
from paperlab.data._images import read_digits, read_idx
from paperlab.data._packages import PackageError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion() -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(1)
    splits, files = {}, {}
    for split, prefix, count in (("train", "train", 6), ("test", "t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(labels)
        splits[split] = (images, labels)
    return files, splits


def test_fashion_mnist(archive: Archive) -> None:
    files, expected = fashion()
    packed = {f"usr/share/datasets/f/{name}": gzip.compress(x) for name, x in files.items()}
    archive.add("dataset-fashion-mnist", packed)
    assert data.fetch("fashion-mnist") == {}
    images = data.load_images("fashion-mnist")
    assert set(images) == {"train", "test"}
    for split, (pixels, labels) in expected.items():
        assert (images[split][0] == pixels).all() and (images[split][1] == labels).all()
        assert images[split][0].dtype == np.uint8 and not images[split][0].flags.writeable
    assert len(images.sha256) == 64 and images.manifest["images"]["documents"]["test"] == 3
    with pytest.raises(ValueError, match=r"fashion-mnist holds pictures; data\.load_images"):
        data.load("fashion-mnist")


def table(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.hstack([rng.integers(0, 17, (count, 64)), rng.integers(0, 10, (count, 1))])


def csv(rows: np.ndarray) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode()


def test_digits(archive: Archive) -> None:
    rows = table()
    path = "usr/lib/python3/dist-packages/sklearn/datasets/data/digits.csv.gz"
    archive.add("python3-sklearn", {path: gzip.compress(csv(rows))})
    assert data.fetch("digits") == {}
    images = data.load_images("digits")
    counts = [len(images[split][1]) for split in ("train", "valid", "test")]
    assert sum(counts) == 300 and counts[0] > 240 and min(counts) > 3
    seen = np.vstack([
        np.hstack([pixels.reshape(-1, 64), labels[:, None]]) for pixels, labels in images.values()
    ])  # fmt: skip
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("train-images-idx3-ubyte.gz", lambda x: x[:-1], "4703 bytes for shape"),
        ("train-images-idx3-ubyte.gz", lambda x: b"", "not an idx file of 3 dimensions"),
        ("t10k-labels-idx1-ubyte.gz", lambda x: b"\0\0\x0d\1" + x[4:], "not an idx file of 1"),
        ("t10k-labels-idx1-ubyte.gz", lambda x: idx(np.zeros(4, np.uint8)), "t10k: images and"),
        ("t10k-labels-idx1-ubyte.gz", lambda x: idx(np.full(3, 10, np.uint8)), "do not match"),
        ("train-images-idx3-ubyte.gz", lambda x: x[:4] + b"\xff" * 12 + x[16:], "bytes for shape"),
    ],
)
def test_bad_idx_files(name: str, change, reason: str) -> None:
    files, _ = fashion()
    files[name] = change(files[name])
    with pytest.raises(PackageError, match=reason):
        read_idx(files)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no table"),
        (b"a,b\n", "could not convert"),
        (b"1,2\n1\n", "inhomogeneous"),
        (csv(table(3)[:, :64]), "no table of 65"),
        (csv(table(3) + 20), "values beyond"),
        (csv(-table(3)), "values beyond"),
    ],
)
def test_bad_digits(content: bytes, reason: str) -> None:
    with pytest.raises(PackageError, match=reason):
        read_digits({"digits.csv.gz": content})


def test_the_sample_needs_no_fetch(archive: Archive) -> None:
    images = data.load_images("sample-images")
    assert archive.calls == []
    assert {split: labels.shape for split, (_, labels) in images.items()} == {
        "train": (120,),
        "test": (60,),
    }
    seen = np.vstack([pixels.reshape(-1, 64) for pixels, _ in images.values()])
    assert len(np.unique(seen, axis=0)) == len(seen) and set(seen.ravel().tolist()) == {0, 16}
    for _, labels in images.values():
        assert np.bincount(labels).min() == np.bincount(labels).max()  # as many of each class
    manifest = (images.folder / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == images.sha256


def test_pictures_that_are_not_there(archive: Archive) -> None:
    with pytest.raises(FileNotFoundError, match="data fetch digits brings it"):
        data.load_images("digits")
    missing = data.fetch("digits")
    assert missing == {"images": "python3-sklearn: Unable to locate package python3-sklearn"}
    with pytest.raises(FileNotFoundError, match="digits could not be fetched: python3-sklearn"):
        data.load_images("digits")
    with pytest.raises(ValueError, match=r"sample holds text; data\.load reads it"):
        data.load_images("sample")

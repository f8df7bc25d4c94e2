"""Pictures: idx files of Fashion-MNIST, scikit-learn's table of digits, drawn digits for tests."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from paperlab.data._documents import bundled_parts, split_of
from paperlab.data._packages import PackageError
from paperlab.data._recipes import SPLITS

UInt8 = npt.NDArray[np.uint8]
Splits = dict[str, tuple[UInt8, UInt8]]

_DIGIT_SIZE, _DIGIT_PIXELS, _DIGIT_MAX, _NUM_CLASSES = 8, 64, 16, 10


def read_idx(files: Mapping[str, bytes]) -> Splits:
    """images uint8 [N, 28, 28] and labels uint8 [N]: the published train and test parts."""
    splits: Splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx(files, f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = _idx(files, f"{prefix}-labels-idx1-ubyte.gz", 1)
        if len(images) != len(labels) or labels.max(initial=0) >= _NUM_CLASSES:
            raise PackageError(f"{prefix}: images and labels do not match")
        splits[split] = (images, labels)
    return splits


def _idx(files: Mapping[str, bytes], name: str, ndim: int) -> UInt8:
    """An array of bytes: a magic number that says so, its sizes, its content."""
    data = files.get(name, b"")
    start = 4 + 4 * ndim
    if len(data) < start or data[:4] != bytes([0, 0, 8, ndim]):
        raise PackageError(f"{name}: not an idx file of {ndim} dimensions of bytes")
    shape = np.frombuffer(data, ">u4", ndim, 4).astype(np.int64)
    count = 1
    for size in shape.tolist():
        count *= size
    if len(data) - start != count:
        raise PackageError(f"{name}: {len(data) - start} bytes for shape {shape.tolist()}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_digits(files: Mapping[str, bytes]) -> Splits:
    """images uint8 [N, 8, 8], values 0..16, and labels uint8 [N]; split by hash of the row."""
    (data,) = files.values()
    lines = [line for line in data.decode("ascii", "replace").split("\n") if line]
    try:
        table = np.array([[float(word) for word in line.split(",")] for line in lines])
    except ValueError as error:
        raise PackageError(f"digits.csv.gz: {error}") from None
    if table.ndim != 2 or table.shape[1] != _DIGIT_PIXELS + 1:
        raise PackageError(f"digits.csv.gz: {list(table.shape)} is no table of 65 columns")
    pixels, labels = table[:, :-1], table[:, -1]
    valid = (table >= 0).all() and (pixels <= _DIGIT_MAX).all() and (labels < _NUM_CLASSES).all()
    if not valid:
        raise PackageError("digits.csv.gz: values beyond 0..16 or labels beyond 0..9")
    images = pixels.astype(np.uint8).reshape(-1, 8, 8)
    of_row = np.array([split_of(row.tobytes()) for row in images])
    return {
        split: (images[of_row == split], labels[of_row == split].astype(np.uint8))
        for split in SPLITS
    }


def read_glyphs(text: str) -> Splits:
    """Pictures as of `read_digits`: each drawing at every place; every third is for testing.

    text: parts `==== LABEL` of rows of '.' and '#', at most 8 x 8.
    """
    images, labels = [], []
    for label, drawing in bundled_parts(text):
        glyph = np.array([[mark == "#" for mark in row] for row in drawing.split()])
        height, width = glyph.shape
        for top, left in np.ndindex(_DIGIT_SIZE - height + 1, _DIGIT_SIZE - width + 1):
            image = np.zeros((_DIGIT_SIZE, _DIGIT_SIZE), np.uint8)
            image[top : top + height, left : left + width] = glyph * _DIGIT_MAX
            images.append(image)
            labels.append(int(label))
    is_test = np.arange(len(labels)) % 3 == 2
    return {
        split: (np.array(images)[mask], np.array(labels, np.uint8)[mask])
        for split, mask in (("train", ~is_test), ("test", is_test))
    }

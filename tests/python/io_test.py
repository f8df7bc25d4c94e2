"""paperlab.io: safetensors files, beside the safetensors package."""

import errno
import json
import os
import random
import resource
import signal
import stat
import struct
import subprocess
from pathlib import Path

import numpy as np
import paperlab
import pytest
import safetensors
import safetensors.torch
import torch
from paperlab import io

NAMES = """bool uint8 int8 float8_e5m2 float8_e4m3fn float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz
    int16 uint16 float16 bfloat16 int32 uint32 float32 complex64 float64 int64 uint64
    float4_e2m1fn_x2""".split()
DTYPES = [getattr(torch, name) for name in NAMES]
BUILD = Path(paperlab.__file__).parents[2]


def raw_bytes(x: torch.Tensor) -> bytes:
    """The elements in row-major order."""
    x = x.detach().contiguous()
    return x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def random_tensor(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    """Random bits in a random shape: scalars and empty tensors too."""
    shape = [rng.choice([0, 1, 2, 3, 7]) for _ in range(rng.randrange(4))]
    if dtype == torch.float4_e2m1fn_x2 and not shape:
        shape = [2]
    count = int(np.prod(shape)) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    raw = torch.tensor([rng.randrange(high) for _ in range(count)], dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    rng = random.Random(seed)
    names = ["", "a", "b.weight", '\u03b1\n"', "\u65e5\u672c", "z" * 300, "a/b", " "]
    return {name + str(i): random_tensor(rng, rng.choice(DTYPES)) for i, name in enumerate(names)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert raw_bytes(found[name]) == raw_bytes(x), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- beside the package --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_every_type_goes_both_ways(dtype, path):
    rng = random.Random(str(dtype))
    tensors = {f"x{i}": random_tensor(rng, dtype) for i in range(6)}
    io.save_file(tensors, path)
    assert_same(io.load_file(path), tensors)
    if dtype not in (torch.float8_e8m0fnu, torch.float4_e2m1fn_x2):  # its torch face lacks them
        assert_same(safetensors.torch.load_file(path), tensors)
    safetensors.torch.save_file(tensors, path)
    assert_same(io.load_file(path), tensors)


@pytest.mark.parametrize("seed", range(20))
def test_the_bytes_are_those_of_the_package_in_any_order(seed, path):
    tensors = random_tensors(seed)
    io.save_file(tensors, path, {"format": "pt"})
    ours = path.read_bytes()
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    assert ours == path.read_bytes()
    names = list(tensors)
    random.Random(seed).shuffle(names)
    io.save_file({name: tensors[name] for name in names}, path, {"format": "pt"})
    assert ours == path.read_bytes()
    assert (8 + struct.unpack("<Q", ours[:8])[0]) % 8 == 0
    assert_same(io.load_file(path), tensors)


def test_metadata_is_written_in_order_and_read(path):
    metadata = {"b": "1", "a": '\u00e9\n"\\', "": ""}
    for order in (metadata, dict(reversed(metadata.items()))):
        io.save_file({}, path, order)
        assert io.load_metadata(path) == metadata
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == metadata
        assert b'{"__metadata__":{"":"","a":' in path.read_bytes()
    io.save_file({}, path)
    assert io.load_metadata(path) == {} and io.load_file(path) == {}
    assert path.read_bytes() == raw_file("{}      ")


def test_tensors_come_in_the_order_of_their_bytes(path):
    io.save_file({"a": torch.zeros(1), "b": torch.zeros(1).double(), "0": torch.zeros(2)}, path)
    assert list(io.load_file(path)) == ["b", "0", "a"]


# --- what save_file accepts ----------------------------------------------------------------------

VIEWS = {
    "transposed": lambda x: x.mT,
    "expanded": lambda x: x[:1].expand(5, -1, -1),
    "strided": lambda x: x[::2, :, 1::3],
    "shifted": lambda x: x.flatten()[1:],
    "reversed dimensions": lambda x: x.permute(2, 1, 0),
    "parameter": lambda x: torch.nn.Parameter(x),
    "graph": lambda x: x.clone().requires_grad_() * 1,
    "scalar": lambda x: x[0, 0, 0],
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative": lambda x: torch.complex(x, x).conj().imag,
    "of the bits": lambda x: x.view(torch.int16)[..., ::2].view(torch.float16),
}


@pytest.mark.parametrize("piece_bytes", [32 << 20, 64, 8])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_is_written_and_left_as_it_is(view, piece_bytes, path, monkeypatch):
    monkeypatch.setattr(io, "_PIECE_BYTES", piece_bytes)
    x = torch.randn(4, 6, 10)
    before = x.clone()
    tensor = view(x)
    io.save_file({"x": tensor}, path)
    expected = tensor.detach().resolve_conj().resolve_neg()
    assert_same(io.load_file(path), {"x": expected})
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_views_of_every_type_in_pieces(dtype, path, monkeypatch):
    monkeypatch.setattr(io, "_PIECE_BYTES", 16)
    raw = torch.randint(0, 2, (6, 5 * dtype.itemsize), dtype=torch.uint8).view(dtype)
    io.save_file({"x": raw.t()}, path)
    expected = raw.view(torch.uint8).reshape(6, 5, -1).permute(1, 0, 2).contiguous()
    found = io.load_file(path)["x"]
    assert (found.dtype, found.shape) == (dtype, (5, 6))
    assert raw_bytes(found) == raw_bytes(expected)


def test_tensors_that_share_memory_are_each_written(path):
    x = torch.arange(6.0)
    io.save_file({"a": x, "b": x, "c": x[2:]}, path)
    assert_same(io.load_file(path), {"a": x, "b": x, "c": x[2:].clone()})


@pytest.mark.parametrize("piece_bytes", [32 << 20, 8])
def test_numpy_arrays_of_any_stride_and_byte_order(path, piece_bytes, monkeypatch):
    monkeypatch.setattr(io, "_PIECE_BYTES", piece_bytes)
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "reversed": x[::-1, ::-2],
        "transposed": x.T,
        "big": x.astype(">f4"),
        "scalar": np.array(2.5),
        "number": np.int16(3),
        "bool": x > 5,
        "half": x.astype(np.float16),
        "complex": x.astype(np.complex64),
        "fixed": np.frombuffer(x.tobytes(), np.uint64),
        "empty": x[:0],
    }
    io.save_file(arrays, path)
    found = io.load_file(path)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name].numpy(), array), name


# --- memory of its own ---------------------------------------------------------------------------


def test_loaded_tensors_and_the_file_are_independent(path):
    x = torch.arange(100_000.0)
    io.save_file({"x": x, "y": x}, path)
    content = path.read_bytes()
    found = io.load_file(path)
    found["x"].fill_(-1)
    assert torch.equal(found["y"], x) and path.read_bytes() == content
    path.write_bytes(b"\xff" * len(content))  # in place: the same file
    os.truncate(path, 0)
    assert torch.equal(found["y"], x)
    found["y"].resize_(200_000)


def test_a_file_can_be_replaced_by_what_was_loaded_from_it(path):
    io.save_file({"x": torch.arange(10)}, path)
    tensors = io.load_file(path)
    tensors["x"] += 1
    io.save_file(tensors, path)
    assert io.load_file(path)["x"].tolist() == list(range(1, 11))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_tensors_are_read_whole_on_any_number_of_threads(threads, path):
    before = paperlab.get_num_threads(), torch.get_num_threads()
    x = torch.arange(5_000_001, dtype=torch.int32)
    io.save_file({"x": x, "y": x[:3]}, path)
    try:
        paperlab.set_num_threads(threads)
        assert_same(io.load_file(path), {"x": x, "y": x[:3]})
    finally:
        paperlab.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def test_memory_of_loading_and_saving(run_python, path):
    """Loading takes the file's bytes; saving does not grow with a tensor that is no plain block."""
    code = """
import sys
import torch
from paperlab import io

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(field))

def peak(call, *arguments):  # in MiB above what is there
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts anew
    before = status("VmRSS")
    kept = call(*arguments)
    return status("VmHWM") - before

path = sys.argv[1]
peak(io.save_file, {"x": torch.zeros(10, 10).t()}, path)  # loads what it needs
peak(io.load_file, path)
x = torch.zeros(40 << 20)
print(peak(io.save_file, {f"x{i}": x for i in range(2)}, path), peak(io.load_file, path))
for view in (x.view(5 << 10, 8 << 10).t(), x[::2].expand(3, -1), x.numpy()[::-1]):
    print(peak(io.save_file, {"x": view}, path))
"""
    run = run_python(["-c", code, str(path)])
    assert run.returncode == 0, run.stderr
    plain, load, *views = map(float, run.stdout.split())
    assert plain < 16 and load <= 1.1 * 320 and max(views) < 128, run.stdout


# --- bad arguments -------------------------------------------------------------------------------

BAD_TENSORS = {
    "list": ([torch.zeros(1)], "tensors must map names to tensors, got list"),
    "number": ({"w": 3}, "tensor 'w' must be a torch.Tensor or a NumPy array, got int"),
    "name": ({3: torch.zeros(1)}, "name must be a str, got int"),
    "surrogate": ({"\ud800": torch.zeros(1)}, "name must be Unicode"),
    "reserved": ({"__metadata__": torch.zeros(1)}, "must not have the name '__metadata__'"),
    "complex128": ({"w": torch.zeros(1, dtype=torch.complex128)}, "tensor 'w' .*torch.complex128"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, "tensor 'w' must be a strided tensor"),
    "meta": ({"w": torch.zeros(1, device="meta")}, "tensor 'w' .* on meta"),
    "objects": ({"w": np.array([None])}, "tensor 'w' .*got object"),
    "strings": ({"w": np.array(["x"])}, "tensor 'w' .*got <U1"),
    "fields": ({"w": np.zeros(1, [("x", "f4")])}, "tensor 'w'"),
    "long double": ({"w": np.zeros(1, np.longdouble)}, "tensor 'w'"),
    "packed scalar": (
        {"w": torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)[0]},
        "tensor 'w' is packed",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused_before_any_work(tensors, message, path):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        io.save_file(tensors, path)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "metadata", [[("a", "b")], {"a": 1}, {1: "a"}, {"a": None}, "a", {"a": "\udcff"}]
)
def test_bad_metadata_is_refused_before_any_work(metadata, path):
    with pytest.raises(ValueError, match=r"save_file: .*metadata"):
        io.save_file({}, path, metadata)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("bad", [None, 3, 1.5, ["x"]])
def test_bad_paths_are_refused(bad):
    for name, call in (
        ("load_file", io.load_file),
        ("load_metadata", io.load_metadata),
        ("save_file", lambda path: io.save_file({}, path)),
    ):
        with pytest.raises(ValueError, match=f"{name}: path must be a str"):
            call(bad)
    with pytest.raises(ValueError, match="zero byte"):
        io.load_file("a\0b")
    with pytest.raises(ValueError, match="must not be empty"):
        io.load_file("")


def test_paths_are_of_every_kind(tmp_path):
    for name in ("plain", "\u00e9\u65e5", b"not\xffutf8"):
        folder = os.fsencode(tmp_path) if isinstance(name, bytes) else str(tmp_path)
        path = os.path.join(folder, name)
        io.save_file({"x": torch.ones(2)}, path)
        assert io.load_file(path)["x"].tolist() == [1, 1]
        with open(path, "ab") as file:
            file.write(b"x")
        with pytest.raises(ValueError, match="1 bytes follow") as caught:
            io.load_file(path)
        assert str(caught.value).startswith(os.fsdecode(path))


# --- malformed files -----------------------------------------------------------------------------


def test_every_prefix_and_every_longer_file_is_refused(path):
    io.save_file({"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.bool)}, path, {"k": "v"})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        for load in (io.load_file, io.load_metadata):
            with pytest.raises(ValueError, match=r"x\.safetensors: "):
                load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="1 bytes follow the last tensor"):
        io.load_file(path)


def one(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED = {
    "no json": ("{nothing", b"", "not JSON"),
    "array": ("[]", b"", "must start with"),
    "deep": ('{"a":' * 5000, b"", "'a'"),
    "not utf-8": ('{"a\\ud800":1}', b"", "not JSON"),
    "twice": ('{"a":%s,"a":%s}' % ((json.dumps(one()),) * 2), b"x", "'a' is there twice"),
    "overlap": (
        {"a": one(shape=[2], offsets=[0, 2]), "b": one(offsets=[1, 2])},
        b"xy",
        "'b'.*inside",
    ),
    "gap": ({"a": one(), "b": one(offsets=[2, 3])}, b"xyz", "'b'.*gap"),
    "descending": ({"a": one(offsets=[1, 0])}, b"x", "'a': data_offsets"),
    "negative": ({"a": one(shape=[-1])}, b"x", "'a': shape"),
    "fraction": ({"a": one(shape=[1.0])}, b"x", "'a': shape"),
    "overflow": ({"a": one("F64", [2**32, 2**32], [0, 0])}, b"", "'a': no size"),
    "overflow with zero": ({"a": one("U8", [0, 2**62, 2**62], [0, 0])}, b"", "'a': no size"),
    "span": ({"a": one("F32", [2], [0, 4])}, b"1234", "'a': .*needs 8"),
    "truncated": ({"a": one("U8", [5], [0, 5])}, b"1234", "'a': .*truncated"),
    "type": ({"a": one("F33")}, b"x", "'a': dtype must be one of"),
    "metadata": ({"__metadata__": {"k": 1}}, b"", "'k' must be a string"),
    "key": ({"a": {**one(), "more": 1}}, b"x", "'a': unknown key 'more'"),
    "missing": ({"a": {"dtype": "U8", "shape": [1]}}, b"x", "'a': data_offsets is missing"),
    "odd F4": ({"a": one("F4", [2, 3], [0, 3])}, b"xyz", "'a': F4 needs an even last size"),
    "F6": (
        {"a": one("F6_E2M3", [4], [0, 3])},
        b"xyz",
        "'a' has the type F6_E2M3, which torch lacks",
    ),
}


@pytest.mark.parametrize(("header", "data", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_headers_are_refused_with_the_files_name(header, data, message, path):
    path.write_bytes(raw_file(header, data))
    with pytest.raises(ValueError, match=message) as caught:
        io.load_file(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [100_000_001, 2**63, 2**64 - 1, 3])
def test_header_lengths_beyond_the_limit_or_the_file_are_refused(length, path):
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ValueError, match=r"x\.safetensors: a header of "):
        io.load_file(path)


def test_huge_but_empty_shapes_are_loaded_or_refused(path):
    path.write_bytes(
        raw_file({"a": one("U8", [0, 2**40], [0, 0]), "b": one("F32", [3, 0], [0, 0])})
    )
    assert io.load_file(path)["a"].shape == (0, 2**40)
    path.write_bytes(raw_file({"a": one("U8", [1] * 1000, [0, 1])}, b"x"))
    assert io.load_file(path)["a"].shape == (1,) * 1000


# --- the system refuses --------------------------------------------------------------------------


def test_missing_files_folders_and_what_is_no_file(path):
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors: No such file"):
        io.load_file(path)
    with pytest.raises(FileNotFoundError):
        io.load_metadata(path)
    with pytest.raises(IsADirectoryError):
        io.load_file(path.parent)
    with pytest.raises(NotADirectoryError):
        io.load_file("/dev/null/x")
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is no regular file"):
        io.load_file(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_files_without_permission(path):
    io.save_file({}, path)
    path.chmod(0)
    with pytest.raises(PermissionError):
        io.load_file(path)
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError):
        io.save_file({}, path)
    path.parent.chmod(stat.S_IRWXU)


def test_saving_where_it_cannot_be(path):
    with pytest.raises(IsADirectoryError):
        io.save_file({"x": torch.zeros(1)}, path.parent)
    with pytest.raises(FileNotFoundError):
        io.save_file({"x": torch.zeros(1)}, path / "x")
    assert not list(path.parent.iterdir()) and not Path(f"{path.parent}.tmp").exists()


def test_a_full_disk_leaves_the_old_file_and_no_other(path):
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            io.save_file({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_an_interruption_leaves_the_old_file_and_no_other(path, monkeypatch):
    def interrupted(x):
        yield x
        raise KeyboardInterrupt

    path.write_bytes(b"old")
    monkeypatch.setattr(io, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        io.save_file({"x": torch.zeros(10)}, path)
    assert caught.traceback  # which keeps the writer
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_a_temporary_file_that_was_left_is_replaced(path):
    Path(f"{path}.tmp").write_bytes(b"x" * 1000)
    io.save_file({"x": torch.ones(2)}, path)
    assert io.load_file(path)["x"].tolist() == [1, 1] and list(path.parent.iterdir()) == [path]


# --- NumPy files, which C++ reads and writes -----------------------------------------------------

ARRAYS = {
    "bool": np.array([True, False]),
    "int8": np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(7, np.uint64),
    "empty": np.zeros((0, 4), np.float16),
    "complex": np.array([1 + 2j], np.complex64),
    "\u00e9": np.arange(5, dtype=np.uint16),
}


def npz_copy(source: Path, copy: Path) -> subprocess.CompletedProcess[str]:
    program = BUILD / "bin/npz_copy"
    if not program.exists():
        pytest.skip("the C++ tests are not built")
    return subprocess.run([program, source, copy], capture_output=True, text=True, check=False)


def test_npz_files_go_both_ways(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    run = npz_copy(tmp_path / "a.npz", tmp_path / "b.npz")
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "b.npz") as copy:
        assert set(copy.files) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert copy[name].dtype == array.dtype and np.array_equal(copy[name], array)
            assert np.isfortran(copy[name]) == np.isfortran(array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_files_go_both_ways(tmp_path, version):
    for name, array in ARRAYS.items():
        with open(tmp_path / "a.npy", "wb") as file:
            np.lib.format.write_array(file, array, version=version)
        run = npz_copy(tmp_path / "a.npy", tmp_path / "b.npy")
        assert run.returncode == 0, run.stderr
        assert np.array_equal(np.load(tmp_path / "b.npy"), array), name


def test_npz_files_that_are_compressed_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(3))
    run = npz_copy(tmp_path / "a.npz", tmp_path / "b.npz")
    assert run.returncode == 1 and "compressed or encrypted" in run.stderr
    assert not (tmp_path / "b.npz").exists()

"""The driver `vision`: what transformers makes for it, and checkpoints that go back there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drivers import CACHE, ROOT, Driver, paper_driver

sys.path.insert(0, str(ROOT / "experiments" / "vision"))

import corpora
import transformers_vit

FOLDER = ROOT / "experiments" / "vision"


@pytest.fixture(scope="module")
def driver() -> Driver:
    return paper_driver("vision")


def products(driver: Driver) -> dict[str, Path]:
    """What the smoke run reads, by name."""
    words = [word for word in driver.options if word != "--corpus"]
    return {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}


def requests(driver: Driver) -> list[dict[str, Any]]:
    lines = corpora.needed([*driver.command(CACHE / "none"), "--resume", "never"])
    return [json.loads(line.split("\t")[2]) for line in lines if "\t" in line]


def test_a_run_holds_what_it_says(driver: Driver) -> None:
    folder = run_of(driver, "fashion seed 1")
    run = np.load(folder / "run.npz")
    request = json.loads((folder / "manifest.json").read_text())["request"]
    steps = 16 * (120 // 20)
    assert run["rows"].shape == (steps, 20) and run["rows"].max() < 120
    assert sorted(run["test_rows"]) == list(range(120, 180))
    for epoch in np.split(run["rows"], 16):
        assert len(np.unique(epoch)) == 120
    assert len(run["loss"]) == steps and len(run["moved_loss"]) == request["moved_steps"]
    assert run["eval_step"].tolist() == [32, 64, 96] and run["logits"].shape == (60, 10)
    assert abs(run["moved_loss"] - run["loss"][:24]).max() < 1e-10


def test_requests_are_the_effective_settings(driver: Driver) -> None:
    words = ("--set", "seeds=[5]", "--set", "fashion_patch=2", "--only", "fashion")
    line = corpora.needed(driver.command(CACHE / "none", *words))[-1]
    name, program, request = line.split("\t")
    assert (name, Path(program).name) == ("transformers/fashion seed 5", "transformers_vit.py")
    content = json.loads(request)
    assert (content["seed"], content["patch"], content["dtype"]) == (5, 2, "float64")


def test_what_is_there_is_not_made_again(driver: Driver) -> None:
    lines: list[str] = []
    made = transformers_vit.make(requests(driver), CACHE, lines.append)
    assert lines == [] and set(made) <= set(products(driver).values())


def test_pictures_that_are_not_there_are_a_reason(driver: Driver, tmp_path: Path) -> None:
    request = requests(driver)[0] | {"images": "digits"}
    (reason,) = transformers_vit.make([request], tmp_path, lambda line: None)
    assert isinstance(reason, str) and "data fetch digits brings it" in reason


def test_without_transformers_rows_are_left_out(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise transformers_vit.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(transformers_vit.importlib.metadata, "version", version)
    with pytest.raises(ImportError, match="torch is not installed"):
        transformers_vit.make(requests(driver), tmp_path, lambda line: None)
    bare = Driver("vision", driver.binary, driver.config, "small")
    missing = [
        f"--no-corpus={line.partition(chr(9))[0]}=transformers is not installed"
        for line in corpora.needed(bare.command(tmp_path))
    ]
    done = bare.run(tmp_path, *missing)
    assert (done.returncode, done.stderr) == (0, "")
    claims = bare.result(tmp_path)["claims"]
    assert {claim["verdict"] for claim in claims} == {"not tested at this scale"}
    assert all("which is missing: transformers is not installed." in c["why"] for c in claims)


def run_of(driver: Driver, name: str) -> Path:
    (folder,) = (path for key, path in products(driver).items() if name in key)
    return folder


class InterruptedRunError(Exception):
    """In place of a signal."""


def test_an_interrupted_run_goes_on_to_the_same_bits(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import vit_worker

    whole = run_of(driver, "digits seed 2")
    manifest = json.loads((whole / "manifest.json").read_text())
    (images,) = (CACHE / "data" / "sample-images").glob("images-*")
    job = {"folder": str(tmp_path / "run"), "images": str(images), "manifest": manifest}
    step = vit_worker.Training.step

    def interrupted(training: Any) -> None:
        if len(training.losses) == 35:
            raise InterruptedRunError
        step(training)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        monkeypatch.setattr(vit_worker.Training, "step", interrupted)
        with pytest.raises(InterruptedRunError):
            vit_worker.train(job, lambda share: None)
        assert not (tmp_path / "run").exists() and (tmp_path / "run.part" / "state.pt").exists()
        monkeypatch.setattr(vit_worker.Training, "step", step)
        vit_worker.train(job, lambda share: None)
    finally:
        torch.set_num_threads(threads)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    ours, theirs = np.load(tmp_path / "run" / "run.npz"), np.load(whole / "run.npz")
    for key in theirs:
        assert (ours[key] == theirs[key]).all(), key
    for folder in ("initial", "trained"):
        name = f"{folder}/model.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_worker_ends_with_its_parent() -> None:
    worker = subprocess.Popen([sys.executable, str(transformers_vit.WORKER)], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0


def test_a_checkpoint_trained_here_gives_the_same_logits_there(
    driver: Driver, tmp_path: Path
) -> None:
    import torch
    from paperlab import nn, train
    from transformers import ViTForImageClassification

    whole = run_of(driver, "digits seed 1")
    model = nn.load(whole / "initial")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (20,), generator=generator)
    history = train.fit(model, lambda step: (pixels, labels), steps=3, learning_rate=1e-2)
    assert history["loss"][-1] < history["loss"][0]
    model.save_pretrained(tmp_path)
    theirs = ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).logits
        # float64, some hundred roundings one after another.
        torch.testing.assert_close(model(pixels), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("setting", ["beta2=0.99", "weight_decay=0.04", "final_rate=0.01"])
def test_another_setting_on_one_side_alone_is_seen(
    driver: Driver, tmp_path: Path, setting: str
) -> None:
    assert driver.run(tmp_path, "--only", "curve", "--set", setting).returncode == 0
    measured = {claim["id"]: claim["measured"] for claim in driver.result(tmp_path)["claims"]}
    assert measured["C1a"] > 1e-9  # its bound


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=[]", "seeds must be one at least"),
        ("digits_patch=0", "digits_patch must be >= 1"),
        ("fashion_num_heads=3", "fashion_d_model must be a multiple of its heads"),
        ("dtype=bfloat16", "dtype must be float32 or float64"),
        ("warmup_share=1", "warmup_share must be in [0, 1)"),
    ],
)
def test_settings_that_cannot_be(
    driver: Driver, tmp_path: Path, setting: str, message: str
) -> None:
    driver.expect_refused(tmp_path / "out", setting, message)

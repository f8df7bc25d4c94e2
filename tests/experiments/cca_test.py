"""The CCA driver: rows of a real model and of the gpu at a tiny size, resumption, settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from drivers import ROOT, Driver, leftovers, paper_driver

CONFIG: dict[str, Any] = json.loads((ROOT / "experiments/cca/config.json").read_text())
MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
# 14 keys for the last of 32 tokens with g = 4, s = 8: 6 core tokens and 8 raw ones.
TINY_PAGES = {
    "pages": 2,
    "page_length": 32,
    "page_buckets": [0, 8, 16, 24, 32],
    "page_window": 8,
    "page_groups": [4, 2],
    "long_pages": 1,
    "long_length": 48,
    "long_buckets": [0, 24, 48],
    "page_tune_steps": 3,
    "page_tune_length": 24,
    "page_tune_group": 4,
    "page_tune_window": 8,
}


@pytest.fixture
def driver() -> Driver:
    return paper_driver("cca")


def overridden(folder: Path, values: dict[str, Any]) -> list[str]:
    file = folder / "override.json"
    file.write_text(json.dumps(values))
    return ["--override", str(file)]


def with_tiny_model(driver: Driver, cache: Path) -> list[str]:
    """A model of bytes in a cache of its own, beside the tokens of the sample."""
    import paperlab.nn

    model = paperlab.nn.from_config(MODEL, init="normal", seed=1, dtype="float64")
    model.save_pretrained(cache / "models" / "smollm2")
    option = next(word for word in driver.options if word.startswith("sample:"))
    name, _, folder = option.partition("=")
    tokens = cache / "tokens" / "sample" / "tiny"
    shutil.copytree(folder, tokens)
    return ["--corpus", f"{name}@smollm2={tokens}"]


@pytest.fixture
def pages(driver: Driver, tmp_path: Path) -> tuple[Driver, list[str]]:
    arguments = with_tiny_model(driver, tmp_path / "cache")
    driver.preset = "full"
    sample = {"corpus": "sample", "domains": ["en", "c"], "dtype": "float64"}
    arguments += overridden(tmp_path, sample | TINY_PAGES)
    return driver, [*arguments, "--only", "pages,tuned-pages"]


def test_rows_of_a_real_model_compare_at_the_same_number_of_keys(
    pages: tuple[Driver, list[str]], tmp_path: Path
) -> None:
    driver, arguments = pages
    done = driver.run(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    result = driver.result(tmp_path)
    scalars = result["scalars"]
    names = {name.split(":")[0] for name in scalars if name.startswith("pages ")}
    assert names == {
        "pages full",
        *(f"pages CCA g=4{more}" for more in ("", ", mean pooling", ", keep_first=4")),
        *("pages window 14", "pages StreamingLLM 4 + 10"),
        *("pages CCA g=2", "pages window 20", "pages StreamingLLM 4 + 16"),
    }
    # Tokens before the window's length see the same keys in every form.
    first = [scalars[f"{name}: nats per token 0-7"] for name in names]
    assert first == pytest.approx([first[0]] * len(first), rel=1e-12)
    last = {scalars[f"{name}: nats per token 24-31"] for name in names}
    assert len(last) == len(names)
    assert len(result["series"]["long pages"]["row"]) == 9
    measured = {claim["id"]: claim["measured"] for claim in result["claims"]}
    assert measured["C1a"] is not None and measured["C1h"] is not None


def test_claims_need_as_many_pages_as_asked_for(
    pages: tuple[Driver, list[str]], tmp_path: Path
) -> None:
    driver, arguments = pages
    done = driver.run(tmp_path, *arguments, "--set", "pages=1000000")
    assert (done.returncode, done.stderr) == (0, "")
    result = driver.result(tmp_path)
    assert 1 <= result["scalars"]["pages: how many were found"] < 1000000
    claims = {claim["id"]: claim for claim in result["claims"]}
    assert claims["C1a"]["verdict"] == "not tested at this scale"
    declared = {claim["id"]: claim for claim in CONFIG["claims"]}
    for name in ("C1a", "C1h"):
        assert claims[name]["measured"] is None
        assert "as many held-out pages" in declared[name]["why"]


def test_training_the_projections_leaves_the_model_as_it_was(
    pages: tuple[Driver, list[str]], tmp_path: Path
) -> None:
    driver, arguments = pages
    done = driver.run(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    result = driver.result(tmp_path)
    scalars, table = result["scalars"], result["series"]["tuned pages"]
    # All start from the same values, those of the rows without training.
    full = "nats per token 16-23"
    assert scalars[f"tuned pages full: {full} before"] == scalars[f"pages full: {full}"]
    assert scalars[f"tuned pages CCA: {full} before"] == scalars[f"pages CCA g=4: {full}"]
    assert all(a != b for a, b in zip(table["8-15 before"], table["8-15 after"], strict=True))


def test_a_missing_model_leaves_its_rows_out(driver: Driver, tmp_path: Path) -> None:
    driver.preset = "small"
    driver.options = ["--no-corpus", "manual-pages:en@smollm2=no connection"]
    done = driver.run(tmp_path, "--only", "longbench,pages")
    assert (done.returncode, done.stderr) == (0, "")
    claims = {claim["id"]: claim for claim in driver.result(tmp_path)["claims"]}
    assert claims["C2a"]["verdict"] == "holds"
    assert claims["C1a"]["verdict"] == "not tested at this scale"
    assert "needs manual-pages:en@smollm2" in claims["C1a"]["why"]


def test_a_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    import corpora

    option, reason = corpora.options_for(["sample:en@nonesuch"], tmp_path)
    assert option == "--no-corpus"
    assert reason.startswith("sample:en@nonesuch=") and "nonesuch" in reason.partition("=")[2]


def test_an_interrupted_study_goes_on_with_what_is_missing(driver: Driver, tmp_path: Path) -> None:
    assert driver.run(tmp_path, "--only", "recall").returncode == 0
    expected = driver.timeless(tmp_path)
    result = driver.result(tmp_path)
    for claim in result["claims"]:  # gaps of one seed are a report
        if claim["id"] in ("C1e", "C10c"):
            assert claim["measured"] is None
    del result["environment"]["rows_s"]["recall"]
    lost = ("recall seed 1 window", "recall:", "recall seed 1 mean")
    for kind in ("scalars", "series"):
        result[kind] = {
            name: value
            for name, value in result[kind].items()
            if name != "recall" and not name.startswith(lost)
        }
    for claim in result["claims"]:
        claim["measured"] = None
    driver.result_file(tmp_path).write_text(json.dumps(result))
    done = driver.run(tmp_path, "--only", "recall")
    assert (done.returncode, done.stderr) == (0, "")
    assert driver.timeless(tmp_path) == expected


def assert_labels_follow_the_preset(file: Path) -> None:
    """Of the gpu preset at the tiny size below."""
    from figure_declaration import read_figures
    from placeholders import filled
    from result_file import read_result
    from table_declaration import read_tables

    result = read_result(file)
    tables = {t.name: filled(t, result) for t in read_tables(file, CONFIG)}
    rows = [row[0] for row in tables["recall"].rows(result)]
    groups = [f"CCA g={group}" for group in (16, 32, 64)]
    pooled = [f"{kind} pooling g=16" for kind in ("mean", "max")]
    assert rows == [*groups, *pooled, "window 16", "StreamingLLM 4 + 12"]
    assert tables["text"].rows(result)[1][0] == "CCA g=4 s=16"
    assert tables["text"].heads()[1] == "0-15, at once"
    figures = {f.name: filled(f, result) for f in read_figures(file, CONFIG)}
    assert "1-3: CCA g = 16, 32, 64;" in figures["recall"].caption
    needles = figures["needles"]
    assert needles.missing(result) == []
    assert [line.label for line in needles.lines][1:3] == ["CCA g=16", "window 16"]


@pytest.mark.parametrize("small_disk", ["512k"], indirect=True)
def test_a_full_disk_keeps_the_last_whole_result(
    driver: Driver, small_disk: Path, tmp_path: Path
) -> None:
    arguments = ["--only", "longbench,partition,recall"]
    whole = tmp_path / "whole"
    assert driver.run(whole, *arguments).returncode == 0
    # Room for all but the last result beside the one before it: recall alone adds 8 KB.
    result = driver.result_file(whole)
    room = 2 * result.stat().st_size - 8_000 + result.with_name("config.json").stat().st_size
    free = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - room))
    done = driver.run(small_disk, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr
    ballast.unlink()
    assert leftovers(small_disk) == []
    assert 1 <= len(driver.result(small_disk)["environment"]["rows_s"]) < 3
    done = driver.run(small_disk, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert driver.timeless(small_disk) == driver.timeless(whole)


def test_rows_of_the_gpu_run_at_a_tiny_size(driver: Driver, tmp_path: Path) -> None:
    driver.preset = "gpu"
    tiny = {
        key: value
        for key, value in CONFIG["presets"]["smoke"].items()
        if key != "rows" and not key.startswith("expected_")
    }
    tiny |= {"device": "cpu", "group_size": 4, "window": 8, "speed_dtype": "float32"}
    tiny |= {"speed_lengths": [16, 24, 32, 64], "speed_heads": 2, "speed_head_dim": 4}
    tiny |= {"speed_layers": 2, "speed_ffn": 8, "speed_vocab": 32, "speed_tokens": 12}
    tiny |= {"recall_length": 64, "recall_window": 16}
    tiny["recall_groups"] = CONFIG["presets"]["gpu"]["recall_groups"]
    done = driver.run(tmp_path, *overridden(tmp_path, tiny))
    assert (done.returncode, done.stderr) == (0, "")
    assert_labels_follow_the_preset(driver.result_file(tmp_path))
    result = driver.result(tmp_path)
    for length in tiny["speed_lengths"]:
        names = [f"prefill of attention, {length} tokens, our full_s"]
        names += [name for name in result["scalars"] if f", {length} tokens: LibTorch's" in name]
        names += [f"decoder, {length} tokens: GiB of full attention's cache less CCA's"]
        assert len(names) == 3 and set(names) <= set(result["scalars"])
    rows = CONFIG["presets"]["gpu"]["rows"]
    assert sorted(result["environment"]["rows_s"]) == sorted(rows)
    for claim in result["claims"]:
        if claim["id"] in ("C4g", "C4h", "C4i", "C4j", "C6e", "C11e", "C11f", "C12"):
            assert claim["measured"] > 0, claim["id"]


def test_every_row_is_in_a_preset_and_every_claim_has_a_row_or_a_reason() -> None:
    rows = {row for preset in CONFIG["presets"].values() for row in preset["rows"]}
    for claim in CONFIG["claims"]:
        has_bench = claim.get("timed", False) and "row" not in claim
        assert has_bench or claim.get("row") in rows or claim.get("why"), claim["id"]
    numbers = {
        int("".join(c for c in claim["id"][1:] if c.isdigit())) for claim in CONFIG["claims"]
    }
    assert numbers >= set(range(1, 12))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=tpu", "device must be cpu or cuda"),
        ("dtype=bfloat16", "dtype must be float32 or float64"),
        ("recall_seeds=[1,1]", "recall_seeds must be different numbers"),
        ("recall_length=66", "recall_length must be 64 or more in fours"),
        ("cache_lengths=[8,4]", "cache_lengths must ascend from 1 or more"),
        ('text_corpora=["sample:en,c","code:c"]', "text_corpora must name each domain once"),
        ('text_corpora=["sample"]', "text_corpora must name texts and their domains"),
        ("text_buckets=[0,16]", "text_buckets must be 2 or more numbers from 0 to 64"),
        ("text_window=4", "windows must be >= 5"),
        ("text_heads=3", "text_width must be a multiple of 2 text_heads"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    driver: Driver, tmp_path: Path, setting: str, message: str
) -> None:
    driver.expect_refused(tmp_path / "out", setting, message)

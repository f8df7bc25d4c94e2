"""python -m paperlab doctor."""

import json

import paperlab
import torch


def test_the_report_is_json_on_request(run_python):
    run = run_python(["-m", "paperlab", "doctor", "--json"], env={"PAPERLAB_CPU": "generic"})
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["version"] == paperlab.__version__
    assert report["torch_found"] == str(torch.__version__)
    assert report["torch_built"].split(".")[:2] == report["torch_found"].split(".")[:2]
    assert report["cpu_isa"] == "generic"
    assert report["instruction_sets"]["generic"] == "in use"
    assert all(
        state != "in use" for isa, state in report["instruction_sets"].items() if isa != "generic"
    )
    assert len(report["libgomp"]) == 1
    assert {"commit", "flags", "cuda_built", "cuda_torch", "gpu", "threads"} <= set(report)


def test_the_report_is_text(run_python):
    run = run_python(["-m", "paperlab", "doctor"])
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"version           {paperlab.__version__}\n")
    assert run.stderr == ""


def test_a_wrong_command_exits_with_2(run_python):
    for arguments in (["heal"], [], ["doctor", "--xml"]):
        run = run_python(["-m", "paperlab", *arguments])
        assert run.returncode == 2 and run.stdout == ""

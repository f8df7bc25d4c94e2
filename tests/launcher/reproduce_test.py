"""./paperlab reproduce: order, options, errors, interruption."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from stub_checkout import Checkout, one_line, wait_until, write_script


def test_runs_all_papers_cheapest_first_and_prints_the_report(checkout: Checkout) -> None:
    run = checkout.run("reproduce")
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert lines.index("== zippy (small)") < lines.index("== slow-paper (small)")
    assert lines[-1] == "results/report/index.html"
    assert (checkout.root / "results/report/index.html").read_text() == "slow-paper zippy"


def test_builds_without_tests(checkout: Checkout) -> None:
    checkout.run("reproduce")
    assert "-DPAPERLAB_DEVELOPER=OFF" in checkout.log
    assert "ninja" in checkout.log and checkout.log.count(" paperlab_run\n") == 1


def test_second_call_is_silent_about_the_build(checkout: Checkout) -> None:
    first = checkout.run("reproduce", "zippy")
    second = checkout.run("reproduce", "zippy")
    assert "build:" in first.stdout
    assert "build:" not in second.stdout


def test_options_reach_the_driver(checkout: Checkout, tmp_path: Path) -> None:
    config = tmp_path / "my config.json"
    config.write_text("{}")
    options = ["--only", "F1,F2", "--set", "a=1", "--set=b=2", "--resume", "never"]
    run = checkout.run("reproduce", "zippy", "--config", str(config), "--preset=smoke", *options)
    assert run.returncode == 0
    for words in (
        f"<--override={config}>",
        "<--preset> <smoke>",
        "<--only> <F1,F2>",
        "<--set> <a=1> <--set> <b=2>",
        "<--resume> <never>",
        f"<--config> <{checkout.root}/experiments/zippy/config.json>",
    ):
        assert words in checkout.log


def test_path_of_the_report_is_printed_as_given(checkout: Checkout, tmp_path: Path) -> None:
    run = checkout.run("reproduce", "zippy", "--out", "my out/", cwd=tmp_path)
    assert run.stdout.splitlines()[-1] == "my out/report/index.html"
    assert (tmp_path / "my out/report/index.html").is_file()


def test_the_claims_are_followed_by_the_path_of_the_report(checkout: Checkout) -> None:
    run = checkout.run("reproduce", "zippy")
    assert run.stdout.splitlines()[-2:] == ["C1 holds", "results/report/index.html"]


def test_out_may_begin_with_a_dash(checkout: Checkout) -> None:
    run = checkout.run("reproduce", "zippy", "--out", "-x")
    assert (run.returncode, run.stderr) == (0, "")
    assert (checkout.root / "-x/report/index.html").read_text() == "zippy"


def test_a_paper_named_twice_runs_once(checkout: Checkout) -> None:
    run = checkout.run("reproduce", "zippy", "zippy", "--set", "a=1")
    assert run.returncode == 0
    assert run.stdout.count("== zippy") == 1


def test_figures_of_an_override_are_checked_before_the_run(checkout: Checkout) -> None:
    (checkout.root / "-my.json").write_text('{"figures": [{"name": "loss", "captoin": ""}]}')
    run = checkout.run("reproduce", "zippy", "--config", "-my.json")
    assert (run.returncode, run.stderr) == (2, "figures: unknown key\n")
    assert "zippy" not in checkout.log


def test_an_interrupted_write_test_leaves_no_file(checkout: Checkout) -> None:
    # The first rm, which would end the test, is where the interrupt comes.
    write_script(
        checkout.stubs / "rm",
        """
        if mkdir "$STUB_LOG.interrupted"; then kill -INT $PPID; else exec /bin/rm "$@"; fi
        """,
    )
    run = checkout.run("reproduce", "zippy")
    assert run.returncode == 130
    assert list((checkout.root / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zipy"], "did you mean 'zippy'?"),
        (["slow_paper"], "did you mean 'slow-paper'?"),
        (["--preset", "smal"], "did you mean 'small'?"),
        (["--presett", "small"], "did you mean '--preset'?"),
        (["--resume", "nevr"], "did you mean 'never'?"),
        (["--preset"], "--preset needs a value"),
        (["--out="], "--out needs a value"),
        (["--set", "a=1"], "need exactly one PAPER"),
        (["zippy", "slow-paper", "--config", "x"], "need exactly one PAPER"),
        (["zippy", "--config", "absent.json"], "cannot read the file 'absent.json'"),
        (["--limit", "soon"], "--limit must be a number of seconds"),
    ],
)
def test_error_of_the_command_line(checkout: Checkout, arguments: list[str], message: str) -> None:
    run = checkout.run("reproduce", *arguments)
    assert run.returncode == 2
    assert one_line(run.stderr) and message in run.stderr
    assert not (checkout.root / "results").exists()


def test_out_that_is_no_folder_is_refused_before_the_build(checkout: Checkout) -> None:
    (checkout.root / "file").write_text("")
    run = checkout.run("reproduce", "--out", "file/below")
    assert run.returncode == 1
    assert one_line(run.stderr) and "cannot write to 'file/below'" in run.stderr
    assert not (checkout.root / "stub.log").exists()


def test_gpu_preset_without_a_gpu(checkout: Checkout) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    checkout.stubs.joinpath("nvidia-smi").symlink_to("/bin/false")
    run = checkout.run("reproduce", "--preset", "gpu")
    assert run.returncode == 1
    assert one_line(run.stderr) and "GPU" in run.stderr


def test_a_paper_that_fails_does_not_stop_the_others(checkout: Checkout) -> None:
    failing = {"DRIVER_zippy": "echo 'zippy: disk on fire' >&2; exit 1"}
    run = checkout.run("reproduce", env=failing)
    assert run.returncode == 1
    assert run.stderr == "zippy: disk on fire\n"
    assert (checkout.root / "results/report/index.html").read_text() == "slow-paper"


@pytest.mark.parametrize("code", [1, 2])
def test_exit_code_of_a_single_paper_passes_through(checkout: Checkout, code: int) -> None:
    failing = {"DRIVER_zippy": f"echo 'zippy: unknown key' >&2; exit {code}"}
    run = checkout.run("reproduce", "zippy", env=failing)
    assert (run.returncode, run.stderr) == (code, "zippy: unknown key\n")


def test_a_driver_that_is_killed_is_named(checkout: Checkout) -> None:
    run = checkout.run("reproduce", "zippy", env={"DRIVER_zippy": "kill -SEGV $$"})
    assert run.returncode == 1
    assert run.stderr == "paperlab reproduce: zippy was ended by signal 11\n"


def test_a_build_that_fails_is_one_line(checkout: Checkout) -> None:
    run = checkout.run("reproduce", env={"STUB_BUILD_FAILS": "1"})
    assert run.returncode == 1
    assert one_line(run.stderr) and "build" in run.stderr
    assert "error: no such header" in run.stdout


@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupt_ends_the_run(checkout: Checkout, whole_group: bool) -> None:
    # The terminal interrupts the whole group, a supervisor the launcher alone.
    slow = 'trap ": >\\"$out/told\\"; exit 130" INT; : >"$out/$name/result.json.tmp"'
    slow += "; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        checkout.command("reproduce"),
        cwd=checkout.root,
        env=checkout.env | {"DRIVER_zippy": slow},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = checkout.root / "results/zippy/result.json.tmp"
    wait_until(partial.exists)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")
    assert not partial.exists()
    assert (checkout.root / "results/told").exists()
    assert "slow-paper" not in checkout.log


def test_the_driver_dies_with_the_launcher(checkout: Checkout) -> None:
    hook = 'echo $$ >"$out/pid"; while :; do sleep 0.1; done'
    process = subprocess.Popen(
        checkout.command("reproduce", "zippy"),
        cwd=checkout.root,
        env=checkout.env | {"DRIVER_zippy": hook},
        stdout=subprocess.DEVNULL,
    )
    pid_file = checkout.root / "results/pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    process.kill()
    process.wait()
    driver = Path("/proc", pid_file.read_text().strip(), "cmdline")
    wait_until(lambda: not driver.exists() or driver.read_bytes() == b"")

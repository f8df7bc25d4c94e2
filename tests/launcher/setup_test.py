"""./paperlab setup: apt, environment, pins, torch, locks; with stubs and local wheels only."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from stub_checkout import Checkout, one_line, write_script

APT = {
    # What is in INSTALLED (and nothing else) is installed.
    "dpkg-query": """
        for word in "${@:3}"; do
          [[ " ${INSTALLED:-} " != *" $word "* ]] || printf '%s install ok installed\\n' "$word"
        done
    """,
    "apt-get": 'printf "apt-get %s\\n" "$*" >>"$STUB_LOG"\n',
    "id": "echo ${STUB_ID:-0}\n",
}


def stub(checkout: Checkout, **scripts: str) -> None:
    for name, text in scripts.items():
        write_script(checkout.stubs / name.replace("_", "-"), text)


def make_wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A package of one module, as pip takes it."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
    wheel = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{name}.py": "", f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        archive.writestr(f"{info}/RECORD", record)


@pytest.fixture(scope="session")
def empty_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds nothing but pip; a copy works like the original."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def machine(new_machine: Checkout, empty_venv: Path) -> Checkout:
    """As new_machine, with a virtual environment: making one takes seconds."""
    shutil.copytree(empty_venv, new_machine.venv, symlinks=True)
    return new_machine


@pytest.fixture
def new_machine(bare: Checkout, tmp_path: Path) -> Checkout:
    """Small pins served from a folder through pip's own settings; python3 sees no torch."""
    pins = "# Pins.\ntorch==2.11.0\npinned==1.0\n# Developing: more.\ntool==2.0\n"
    (bare.root / "scripts/requirements.txt").write_text(pins)
    make_wheel(tmp_path / "wheels", "pinned", "1.0", requires="Requires-Dist: torch>=2.11\n")
    make_wheel(tmp_path / "wheels", "tool", "2.0")
    make_torch(tmp_path / "outer", "2.12.1")
    base = os.path.realpath(sys.executable)
    stub(bare, python3=f'exec "{base}" -S "$@"\n')
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (tmp_path / "wheels").as_uri()}
    return Checkout(bare.root, bare.env | settings)


def make_torch(folder: Path, version: str) -> None:
    """What set-up reads of a torch: its version file; importing it fails."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/version.py").write_text(f"__version__ = '{version}+cu130'\n")
    (folder / "torch/__init__.py").write_text("raise SystemExit('torch was imported')\n")
    make_wheel(folder.parent / "wheels", "sympy", "1.0")
    for name in ("filelock", "typing_extensions", "networkx", "jinja2", "fsspec"):
        make_wheel(folder.parent / "wheels", name, "1.0")


@pytest.fixture
def outer(tmp_path: Path) -> dict[str, str]:
    return {"PAPERLAB_TORCH": str(tmp_path / "outer")}


def installed(checkout: Checkout) -> set[str]:
    site = next((checkout.venv / "lib").glob("python3.*/site-packages"))
    return {path.name.split("-")[0] for path in site.glob("*.dist-info")}


def test_existing_torch_is_used_and_a_second_call_is_fast_and_silent(
    new_machine: Checkout, outer: dict[str, str]
) -> None:
    first = new_machine.run("setup", env=outer)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "" and "using torch 2.12.1" in first.stderr
    assert {"pinned", "torch"} <= installed(new_machine) and "tool" not in installed(new_machine)
    assert "-DPAPERLAB_TORCH=" + outer["PAPERLAB_TORCH"] in new_machine.log
    start = time.monotonic()
    second = new_machine.run("setup")  # remembers where torch is
    assert time.monotonic() - start < 3
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_developing_adds_its_pins_once(machine: Checkout, outer: dict[str, str]) -> None:
    assert machine.run("setup", "--develop", env=outer).returncode == 0
    assert {"pinned", "tool"} <= installed(machine)
    assert machine.run("setup").stderr == ""


def test_torch_is_last_on_the_path(machine: Checkout, outer: dict[str, str]) -> None:
    machine.run("setup", env=outer)
    program = "import sys, importlib.util as u; print(u.find_spec('torch').origin, sys.path)"
    found = subprocess.run(
        [machine.venv / "bin/python", "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(outer["PAPERLAB_TORCH"])
    assert found.stdout.rstrip().endswith(f"'{outer['PAPERLAB_TORCH']}']")


def test_torch_of_the_active_python_is_used(machine: Checkout, outer: dict[str, str]) -> None:
    base = os.path.realpath(sys.executable)
    folder = outer["PAPERLAB_TORCH"]
    stub(machine, python3=f'PYTHONPATH="{folder}" exec "{base}" -S "$@"\n')
    run = machine.run("setup")
    assert run.returncode == 0, run.stderr
    assert f"using torch 2.12.1+cu130 of {folder}" in run.stderr


def test_torch_that_is_too_old_or_absent_is_refused(machine: Checkout, tmp_path: Path) -> None:
    make_torch(tmp_path / "old", "2.10.3")
    for folder, message in (("old", "2.11 or newer is required"), ("absent", "holds no torch")):
        run = machine.run("setup", env={"PAPERLAB_TORCH": str(tmp_path / folder)})
        assert run.returncode == 2
        assert one_line(run.stderr) and message in run.stderr


def test_two_calls_at_once_install_once(new_machine: Checkout, outer: dict[str, str]) -> None:
    calls = [
        subprocess.Popen(
            new_machine.command("setup"),
            env=new_machine.env | outer,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    messages = [call.communicate(timeout=180)[1] for call in calls]
    assert [call.returncode for call in calls] == [0, 0], messages
    assert "".join(messages).count("setup: installing the Python packages") == 1
    assert "".join(messages).count("configuring") == 1


def test_an_interrupted_installation_is_taken_up(machine: Checkout, outer: dict[str, str]) -> None:
    machine.run("setup", env=outer)
    site = next((machine.venv / "lib").glob("python3.*/site-packages"))
    (machine.venv / ".paperlab-setup").unlink()
    (machine.venv / ".paperlab-installing").touch()
    (site / "pinned-1.0.dist-info/INSTALLER").unlink()  # pip writes it last
    (site / "pinned.py").unlink()
    assert machine.run("setup", env=outer).returncode == 0
    assert (site / "pinned.py").exists()


def test_pins_that_are_there_are_adopted_without_pip(
    machine: Checkout, outer: dict[str, str]
) -> None:
    machine.run("setup", env=outer)
    (machine.venv / ".paperlab-setup").unlink()
    run = machine.run("setup", env=outer | {"PIP_FIND_LINKS": "/nowhere"})
    assert run.returncode == 0 and "installing" not in run.stderr


def test_a_failing_pip_is_no_finished_set_up(machine: Checkout, outer: dict[str, str]) -> None:
    run = machine.run("setup", env=outer | {"PIP_FIND_LINKS": "/nowhere"})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("paperlab setup: pip could not install")
    assert not (machine.venv / ".paperlab-setup").exists()
    assert machine.run("setup", env=outer).returncode == 0


def test_little_disk_space_is_refused_before_torch_is_fetched(new_machine: Checkout) -> None:
    stub(new_machine, df="[[ $2 != *target ]] || { echo; echo /; exit; }; echo Avail; echo 900M\n")
    run = new_machine.run("setup")
    assert run.returncode == 1
    said, refused = run.stderr.splitlines()[-2:]
    assert "2.5 GB to fetch" in said and "5 GB on disk" in said
    assert refused.startswith("paperlab setup: torch needs ") and "900 MiB free" in refused


def test_missing_packages_without_root_are_one_line(machine: Checkout) -> None:
    stub(machine, **{name.replace("-", "_"): text for name, text in APT.items()})
    stub(machine, sudo="exit 1\n")
    run = machine.run("setup", env={"STUB_ID": "1000", "INSTALLED": "g++ cmake"})
    assert run.returncode == 2
    assert one_line(run.stderr)
    assert "apt-get install -y --no-install-recommends ca-certificates ccache lib" in run.stderr
    assert " g++" not in run.stderr and "libgtest-dev" not in run.stderr
    assert not (machine.root / "stub.log").exists()


@pytest.mark.parametrize("user", ["0", "1000"])
def test_missing_packages_are_installed_by_root_or_sudo(
    machine: Checkout, outer: dict[str, str], user: str
) -> None:
    stub(machine, **{name.replace("-", "_"): text for name, text in APT.items()})
    stub(machine, sudo='[[ $1 != -n ]] || shift; echo sudo >>"$STUB_LOG"; exec "$@"\n')
    run = machine.run("setup", "--develop", env=outer | {"STUB_ID": user, "INSTALLED": "git"})
    assert run.returncode == 0, run.stderr
    calls = [line for line in machine.log.splitlines() if line.startswith("apt-get")]
    assert "update" in calls[0]
    assert "install" in calls[1] and " g++ " in calls[1] and "libgtest-dev" in calls[1]
    assert " git" not in calls[1]
    assert ("sudo" in machine.log) == (user != "0")


def test_other_new_machines_get_one_sentence(new_machine: Checkout) -> None:
    stub(new_machine, uname="[[ $1 == -s ]] && echo Linux || echo aarch64\n")
    run = new_machine.run("setup")
    assert run.returncode == 1
    assert one_line(run.stderr) and "Linux x86-64" in run.stderr and "aarch64" in run.stderr


def test_environment_variable_names_the_environment(
    new_machine: Checkout, outer: dict[str, str], tmp_path: Path
) -> None:
    run = new_machine.run("setup", env=outer | {"PAPERLAB_VENV": "my venv"}, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "my venv/bin/python").exists() and not new_machine.venv.exists()


def test_second_call_of_the_real_checkout_never_imports_torch(checkout: Checkout) -> None:
    # An interpreter that is started at all would leave a mark.
    checkout.run("setup")
    write_script(checkout.venv / "bin/python", f': >"{checkout.root}/started"\n')
    assert checkout.run("setup").returncode == 0
    assert not (checkout.root / "started").exists()

"""What is installed from a wheel: all of the package, which runs away from its repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools.build_meta import build_wheel as build; print(build('.'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, made beside it."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src" / "atoll", copy / "src" / "atoll")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return copy / run.stdout.splitlines()[-1]


def test_a_wheel_has_all_of_the_package_and_nothing_else(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "atoll").rglob("*.*")}
    assert names == {name for name in files if "__pycache__" not in name}


def test_it_runs_away_from_its_repository(wheel, tmp_path):
    """A wheel is an archive that Python can import from."""
    command = "import sys, atoll.cli.main as m; print(m.__file__); sys.argv[0] = 'atoll'; m.main()"
    run = subprocess.run(
        [sys.executable, "-P", "-c", command, "new", "reef", "--model", "tiny"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(wheel)), "another atoll, which is installed here"
    assert "atoll host reef" in run.stdout
    assert (tmp_path / "reef" / "run.toml").is_file()

"""What stands around the code: one list of dependencies, and files that say the same thing."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned() -> dict[str, str]:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()]
    return dict(re.split(r"==", item.partition(";")[0], maxsplit=1) for group in groups for item in group)


def environment() -> list[str]:
    lines = (ROOT / "environment.yml").read_text().splitlines()
    return [line.strip().removeprefix("- ").strip() for line in lines if line.strip().startswith("- ")]


def test_every_direct_dependency_is_pinned_exactly() -> None:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()]
    loose = [
        item for group in groups for item in group if not re.fullmatch(r"[\w\[\].-]+==[\w.]+(; .+)?", item)
    ]
    assert loose == []


def test_what_node_needs_is_pinned_exactly() -> None:
    package = json.loads((ROOT / "notebooks" / "node" / "package.json").read_text())
    assert list(package["dependencies"]) == ["ioredis"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
    assert package["private"] is True and "devDependencies" not in package


def test_the_conda_environment_takes_its_packages_from_pyproject() -> None:
    """Only what is no Python package, and Python itself, is named there."""
    items = environment()
    assert items[-1] == "-e ."
    named = {re.split(r"[ <>=]", item)[0] for item in items}
    assert named == {"conda-forge", "python", "pip", "pip:", "redis-server", "nodejs", "-e"}
    python = next(item for item in items if item.startswith("python "))
    one = re.fullmatch(r"python =(\d+)\.(\d+)", python)  # repo2docker reads no other form, and takes 3.10
    assert one and PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert (3, 11) <= (int(one[1]), int(one[2])) < (3, 14)


def test_repo2docker_builds_from_the_conda_environment() -> None:
    """It looks nowhere else: none of the files and folders that it would prefer is there."""
    preferred = (
        "Dockerfile",
        "binder",
        ".binder",
        "default.nix",
        "Project.toml",
        "apt.txt",
        "postBuild",
        "start",
    )
    assert [name for name in preferred if (ROOT / name).exists()] == []


def test_dependencies_are_listed_nowhere_else() -> None:
    patterns = ("requirements*.txt", "setup.py", "setup.cfg", "Pipfile")
    assert [path for pattern in patterns for path in ROOT.glob(pattern)] == []
    readme = (ROOT / "README.md").read_text()
    assert not [name for name, version in pinned().items() if f"{name}=={version}" in readme]


def test_no_file_names_a_package_registry_or_this_machine() -> None:
    """What git would commit: no lock file, no registry's host, no path of one machine."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    registries = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "anaconda" + ".org"]
    machine = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w")
    for name in listed:
        if not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(errors="replace")
        assert not [host for host in registries if host in text], name
        assert not machine.search(text), name
        assert Path(name).name not in ("uv.lock", "package-lock.json")


def test_the_readme_opens_with_the_two_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("uv run jupyter lab") < readme.index("uv run pytest") < 1200
    assert "uv run pytest" in (ROOT / ".ci" / "run").read_text()
    for other in ("conda env create -f environment.yml", "docker compose up -d"):
        assert other in readme

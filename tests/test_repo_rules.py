"""What holds for the repository as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "sana_train").rglob("*.py"))
TEXT_SUFFIXES = {".py", ".yaml", ".toml", ".md", ".txt", ".cff", ".sbatch", ".ipynb", ".json", ".env", ""}
MAX_LIBRARY_LINES = 600
MAX_FILE_MIB = 16
MAX_SHIPPED_MIB = 40
# Written in pieces, so that this file obeys its own rule.
REGISTRY_HOSTS = re.compile("|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "conda" + r"\.anaconda"]))
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|opt|home/\w+|Users/\w+)/")


def tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in out.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    paths = [path for path in tracked() if path.suffix in TEXT_SUFFIXES]
    return [(str(path.relative_to(ROOT)), path.read_text(errors="replace")) for path in paths]


def test_no_print_in_the_library() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in LIBRARY
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_library_files_are_of_readable_size() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in LIBRARY}
    assert [name for name, size in sizes.items() if size > MAX_LIBRARY_LINES] == []


def test_entry_points_are_thin() -> None:
    entries = sorted(ROOT.glob("*.py"))
    assert entries
    assert [path.name for path in entries if len(path.read_text().splitlines()) > 25] == []


def test_no_registry_host_and_no_path_of_a_machine() -> None:
    found = [
        f"{name}: {match.group()}"
        for name, text in texts()
        for pattern in (REGISTRY_HOSTS, MACHINE_PATHS)
        if (match := pattern.search(text))
    ]
    assert found == []


def test_shipped_files_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size / 2**20 for path in tracked()}
    assert [name for name, mib in sizes.items() if mib > MAX_FILE_MIB] == []
    assert sum(mib for name, mib in sizes.items() if name.startswith("data/tiny/")) <= MAX_SHIPPED_MIB


SCRIPTS = [path for folder in ("experiments", "slurm") for path in sorted((ROOT / folder).rglob("*"))]


@pytest.mark.parametrize(
    "script",
    [".ci/run", *(str(p.relative_to(ROOT)) for p in SCRIPTS if p.suffix in (".sh", ".sbatch", ".env"))],
)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_longest_test_files_are_there() -> None:
    assert [name for name in LONGEST_FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_ignored_payload_does_not_hide_the_data_package() -> None:
    command = ["git", "-C", str(ROOT), "check-ignore", "-q", "sana_train/data/order.py"]
    assert subprocess.run(command, check=False).returncode == 1  # 0: ignored, 128: no repository

"""Fenced blocks of the documents, and the files that some of them ask for."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import sana_train.autoencoders
from sana_train.cli import load as load_module
from sana_train.cli import preflight as preflight_module

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md")),
        *(ROOT / "docs").glob("*.md"),
        *(
            ROOT / name / "README.md"
            for name in ("data", "experiments", "experiments/real_size", "experiments/tiny_parts")
        ),
    ]
)
NEEDS_EXAMPLE = "needs-example"
_FENCE = re.compile(r"^```(\w+)?[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: ``language note`` after its opening fence, and its text."""

    language: str
    note: str
    text: str


@pytest.fixture(scope="session")
def documents() -> dict[str, list[Block]]:
    """Path from the root -> blocks."""
    return {
        str(path.relative_to(ROOT)): [Block(*found) for found in _FENCE.findall(path.read_text())]
        for path in DOCUMENTS
    }


@pytest.fixture
def place(
    documents: dict[str, list[Block]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts the titled files of a document where their titles say, in copies of the folders."""

    def place_files(document: str) -> None:
        conf, package = tmp_path / "conf", tmp_path / "sana_train" / "autoencoders"
        shutil.copytree(load_module.CONF_DIR, conf)
        for block in documents[document]:
            title = block.note.removeprefix("title=")
            if title != block.note:
                (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / title).write_text(block.text)
                monkeypatch.delitem(sys.modules, title.removesuffix(".py").replace("/", "."), raising=False)
        path = [*sana_train.autoencoders.__path__, str(package)]
        monkeypatch.setattr(sana_train.autoencoders, "__path__", path)
        monkeypatch.setattr(load_module, "CONF_DIR", conf)
        monkeypatch.setattr(preflight_module, "CONF_DIR", conf)

    return place_files

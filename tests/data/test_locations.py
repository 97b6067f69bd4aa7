"""One notation for shards: what a path stands for, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_train.data.locations import expand, list_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/s-2.tar", "a/s-0.tar", "a/s-1.tar", "b/s-0.tar", "a/.s-3.77.tar", "a/spec.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "tars"),
    [
        ("a", ["a/s-0.tar", "a/s-1.tar", "a/s-2.tar"]),
        ("a/s-1.tar", ["a/s-1.tar"]),
        ("*/s-0.tar", ["a/s-0.tar", "b/s-0.tar"]),
        ("a/*", ["a/s-0.tar", "a/s-1.tar", "a/s-2.tar", "a/spec.json"]),
        ("a/s-{2..0}.tar", ["a/s-2.tar", "a/s-1.tar", "a/s-0.tar"]),
        ("{b,a}", ["b/s-0.tar", "a/s-0.tar", "a/s-1.tar", "a/s-2.tar"]),
        (["b", "a/s-{0,2}.tar"], ["b/s-0.tar", "a/s-0.tar", "a/s-2.tar"]),
    ],
)
def test_local_shards(folder: Path, path: str | list[str], tars: list[str]) -> None:
    given = [f"{folder}/{each}" for each in path] if isinstance(path, list) else f"{folder}/{path}"
    assert list_shards(given) == [folder / tar for tar in tars]


def test_what_lies_elsewhere_is_expanded_and_not_looked_at(folder: Path) -> None:
    urls = [
        "https://host/s-{00..01}.tar?key=1",
        "pipe:aws s3 cp s3://b/s-{0,1}.tar -",
        "gs://b/s-0.tar",
        f"file://{folder}/b",
    ]
    assert expand(urls) == [
        "https://host/s-00.tar?key=1",
        "https://host/s-01.tar?key=1",
        "pipe:aws s3 cp s3://b/s-0.tar -",
        "pipe:aws s3 cp s3://b/s-1.tar -",
        "gs://b/s-0.tar",
        f"{folder}/b/s-0.tar",
    ]


def test_a_folder_whose_name_has_braces_is_itself(tmp_path: Path) -> None:
    odd = tmp_path / "clips {1,2} [old]"
    odd.mkdir()
    (odd / "a.tar").write_bytes(b"")
    assert list_shards(str(odd)) == [odd / "a.tar"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("c", r"no \*\.tar shards in .*/c, which is not there"),
        ("a/s-{0..3}.tar", r"no \*\.tar shards in .*s-3\.tar, which is not there"),
        ("a/t-*.tar", r"no \*\.tar shards in .*t-\*\.tar"),
        ("a/s-{0..3.tar", "braces that do not match"),
        (["a", "a/s-0.tar"], r"s-0\.tar is named twice"),
        ([], "the list of paths is empty"),
        ("s3://b/s-0.tar", "s3:// is none of pipe, .*pipe:aws s3 cp"),
        ("https://host/s-0.tar", r"does not lie here.*data\.\*\.cache"),
    ],
)
def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, path: object, message: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        list_shards(path)  # type: ignore[arg-type]

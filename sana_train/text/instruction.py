"""The instruction that a language model reads before each caption, from a text file."""

from __future__ import annotations

from pathlib import Path


def read_instruction(path: str | Path) -> str:
    """The text of ``path``, ready for a caption to be appended.

    Lines that begin with ``#`` are the file's own notes. The end is normalised to one space: editors
    add and strip white space there, and a caption's first word is another token without it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing in it but notes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no instruction at {path.absolute()}; give a text file, or instruction=null for captions alone"
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).strip()
    if not text:
        raise ValueError(
            f"{path} holds no instruction; write one, or set instruction=null for captions alone"
        )
    return f"{text} "

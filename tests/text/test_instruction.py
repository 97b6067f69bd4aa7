"""The instruction file: notes left out, the end made what a tokenizer needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_train.text.instruction import read_instruction

SHIPPED = Path(__file__).parents[2] / "data" / "prompts" / "sana_instruction.txt"


@pytest.mark.parametrize("end", ["", "\n", " ", " \n\n"])
def test_notes_are_left_out_and_one_space_ends_it(tmp_path, end):
    path = tmp_path / "instruction.txt"
    path.write_text(f"# where this is from\nDescribe it.\n\n- in full # or not\nPrompt:{end}")
    assert read_instruction(path) == "Describe it.\n\n- in full # or not\nPrompt: "


def test_the_shipped_one_has_sanas_eight_lines():
    lines = read_instruction(SHIPPED).split("\n")
    assert len(lines) == 8
    assert lines[0].startswith('Given a user prompt, generate an "Enhanced prompt"')
    assert [line[:2] for line in lines[1:3] + lines[4:6]] == ["- "] * 4
    assert lines[-1] == "User Prompt: "


def test_it_differs_from_diffusers_default_in_wording_alone():
    """An independent copy of the same text: the lines with no word of images or motion are equal."""
    import inspect

    from diffusers import SanaVideoPipeline

    theirs = inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default
    ours = read_instruction(SHIPPED).split("\n")
    assert len(theirs) == len(ours)
    assert [i for i, pair in enumerate(zip(ours, theirs)) if pair[0] == pair[1]] == [2, 3, 6, 7]


def test_a_missing_or_empty_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no instruction at .*instruction=null"):
        read_instruction(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# only a note\n \n")
    with pytest.raises(ValueError, match="holds no instruction"):
        read_instruction(tmp_path / "empty.txt")

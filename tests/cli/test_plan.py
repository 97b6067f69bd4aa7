"""``cli.plan``: a table before the run, and the row that fits."""

from __future__ import annotations

import pytest

from sana_train.cli import plan


def run(*arguments: str) -> int:
    try:
        plan.main(arguments)
    except SystemExit as ended:
        return ended.code  # type: ignore[return-value]
    return 0


def test_a_configuration_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scale=tiny", "model.depth=1") == 0
    text = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "
    ]
    assert [row[0] for row in rows] == ["recompute", "none", "selective", "full"]
    assert [row[-1] for row in rows] == ["", "this one", "", ""]
    assert " parameters, adamw" in text
    assert "128 x 3 x 4 x 4 latents, 48 tokens" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_row_that_would_fit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    clips = ["training.global_batch=384", "training.micro_batch=384"]
    assert run("scale=tiny", "model.depth=2", *clips, "--micro-batch", "32", "384", "--gib", "1") == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert "does not fit 1 GiB" in said
    assert "trainer.recompute=selective training.micro_batch=384 does" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale=tiny", "trainer.recomput=full"], "trainer.recompute"),
        (["experiment=tiny/ltx2_vae"], "a DiT and its latent space"),
        (["scale=tiny", "--size", "100x128x17"], "100"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    assert message in str(run(*arguments))

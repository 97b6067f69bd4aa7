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


def test_several_gpus_hold_the_gradients_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    def weights_gib(*more: str) -> list[float]:
        # Nearly all of it weights, so that a table's tenths of a GiB show them.
        wide = ["model.depth=1", "model.width=2240", "model.num_heads=20", "model.cross_num_heads=20"]
        run("scale=tiny", *wide, "training.micro_batch=1", "--gib", "78", *more)
        rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [float(row[3]) for row in rows[1:]]

    one, two = weights_gib(), weights_gib("--gpus", "2")
    # weights, gradients, two moments and an average are five; the exchange makes it six
    assert [b / a for a, b in zip(one, two, strict=True)] == pytest.approx([6 / 5] * 3, rel=0.05)


def test_clips_in_buckets_are_counted_by_the_largest(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.train.resolutions=[64x64,32x64,96x64]", "data.train.frames=[9,17]"]
    held = ["data.heldout.frames=9", "data.heldout.height_px=64", "data.heldout.width_px=64"]
    assert run("scale=tiny", "model.depth=1", "data=buckets", *sizes, *held) == 0
    assert "a clip: 128 x 3 x 3 x 2 latents" in capsys.readouterr().out


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

"""Training stage 2 at toy size: it learns, it hears, and what is published refines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.cli.config import RefineConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load_as
from sana_train.cli.preflight import check_overrides
from sana_train.data.world.clips import WorldClips
from sana_train.evaluation.stages.columns import TwoStages
from sana_train.evaluation.two_stage import heldout_means, stage_one_like
from sana_train.flow.time_sampling import Uniform
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.refiners.pairs import StagePairs
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.text.hashed import HashedTextEncoder
from sana_train.training.tasks.refine import RefineTask, bridge
from sana_train.types import Batch, VideoLatents
from sana_train.utils.resizing import resized
from sana_train.utils.rng import SampleRng

TINY: dict[str, Any] = {
    "sigmas": {3: [0.909375, 0.725, 0.421875, 0.0]},
    "latent_channels": 128,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 24,
    "audio_channels": 8,
    "audio_num_heads": 2,
    "audio_head_dim": 8,
    "caption_channels": 32,
    "base_size_px": 64,
    "dtype": "float32",
}


def make_task(**changes: Any) -> RefineTask:
    torch.manual_seed(0)
    config = load_as(check_overrides(["autoencoder=ltx2_tiny"], "refine", RefineConfig), RefineConfig)
    space = instantiate(config.autoencoder)  # the shipped one
    refiner = LTX2Refiner(**{**TINY, **changes})
    torch.manual_seed(1)  # whether the refiner drew its weights or read them
    upsampler = LTX2Upsampler(128, 32, 1, dtype="float32")
    text = HashedTextEncoder(32, 48)
    return RefineTask(refiner, space, upsampler, text, None, Uniform(), 16.0, 0.1, 4, "none")


def clips(num: int, split: Any = "train") -> WorldClips:
    return WorldClips(split, num, frames=9, size_px=64)


def batch_of(indices: Sequence[int], source: WorldClips) -> Batch:
    return source.batch(indices)


def test_both_losses_fall() -> None:
    task, source = make_task(), clips(8)
    optimiser = torch.optim.Adam(task.model.parameters(), 3e-3)
    batch = batch_of(range(8), source)
    first: dict[str, float] = {}
    for step in range(40):
        losses = task.step(batch, SampleRng(0, batch.ordinals + 8 * step))
        assert {name: tuple(value.shape) for name, value in losses.items()} == dict.fromkeys(
            ("loss", "video", "audio"), (8,)
        )
        first = first or {name: float(value.detach().mean()) for name, value in losses.items()}
        optimiser.zero_grad()
        losses["loss"].mean().backward()
        optimiser.step()
    last = {name: float(value.detach().mean()) for name, value in losses.items()}
    assert last["video"] < 0.8 * first["video"]
    assert last["audio"] < 0.8 * first["audio"]


def test_the_way_begins_where_stage_two_does_and_ends_at_the_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, stage_one, noise = torch.randn(3, 4, 8, 3, 2, 2, generator=generator).double()
    t = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    state, velocity = bridge(clean, stage_one, noise, t, 0.9)
    torch.testing.assert_close(state[0], clean[0])
    torch.testing.assert_close(state[2], 0.1 * stage_one[2] + 0.9 * noise[2])
    torch.testing.assert_close(state[3], noise[3])
    ends = state - t.view(-1, 1, 1, 1, 1) * velocity  # one Euler step of any length ends at the clip
    torch.testing.assert_close(ends, clean)
    straight, usual = bridge(clean, clean, noise, t, 0.9)
    torch.testing.assert_close(
        straight, (1 - t).view(-1, 1, 1, 1, 1) * clean + t.view(-1, 1, 1, 1, 1) * noise
    )
    torch.testing.assert_close(usual, noise - clean)


def test_pairs_are_the_clip_and_what_the_upsampler_makes_of_half_of_it() -> None:
    task, video = make_task(), clips(2).batch(range(2)).video
    assert video is not None and isinstance(task.encoder, StagePairs)
    with torch.no_grad():
        clean, stage_one = task.encoder.encode(video).chunk(2, dim=1)
        small = task.autoencoder.encode(resized(video, 32, 32))
        torch.testing.assert_close(clean, task.autoencoder.encode(video))
        torch.testing.assert_close(stage_one, task.encoder.upsampler.network(small))  # type: ignore[union-attr]
    assert task.encoder.fingerprint() != task.autoencoder.fingerprint()


def test_without_an_upsampler_pairs_go_through_pixels_as_an_evaluation_does() -> None:
    task, video = make_task(), clips(2).batch(range(2)).video
    assert video is not None
    space: Any = task.autoencoder
    pairs = StagePairs(space, "pixels")
    stages = TwoStages(
        None, space, None, None, lambda captions: pytest.fail(str(captions)), 16.0, 0, nullcontext,
        torch.device("cpu"),
    )  # fmt: skip
    with torch.no_grad():
        clean, stage_one = pairs.encode(video).chunk(2, dim=1)
        small = space.normalise(space.encode(resized(video, 32, 32)))
        larger = stages._enlarge(VideoLatents(small, space.fingerprint(), True, 16.0))
    torch.testing.assert_close(clean, space.encode(video))
    torch.testing.assert_close(space.normalise(stage_one), larger.values, rtol=1e-4, atol=1e-4)
    prints = {pairs.fingerprint(), StagePairs(space, "repeat").fingerprint(), task.encoder.fingerprint()}
    assert len(prints) == 3


def test_nothing_frozen_trains_and_all_of_the_transformer_does() -> None:
    task = make_task()
    batch = batch_of(range(2), clips(2))
    task.step(batch, SampleRng(0, batch.ordinals))["loss"].mean().backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    assert all(not parameter.requires_grad for module in task.frozen for parameter in module.parameters())


def test_the_step_does_not_depend_on_what_else_is_in_the_batch() -> None:
    task, source = make_task(), clips(4)
    whole, part = batch_of(range(4), source), batch_of([2], source)
    together = task.step(whole, SampleRng(0, whole.ordinals))["loss"]
    alone = task.step(part, SampleRng(0, part.ordinals))["loss"]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def test_clips_without_motions_are_refused() -> None:
    task = make_task()
    batch = batch_of(range(2), clips(2))
    batch.attributes = {}
    with pytest.raises(ValueError, match="do not say how their objects move"):
        task.step(batch, SampleRng(0, batch.ordinals))


def test_what_is_published_refines_as_what_was_judged(tmp_path: Path) -> None:
    task, heldout = make_task(), clips(4, "heldout")
    metrics = task.export(tmp_path / "export", heldout, heldout, {"run_id": "mine"})
    assert {"before/psnr_db", "after/psnr_db", "before/spectrum_gap", "after/spectrum_gap"} <= set(metrics)
    assert json.loads((tmp_path / "export" / "record.json").read_text())["heldout"] == metrics
    again = make_task(weights=str(tmp_path / "export"))
    assert again.judge(heldout) == pytest.approx(metrics, rel=1e-4)


def test_stage_one_like_clips_have_lost_fine_detail() -> None:
    task = make_task()
    video = clips(2).batch(range(2)).video
    assert video is not None
    assert torch.allclose(resized(video, 64, 64), video.clamp(-1, 1), atol=1e-5)
    with torch.no_grad():
        before = stage_one_like(video, task.autoencoder)
    assert before.shape == video.shape
    fine = (video - resized(resized(video, 32, 32), 64, 64)).square().mean()
    left = (before - resized(resized(before, 32, 32), 64, 64)).square().mean()
    assert left < 0.5 * fine


def test_holes_and_what_does_not_apply_count_for_nothing() -> None:
    source = clips(3)

    class WithHole:
        def __len__(self) -> int:
            return 3

        def batch(self, indices: Sequence[int]) -> Batch:
            batch = source.batch(indices)
            batch.weight[1] = 0.0
            return batch

    values = torch.tensor([1.0, 100.0, 3.0])
    some = torch.tensor([5.0, 100.0, torch.nan])
    found = heldout_means(lambda _: {"all": values, "some": some}, WithHole(), 3, torch.device("cpu"))
    assert found == {"all": 2.0, "some": 5.0}

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sana_train.data.world.clips import WorldClips
from sana_train.data.world.scene import SHAPES
from sana_train.evaluation.reader import WorldReader
from sana_train.evaluation.reader_net import (
    DENSE,
    GLOBAL,
    KEYED,
    ReaderNet,
    Sight,
    cell_labels,
    class_labels,
)
from sana_train.protocols import Autoencoder, Task
from sana_train.training.tasks import classify
from sana_train.training.tasks.classify import ClassifyTask
from sana_train.training.tasks.classify_losses import reading_losses
from sana_train.types import Batch, LatentSpec
from sana_train.utils.rng import SampleRng


class Blackout:
    """An autoencoder that gives back black frames, 16 of them, and bright ones for latents of noise."""

    spec = LatentSpec(4, 8, 32, 32, "chunked", skip_frames=1)

    def encode(self, video: Tensor) -> Tensor:
        return video.new_zeros(len(video), 4, 2, 4, 4)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.full((len(latents), 3, 16, 128, 128), -1.0 if latents.std() == 0 else 0.77)

    def normalise(self, latents: Tensor) -> Tensor:
        return latents

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents

    def fingerprint(self) -> str:
        return "blackout"


class Recorder(ReaderNet):
    """Remembers what it was shown."""

    def look(self, video: Tensor) -> Sight:
        self.shown = video.detach()
        return super().look(video)


def _task(net: ReaderNet, autoencoders: list[Autoencoder] | None = None, **changes: float) -> ClassifyTask:
    settings = {
        "reconstructed_share": 0.5,
        "noise_share": 0.25,
        "recoloured_share": 0.0,
        "max_noise_std": 0.0,
        "max_blur": 0.0,
        **changes,
    }
    return ClassifyTask(net, autoencoders, num_heldout_clips=4, compile_mode="none", **settings)  # type: ignore[arg-type]


def _net(kind: type[ReaderNet] = ReaderNet) -> ReaderNet:
    torch.manual_seed(0)
    return kind(width=8, num_blocks=1, hidden=16)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return WorldClips("train", 8, with_cells=True).batch(range(8))


def _step(task: ClassifyTask, batch: Batch) -> dict[str, Tensor]:
    return task.step(batch, SampleRng(0, batch.ordinals))


def _sizes(attributes: dict[str, Tensor], i: int) -> list[int]:
    """Classes of all that is asked about clip i, of cells and of the whole clip; by name of the terms."""
    present = [name for name in ("colour", "texture", "frequency") if (attributes[name][i] >= 0).any()]
    cells = [DENSE["shape"]] * 2 + [DENSE[name] for name in (*present, "background")]
    return cells + [{**KEYED, **GLOBAL}[name] for name in (*present, "background", "motion", "motion")]


def test_losses_are_per_clip_and_those_of_an_even_split_at_zero_heads(batch: Batch) -> None:
    net = _net()
    for head in net.dense.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    task = _task(net)
    assert isinstance(task, Task)
    losses = _step(task, batch)
    assert losses["loss"].shape == losses["error_rate"].shape == (8,)
    # No mask is sure of anything: presence and count are what no shape at all looks like.
    logits = net(torch.zeros(1, 3, 16, 128, 128))
    absent, present = logits["shape"].log_softmax(dim=-1)[0, 0].tolist()
    even = math.log(3)
    noise = [3]  # the ordinals whose lot is in the last quarter
    for i in set(range(8)) - set(noise):
        n = int(batch.attributes["count"][i])
        presence = -(n * present + (len(SHAPES) - n) * absent) / len(SHAPES)
        expected = sum(math.log(size) for size in _sizes(batch.attributes, i)) + presence + even
        assert losses["loss"][i].item() == pytest.approx(expected, rel=1e-3)
    expected = math.log(DENSE["shape"]) + 2 * math.log(DENSE["background"]) - absent
    torch.testing.assert_close(losses["loss"][noise], torch.full((1,), expected), rtol=1e-3, atol=0)
    assert (losses["error_rate"][noise] == 0).all()
    assert (losses["cell_error_rate"][noise] == 0).all()


def test_what_noise_shows_is_nothing_whatever_its_labels(batch: Batch) -> None:
    net = _net()
    frames = 0.3 * torch.randn(2, 3, 16, 128, 128)
    losses = []
    for rows in (slice(0, 2), slice(4, 6)):
        attributes = {name: value[rows] for name, value in batch.attributes.items()}
        assert batch.cells is not None
        of_cells = cell_labels(attributes, batch.cells[rows, 1:])
        is_noise = torch.tensor([True, True])
        out = reading_losses(net, frames, class_labels(attributes), of_cells, is_noise)
        losses.append(out["loss"])
    assert torch.equal(*losses)


def test_every_part_of_the_network_learns(batch: Batch) -> None:
    net = _net()
    for module in net.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)  # past their start at zero
    net.dense["shape"].weight.data *= 20  # sure of some shapes, so that masks are not empty
    _step(_task(net), batch)["loss"].mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def _kinds(shown: Tensor, video: Tensor) -> list[str]:
    """What each clip was shown as: itself, its reconstruction, an autoencoder's noise or noise of pixels."""
    kinds = []
    for frames, clip in zip(shown, video[:, :, 1:], strict=True):
        if torch.allclose(frames, clip, atol=1e-6):
            kinds.append("clip")
        else:
            known = {-1.0: "reconstruction", 0.77: "latent noise"}
            value = round(frames.mean().item(), 2)
            is_flat = bool(frames.max() == frames.min())
            kinds.append(known[value] if is_flat and value in known else "pixel noise")
    return kinds


def test_a_clips_ordinal_says_what_is_shown_of_it_however_batches_are_split(batch: Batch) -> None:
    net = _net(Recorder)
    task = _task(net, [Blackout()], reconstructed_share=0.4, noise_share=0.4)
    assert batch.video is not None
    many = replace(batch, ordinals=torch.arange(40, 48))
    _step(task, many)
    whole = net.shown
    assert whole.shape == (8, 3, 16, 128, 128)
    assert -1 <= whole.min() and whole.max() <= 1
    kinds = _kinds(whole, batch.video)
    assert abs(kinds.count("reconstruction") - 3) <= 1
    assert abs(kinds.count("clip") - 2) <= 1
    assert {"latent noise", "pixel noise"} <= set(kinds)
    for rows in (slice(0, 3), slice(3, 8)):
        part = Batch(
            many.index[rows],
            many.ordinals[rows],
            many.weight[rows],
            many.captions[rows],
            video=batch.video[rows],
            attributes={name: value[rows] for name, value in many.attributes.items()},
            cells=many.cells[rows],  # type: ignore[index]
        )
        _step(task, part)
        torch.testing.assert_close(net.shown, whole[rows])


def test_damage_is_mild_and_counted(batch: Batch) -> None:
    nets = [_net(Recorder), _net(Recorder)]
    for net in nets:
        _step(_task(net, noise_share=0.0, max_noise_std=0.06, max_blur=0.5), batch)
    first, again = (net.shown for net in nets)
    assert torch.equal(first, again)
    gap = (first - batch.video[:, :, 1:]).abs().mean(dim=(1, 2, 3, 4))  # type: ignore[index]
    assert (gap > 1e-4).all()
    assert (gap < 0.1).all()


def test_recoloured_clips_are_not_asked_for_colours(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def losses(net: ReaderNet, frames: Tensor, of_clip: dict, of_cells: dict, is_noise: Tensor) -> dict:
        asked.update(frames=frames, clip=of_clip, cells=of_cells)
        return {}

    monkeypatch.setattr(classify, "reading_losses", losses)
    assert batch.video is not None
    assert batch.cells is not None
    _step(_task(_net(), noise_share=0.0, recoloured_share=0.5), batch)
    video = batch.video[:, :, 1:]
    moved = (asked["frames"] != video).flatten(1).any(dim=1)
    assert 0 < moved.sum() < 8
    torch.testing.assert_close(asked["frames"].sort(dim=1).values, video.sort(dim=1).values)
    assert (asked["clip"]["colour"][moved] == -1).all()
    assert (asked["cells"]["colour"][moved] == -1).all()
    assert torch.equal(asked["clip"]["colour"][~moved], batch.attributes["colour"][~moved])
    assert torch.equal(asked["clip"]["texture"], batch.attributes["texture"])
    assert batch.attributes["colour"].max(dim=1).values.min() >= 0  # the batch keeps its own


def test_training_fits_a_batch(batch: Batch) -> None:
    net = _net()
    task = _task(net, noise_share=0.0)
    optimiser = torch.optim.AdamW(task.parameter_groups()[0]["params"], lr=1e-2)
    few = WorldClips("train", 2, with_cells=True).batch([0, 1])
    losses = []
    for _ in range(14):
        loss = _step(task, few)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]  # cells that show shapes are found; their classes follow later


def test_export_writes_weights_that_a_reader_loads_and_a_record(tmp_path: Path) -> None:
    net = _net()
    metrics = _task(net).export(
        tmp_path / "out", WorldClips("train", 4), WorldClips("heldout", 4), {"seed": 3}
    )
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["seed"] == 3
    assert set(record["heldout"]) == {"rendered", "shuffled", "noise", "chance"} == set(metrics)
    loaded = WorldReader(tmp_path / "out", net=_net())
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), net.parameters(), strict=True))


def test_bad_input_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="together at most 1"):
        _task(_net(), noise_share=0.7)
    without = Batch(batch.index, batch.ordinals, batch.weight, batch.captions, video=batch.video)
    with pytest.raises(ValueError, match="pixels with attributes"):
        _step(_task(_net()), without)
    with pytest.raises(ValueError, match=r"data\.train\.with_cells=true"):
        _step(_task(_net()), replace(batch, cells=None))

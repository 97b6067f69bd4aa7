from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sana_train.data.world.clips import WorldClips
from sana_train.evaluation.reader import WorldReader
from sana_train.evaluation.reader_net import ATTRIBUTES, GLOBAL, KEYED, ReaderNet
from sana_train.protocols import Autoencoder, Task
from sana_train.training.tasks.classify import ClassifyTask
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

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        self.shown = video.detach()
        return super().forward(video)


def _task(net: ReaderNet, autoencoders: list[Autoencoder] | None = None, **changes: float) -> ClassifyTask:
    settings = {
        "reconstructed_share": 0.5,
        "noise_share": 0.25,
        "max_noise_std": 0.0,
        "max_blur": 0.0,
        **changes,
    }
    return ClassifyTask(net, autoencoders, num_heldout_clips=4, compile_mode="none", **settings)  # type: ignore[arg-type]


def _net(kind: type[ReaderNet] = ReaderNet) -> ReaderNet:
    torch.manual_seed(0)
    return kind(width=8, num_blocks=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return WorldClips("train", 8).batch(range(8))


def _step(task: ClassifyTask, batch: Batch) -> dict[str, Tensor]:
    return task.step(batch, SampleRng(0, batch.ordinals))


def test_losses_are_per_clip_and_those_of_an_even_split_at_zero_heads(batch: Batch) -> None:
    net = _net()
    for head in net.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    task = _task(net)
    assert isinstance(task, Task)
    losses = _step(task, batch)
    assert losses["loss"].shape == (8,)
    all_heads = sum(math.log(n) for n in {**KEYED, **GLOBAL}.values())
    torch.testing.assert_close(losses["loss"][6:], torch.full((2,), all_heads))  # taught nothing
    for i in range(6):
        asked = [name for name in ATTRIBUTES if (batch.attributes[name][i] >= 0).any()]
        expected = sum(math.log({**KEYED, **GLOBAL}[name]) for name in asked)
        assert losses["loss"][i].item() == pytest.approx(expected, rel=1e-5)
    assert (losses["error_rate"][6:] == 0).all()


def test_reconstructions_come_first_noise_last_and_clips_between(batch: Batch) -> None:
    net = _net(Recorder)
    _step(_task(net, [Blackout()]), batch)
    shown, video = net.shown, batch.video  # type: ignore[union-attr]
    assert video is not None
    assert shown.shape == (8, 3, 16, 128, 128)
    assert (shown[:4] == -1).all()
    torch.testing.assert_close(shown[4:6], video[4:6, :, 1:])
    assert (shown[6] == 0.77).all()  # an autoencoder's idea of noise
    assert shown[7].std() > 0.01
    assert not torch.allclose(shown[7], video[7, :, 1:])
    assert batch.video is video
    assert -1 <= shown.min() and shown.max() <= 1


def test_damage_is_mild_and_counted(batch: Batch) -> None:
    nets = [_net(Recorder), _net(Recorder)]
    for net in nets:
        _step(_task(net, noise_share=0.0, max_noise_std=0.06, max_blur=0.5), batch)
    first, again = (net.shown for net in nets)
    assert torch.equal(first, again)
    gap = (first - batch.video[:, :, 1:]).abs().mean(dim=(1, 2, 3, 4))  # type: ignore[index]
    assert (gap > 1e-4).all()
    assert (gap < 0.1).all()


def test_training_fits_a_batch(batch: Batch) -> None:
    net = _net()
    task = _task(net, noise_share=0.0)
    optimiser = torch.optim.AdamW(task.parameter_groups()[0]["params"], lr=5e-3)
    few = WorldClips("train", 2).batch([0, 1])
    losses = []
    for _ in range(12):
        loss = _step(task, few)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


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

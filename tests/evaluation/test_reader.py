from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_train.data.world.clips import WorldClips
from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import SHAPES, WorldSpec
from sana_train.evaluation.reader import WorldReader, chance_levels, score
from sana_train.evaluation.reader_net import ATTRIBUTES, GLOBAL, KEYED, ReaderNet, class_labels
from sana_train.evaluation.reader_report import evaluate_reader
from sana_train.protocols import Reader


def _truth(num: int = 64, seed: int = 0) -> dict[str, Tensor]:
    return sample_scenes(WorldSpec(), seed, "heldout", torch.arange(num)).attributes()


class Oracle(nn.Module):
    """Logits that are sure of given labels, or of nothing."""

    def __init__(self, truth: dict[str, Tensor], sureness: float) -> None:
        super().__init__()
        self.labels, self.sureness = class_labels(truth), sureness

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        sizes = {**KEYED, **GLOBAL}
        rows = len(frames)
        return {
            name: self.sureness * nn.functional.one_hot(label[:rows].clamp_min(0), sizes[name]).float()
            for name, label in self.labels.items()
        }


def _oracle(truth: dict[str, Tensor], sureness: float) -> WorldReader:
    return WorldReader(None, net=Oracle(truth, sureness))  # type: ignore[arg-type]


VIDEO = torch.zeros(16, 3, 17, 128, 128)


def test_the_network_answers_for_every_attribute_within_its_budget() -> None:
    net = ReaderNet()
    assert sum(p.numel() for p in net.parameters()) <= 3_000_000
    logits = net(torch.zeros(1, 3, 16, 128, 128))
    assert set(logits) == set(ATTRIBUTES)
    for name, num_classes in KEYED.items():
        assert logits[name].shape == (1, len(SHAPES), num_classes)
    for name, num_classes in GLOBAL.items():
        assert logits[name].shape == (1, num_classes)
    with pytest.raises(ValueError, match="16, 128, 128"):
        net(torch.zeros(1, 3, 17, 64, 64))


def test_a_sure_reader_returns_labels_shaped_like_the_truth() -> None:
    truth = _truth(16)
    reader = _oracle(truth, 50.0)
    assert isinstance(reader, Reader)
    read = reader.read(VIDEO)
    for name in ATTRIBUTES:
        assert read[name].dtype == torch.int64
        applies = truth[name] >= 0
        assert torch.equal(read[name][applies], truth[name][applies])
    assert torch.equal(read["motion"] >= 0, truth["shape"] == 1)
    for values in reader.score(read, truth).values():
        assert values.nanmean() == 1


def test_an_unsure_reader_says_unreadable_and_is_right_nowhere() -> None:
    truth = _truth(16)
    read = _oracle(truth, 0.1).read(VIDEO)
    for name in ATTRIBUTES:
        assert (read[name] == -1).all()
    for values in score(read, truth).values():
        assert values.nansum() == 0


def test_scores_are_shares_of_what_the_truth_has() -> None:
    none = torch.full((2, len(SHAPES)), -1)
    truth = {name: none.clone() for name in KEYED}
    truth |= {
        "count": torch.tensor([2, 1]),
        "relation": torch.tensor([0, -1]),
        "background": torch.tensor([1, 1]),
    }
    truth["shape"] = torch.zeros(2, len(SHAPES), dtype=torch.int64)
    truth["shape"][0, [1, 4]] = 1
    truth["shape"][1, 3] = 1
    truth["colour"][0, [1, 4]] = torch.tensor([5, 6])
    truth["colour"][1, 3] = 2
    read = {name: value.clone() for name, value in truth.items()}
    read["colour"][0, 4] = 0  # one of two
    read["shape"][1, 0] = 1  # one too many
    result = score(read, truth)
    assert result["colour"].tolist() == [0.5, 1.0]
    assert result["shape"].tolist() == [1.0, 0.0]
    assert result["count"].tolist() == [1.0, 1.0]
    assert result["relation"][0] == 1
    assert result["relation"][1].isnan()
    assert result["frequency"].isnan().all()


def test_chance_is_what_other_clips_truth_scores() -> None:
    truth, chance = _truth(512, seed=5), chance_levels(WorldSpec())
    other = {name: value.roll(100, dims=0) for name, value in truth.items()}
    for name, value in score(other, truth).items():
        assert value.nanmean().item() == pytest.approx(chance[name], abs=0.05)
    assert chance["count"] == pytest.approx(0.25**2 + 0.5**2 + 0.25**2, abs=0.03)
    assert chance["background"] == pytest.approx(0.2, abs=0.02)
    assert max(chance[name] for name in KEYED) < 0.1


def test_groups_cover_every_attribute_once() -> None:
    reader = _oracle(_truth(1), 1.0)
    members = [name for group in reader.groups.values() for name in group]
    assert sorted(members) == sorted(ATTRIBUTES)
    assert set(reader.chance) == set(ATTRIBUTES)


def test_the_first_of_17_frames_is_not_looked_at() -> None:
    torch.manual_seed(0)
    reader = WorldReader(None, min_confidence=0.0, net=ReaderNet(width=8, num_blocks=1, hidden=16))
    video = WorldClips("train", 2).batch([0, 1]).video
    assert video is not None
    changed = video.clone()
    changed[:, :, 0] = 1.0
    for other in (changed, video[:, :, 1:]):
        for name, value in reader.read(video).items():
            assert torch.equal(value, reader.read(other)[name])


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ReaderNet(width=8, num_blocks=1, hidden=16)
    save_file({k: v.to(torch.bfloat16) for k, v in net.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = WorldReader(tmp_path, net=ReaderNet(width=8, num_blocks=1, hidden=16))
    for name, value in loaded.net.state_dict().items():
        assert torch.equal(value, net.state_dict()[name].to(torch.bfloat16).float())
    with pytest.raises(FileNotFoundError, match="tiny/reader"):
        WorldReader(tmp_path / "elsewhere")


def test_the_report_has_a_row_per_kind_of_clip() -> None:
    source = WorldClips("heldout", 4)
    truth = source.batch(range(4)).attributes
    report = evaluate_reader(_oracle(truth, 50.0), source, {}, num_clips=4, batch_size=4, device="cpu")
    assert set(report) == {"rendered", "shuffled", "noise", "chance"}
    assert report["rendered"]["colour"] == 1.0
    assert report["shuffled"]["colour"] < 0.5


def test_a_reader_knows_from_its_record_what_it_reads_badly(tmp_path: Path) -> None:
    save_file(dict(ReaderNet().state_dict()), tmp_path / "model.safetensors")
    assert WorldReader(tmp_path).weaknesses == {}
    rendered = {"shape": 0.99, "texture": 0.25}
    (tmp_path / "record.json").write_text(json.dumps({"heldout": {"rendered": rendered}}))
    assert WorldReader(tmp_path).weaknesses == {"texture": 0.25}

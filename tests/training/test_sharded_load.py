"""A sharded model is filled from a file without ever being whole in a rank's memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_processes import exit_codes
from safetensors.torch import save_file

from sana_train.adaptation.latent_swap import LatentSwap
from sana_train.models.checkpoint import build_empty, read_state
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.utils.shards import gathered

MOST = 0.6  # of the full weights, in each of two ranks


def build(depth: int, width: int) -> SanaVideoDiT:
    return SanaVideoDiT(
        latent_channels=8,
        patch_size=[1, 1, 1],
        depth=depth,
        width=width,
        num_heads=width // 32,
        cross_num_heads=width // 32,
        mlp_ratio=3.0,
        caption_dim=64,
        max_tokens=16,
    )


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Peak:
    """The most anonymous memory of this process inside the block, Python and its libraries included."""

    def __enter__(self) -> Peak:
        self.peak, self.is_over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.is_over.is_set():
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()


def load_in_shards(folder: Path, depth: int, width: int) -> None:
    """As a run does, with new layers at both ends; leaves the peak, and checks values where they are few."""
    dist.init_process_group("gloo")
    empty = build_empty(lambda: build(depth, width), "meta")
    adaptation = LatentSwap(["patch_embed.*", "final_layer.linear.*"])
    with Peak() as measured:
        source = read_state(folder / "model.safetensors")
        sharding = Sharding(lambda model: None)
        model = sharded_copy(empty, sharding, torch.device("cpu"), use_bf16=False)
        adaptation.apply(model, source, seed=1)  # type: ignore[arg-type]
    (folder / f"peak_{dist.get_rank()}").write_text(str(measured.peak))
    if depth > 2:
        return
    whole = build(depth, width)
    adaptation.apply(whole, source, seed=1)
    for name, value in model.state_dict().items():
        assert torch.equal(gathered(value), whole.state_dict()[name]), name


def prepared(folder: Path, depth: int, width: int) -> int:
    """A file of weights, and their bytes in float32."""
    model = build_empty(lambda: build(depth, width), "cpu")
    state = {name: value.fill_(0.5) for name, value in model.state_dict().items()}
    if depth <= 2:
        torch.manual_seed(1)
        model.reset_parameters()
    save_file(state, folder / "model.safetensors")
    return sum(value.nbytes for value in state.values())


def test_each_rank_gets_its_part_of_every_weight(tmp_path: Path) -> None:
    prepared(tmp_path, 2, 96)
    assert exit_codes(load_in_shards, tmp_path, 2, 96) == [0, 0]


@pytest.mark.slow
def test_no_rank_holds_more_than_its_share(tmp_path: Path) -> None:
    full = prepared(tmp_path, 56, 1024)  # so large that libraries, some 0.3 GB, leave room below the limit
    assert exit_codes(load_in_shards, tmp_path, 56, 1024, limit_s=200) == [0, 0]
    for rank in (0, 1):
        assert int((tmp_path / f"peak_{rank}").read_text()) <= MOST * full

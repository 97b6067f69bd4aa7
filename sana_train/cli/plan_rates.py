"""How fast steps were where they were measured: what ``cli.plan`` predicts seconds from.

``data/step_rates.json`` is made of records by ``experiments/speed/calibrate.py``; every rate names its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_train.cli.load import CONF_DIR
from sana_train.models.layers.recompute import Recompute

RATES_FILE = CONF_DIR.parent / "data" / "step_rates.json"
# What was timed, by ``covers`` in the file.
_TIMED = {
    "loop": "training loop",
    "benchmark": "steps of a benchmark",
    "pass": "single passes",
}


@dataclass(frozen=True)
class Rate:
    """Of one way to compute.

    Attributes:
        flops_per_s: matrix FLOPs, recomputed ones included, over the time of forward and backward.
        activation_bytes: of a token beyond weights and moments, the most measured, in the network of the
            records; None: not measured.
        source: folders of its records, what was timed, and what was taken from elsewhere for want of one.
        is_of_loop: whether the training loop was timed; it takes longer than what runs alone.
    """

    flops_per_s: float
    activation_bytes: float | None
    source: str
    is_of_loop: bool


@dataclass(frozen=True)
class Rates:
    """All of the file, for one chip.

    Attributes:
        memory_bytes_per_s: what optimisers and averages reach.
        node_bytes_per_s, network_bytes_per_s: of a GPU to others of its node, and of other nodes.
        loop_over_pass: least and most that the training loop took of a single pass's time.
        optimisers_over_adamw: by name, what an optimiser's step alone took of fused AdamW's.
        sharded_over_whole: what a step sharded over one device took of one copy's time.
        depth, width: blocks of the records' network and what they pass on, to which activations are taken to
            be proportional.
    """

    chip: str
    memory_bytes_per_s: float
    node_bytes_per_s: float
    network_bytes_per_s: float
    loop_over_pass: tuple[float, float]
    optimisers_over_adamw: dict[str, float]
    sharded_over_whole: float
    depth: int
    width: int
    rows: tuple[dict[str, Any], ...]

    def of(self, kernels: str, recompute: Recompute) -> Rate:
        """The rate of that way; of the nearest one measured, which ``source`` says, where it was not.

        Another chip's comes before another way's: a way's share of its chip's peak varies more.
        """
        attempts = (
            (self.chip, kernels, recompute, ""),
            (None, kernels, recompute, ""),
            (self.chip, kernels, None, f", {recompute} not measured"),
            (None, kernels, None, f", {recompute} not measured"),
            (None, "reference", recompute, f", {kernels} not measured: that of reference"),
        )
        for chip, way, policy, remark in attempts:
            for row in self.rows:
                fits = row["kernels"] == way and (policy is None or row["recompute"] == policy)
                if fits and (chip is None or row["chip"] == chip):
                    folders = dict.fromkeys(str(Path(record).parent) for record in row["records"])
                    where = ", ".join(folders).replace("/parts", "")
                    source = f"{where} ({row['chip']}, {_TIMED[row['covers']]}{remark})"
                    is_own = (way, row["recompute"]) == (kernels, recompute)
                    measured = row["activation_bytes"] if is_own else None
                    return Rate(row["flops_per_s"], measured, source, row["covers"] == "loop")
        raise ValueError(
            f"{RATES_FILE} has no rate of {kernels} with trainer.recompute={recompute}; make it anew"
        )


def read_rates(chip: str, path: Path = RATES_FILE) -> Rates:
    """Rates of ``chip``, a name of ``PEAK_BF16_FLOPS``.

    Raises:
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"no {path}, which seconds are predicted from; it is part of the repository")
    content = json.loads(path.read_text())
    least, most = content["loop_over_pass"]
    memory = content["memory_bytes_per_s"]
    return Rates(
        chip=chip,
        memory_bytes_per_s=memory.get(chip, memory["H100"])["value"],
        node_bytes_per_s=content["exchange_bytes_per_s"]["node"]["value"],
        network_bytes_per_s=content["exchange_bytes_per_s"]["network"]["value"],
        loop_over_pass=(least, most),
        optimisers_over_adamw={
            name: each["value"] for name, each in content["optimisers_over_adamw"].items()
        },
        sharded_over_whole=content["sharded_over_whole"]["value"],
        **content["measured_at"],
        rows=tuple(content["rates"]),
    )

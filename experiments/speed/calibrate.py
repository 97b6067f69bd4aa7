"""Rates of steps from the records, for ``cli.plan``: writes data/step_rates.json.

    python experiments/speed/calibrate.py

Read are experiments/real_size/results.json (H100: a pass, and the training loop) and, where they are there,
results.json of ``cli.benchmark`` and ``cli.benchmark_peers`` in folders of experiments/speed. A rate is
matrix FLOPs, recomputed ones included, over milliseconds without the optimiser's; of several measurements of
one way it is the geometric mean, and the largest difference of any from it is written beside it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load
from sana_train.cli.plan_rates import RATES_FILE
from sana_train.models.checkpoint import build_empty
from sana_train.models.flops import recomputed_flops, training_flops
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.callbacks.throughput import PEAK_BF16_FLOPS
from sana_train.utils.files import write_json

HERE = Path(__file__).parent
REAL_SIZE = HERE.parent / "real_size" / "results.json"
GRID, NUM_CONTEXT = (11, 22, 40), 300  # of experiments/real_size
ADAMW_BYTES, AVERAGE_BYTES, CLIP_BYTES = 28, 12, 12  # read and written of a parameter in a step
MEMORY = {
    "H200": {"value": 3.4e12, "source": "2.057e9 parameters x 28 bytes in 17 ms of fused AdamW, first probe"},
    "H100": {"value": 2.7e12, "source": "the H200's share of its data sheet's bandwidth; not measured"},
}
EXCHANGE = {
    "node": {"value": 3.6e11, "source": "NVLink's 450 GB/s each way x 0.8; not measured"},
    "network": {"value": 4.0e10, "source": "400 Gbit/s a GPU x 0.8; not measured"},
}
Key = tuple[str, str, Recompute]  # chip, kernels, recompute


def chip_of(device: str) -> str:
    return next(name for name in PEAK_BF16_FLOPS if name in device)


def model_2b() -> SanaVideoDiT:
    node = load(compose_config(["scale=2b"])).model
    assert node is not None
    model = build_empty(lambda: instantiate(node), "meta")
    assert isinstance(model, SanaVideoDiT)
    return model


def step_flops(model: SanaVideoDiT, grid: tuple[int, int, int], num_context: int, policy: Recompute) -> int:
    return training_flops(model, grid, num_context) + recomputed_flops(model, grid, num_context, policy)


def optimiser_ms(model: SanaVideoDiT, chip: str, bytes_per_parameter: int) -> float:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return 1e3 * bytes_per_parameter * num_parameters / MEMORY[chip]["value"]


def of_real_size(model: SanaVideoDiT) -> list[tuple[Key, float, float | None, str]]:
    """(way, FLOP/s, activation bytes a token, record) of each measurement there."""
    content = json.loads(REAL_SIZE.read_text())
    found: list[tuple[Key, float, float | None, str]] = []
    for part in ("step", "step_recompute"):
        chip = chip_of(content[part]["environment"]["device"])
        for row in content[part]["rows"]:
            if row["pass"] == "forward_backward" and row["weights"] == "float32":
                policy: Recompute = row.get("recompute", "none")  # older parts had no other
                flops = step_flops(model, GRID, NUM_CONTEXT, policy)
                way: Key = (chip, "reference", policy)
                found.append((way, flops / row["ms"] * 1e3, None, f"experiments/real_size/parts/{part}.json"))
    part = content["train_step"]
    chip = chip_of(part["environment"]["device"])
    clips = 4  # a step, of micro-batches of one
    kept = optimiser_ms(model, chip, ADAMW_BYTES + AVERAGE_BYTES + CLIP_BYTES) / clips
    for row in part["rows"]:
        flops = step_flops(model, GRID, NUM_CONTEXT, row["recompute"])
        way = (chip, "reference", row["recompute"])
        rate = flops / (row["clip_ms"] - kept) * 1e3
        found.append((way, rate, None, "experiments/real_size/parts/train_step.json"))
    return found


def of_benchmark(file: Path, model: SanaVideoDiT) -> list[tuple[Key, float, float | None, str]]:
    """The same of a ``results.json`` at true size; of other models nothing."""
    content = json.loads(file.read_text())
    facts = content["facts"]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if facts.get("num_parameters") != num_parameters:
        return []
    chip, shape = chip_of(facts["device"]), facts["latent_shape"]
    grid = (shape[1], shape[2], shape[3])
    record = str(file.relative_to(HERE.parents[1]))
    found: list[tuple[Key, float, float | None, str]] = []
    for row in content["rows"]:
        if row["group"] != "train" or row["error"] or row["way"] == "diffusers":
            continue
        flops = row["batch"] * step_flops(model, grid, facts["num_context"], row["recompute"])
        ms = row["ms"] - optimiser_ms(model, chip, ADAMW_BYTES)
        # Weights, gradients and two moments, in float32; averages are not in a benchmark's step.
        activations = row["peak_gib"] * 2**30 - 16 * num_parameters
        per_token = activations / (row["batch"] * facts["num_tokens"])
        found.append(((chip, row["way"], row["recompute"]), flops / ms * 1e3, per_token, record))
    return found


def main() -> None:
    model = model_2b()
    found = of_real_size(model)
    for file in sorted(HERE.glob("*/results.json")):
        if json.loads(file.read_text())["facts"]["what"] in ("ours", "peers"):
            found += of_benchmark(file, model)
    ways: dict[Key, list[tuple[float, float | None, str]]] = defaultdict(list)
    for way, *measured in found:
        ways[way].append((measured[0], measured[1], measured[2]))
    rows: list[dict[str, Any]] = []
    for (chip, kernels, policy), measured in sorted(ways.items()):
        rates = [rate for rate, _, _ in measured]
        mean = math.exp(sum(map(math.log, rates)) / len(rates))
        activations = [value for _, value, _ in measured if value is not None]
        rows.append(
            {
                "chip": chip, "kernels": kernels, "recompute": policy, "flops_per_s": mean,
                "num_measured": len(rates), "largest_difference": max(abs(mean / rate - 1) for rate in rates),
                "activation_bytes": max(activations, default=None),
                "records": sorted({record for _, _, record in measured}),
            }
        )  # fmt: skip
    made_by = "python experiments/speed/calibrate.py"
    write_json(
        RATES_FILE,
        {"made_by": made_by, "memory_bytes_per_s": MEMORY, "exchange_bytes_per_s": EXCHANGE, "rates": rows},
    )


if __name__ == "__main__":
    main()

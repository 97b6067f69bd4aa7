"""Rates of steps from the records, for ``cli.plan``: writes data/step_rates.json.

    python experiments/speed/calibrate.py

Read are experiments/real_size/results.json (the training loop, and single passes) and results.json of
``cli.benchmark`` and ``cli.benchmark_peers`` in folders of experiments/speed. A rate is matrix FLOPs,
recomputed ones included, over milliseconds without the optimiser's. What a chip and way has of the training
loop counts alone, else what a benchmark's steps give, else single passes (``COVERS``); of several
measurements it is the geometric mean, and the largest difference of any from it is written beside it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sana_train.cli.benchmark_parts import PLAIN, SHARDED
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
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12}  # bytes/s by their data sheets
EXCHANGE = {
    "node": {"value": 3.6e11, "source": "NVLink's 450 GB/s each way x 0.8; not measured"},
    "network": {"value": 4.0e10, "source": "400 Gbit/s a GPU x 0.8; not measured"},
}
Key = tuple[str, str, Recompute]  # chip, kernels, recompute
COVERS = ("loop", "benchmark", "pass")  # the better first


class Measured(NamedTuple):
    """One measurement.

    Attributes:
        covers: of ``COVERS``: loop, the training loop; benchmark, a step of ``cli.benchmark``; pass, forward
            and backward alone.
        flops_per_s: of forward and backward.
        activation_bytes: of a token, with gradients, which take the place of activations; None: not told.
        record: its file.
    """

    way: Key
    covers: str
    flops_per_s: float
    activation_bytes: float | None
    record: str


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


def num_parameters_of(model: SanaVideoDiT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def read_benchmarks(model: SanaVideoDiT) -> dict[str, dict[str, Any]]:
    """Record -> content, of both commands at true size."""
    found = {str(file.relative_to(HERE.parents[1])): json.loads(file.read_text())
             for file in sorted(HERE.glob("*/results.json"))}  # fmt: skip
    return {
        record: content
        for record, content in found.items()
        if content["facts"].get("num_parameters") == num_parameters_of(model)
    }


def memory_speed(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Chip -> bytes/s that AdamW alone reached there; on another chip the same share of its data sheet's."""
    for record, content in benchmarks.items():
        for row in content["rows"]:
            if row["group"] == "optimiser" and row["optimiser"] == "adamw" and not row["error"]:
                chip = chip_of(content["facts"]["device"])
                value = ADAMW_BYTES * content["facts"]["num_parameters"] / row["ms"] * 1e3
                measured = {"value": value, "source": f"{record}: fused AdamW's step alone"}
                others = {
                    other: {
                        "value": value / BANDWIDTH[chip] * bandwidth,
                        "source": f"the {chip}'s share of its data sheet's bandwidth; not measured",
                    }
                    for other, bandwidth in BANDWIDTH.items()
                }
                return {**others, chip: measured}
    raise ValueError(f"no results.json in a folder of {HERE} has AdamW's step alone: run cli.benchmark")


def optimisers_over_adamw(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each optimiser's step alone takes of fused AdamW's in the same run."""
    found: dict[str, dict[str, Any]] = {}
    for record, content in benchmarks.items():
        rows = [row for row in content["rows"] if row["group"] == "optimiser" and not row["error"]]
        ms = {row["optimiser"]: row["ms"] for row in rows}
        for name in ms if "adamw" in ms else ():
            found.setdefault(name, {"value": ms[name] / ms["adamw"], "source": record})
    return found


def sharded_over_whole(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a step sharded over one device takes of one copy's time."""
    for record, content in benchmarks.items():
        ms = {row["way"]: row["ms"] for row in content["rows"] if row["group"] == "fsdp2"}
        if SHARDED in ms:
            return {"value": ms[SHARDED] / ms[PLAIN], "source": record}
    raise ValueError(f"no results.json in a folder of {HERE} has rows of fsdp2: run cli.benchmark")


def optimiser_ms(model: SanaVideoDiT, bytes_per_s: float, bytes_per_parameter: int) -> float:
    return 1e3 * bytes_per_parameter * num_parameters_of(model) / bytes_per_s


def of_real_size(model: SanaVideoDiT, memory: Mapping[str, Mapping[str, Any]]) -> list[Measured]:
    """The passes and the loops there."""
    content = json.loads(REAL_SIZE.read_text())
    found = []
    for part in ("step", "step_recompute"):
        chip = chip_of(content[part]["environment"]["device"])
        for row in content[part]["rows"]:
            if row["pass"] == "forward_backward" and row["weights"] == "float32":
                policy: Recompute = row.get("recompute", "none")  # older parts had no other
                rate = step_flops(model, GRID, NUM_CONTEXT, policy) / row["ms"] * 1e3
                way: Key = (chip, "reference", policy)
                found.append(Measured(way, "pass", rate, None, f"experiments/real_size/parts/{part}.json"))
    for part in (name for name in content if name.startswith("train_step")):
        chip = chip_of(content[part]["environment"]["device"])
        # Older parts do not say; they had plain kernels and four clips a step, as micro-batches of one.
        kernels, clips = content[part].get("kernels", "reference"), content[part].get("clips", 4)
        moved = ADAMW_BYTES + AVERAGE_BYTES + CLIP_BYTES
        updating_ms = optimiser_ms(model, memory[chip]["value"], moved) / clips
        for row in content[part]["rows"]:
            flops = step_flops(model, GRID, NUM_CONTEXT, row["recompute"])
            rate = flops / (row["clip_ms"] - updating_ms) * 1e3
            way = (chip, kernels, row["recompute"])
            found.append(Measured(way, "loop", rate, None, f"experiments/real_size/parts/{part}.json"))
    return found


def of_benchmark(
    record: str, content: Mapping[str, Any], model: SanaVideoDiT, memory: Mapping[str, Mapping[str, Any]]
) -> list[Measured]:
    """Steps with AdamW and without averages, of ours."""
    facts = content["facts"]
    chip, shape = chip_of(facts["device"]), facts["latent_shape"]
    grid = (shape[1], shape[2], shape[3])
    updating_ms = optimiser_ms(model, memory[chip]["value"], ADAMW_BYTES)
    found = []
    for row in content["rows"]:
        if row["group"] != "train" or row["error"] or row["way"] == "diffusers":
            continue
        flops = row["batch"] * step_flops(model, grid, facts["num_context"], row["recompute"])
        # Weights and two moments, in float32; averages are not in a benchmark's step, and gradients come as
        # activations go.
        activations = row["peak_gib"] * 2**30 - 12 * num_parameters_of(model)
        per_token = activations / (row["batch"] * facts["num_tokens"])
        way = (chip, row["way"], row["recompute"])
        rate = flops / (row["ms"] - updating_ms) * 1e3
        found.append(Measured(way, "benchmark", rate, per_token, record))
    return found


def best(measured: Sequence[Measured]) -> list[Measured]:
    """Those that cover most of a training step."""
    first = min(COVERS.index(each.covers) for each in measured)
    return [each for each in measured if each.covers == COVERS[first]]


def rate_of(way: Key, measured: Sequence[Measured]) -> dict[str, Any]:
    """A row of the file: the rate of those that cover most, activations of all that tell of them."""
    chip, kernels, policy = way
    rated = best(measured)
    rates = [each.flops_per_s for each in rated]
    mean = math.exp(sum(map(math.log, rates)) / len(rates))
    activations = [each.activation_bytes for each in measured if each.activation_bytes is not None]
    return {
        "chip": chip, "kernels": kernels, "recompute": policy, "flops_per_s": mean,
        "covers": rated[0].covers, "num_measured": len(rates),
        "largest_difference": max(abs(mean / rate - 1) for rate in rates),
        "activation_bytes": max(activations, default=None),
        "records": sorted({each.record for each in rated}),
    }  # fmt: skip


def loop_over_pass(ways: Mapping[Key, Sequence[Measured]]) -> list[float]:
    """Least and most that the loop took of a single pass's time, of the ways that have both."""
    ratios = [
        single.flops_per_s / loop.flops_per_s
        for measured in ways.values()
        for single, loop in product(measured, repeat=2)
        if (single.covers, loop.covers) == ("pass", "loop")
    ]
    return [min(ratios), max(ratios)]


def main() -> None:
    model = model_2b()
    benchmarks = read_benchmarks(model)
    memory = memory_speed(benchmarks)
    found = of_real_size(model, memory)
    for record, content in benchmarks.items():
        found += of_benchmark(record, content, model, memory)
    ways: dict[Key, list[Measured]] = defaultdict(list)
    for each in found:
        ways[each.way].append(each)
    content = {
        "made_by": "python experiments/speed/calibrate.py",
        "memory_bytes_per_s": memory,
        "exchange_bytes_per_s": EXCHANGE,
        "loop_over_pass": loop_over_pass(ways),
        "optimisers_over_adamw": optimisers_over_adamw(benchmarks),
        "sharded_over_whole": sharded_over_whole(benchmarks),
        "measured_at": {"depth": len(model.blocks), "width": model.final_layer.linear.in_features},
        "rates": [rate_of(way, measured) for way, measured in sorted(ways.items())],
    }
    write_json(RATES_FILE, content)


if __name__ == "__main__":
    main()

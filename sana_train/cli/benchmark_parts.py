"""The parts of ``cli.benchmark``: which rows there are, and what a row's contestants do.

A part is a list of cases; the contestants of a case take turns, and its rows are written together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import nn

from sana_train.cli import benchmark_cases as cases
from sana_train.cli.benchmark_run import Subject
from sana_train.cli.instantiate import instantiate
from sana_train.evaluation.speed.figure import SOFTMAX
from sana_train.evaluation.speed.softmax import put_softmax_in_place
from sana_train.evaluation.speed.turns import Contestant
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.optimiser import OptimiserName, build_optimiser
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.utils.shards import write_part

PARTS = ("train", "optimiser", "fsdp2", "breakdown", "denoise", "frames")
POLICIES: tuple[Recompute, ...] = get_args(Recompute)
FRAMES = (17, 49, 81, 161, 241, 321)
PLAIN, SHARDED = "one copy", "fsdp2 of one"


@dataclass(frozen=True)
class Case:
    """Rows that are measured and written together.

    Attributes:
        key: what its rows have in common and other cases do not.
        ways: names of its contestants.
    """

    key: dict[str, Any]
    ways: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.key.values() if value is not None)


def list_cases(
    subject: Subject,
    parts: Sequence[str],
    batches: Sequence[int],
    policies: Sequence[Recompute],
    optimisers: Sequence[OptimiserName],
    frames: Sequence[int],
) -> list[Case]:
    """Every case of the parts asked for, in the order in which they have to run."""
    first = {"batch": batches[0], "recompute": policies[0]}
    per_part = {
        "train": [
            Case({"group": "train", "batch": batch, "recompute": policy}, subject.kernels)
            for batch in batches
            for policy in policies
        ],
        "optimiser": [Case({"group": "optimiser", "optimiser": name}, (name,)) for name in optimisers],
        "fsdp2": [Case({"group": "fsdp2", **first, "kernels": subject.kernels[-1]}, (PLAIN, SHARDED))],
        "breakdown": [Case({"group": "breakdown", **first}, subject.kernels)],
        "denoise": [Case({"group": "denoise", "batch": 2, "recompute": None}, subject.kernels)],
        "frames": [
            Case({"group": "frames", "batch": 1, "recompute": None, "frames": n}, (*subject.kernels, SOFTMAX))
            for n in frames
        ],
    }
    return [case for part in PARTS if part in parts for case in per_part[part]]


class Bench:
    """Builds the contestants of a case, and holds the weights that cases share."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._models: dict[str, SanaVideoDiT] = {}
        self._state_bytes: dict[str, int] = {}
        self._has_group = False

    def close(self) -> None:
        """Leave the process group, if a case needed one."""
        if self._has_group:
            dist.destroy_process_group()

    def contestants(self, case: Case) -> list[Contestant]:
        """Of one case; only one case's may be in use at a time."""
        make: dict[str, Callable[[str, Case], Contestant]] = {
            "train": self._train,
            "optimiser": self._optimiser,
            "fsdp2": self._fsdp2,
            "breakdown": self._train,
            "denoise": self._denoise,
            "frames": self._frames,
        }
        return [make[case.key["group"]](way, case) for way in case.ways]

    def facts(self, way: str, case: Case) -> dict[str, Any]:
        """What a row has beside its key and its timing; to be asked for after the turns."""
        group, subject = case.key["group"], self.subject
        if group == "optimiser":
            return {"way": way, "state_bytes": self._state_bytes.get(way)}
        if group == "frames":
            return {"way": way, "num_tokens": cases.num_tokens(subject.model, self._shape(case))}
        kind = "denoise" if group == "denoise" else "train"
        return {"way": way, "flops": subject.flops(kind, case.key["batch"])}

    def _model(self, kernels: str, dtype: torch.dtype = torch.float32) -> SanaVideoDiT:
        """One set of weights, however many ways to compute with them."""
        if kernels not in self._models:
            node = cases.with_kernels(self.subject.node, kernels)
            first = next(iter(self._models.values()), None)
            is_first = first is None
            made = cases.build_dit(node, self.subject.device) if is_first else cases.same_weights(first, node)
            self._models[kernels] = made
        cases.cast(self._models.values(), dtype, self.subject.device)
        return self._models[kernels]

    def _train(self, way: str, case: Case) -> Contestant:
        model, inputs = self._model(way), self.subject.inputs(case.key["batch"])
        size = cases.resident_bytes(model)
        return cases.our_train_contestant(way, model, inputs, case.key["recompute"], resident=size)

    def _denoise(self, way: str, case: Case) -> Contestant:
        model, batch = self._model(way, torch.bfloat16), case.key["batch"]
        size = cases.resident_bytes(model)
        return cases.our_denoise_contestant(way, model, self.subject.inputs(batch), batch // 2, size)

    def _optimiser(self, way: str, case: Case) -> Contestant:
        """Its step alone: gradients are there, as after a backward pass."""
        model = self._model(self.subject.kernels[0])
        parameters = list(model.parameters())
        updates = build_optimiser(
            [{"params": parameters}], 1e-5, (0.9, 0.95), 0.0, 1e-8, case.key["optimiser"]
        )

        def step() -> None:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.full_like(parameter, 1e-3)
            updates.step()

        def rest() -> None:
            state = [value for of_one in updates.state.values() for value in of_one.values()]
            self._state_bytes[way] = distinct_bytes([value for value in state if torch.is_tensor(value)])
            updates.zero_grad(set_to_none=True)
            updates.state.clear()

        return Contestant(way, step, rest, cases.resident_bytes(model))

    def _fsdp2(self, way: str, case: Case) -> Contestant:
        """The same step on a mesh of one device, where nothing is exchanged: what is left is overhead."""
        model = self._model(case.key["kernels"])
        inputs = self.subject.inputs(case.key["batch"])
        if way == SHARDED:
            self._join_group()
            with torch.device("meta"):
                whole = instantiate(cases.with_kernels(self.subject.node, case.key["kernels"]))
            on_gpu = self.subject.device.type == "cuda"
            whole_state = model.state_dict()

            def fill(shared: nn.Module) -> None:
                for name, value in shared.state_dict().items():
                    write_part(value, whole_state[name])

            model = sharded_copy(whole, Sharding(fill), self.subject.device, use_bf16=on_gpu)
            fill(model)
        size = cases.resident_bytes(model)
        return cases.our_train_contestant(way, model, inputs, case.key["recompute"], resident=size)

    def _join_group(self) -> None:
        """A process group of this process alone."""
        if not self._has_group:
            backend = "nccl" if self.subject.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            self._has_group = True

    def _frames(self, way: str, case: Case) -> Contestant:
        model = self._model(self.subject.kernels[0] if way == SOFTMAX else way, torch.bfloat16)
        if way == SOFTMAX:
            model = cases.same_weights(model, cases.with_kernels(self.subject.node, "reference"))
            put_softmax_in_place(model)
        inputs = self.subject.inputs(1, self._shape(case))
        with torch.no_grad(), cases.autocast(self.subject.device):
            state = model.prepare(inputs.context, inputs.mask)

        def step() -> None:
            with torch.no_grad(), cases.autocast(self.subject.device):
                model(inputs.latents, inputs.t, state)

        return Contestant(way, step, resident=cases.resident_bytes(model))

    def _shape(self, case: Case) -> tuple[int, int, int, int]:
        video = self.subject.video
        return self.subject.spec.latent_shape(replace(video, frames=case.key["frames"]))


def distinct_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Of all storages among them, each once: parameters may share a table."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

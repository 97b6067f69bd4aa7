"""What only a GPU shows: equal randomness, compiled steps, resume of fused optimisers. Skips without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_harness import assert_same_run, final_state, launch, make_clips, make_model, make_task

from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.data.world.sound import sound
from sana_train.evaluation.convergence.heldout import evaluation_mode
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.optimiser import OptimiserName
from sana_train.training.shell import TrainingShell
from sana_train.training.tasks.reconstruction import ReconstructionTask
from sana_train.types import Batch
from sana_train.utils.rng import SampleRng

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = (("default", "adamw"), ("reduce-overhead", "adamw"), ("reduce-overhead", "muon"))


def test_randomness_is_the_same_on_every_device() -> None:
    ordinals = torch.tensor([0, 1, 10**6, 2**40])
    here, there = SampleRng(7, ordinals), SampleRng(7, ordinals.cuda())
    assert torch.equal(here._bits("noise", 1000), there._bits("noise", 1000).cpu())
    assert torch.equal(here.uniform("t", (1000,)), there.uniform("t", (1000,)).cpu())
    torch.testing.assert_close(
        here.normal("noise", (1000,)), there.normal("noise", (1000,)).cpu(), rtol=0, atol=2e-6
    )


class NoWaiting(StepCallback):
    """Between steps 3 and 5 whatever makes the host wait for the GPU is an error."""

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 3 <= step < 5 else "default")


@pytest.mark.parametrize(("mode", "optimiser"), KINDS)
def test_between_two_logs_nothing_waits_for_the_gpu(
    tmp_path: Path, mode: str, optimiser: OptimiserName
) -> None:
    launch(
        tmp_path / "run",
        max_steps=5,
        log_every=50,
        checkpoint_every=50,
        task=make_task(compile_mode=mode),
        callbacks=[NoWaiting()],
        accelerator="gpu",
        precision="bf16-mixed",
        optimiser=optimiser,
    )
    motion = torch.tensor([[0, 1], [2, -1]], device="cuda")
    sound(motion, 17, 16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sound(motion, 17, 16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_dit_computes_the_same_there() -> None:
    model = make_model()
    model.load_state_dict(model.fresh_state(model.state_dict(), seed=0))
    clips = make_clips().batch(range(6))
    t = torch.linspace(0.1, 0.9, 6)
    outputs = []
    for device in ("cpu", "cuda"):
        model.to(device)
        batch = clips.to(device)
        with evaluation_mode(model):
            state = model.prepare(batch.context, batch.context_mask)
            outputs.append(model(batch.latents, t.to(device), state).cpu())
    assert (outputs[0] - outputs[1]).abs().max() <= 2e-3 * outputs[0].abs().max()  # TF32 may be on


class Looks(StepCallback):
    """Evaluates in between, as convergence does, and counts what was compiled so far."""

    def __init__(self) -> None:
        self.compiled: list[int] = []

    def on_step_end(self, shell: TrainingShell, step: int) -> None:
        model, batch = shell.model, make_clips(device="cuda").batch(range(5))
        with shell.paused(), evaluation_mode(model):
            state = model.prepare(batch.context, batch.context_mask)
            model(batch.latents, torch.full((5,), 0.5, device="cuda"), state)
        self.compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(("mode", "optimiser"), KINDS)
def test_a_compiled_run_learns_resumes_and_is_not_compiled_again(
    tmp_path: Path, mode: str, optimiser: OptimiserName
) -> None:
    def run(name: str, max_steps: int, looks: Looks) -> TrainingShell:
        torch.compiler.reset()
        return launch(
            tmp_path / name,
            max_steps=max_steps,
            task=make_task(compile_mode=mode),
            callbacks=[looks],
            accelerator="gpu",
            precision="bf16-mixed",
            optimiser=optimiser,
        )

    torch._dynamo.utils.counters.clear()
    looks = Looks()
    straight = run("straight", 6, looks)
    assert len(set(looks.compiled)) == 1  # evaluations in between compile nothing and undo nothing
    run("parts", 3, Looks())
    resumed = run("parts", 6, Looks())
    assert_same_run(straight, resumed)
    assert not [name for name in final_state(straight) if "_orig_mod" in name]


@pytest.mark.parametrize("mode", ["none", "default"])
def test_autoencoders_train_there_in_bf16(mode: str) -> None:
    torch.manual_seed(0)
    model = DCAEV(8, [16, 16, 16, 16], [1, 0, 0, 0], [1, 0, 0, 0], chunk_frames=8).cuda()
    task = ReconstructionTask(model, 1.0, 0.1, 2, 0.1, 16, 1e-4, 0.05, 4, 4, mode)  # type: ignore[arg-type]
    index = torch.arange(2, device="cuda")
    video = torch.rand(2, 3, 17, 64, 64, device="cuda") * 2 - 1
    batch = Batch(index, index, torch.ones(2, device="cuda"), ("", ""), video=video)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            loss = task.step(batch, SampleRng(0, index))["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


_IN_PIECES = """
import sys
from pathlib import Path
from sana_train.training.determinism import set_determinism
from training_harness import assert_same_run, launch, make_task

set_determinism(True)  # before CUDA is used, as train.py does


def run(name, max_steps):
    task = make_task(compile_mode=sys.argv[2])
    how = {"accelerator": "gpu", "precision": "bf16-mixed", "deterministic": True}
    return launch(Path(sys.argv[1]) / name, max_steps=max_steps, micro_batch=4, task=task, **how)


straight = run("straight", 6)
run("parts", 2)
run("parts", 4)
assert_same_run(straight, run("parts", 6))
assert_same_run(straight, run("again", 6))
"""


@pytest.mark.parametrize("mode", ["none", "default"])
def test_a_deterministic_run_in_pieces_is_the_run_in_one_piece(tmp_path: Path, mode: str) -> None:
    """In a process of its own: cuBLAS reads how it shall work when it is first used."""
    path = os.pathsep.join(sys.path)
    child = subprocess.run(
        [sys.executable, "-c", _IN_PIECES, str(tmp_path), mode],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr

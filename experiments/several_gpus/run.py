"""SANA-Video 2B on several GPUs of one host: speed by trainer, and a killed run resumed on another number.

    python experiments/several_gpus/run.py OUT WORK --gpus 2 [--size tiny] PART...

Parts, all of them and in this order if none is named: ``inputs`` writes a source DiT and latent shards of
random numbers into WORK; ``one`` trains so many steps on one GPU, the figure that others are held against;
``fsdp2`` and ``ddp`` do so on all GPUs, and ``fsdp2`` saves once in the background, just after the half;
``resume`` takes what ``fsdp2`` left, which was killed, as many steps on, on one GPU: its next losses beside
those of the run that was not interrupted there; ``evaluation`` judges a tiny DiT through both stages, on one
GPU and on all. Each leaves OUT/<part>.json and its OUT/logs/<part>.*, so the same call does what is missing,
and every call writes OUT/table.md of what is there. Runs are ended by SIGKILL as soon as they have logged
their last step: nothing of theirs is evaluated or exported. ``--size tiny`` runs the same code on CPUs too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sana_train.autoencoders.stored import StoredSpace
from sana_train.cli import benchmark_loader
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.parts import Parts
from sana_train.data.latents import SPEC_NAME, clip_fields, space_fields, text_fields
from sana_train.evaluation.record_tables import markdown_table
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl
from sana_train.types import SPACE_NAME, LatentSpec
from sana_train.utils.environment import environment
from sana_train.utils.files import publish_file, write_json

GRIDS = {"2b": (11, 22, 40), "tiny": (3, 4, 4)}  # latents of 81 x 704 x 1280, and of 17 x 128 x 128
CHANNELS, CONTEXT_DIM, MAX_TOKENS = 128, 2304, 300
NUM_CLIPS = {"train": 768, "heldout": 8}  # more than is kept in memory: read as training goes
GLOBAL_BATCH = 4
PARTS = ("inputs", "one", "fsdp2", "ddp", "resume", "evaluation")
NUM_JUDGED = {"2b": 512, "tiny": 4}
SPEEDS = ("samples_per_s", "tokens_per_s", "mfu", "data_wait_share", "peak_memory_gib", "save_stall_s")


class Study:
    """One size of model, in one work folder."""

    def __init__(
        self, size: str, out: Path, work: Path, num_gpus: int, num_steps: int, more: list[str], limit_s: float
    ) -> None:
        self.size, self.out, self.work, self.more = size, out, work, more
        self.num_gpus, self.num_steps, self.saved_at = num_gpus, num_steps, num_steps // 2 + 1
        self.checkpoint, self.limit_s = work / "sana_video_480p.pth", limit_s

    def overrides(self) -> list[str]:
        """Of every run: cached latents and captions, no evaluation."""
        # The tiny source reads narrower captions than the shards have.
        wide = [f"model.caption_dim={CONTEXT_DIM}", f"model.max_tokens={MAX_TOKENS}"]
        size = ["scale=2b"] if self.size == "2b" else ["scale=tiny", "adaptation=scratch", *wide]
        clips = [f"data.{split}.num_clips={count}" for split, count in NUM_CLIPS.items()]
        latents = [f"latents.{split}={self.work / 'latents' / split}" for split in NUM_CLIPS]
        return [
            "experiment=ltx_adapt", *size, "data=world_live", *clips, *latents, "latents.mode=precomputed",
            "latents.dtype=bfloat16", "autoencoder=stored",
            f"autoencoder.path={self.work / 'latents' / 'train'}", "text=hashed", f"text.dim={CONTEXT_DIM}",
            f"text.max_tokens={MAX_TOKENS}", f"source.checkpoint={self.checkpoint}",
            "source.autoencoder.weights=null", "~convergence", "~reader",
            f"training.global_batch={GLOBAL_BATCH}", "training.micro_batch=1", "training.max_steps=100000",
            "training.milestones=[]", "trainer.log_every=1", "trainer.num_workers=4", "logger=csv",
            f"paths.runs={self.work / 'runs'}", f"paths.data={self.work / 'data'}", *self.more,
        ]  # fmt: skip

    def inputs(self) -> dict[str, Any]:
        """The source DiT by experiments/real_size, and shards that name what made them as precompute does."""
        dit = [sys.executable, "experiments/real_size/dit.py", "write", str(self.work), "--size", self.size]
        subprocess.run([*dit, "--checkpoint", str(self.checkpoint)], cwd=REPOSITORY, check=True)
        space = {
            "autoencoder": "random numbers",
            "fingerprint": "random numbers",
            "latent_spec": LatentSpec(CHANNELS, 8, 32, 32).to_dict(),
            "mean": [0.0] * CHANNELS,
            "std": [1.0] * CHANNELS,
        }
        for split, count in NUM_CLIPS.items():
            folder = self.work / "latents" / split
            benchmark_loader.random_latents(folder, count, (CHANNELS, *GRIDS[self.size]))
            write_json(folder / SPACE_NAME, space)
        for split in NUM_CLIPS:
            folder = self.work / "latents" / split
            parts = Parts(load(compose_config(self.overrides())), torch.device("cpu"))
            record = json.loads((folder / SPEC_NAME).read_text())
            record |= space_fields(StoredSpace(str(folder)), "bfloat16") | text_fields(parts.text_encoder)
            write_json(folder / SPEC_NAME, record | clip_fields(parts.clips(split)))  # type: ignore[arg-type]
        return {"clips": NUM_CLIPS, "source_gib": self.checkpoint.stat().st_size / 2**30}

    def one(self) -> dict[str, Any]:
        shutil.rmtree(self.work / "runs" / "alone", ignore_errors=True)
        return self.train("auto", "alone", 1, self.num_steps, name="one", is_saved=False)

    def fsdp2(self) -> dict[str, Any]:
        shutil.rmtree(self.work / "runs" / "sharded", ignore_errors=True)
        return self.train("fsdp2", "sharded", self.num_gpus, self.num_steps)

    def ddp(self) -> dict[str, Any]:
        shutil.rmtree(self.work / "runs" / "copies", ignore_errors=True)
        return self.train("ddp", "copies", self.num_gpus, self.num_steps, is_saved=False)

    def resume(self) -> dict[str, Any]:
        """From the checkpoint half-way, on one GPU."""
        began = self.saved_at
        if not (self.out / "fsdp2.json").is_file():
            raise RuntimeError("it takes up what fsdp2 left, which is not done; name fsdp2, too")
        for later in ckpt.list_checkpoints(self.work / "runs" / "sharded"):
            if ckpt.step_of(later) > began:
                shutil.rmtree(later)
        record = self.train("auto", "sharded", 1, began + self.num_steps, name="resume", began=began)
        mine, theirs = (
            {line["step"]: line["train/loss"] for line in read_jsonl(self.out / "logs" / f"{name}.jsonl")
             if "train/loss" in line}
            for name in ("resume", "fsdp2")
        )  # fmt: skip
        both = sorted(step for step in mine.keys() & theirs.keys() if step > began)
        record["losses"] = {step: [mine[step], theirs[step]] for step in both}
        if not both:
            raise RuntimeError(
                f"no step after {began} is in both runs; take more --steps than {self.num_steps}"
            )
        record["largest_relative_difference"] = max(
            abs(mine[step] - theirs[step]) / abs(theirs[step]) for step in both
        )
        return record

    def evaluation(self) -> dict[str, Any]:
        """Seconds of evaluate.py by one process and by one a GPU, start-up included, and their means."""
        run, num_clips = self.work / "runs" / "moved", NUM_JUDGED[self.size]
        device = [] if torch.cuda.is_available() else ["trainer.accelerator=cpu"]
        if not (run / "export" / "record.json").is_file():
            words = [
                "experiment=record/adapt", "run_id=moved", "training.max_steps=1", "convergence.steps=[0]",
                "convergence.num_samples=0", "convergence.num_loss_clips=8", "convergence.batch_size=8",
                "training.global_batch=8", "training.micro_batch=8", "data.train.num_clips=16",
                "latents.batch_size=8", "task.compile_mode=none", "logger=csv", *device,
                f"paths.runs={self.work / 'runs'}", f"paths.data={self.work / 'data'}",
            ]  # fmt: skip
            shutil.rmtree(run, ignore_errors=True)
            self.call("moved", [sys.executable, "train.py", *words])
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.num_gpus)]
        seconds, means = {}, {}
        for ranks, launcher in ((1, []), (self.num_gpus, torchrun)):
            out = self.work / f"evaluation_{ranks}"
            shutil.rmtree(out, ignore_errors=True)
            words = [f"checkpoint={run / 'export'}", f"out={out}", f"two_stage.num_clips={num_clips}"]
            shown = ["two_stage.num_shown=0", "two_stage.batch_size=8", *device]
            command = [sys.executable, *launcher, "evaluate.py", "experiment=two_stage", *words, *shown]
            seconds[ranks] = self.call(f"evaluation_{ranks}", command)
            columns = json.loads((out / "metrics.json").read_text())["columns"]
            means[ranks] = {
                f"{column}/{name}": mean["mean"]
                for column, of in columns.items()
                for name, mean in of.items()
            }
        first, last = means[1], means[self.num_gpus]
        assert first.keys() == last.keys()
        return {
            "ranks": self.num_gpus,
            "clips": num_clips,
            "seconds": seconds,
            "largest_difference": max(abs(first[name] - last[name]) for name in first),
        }

    def call(self, name: str, command: list[str]) -> float:
        """Seconds of a process that ends by itself; what it said is in OUT/logs."""
        log, started = self.out / "logs" / f"{name}.log", time.monotonic()
        with log.open("w") as text:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, stdout=text, stderr=text, start_new_session=True
            )
            try:
                code = process.wait()
            finally:  # torchrun's workers would outlive it
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if code != 0:
            raise RuntimeError(f"{name} ended with {code}; see {log}")
        return time.monotonic() - started

    def train(
        self,
        trainer: str,
        run_id: str,
        ranks: int,
        last: int,
        *,
        name: str | None = None,
        began: int = 0,
        is_saved: bool = True,
    ) -> dict[str, Any]:
        """Run until step ``last`` is logged, then SIGKILL every process of it."""
        name = name or trainer
        run_dir, log = self.work / "runs" / run_id, self.out / "logs" / f"{name}.log"
        every = self.saved_at if is_saved and not began else 100000
        device = [] if torch.cuda.is_available() else ["trainer.accelerator=cpu"]
        given = [f"trainer={trainer}", f"trainer.devices={ranks}", f"run_id={run_id}"]
        command = [sys.executable, "train.py", *self.overrides(), *given, *device]
        metrics = run_dir / "metrics.jsonl"
        if began:  # as a resumed run does itself, but before it is looked at
            kept = [
                line
                for line in metrics.read_text().splitlines(keepends=True)
                if json.loads(line)["step"] <= began
            ]
            metrics.write_text("".join(kept))
        started = time.monotonic()
        with log.open("w") as text:
            text.write(" ".join(command) + "\n")
            text.flush()
            process = subprocess.Popen(
                [*command, f"training.checkpoint_every={every}"], cwd=REPOSITORY, stdout=text, stderr=text,
                start_new_session=True,
            )  # fmt: skip
            try:
                published = ckpt.checkpoint_path(run_dir, every)
                while last_step(metrics) < last or (is_saved and not began and not published.exists()):
                    if process.poll() is not None or time.monotonic() - started > self.limit_s:
                        raise RuntimeError(f"{name} ended at step {last_step(metrics)}; see {log}")
                    time.sleep(0.2)
            finally:
                killed_s = time.monotonic() - started
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if metrics.is_file():
                    shutil.copy(metrics, self.out / "logs" / f"{name}.jsonl")
        lines = [line for line in read_jsonl(metrics) if began < line["step"] <= last]
        return {
            "trainer": trainer,
            "ranks": ranks,
            "steps": last - began,
            "seconds": killed_s,
            "global_batch": GLOBAL_BATCH,
            "overrides": self.more,
            "grid": GRIDS[self.size],
            **speeds(lines, ranks),
        }


def last_step(metrics: Path) -> int:
    lines = read_jsonl(metrics) if metrics.is_file() else []
    return max((line["step"] for line in lines if "speed/samples_per_s" in line), default=0)


def speeds(lines: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """Medians over the steps, and every stall of a save."""
    found: dict[str, Any] = {}
    for name in SPEEDS:
        values = [line[f"speed/{name}"] for line in lines if f"speed/{name}" in line]
        if values and name == "save_stall_s":
            found["save_stalls_s"] = values
        elif values:
            found[name] = {
                "median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values),
            }  # fmt: skip
    found["step_s"] = GLOBAL_BATCH / found["samples_per_s"]["median"]
    found["tokens_per_s_per_rank"] = found["tokens_per_s"]["median"] / ranks
    return found


def table(out: Path) -> str:
    """What is there: speed by trainer, scaling over one GPU, the save, the resumed losses, the evaluation."""
    found = {part: json.loads((out / f"{part}.json").read_text())
             for part in PARTS if (out / f"{part}.json").is_file()}  # fmt: skip
    rows = [
        ["run", "GPUs", "s a step", "tokens/s/GPU", "of one GPU", "MFU", "peak GiB", "waiting", "stall s"]
    ]
    for part in ("one", "fsdp2", "ddp", "resume"):
        if part not in found:
            continue
        run = found[part]
        alone = found.get("one", {}).get("tokens_per_s_per_rank")
        median = {name: run[name]["median"] if name in run else None for name in SPEEDS}
        rows.append([
            part, str(run["ranks"]), f"{run['step_s']:.3f}", f"{run['tokens_per_s_per_rank']:,.0f}",
            "-" if alone is None else f"{run['tokens_per_s_per_rank'] / alone:.1%}",
            "-" if median["mfu"] is None else f"{median['mfu']:.1%}",
            "-" if median["peak_memory_gib"] is None else f"{median['peak_memory_gib']:.1f}",
            f"{median['data_wait_share']:.2%}",
            ", ".join(f"{stall:.2f}" for stall in run.get("save_stalls_s", [])) or "-",
        ])  # fmt: skip
    parts = ["# Several GPUs of one host", markdown_table(rows)] if len(rows) > 1 else []
    if "resume" in found:
        run = found["resume"]
        parts.append(
            f"Losses of {len(run['losses'])} steps after the kill, on one GPU, are within "
            f"{run['largest_relative_difference']:.1e} of those of the run that went on."
        )
    if "evaluation" in found:
        run = found["evaluation"]
        seconds = ", ".join(f"{value:.0f} s on {ranks}" for ranks, value in run["seconds"].items())
        parts.append(
            f"Both stages on {run['clips']} clips: {seconds}, start-up included; means differ by at most "
            f"{run['largest_difference']:.1e}."
        )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="of one run (600)")
    parser.add_argument("--size", choices=tuple(GRIDS), default="2b")
    parser.add_argument("--overrides", nargs="*", default=[], help="of every run, e.g. model.kernels=fused")
    given = parser.parse_intermixed_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    # Whoever ends this process ends its runs: in sessions of their own, they would go on beside the next.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out, work = given.out.resolve(), given.work.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    study = Study(given.size, out, work, given.gpus, given.steps, given.overrides, given.limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failed = []
    for part in given.parts or PARTS:
        if not (out / f"{part}.json").exists():
            try:
                record = getattr(study, part)()
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failed.append(f"{part}: {error}")
                continue
            write_json(
                out / f"{part}.json", {**record, "size": given.size, "environment": environment(device)}
            )
            with publish_file(out / "table.md") as scratch:
                scratch.write_text(table(out))
    if failed:
        sys.exit("\n".join([*failed, "what is done is kept, and not done again"]))


if __name__ == "__main__":
    main()

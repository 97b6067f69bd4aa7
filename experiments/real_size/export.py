"""What a user's commands on finished weights cost on a CPU: ``cli.convert`` both ways, ``cli.verify``'s DiT.

    python experiments/real_size/export.py OUT SCRATCH --checkpoint FILE [--size tiny]

FILE is what ``dit.py write`` makes. It is loaded and adapted to 128 channels on the CPU, as training does,
and published as a run's export is (bf16; mean and std of the latents are stand-ins). Then each command runs
in a process of its own, whose memory is sampled from beside. Writes OUT/export.json, row by row.
``--size tiny`` runs the same code in half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.config import RunConfig
from sana_train.cli.load import compose_config, load
from sana_train.cli.parts import Parts
from sana_train.cli.vae_choice import skeleton
from sana_train.flow.time_sampling import LogitNormal
from sana_train.training.tasks.flow import FlowTask
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

GIB = 2**30
SAMPLE_S = 0.005
CPU = torch.device("cpu")
CHOSEN = {
    "2b": ["scale=2b"],
    "tiny": ["scale=tiny", "source.model.latent_channels=16", "+source.model.patch_size=[1,2,2]"],
}
# The rows of autoencoders and text encoder need weights that are not here: without any they are skipped.
DIT_ALONE = ["autoencoder.weights=null", "source.autoencoder.weights=null", "text=hashed"]
AS_GEMMA = {"2b": ["text.dim=2304", "text.max_tokens=300"], "tiny": []}


class HostMemory:
    """The peak of a process's memory on the host while the block runs, sampled beside it.

    Attributes:
        peak: ``anonymous`` is its own, ``file`` the pages of mapped files that happen to be in memory and can
            be dropped at any time, ``both`` the most of them together; GiB.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.peak = {"anonymous": 0.0, "file": 0.0, "both": 0.0}

    def __enter__(self) -> HostMemory:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            found = dict(re.findall(r"^Rss(Anon|File):\s+(\d+) kB", self._read(), re.MULTILINE))
            if found:  # a process that has ended has no memory
                anonymous, file = (int(found[kind]) / 2**20 for kind in ("Anon", "File"))
                now = {"anonymous": anonymous, "file": file, "both": anonymous + file}
                self.peak = {kind: max(value, self.peak[kind]) for kind, value in now.items()}

    def _read(self) -> str:
        try:
            return self._status.read_text()
        except OSError:
            return ""


def make_export(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Load and adapt, and publish the network in bf16 as a run does at its end; what loading took."""
    load_average = os.getloadavg()[0]
    parts = Parts(config, CPU)
    with HostMemory(os.getpid()) as host:
        start = time.perf_counter()
        model: Any = parts.model
        seconds = time.perf_counter() - start
    network = sum(value.nbytes for value in model.state_dict().values()) / GIB
    for parameter in model.parameters():  # one at a time, so that there is never a second network
        parameter.data = parameter.data.to(torch.bfloat16)
    nothing: Any = None
    assert config.model is not None and config.autoencoder is not None
    spec = skeleton(config.autoencoder).spec
    record = {
        "run_id": "real_size",
        "steps": 0,
        "config": {f"model.{key}": value for key, value in config.model.items()},
        "latent_space": {"autoencoder": config.autoencoder["_target_"], "fingerprint": "0" * 16,
                         "latent_spec": spec.to_dict(), "mean": [0.0] * spec.channels,
                         "std": [1.0] * spec.channels},
    }  # fmt: skip
    task = FlowTask(model, [], nothing, nothing, LogitNormal(shift=3.0), 0.1, "none")
    task.export(folder, nothing, nothing, record)
    return {
        "command": "load and adapt",
        "seconds": seconds,
        "host_peak_gib": host.peak,
        "network_gib": network,
        "disk_gib": size_gib(folder),
        "load_average": load_average,
    }


def size_gib(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / GIB


def run(name: str, module: str, arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """The command in a process of its own: seconds with Python's start, and peak memory.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    load_average = os.getloadavg()[0]
    start = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=said, stderr=said)
        with HostMemory(process.pid) as host:
            status = process.wait()
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{name} ended with {status}: {log.read_text()[-2000:]}")
    return {"command": name, "seconds": seconds, "host_peak_gib": host.peak, "load_average": load_average}


def convert(to: str, export: Path, out: Path, log: Path) -> dict[str, Any]:
    """Difference as it is printed, size of what was written; that is removed."""
    module = "sana_train.cli.convert"
    row = run(f"convert --to {to}", module, [str(export), str(out), "--to", to], log)
    printed = re.search(r"differs by (\S+) ", log.read_text())
    assert printed is not None
    row |= {"difference": float(printed[1]), "disk_gib": size_gib(out)}
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return row


def verify(size: str, checkpoint: Path, table: Path, log: Path) -> dict[str, Any]:
    """The row of the DiT, the only one that is not skipped."""
    given = [*CHOSEN[size], f"source.checkpoint={checkpoint}", *DIT_ALONE, *AS_GEMMA[size]]
    row = run("verify, the DiT's row", "sana_train.cli.verify", [*given, "--json", str(table)], log)
    (looked_at,) = [each for each in json.loads(table.read_text())["rows"] if each["state"] != "skipped"]
    return row | {"difference": looked_at["number"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("scratch", type=Path, help="for the export and what is made of it, both removed")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what `dit.py write` made")
    parser.add_argument("--size", choices=tuple(CHOSEN), default="2b")
    given = parser.parse_args(arguments)
    checkpoint = given.checkpoint.absolute()
    config = load(compose_config([*CHOSEN[given.size], f"source.checkpoint={checkpoint}"]))
    folder = given.scratch / "convert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    export, log = folder / "export", folder / "log.txt"
    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: make_export(config, export),
        lambda: convert("diffusers", export, folder / "dit", log),
        lambda: convert("nvlabs", export, folder / "dit.pth", log),
        lambda: verify(given.size, checkpoint, folder / "verify.json", log),
    ]
    rows: list[dict[str, Any]] = []
    record = {"size": given.size, "cores": len(os.sched_getaffinity(0)), "rows": rows}
    record["environment"] = environment(CPU)
    given.out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        rows.append(part())
        sys.stdout.write(f"{json.dumps(rows[-1])}\n")
        sys.stdout.flush()
        write_json(given.out / "export.json", record)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

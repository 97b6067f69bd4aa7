"""Every command of the documents: cheap ones run, the others are held against what they name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from sana_train.cli import (
    benchmark,
    benchmark_loader,
    benchmark_peers,
    convert,
    dashboard,
    evaluate,
    latency,
    page,
    plan,
    precompute,
    prepare_data,
    record,
    refine,
    sample,
    sweep_table,
    vae_table,
    validate_data,
    vbench,
    verify,
    weights,
)
from sana_train.cli.config import RefineConfig
from sana_train.cli.load import load
from sana_train.cli.panels import read_dashboard
from sana_train.cli.preflight import check_overrides
from sana_train.cli.vae_choice import read_choices
from tests.docs.conftest import DOCUMENTS, NEEDS_EXAMPLE, ROOT

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MAX_LINES = 120
LOOKS = {"--help", "--cfg", "--info"}
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands(text: str) -> list[list[str]]:
    """The commands of a block, split as a shell would; ``&&`` and line ends separate them."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines if not line.startswith("#") for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def check(words: list[str]) -> None:
    """Hold one command against what it names; a program that no rule knows is an error."""
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    match [program, *arguments]:
        case ["python" | "python3", "train.py", *rest]:
            check_train(rest)
        case ["python", "evaluate.py", *rest] | ["torchrun", "--nproc-per-node", _, "evaluate.py", *rest]:
            check_evaluate(rest)
        case ["python" | "python3", "-m", "sana_train.cli.record", *rest]:
            record.parser().parse_args(rest)
        case ["python" | "python3", "-m", "sana_train.cli.convert", *rest]:
            convert.parser().parse_args(rest)
        case ["python" | "python3", "-m", "sana_train.cli.plan", *rest]:
            check_overrides(plan.parser().parse_intermixed_args(rest).overrides)
            GlobalHydra.instance().clear()
        case [
            "python" | "python3",
            "-m",
            "sana_train.cli.benchmark" | "sana_train.cli.benchmark_peers" as module,
            *rest,
        ]:
            parser = benchmark.parser() if module.endswith("benchmark") else benchmark_peers.parser()
            check_overrides(parser.parse_intermixed_args(rest).overrides)
            GlobalHydra.instance().clear()
        case ["python" | "python3", "-m", "sana_train.cli.vbench", *rest]:
            vbench.parser().parse_args(rest)
        case ["python" | "python3", "-m", "sana_train.cli.page", *rest]:
            read_dashboard(page.parser().parse_args(rest).dashboard)
        case ["python" | "python3", "-m", "sana_train.cli.dashboard", *rest]:
            read_dashboard(dashboard.parser().parse_args(rest).dashboard)
        case ["python" | "python3", "-m", "sana_train.cli.sweep_table", *rest]:
            sweep_table.parser().parse_args(rest)
        case ["python" | "python3", "-m", "sana_train.cli.refine", *rest]:
            words = refine.parser().parse_intermixed_args(rest).words
            check_overrides([word for word in words if "=" in word], "refine", RefineConfig)
            GlobalHydra.instance().clear()
        case ["python" | "python3", "-m", "sana_train.cli.sample", *rest]:
            check_overrides(sample.parser().parse_intermixed_args(rest).overrides)
            GlobalHydra.instance().clear()
        case ["python" | "python3", "-m", "sana_train.cli.benchmark_loader", *rest]:
            benchmark_loader.parser().parse_args(rest)
        case ["python" | "python3", "-m", "sana_train.cli.latency", *rest]:
            latency.check_words(latency.parser().parse_intermixed_args(rest))
        case ["python" | "python3", "-m", "sana_train.cli.vae_table", *rest]:
            check_vae_table(rest)
        case ["python" | "python3", "-m", "sana_train.cli.precompute", *rest]:
            check_precompute(rest)
        case ["python" | "python3", "-m", "sana_train.cli.validate_data", *rest]:
            check_validate_data(rest)
        case ["python" | "python3", "-m", "sana_train.cli.prepare_data", *rest]:
            given = prepare_data.parser().parse_intermixed_args(rest)
            prepare_data.read_rules(given.rules)
        case [
            "python" | "python3",
            "-m",
            "sana_train.cli.weights" | "sana_train.cli.verify" as module,
            *rest,
        ]:
            parser = {"weights": weights.parser, "verify": verify.parser}[
                module.removeprefix("sana_train.cli.")
            ]
            check_overrides(parser().parse_intermixed_args(rest).overrides)
            GlobalHydra.instance().clear()
        case ["python", script, *rest] if script.startswith("experiments/"):
            check_experiment(script, rest)
        case ["python", "-m", "pytest", *rest]:
            assert all(word.startswith("-") or (ROOT / word).exists() for word in rest)
        case ["python3", "-m", "venv", ".venv"]:
            pass
        case ["pip", "install", "-q", "-c", constraints, "-e", target]:
            assert (ROOT / constraints).is_file()
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert target == "." or target.removeprefix(".[").removesuffix("]") in extras
        case ["bash", script, *_]:
            check_script(script)
        case ["sbatch", *rest]:
            position = next(i for i, word in enumerate(rest) if not word.startswith("--"))
            check_script(rest[position])
            checks = {
                "slurm/train.sbatch": check_train,
                "slurm/sweep.sbatch": lambda words: check_train(words[1:]),  # behind the file of lines
                "slurm/precompute.sbatch": check_precompute,
                "slurm/evaluate.sbatch": check_evaluate,
            }
            checks[rest[position]](rest[position + 1 :])
        case ["hf", "download", repository, *_]:
            assert any(repository in path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))
        case _:
            raise AssertionError(f"no rule knows how to check {shlex.join(words)}")


def check_train(arguments: list[str]) -> None:
    if not LOOKS & set(arguments):
        check_overrides([argument for argument in arguments if not argument.startswith("-")])
        GlobalHydra.instance().clear()
        return
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 20


def check_vae_table(arguments: list[str]) -> None:
    """All but the work: the autoencoders are built without numbers in them, and the manifest is read."""
    with pytest.raises(SystemExit) as ended:
        vae_table.main([*arguments, "--dry-run"])
    assert ended.value.code == 0, ended.value.code


def check_experiment(script: str, arguments: list[str]) -> None:
    """The script parses; one that takes arguments knows the options that are given."""
    text = (ROOT / script).read_text()
    compile(text, script, "exec")
    options = [word for word in arguments if word.startswith("--")]
    assert [option for option in options if f'"{option}"' not in text] == []
    assert not arguments or "ArgumentParser" in text


def check_evaluate(words: list[str]) -> None:
    own, overrides = evaluate.split(evaluate.parser().parse_intermixed_args(words).words)
    assert "checkpoint" in own
    assert load(check_overrides(overrides)).two_stage is not None
    GlobalHydra.instance().clear()


def check_precompute(arguments: list[str]) -> None:
    """All that does not need clips: overrides, autoencoders, and a file of prompts that is there."""
    given = precompute.parser().parse_intermixed_args(arguments)
    check_overrides(given.overrides)
    GlobalHydra.instance().clear()
    read_choices(given.autoencoder or [])
    if given.prompts is not None:
        assert (ROOT / given.prompts).is_file()


def check_validate_data(arguments: list[str]) -> None:
    """All that does not need clips: options and overrides."""
    words = validate_data.parser().parse_intermixed_args(arguments).words
    check_overrides([word for word in words if "=" in word])
    GlobalHydra.instance().clear()


def check_script(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_commands(name: str, documents, place) -> None:
    blocks = [block for block in documents[name] if block.language == "bash"]
    assert {block.note for block in blocks} <= {"", NEEDS_EXAMPLE}
    for block in sorted(blocks, key=lambda block: block.note == NEEDS_EXAMPLE):
        if block.note == NEEDS_EXAMPLE:
            place(name)
        for words in commands(block.text):
            check(words)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in _LINK.findall(text) if "://" not in link]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES


def test_the_readme_has_the_two_commands_each_with_its_set_up(documents) -> None:
    job, tests = [block.text for block in documents["README.md"] if block.language == "bash"]
    for command, end in ((job, "train.py experiment=ltx_adapt"), (tests, "-m pytest -q -n2 --dist=loadfile")):
        assert [words[0] for words in commands(command)] == ["python3", ".venv/bin/pip", ".venv/bin/python"]
        assert command.strip().endswith(end)


def test_python_blocks_parse(documents) -> None:
    python = [
        (name, block) for name, blocks in documents.items() for block in blocks if block.language == "python"
    ]
    assert python
    for name, block in python:
        compile(block.text, name, "exec")  # raises SyntaxError


@pytest.mark.parametrize(
    "command",
    [
        "make all",
        "python train.py training.lrr=1",
        "python evaluate.py experiment=two_stage checkpoint=runs/mine/export two_stage.colums=[stage1]",
        "python evaluate.py experiment=two_stage",
        "python -m sana_train.cli.vae_table out --autoencoder ltx3",
        "python -m sana_train.cli.precompute --autoencoder ltx3",
        "python -m sana_train.cli.validate_data clips data.train.frame=17",
        "python -m sana_train.cli.prepare_data videos clips hieght_px=480",
        "python -m sana_train.cli.dashboard no_such",
        "sbatch slurm/precompute.sbatch data.trian.path=clips",
        "sbatch slurm/evaluate.sbatch experiment=two_stage",
        "sbatch --array=1-2 slurm/sweep.sbatch arms.txt training.lrr=1",
        "bash no/such.sh",
        "python experiments/real_size/dit.py write out --file x.pth",
        "hf download no/such",
    ],
)
def test_a_command_that_cannot_work_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, ValueError, subprocess.CalledProcessError)):
        check(shlex.split(command))


def test_every_document_is_looked_at() -> None:
    found = {path for folder in ("docs", "data", "experiments") for path in Path(ROOT / folder).glob("*.md")}
    ledger = ROOT / "experiments" / "paper_claims.md"  # its commands are inline
    assert found - {ledger} <= set(DOCUMENTS)

"""The two-stage evaluation of a configuration's parts, for evaluate.py and for training alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.config import TwoStageConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.loggers import log_files
from sana_train.cli.own_folder import own_folder
from sana_train.cli.parts import Parts
from sana_train.cli.schema import TARGET
from sana_train.cli.stage_one import precision_of, stage_one_of
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.cli.vae_choice import skeleton
from sana_train.cli.wanted import find_weights
from sana_train.evaluation import lpips_metric
from sana_train.evaluation.clip_score import ClipScore
from sana_train.evaluation.convergence.heldout import evaluation_mode
from sana_train.evaluation.stages.columns import FROM_SOURCE, PAIRED, REFINED, SAMPLED, TwoStages
from sana_train.evaluation.stages.judge import Judge
from sana_train.evaluation.stages.report import write_report
from sana_train.evaluation.stages.run import Evaluation
from sana_train.evaluation.stages.transcoding import Source
from sana_train.generation.stage_one import StageOne
from sana_train.protocols import ClipSource
from sana_train.text.prompt_cache import PromptCache, PromptEmbeddings
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.two_stage import TwoStageCallback
from sana_train.utils.environment import environment
from sana_train.utils.hashing import json_hash

RECORD_NAME = "evaluation.json"
FOLDER_NAME = "two_stage"  # in a run's directory
# What decides the numbers, beside the weights that are judged.
_SECTIONS = ("autoencoder", "text", "reader", "refiner", "upsampler", "convergence.generator")
_OF_TWO_STAGE = ("data", "columns", "num_clips", "num_shown", "seed", "fps", "num_draws", "prompts")


class TwoStageStudy:
    """Builds the parts once and evaluates any number of weights with them.

    Args:
        parts: of the configuration, weights found.
        portable: the configuration as `run_id.portable` flattens it.
    """

    def __init__(self, parts: Parts, portable: Mapping[str, Any]) -> None:
        self.parts, self.settings = parts, two_stage_section(parts.cfg.two_stage)
        names = (*_SECTIONS, *(f"two_stage.{name}" for name in _OF_TWO_STAGE))
        needs_source = any(column in FROM_SOURCE for column in self.settings.columns)
        names += ("source",) if needs_source else ()
        names += ("two_stage.clip",) if self.settings.clip is not None else ()
        self.deciding = {  # by name, also of what is left out, so that a difference can be named
            name: {k: value for k, value in portable.items() if k == name or k.startswith(f"{name}.")}
            for name in names
        }
        has_refined = any(column in REFINED for column in self.settings.columns)
        with torch.random.fork_rng(devices=[]):  # random weights are the same on every rank
            torch.default_generator.manual_seed(self.settings.seed)
            self.refiner: Any = parts.refiner if has_refined and parts.cfg.refiner is not None else None
            self.upsampler: Any = parts.upsampler
        self.unadapted = self._unadapted() if needs_source else None
        self.source = self._source()
        is_paired = any(column in PAIRED for column in self.settings.columns)
        perceptual = lpips_metric.is_ready() and is_paired
        self.judge = Judge(
            parts.reader,
            lpips_metric.PerceptualDistance(True, parts.device) if perceptual else None,
            clip_score=self._clip_score(),
        )
        self.notes = self._notes(is_paired)

    def evaluation(self, stage_one: StageOne | None, out: Path, *, reports_memory: bool) -> Evaluation:
        """Of a DiT, into ``out``; checked, nothing made yet."""
        settings, parts = self.settings, self.parts
        stages = TwoStages(
            stage_one if self.is_sampled else None,
            parts.autoencoder,
            self.refiner,
            self.upsampler,
            self._embedder(),
            settings.fps,
            settings.seed,
            precision_of(parts),
            parts.device,
            self.unadapted,
        )
        evaluation = Evaluation(
            stages,
            self.judge,
            self.source,
            tuple(settings.columns),
            settings.num_clips,
            settings.num_shown,
            settings.batch_size,
            out,
            reports_memory,
        )
        evaluation.require()
        return evaluation

    @property
    def is_sampled(self) -> bool:
        """Whether any column needs the DiT."""
        return any(column in SAMPLED for column in self.settings.columns)

    def record(self, made_by: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the content of a folder of results."""
        space, has_lpips = self.parts.autoencoder.fingerprint(), self.judge.perceptual is not None
        return {"checkpoint": dict(made_by), "space": space, "lpips": has_lpips, **self.deciding}

    def conclude(
        self,
        evaluation: Evaluation,
        made_by: Mapping[str, Any],
        facts: Mapping[str, Any],
        run_dir: Path | None,
    ) -> dict[str, float]:
        """Write the report; returns flat means."""
        record = self.record(made_by)
        del record["checkpoint"]
        digest = json_hash(record)[:12]
        facts = {**facts, "chance": {} if self.judge.reader is None else dict(self.judge.reader.chance)}
        return write_report(evaluation, made_by, digest, self.notes, self.settings.num_draws, facts, run_dir)

    def _unadapted(self) -> Source:
        model: Any = self.parts.source_model
        return Source(stage_one_of(model, self.parts), self.parts.source_autoencoder)

    def _clip_score(self) -> ClipScore | None:
        wanted = self.settings.clip
        if wanted is None:
            return None
        found = find_weights(wanted, Path(self.parts.cfg.paths.models))
        return ClipScore(wanted if found is None else str(found), self.parts.device)

    def _source(self) -> ClipSource:
        node, parts = self.settings.data, self.parts
        wanted = arguments_of(resolve_target(node[TARGET]))
        supplied: dict[str, Any] = {}
        if "device" in wanted and "device" not in node:
            supplied["device"] = str(parts.device)
        if "latent_spec" in wanted:
            assert parts.cfg.autoencoder is not None
            supplied["latent_spec"] = skeleton(parts.cfg.autoencoder).spec
        return instantiate(node, **supplied)

    def _embedder(self) -> Callable[[Sequence[str]], PromptEmbeddings]:
        device = self.parts.device
        if self.settings.prompts is None:

            def of_stage_one(captions: Sequence[str]) -> PromptEmbeddings:
                context, mask = (each.to(device) for each in self.parts.text_encoder.encode(captions))
                return PromptEmbeddings(context, context, mask)

            return of_stage_one
        cache = PromptCache(Path(self.settings.prompts), None)

        remedy = (
            "the refiner reads cached prompts (two_stage.prompts): add it to the file and call "
            "cli.precompute --prompts again"
        )
        return lambda captions: cache.batch(captions, remedy)

    def _notes(self, is_paired: bool) -> list[str]:
        """What a reader of the numbers has to know."""
        notes = []
        for name in ("refiner", "upsampler"):
            node = getattr(self.parts.cfg, name)
            if getattr(self, name) is not None and node["weights"] is None:
                notes.append(
                    f"{name}.weights is null: the {name} has random weights, and what it makes means nothing"
                )
        if is_paired and self.judge.perceptual is None:
            notes.append(
                "LPIPS is left out: it needs the extra [metrics] and AlexNet's weights in torch's hub cache, "
                f"{lpips_metric.BACKBONE_FILE}"
            )
        if self.judge.clip_score is None:
            notes.append("the CLIP score is left out: two_stage.clip names no weights of a CLIP")
        if self.judge.reader is None:
            notes.append("no reader: no attribute is read (reader=<option>, for the procedural world)")
        return notes


def two_stage_callbacks(
    parts: Parts, facts: Mapping[str, Any], run_dir: Path, loggers: Sequence[Any]
) -> list[StepCallback]:
    """What judges averaged weights at ``two_stage.steps`` of a run; nothing if there are none.

    An evaluation's folder is the one that evaluate.py takes for the checkpoint of that step.
    """
    settings = parts.cfg.two_stage
    if settings is None or not settings.steps:
        return []
    study = TwoStageStudy(parts, facts["config"])
    stage_one = stage_one_of(parts.model, parts)  # type: ignore[arg-type]
    folder = run_dir / FOLDER_NAME
    study.evaluation(stage_one, folder, reports_memory=False)  # refuses now what could not be made later

    def out(step: int) -> Path:
        return folder / f"step_{step:07d}"

    def evaluate(step: int) -> dict[str, float]:
        made_by = {"run_id": facts["run_id"], "steps": step, "weights": "ema"}
        own_folder(out(step), RECORD_NAME, study.record(made_by))
        evaluation = study.evaluation(stage_one, out(step), reports_memory=False)
        with evaluation_mode(parts.model):
            evaluation.run(evaluation.missing(), None)
        return study.conclude(evaluation, made_by, {"environment": environment(parts.device)}, run_dir)

    def show(step: int, metrics: dict[str, float]) -> bool:
        del metrics
        names = ("stages.png", "stages.mp4")
        log_files(loggers, {f"two_stage/{name}": out(step) / name for name in names}, step)
        return False

    return [TwoStageCallback(settings.steps, evaluate, show)]


def two_stage_section(section: TwoStageConfig | None) -> TwoStageConfig:
    """The section, which has to be there.

    Raises:
        ValueError: it is left out.
    """
    if section is None:
        raise ValueError("the section `two_stage` is left out; give experiment=two_stage, or two_stage=tiny")
    return section

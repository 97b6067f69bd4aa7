"""The reference of a convergence study: levels measured before, or a DiT that is measured here, once.

A DiT trained natively in the target space, such as the released SANA-Video 720p, is evaluated as the run
itself is: same held-out clips, noise, precision and samples. What was measured is kept under
``paths.data``, by a fingerprint of everything that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sana_train.cli.artifact import check_heads
from sana_train.cli.instantiate import instantiate
from sana_train.cli.parts import Parts
from sana_train.evaluation.convergence.evaluator import ConvergenceEvaluator
from sana_train.evaluation.convergence.levels import Levels, PerClip
from sana_train.models.checkpoint import load_dit, read_state
from sana_train.models.keys import NULL_CONTEXT
from sana_train.utils.hashing import json_hash, tensors_hash

LEVELS_SUFFIX = ".npz"


def reference_levels(
    parts: Parts,
    evaluator: ConvergenceEvaluator,
    measure: Callable[[Any], PerClip],
    precision: str,
    say: Callable[[str], None],
) -> Path | None:
    """The file of levels that ``convergence.reference`` names or leads to; None where it names nothing.

    Args:
        parts: of the run.
        evaluator: of the run; what it measures on is part of the fingerprint.
        measure: a DiT in the target space -> its metrics per clip, in the run's precision.
        precision: its name.
        say: is told before minutes of work.

    Raises:
        ValueError: weights that cannot be read, or of another network than the run's model.
    """
    assert parts.cfg.convergence is not None
    reference = parts.cfg.convergence.reference
    if reference is None or reference.endswith(LEVELS_SUFFIX):
        return None if reference is None else Path(reference)
    node = parts.cfg.model
    assert node is not None  # or there would be nothing to evaluate
    try:
        check_heads(Path(reference), node)
        state = _with_null_caption(read_state(Path(reference)), parts)
        depends_on = {"weights": tensors_hash(state), "precision": precision, **_conditions(parts, evaluator)}
        file = Path(parts.cfg.paths.data) / "reference" / f"{json_hash(depends_on)}{LEVELS_SUFFIX}"
        if file.is_file():
            return file
        say(f"measuring the reference {reference} on {len(evaluator.heldout)} held-out clips, once")
        model = load_dit(lambda: instantiate(node), state, parts.device).eval()
    except ValueError as error:
        raise ValueError(f"convergence.reference={reference}: {error}") from error
    Levels(reference=measure(model), captions=evaluator.heldout.caption_hashes()).save(file)
    return file


def _with_null_caption(state: Mapping[str, Tensor], parts: Parts) -> Mapping[str, Tensor]:
    """diffusers' files have none; the run's own, never trained, is that of the same text encoder."""
    if NULL_CONTEXT in state:
        return state
    return {**state, NULL_CONTEXT: parts.null_caption()}


def _conditions(parts: Parts, evaluator: ConvergenceEvaluator) -> dict[str, Any]:
    """What the numbers of one network depend on, as JSON values."""
    cfg = parts.cfg
    assert cfg.convergence is not None
    conditions: dict[str, Any] = {
        "model": cfg.model,
        "autoencoder": parts.autoencoder.fingerprint(),
        "text_encoder": parts.text_encoder.fingerprint(),
        "captions": evaluator.heldout.caption_hashes(),
        "latents": list(evaluator.heldout.latents.shape),
        "noise_levels": list(evaluator.sigmas),
        "seed": evaluator.seed,
        "num_samples": evaluator.num_samples,
        "num_clean_estimates": evaluator.num_clean_estimates,
    }
    if evaluator.num_samples or evaluator.num_clean_estimates:
        reader = None if cfg.reader is None else {**cfg.reader, "weights": None}
        conditions |= {"generator": cfg.convergence.generator, "reader": reader}
    return conditions

"""diffusers' scheduler as SANA-Video publishes it."""

from __future__ import annotations

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler


def published_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of order 2 on flow matching's sigmas, shifted by 8."""
    return DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=8.0,
        final_sigmas_type="zero",
    )

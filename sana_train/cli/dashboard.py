"""``python -m sana_train.cli.dashboard``: a list of panels under conf/dashboard as a workspace in W&B.

A workspace is a saved view of a project: its panels beside the table of runs, of which any can be chosen
and compared. It shows runs that were synced (logger=wandb is offline by default):

  wandb sync runs/mine/wandb/offline-*
  python -m sana_train.cli.dashboard --entity my-team

Every call makes a new view and prints its address. --dry-run prints the JSON that W&B would get instead; it
needs neither an account nor the network. Both need the extra [dashboard] (pip install -e '.[dashboard]').
Without any of that, python -m sana_train.cli.page draws the same panels of one run as a page that opens
from disk.

examples:
  python -m sana_train.cli.dashboard --dry-run
  python -m sana_train.cli.dashboard two_stage --entity my-team --project refiners
  python -m sana_train.cli.dashboard my_panels.yaml
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from omegaconf import OmegaConf

from sana_train.cli.load import CONF_DIR
from sana_train.cli.panels import DASHBOARDS, Panel, key_regex, read_dashboard
from sana_train.cli.process import readable_errors

STEP_KEY = "trainer/global_step"  # under which Lightning's logger sends the run's own step
NO_ENTITY = "your-entity"  # of a dry run that was given none
_COLUMNS = 3


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.dashboard", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    options = ", ".join(sorted(path.stem for path in DASHBOARDS.glob("*.yaml")))
    top.add_argument(
        "dashboard",
        nargs="?",
        default="run",
        metavar="NAME_OR_YAML",
        help=f"one of {options}, or a YAML like theirs (%(default)s)",
    )
    top.add_argument("--entity", help="user or team that the project belongs to (the login's own)")
    top.add_argument("--project", default=_project(), help="where runs were synced to (%(default)s)")
    top.add_argument("--dry-run", action="store_true", help="print the JSON and send nothing")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors():
        panels = read_dashboard(given.dashboard).panels
        title = f"sana-train: {Path(given.dashboard).stem.replace('_', ' ')}"
        if given.dry_run:
            workspace = build_workspace(panels, given.entity or NO_ENTITY, given.project, title)
            sys.stdout.write(f"{json.dumps(sent(workspace), indent=2)}\n")
            return
        with _readable_refusals(given.project):
            entity = given.entity or wandb.Api().default_entity
        if not entity:
            raise ValueError("this login belongs to no user or team of its own; give one with --entity")
        workspace = build_workspace(panels, entity, given.project, title)
        with _readable_refusals(given.project):
            workspace.save()
        sys.stdout.write(f"{workspace.url}\n")


def build_workspace(panels: Sequence[Panel], entity: str, project: str, title: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``: one open section that shows all panels without paging.

    Raises:
        ValueError: the extra is not installed.
    """
    workspaces, reports = _library("workspaces"), _library("reports.v2")
    section = workspaces.Section(
        name=title,
        panels=[wandb_panel(reports, panel) for panel in panels],
        is_open=True,
        layout_settings=workspaces.SectionLayoutSettings(
            columns=_COLUMNS, rows=math.ceil(len(panels) / _COLUMNS)
        ),
        # The axis of panels that name none; left alone it counts calls of the logger.
        panel_settings=workspaces.SectionPanelSettings(x_axis=STEP_KEY),
    )
    settings = workspaces.WorkspaceSettings(x_axis=STEP_KEY)
    return workspaces.Workspace(
        entity=entity, project=project, name=title, sections=[section], settings=settings
    )


def wandb_panel(reports: Any, panel: Panel) -> Any:
    """One panel by the library's own class; curves on a log-step axis, as the static page has them.

    Args:
        reports: the module ``wandb_workspaces.reports.v2``, which has the panels of workspaces, too.
    """
    media = panel.picture or panel.film
    if media is not None:
        return reports.MediaBrowser(title=panel.title, media_keys=[media], num_columns=1)
    if panel.numbers:
        return reports.BarPlot(title=panel.title, metrics=panel.numbers)
    if any("*" in key for key in panel.curves):
        shown = {"metric_regex": key_regex(panel.curves)}
    else:
        shown = {"y": panel.curves}
    return reports.LinePlot(title=panel.title, x=STEP_KEY, log_x=True, **shown)


def sent(workspace: Any) -> dict[str, Any]:
    """What saving ``workspace`` sends: whose it is, its name, and ``spec`` as the library writes it."""
    view = workspace._to_model()
    return {
        "entityName": view.entity,
        "projectName": view.project,
        "displayName": view.display_name,
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def _project() -> str:
    logger: Any = OmegaConf.load(CONF_DIR / "logger" / "wandb.yaml")
    return logger.project


def _library(part: str) -> Any:
    try:
        return importlib.import_module(f"wandb_workspaces.{part}")  # an extra, so not among the imports above
    except ImportError as error:
        raise ValueError(
            f"W&B's workspaces are written by wandb-workspaces, which cannot be imported ({error}); install "
            "the extra [dashboard] (pip install -e '.[dashboard]'), or draw the same panels of one run "
            "without it: python -m sana_train.cli.page <run>"
        ) from error


@contextmanager
def _readable_refusals(project: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # no key, no network, no such project: wandb has no class for them all
        raise ValueError(
            f"W&B did not take the workspace: {error}\nLog in once (wandb login) or set WANDB_API_KEY, and "
            f"give an --entity in which the project {project} exists (wandb sync makes it) and you may "
            "write. --dry-run needs none of this"
        ) from error


if __name__ == "__main__":
    main()

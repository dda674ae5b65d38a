"""A sweep's report as a W&B Report: made once, then the same one is brought up to date.

The specification (`ddpm.report.review`) is always written to wandb_report.json in the sweep's
folder, with where it was published under "published". Without a login that is all. With one, its
text and panels become the blocks of wandb-workspaces, and every ranked run's summary gets its
numbers over the levels that all cells share, so that W&B's tables sort as the report ranks.

A report is known by its id, and where the file was lost by its title in the project.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddpm import durable
from ddpm.errors import InputError
from ddpm.report import Report
from ddpm.report.appendix import shown_path
from ddpm.report.files import mapping, read_json
from ddpm.report.panels import Place, Specification, as_json
from ddpm.report.review import OF_THE_SWEEP, specification
from ddpm.wandb_server import address, first_line, has_key, why_not_online

if TYPE_CHECKING:
    import wandb

FILE, UPLOADS = "wandb_report.json", "wandb_uploads.txt"
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was made. url: of the W&B Report, None where it could not be published from here."""

    path: Path
    url: str | None
    lines: tuple[str, ...]

    def print(self) -> None:
        """Where it is, and what is left to do."""
        print("\n".join(self.lines))


def review(made: Report) -> Review:
    """Writes the specification, and publishes it where there is a login.

    InputError, after the file was written, where a server was meant but cannot show the report.
    """
    folder = made.sweep.folder
    path, wanted = folder / FILE, specification(made.sweep, made.ranking, made.verdict)
    known = mapping(mapping(read_json(path)).get("published"))
    durable.write_json(path, {**as_json(wanted), "published": known or None})
    uploads = _uploads(made)
    reason = _why_not_published()
    if reason:
        lines = (
            f"W&B report: not published, {reason}; {path} says what it will show",
            *([f"upload the runs with: {uploads}"] if uploads else []),
            f"then publish with: python launch/report.py {shown_path(folder)} --wandb",
        )
        return Review(path=path, url=None, lines=lines)
    unreachable = why_not_online()
    if unreachable:
        raise InputError(f"W&B: {unreachable}; {path} is written, run the same command again")
    return _published(wanted, path, known, uploads)


def _why_not_published() -> str | None:
    """Why nobody asked for a server: WANDB_MODE says so, or there is no key."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    return None if has_key() else "no API key (set WANDB_API_KEY or run `wandb login`)"


def _uploads(made: Report) -> str | None:
    """The command that uploads what the trials have logged offline; None where all is there."""
    found = [
        fragment
        for trial in made.sweep.trials
        if trial.run_dir is not None
        for fragment in sorted(trial.run_dir.glob(f"wandb/offline-run-*-{trial.name}"))
        if not any(fragment.glob("*.wandb.synced"))
    ]
    if not found:
        return None
    path = made.sweep.folder / UPLOADS
    durable.write_text(path, "".join(f"{fragment.absolute()}\n" for fragment in found))
    return f"xargs -d '\\n' wandb sync < {shown_path(path)}"


def _published(
    wanted: Specification, path: Path, known: Mapping[str, object], uploads: str | None
) -> Review:
    """The report on the server, new or brought up to date."""
    os.environ.setdefault("WANDB_SILENT", "true")
    api = _login()
    there = [replace(place, entity=_entity(api, place)) for place in wanted.places]
    places = tuple(dict.fromkeys(there))
    found = [run for place in places for run in _runs(api, place, wanted, uploads)]
    runs = [run for run in found if run.id in wanted.runs]
    if not runs:
        raise InputError(_no_runs(places, wanted, uploads))
    for run in runs:
        _complete(run, wanted.summaries.get(run.id, {}))
    from ddpm.adapters import wandb_blocks

    report = wandb_blocks.report(wanted, places)
    report.id = _known_id(api, places[0], wanted.title, known)
    where = _asked("the report cannot be saved", lambda: _where(report.save()))
    durable.write_json(path, {**as_json(wanted), "published": where})
    lines = (f"W&B report: {where['url']}", *_incomplete(wanted, len(runs), len(found), uploads))
    return Review(path=path, url=where["url"], lines=lines)


def _incomplete(wanted: Specification, ours: int, found: int, uploads: str | None) -> Iterator[str]:
    """What the report lacks, and what it shows beside."""
    if ours < len(wanted.runs):
        todo = f"; upload the others with: {uploads}" if uploads else ""
        yield f"runs on the server: {ours} of {len(wanted.runs)}{todo}"
    if found > ours:
        yield (
            f"runs of no trial in W&B's group {wanted.group}, of an earlier grid or another sweep "
            f"of this name: {found - ours}; panels show them, the ranking does not"
        )


def _login() -> "wandb.Api":
    import wandb

    advice = f"{address()} does not take the login; run `wandb login --relogin`"
    return _asked(advice, lambda: wandb.Api())


def _entity(api: "wandb.Api", place: Place) -> str:
    """Whose project it is, by the rule by which the runs were put there."""
    entity = place.entity or os.environ.get("WANDB_ENTITY")
    entity = entity or _asked("who is logged in cannot be told", lambda: api.default_entity)
    if not entity:
        raise InputError(
            f"W&B: whose project {place.project} is, is not known: WANDB.ENTITY is null and the "
            "login has no default entity; set WANDB_ENTITY to your user or team"
        )
    return entity


def _runs(api: "wandb.Api", place: Place, wanted: Specification, uploads: str | None) -> list[Any]:
    """The runs that the server has of the sweep, or the one run, in a project."""
    name = f"{place.entity}/{place.project}"
    ours = {"group": wanted.group} if wanted.group else {"name": {"$in": list(wanted.runs)}}
    return _asked(
        f"{name} on {address()} cannot be read; {_todo(uploads)}",
        lambda: list(api.runs(name, filters=ours, per_page=200, lazy=False)),
    )


def _no_runs(places: Sequence[Place], wanted: Specification, uploads: str | None) -> str:
    names = ", ".join(f"{place.entity}/{place.project}" for place in places) or "no project"
    missing = f"none of the {len(wanted.runs)} runs of {wanted.title} is in {names}"
    return f"W&B: {missing}; {_todo(uploads)}"


def _todo(uploads: str | None) -> str:
    """What to do where runs are missing."""
    if uploads:
        return f"upload the runs with: {uploads}"
    return (
        "set WANDB_ENTITY where they belong to another user or team; runs trained with "
        "WANDB.MODE=disabled are in no project"
    )


def _complete(run: Any, numbers: Mapping[str, float]) -> None:
    """Gives a run's summary its numbers of the comparison, and takes those it had before."""
    old = {name: None for name in run.summary.keys() if name.startswith(OF_THE_SWEEP)}
    wanted = {**old, **numbers}
    if any(run.summary.get(name) != value for name, value in wanted.items()):
        _asked(f"run {run.id} cannot be changed", lambda: run.summary.update(wanted))


def _known_id(api: "wandb.Api", place: Place, title: str, known: Mapping[str, object]) -> str:
    """The id of the report that is there already; empty where there is none."""
    name = f"{place.entity}/{place.project}"
    reports = _asked(f"the reports of {name} cannot be read", lambda: list(api.reports(name)))
    same = [report.id for report in reports if report.id == known.get("id")]
    return next(iter(same + [report.id for report in reports if report.display_name == title]), "")


def _where(report: Any) -> dict[str, str]:
    return {
        "server": address(),
        "entity": report.entity,
        "project": report.project,
        "id": report.id,
        "url": report.url,
    }


def _asked(problem: str, ask: Callable[[], Answer]) -> Answer:
    """The server's answer; InputError with the problem where it has none, or wandb refuses."""
    try:
        return ask()
    except Exception as error:  # wandb raises its own, those of its transport and ValueError
        raise InputError(f"W&B: {problem} ({first_line(error)})") from error

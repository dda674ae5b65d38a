"""Population based training: members train side by side, from exchange to exchange.

Who takes over whose weights is decided by ddpm/population.py from what all measured, and kept in
population.jsonl before it is done: one line for each population (the draws of one cell and seed)
and boundary. A member that takes over weights goes on in a run directory of its own, which begins
with the other's checkpoint and history; a run directory never changes its configuration. Ray's own
PBT keeps all this in the driver's memory and random state, where a kill loses it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm import checkpoint, durable, run_names
from ddpm import config as configuration
from ddpm.adapters.round import Round, ladder_of
from ddpm.adapters.sweep_setup import OpenSweep, Trial
from ddpm.population import exploits
from ddpm.rundir import RunDirectory
from ddpm.rungs import Rung

RECORD = "population.jsonl"


def rounds(opened: OpenSweep) -> Iterator[Round]:
    """A round up to each boundary, then one to the end."""
    _leave_home(opened)
    lines = _lines(opened.folder / RECORD)
    for line in lines:
        _take_over(opened, line)
    if not opened.todo():
        return
    ladder, failed = ladder_of(opened, opened.trials[0]), set[str]()

    def left() -> list[Trial]:
        return [trial for trial in opened.todo() if trial.outcome.trial not in failed]

    for boundary in range(opened.sweep.tune.GRACE, ladder.evaluations, opened.sweep.tune.GRACE):
        if behind := [trial for trial in left() if _at(opened, trial, boundary) is None]:
            yield Round(trials=[_up_to(opened, trial, boundary) for trial in behind])
            failed |= opened.failed()
        known = {line["population"] for line in lines if line["evaluation"] == boundary}
        for name, members in _populations(opened).items():
            made = None if name in known else _exchange(opened, name, members, boundary)
            if made is not None:
                durable.append_line(opened.folder / RECORD, json.dumps(made))
                _take_over(opened, made)
    if todo := left():
        yield Round(trials=todo)


def _leave_home(opened: OpenSweep) -> None:
    """Gives every member a run directory of its own: the one of its configuration may belong to a
    training that has gone on beyond the boundaries, or will be found by one.
    """
    for trial in list(opened.trials):
        config = opened.configs[trial.outcome.trial]
        name = _digest(opened.sweep.name, trial.outcome.trial)
        found = run_names.existing(Path(config.TRAINING.OUTPUT_DIR), name)
        path = found[0] if found else run_names.new_path(config, name)
        _move(opened, trial, path.absolute(), config)


def _move(opened: OpenSweep, trial: Trial, path: Path, config: configuration.Config) -> None:
    job = replace(trial.job, run_dir=str(path), config=configuration.to_dict(config))
    outcome = replace(trial.outcome, run_dir=str(path))
    opened.replace(replace(trial, outcome=outcome, job=job), config)


def _digest(*parts: object) -> str:
    """Eight hexadecimal digits that name a run directory."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8]


def _populations(opened: OpenSweep) -> dict[str, list[Trial]]:
    """The members of each population: trials that differ in SPACE alone."""
    found: dict[str, list[Trial]] = {}
    for trial in opened.trials:
        cell = {k: v for k, v in trial.outcome.cell.items() if k not in opened.sweep.space}
        found.setdefault(json.dumps([cell, trial.outcome.seed]), []).append(trial)
    return found


def _at(opened: OpenSweep, trial: Trial, boundary: int) -> Rung | None:
    """What a member measured at a boundary; None where it has not come so far."""
    run = RunDirectory(Path(trial.job.run_dir))
    saved = max(checkpoint.steps(run.checkpoints), default=0)  # later rows are about to be repeated
    rungs = ladder_of(opened, trial).rungs(run.metrics())
    return next((r for r in rungs if r.evaluation == boundary and r.step <= saved), None)


def _up_to(opened: OpenSweep, trial: Trial, boundary: int) -> Trial:
    """The trial, to be paused at a boundary."""
    step = boundary * ladder_of(opened, trial).every
    return replace(trial, job=replace(trial.job, pause_at=step))


def _exchange(
    opened: OpenSweep, name: str, members: list[Trial], boundary: int
) -> dict[str, Any] | None:
    """The line of a population at a boundary; None where fewer than two members are there."""
    there = {t.outcome.trial: rung for t in members if (rung := _at(opened, t, boundary))}
    if len(there) < 2:
        return None
    by_name = {trial.outcome.trial: trial for trial in members}
    values = {
        member: {key: configuration.flat(opened.configs[member])[key] for key in opened.sweep.space}
        for member in there
    }
    costs = {member: rung.value for member, rung in there.items()}
    made = []
    for one in exploits(boundary, costs, values, opened.sweep.space):
        donor, member = by_name[one.donor], by_name[one.member]
        saved = checkpoint.steps(Path(donor.job.run_dir) / "checkpoints")
        step = min(step for step in saved if step >= there[one.donor].step)
        made_of = opened.sweep.make({**member.outcome.cell, **one.values}, member.outcome.seed)
        digest = _digest(opened.sweep.name, boundary, one.member)
        path = run_names.new_path(made_of.config, digest).absolute()
        made.append(
            {
                **{"member": one.member, "donor": one.donor, "values": dict(one.values)},
                **{"before": values[one.member], "cost": costs[one.member]},
                **{"donor_cost": costs[one.donor], "step": step},
                **{"from": donor.job.run_dir, "run_dir": str(path)},
            }
        )
    return {"population": name, "evaluation": boundary, "exploits": made}


def _take_over(opened: OpenSweep, line: Mapping[str, Any]) -> None:
    """Make the run directories of a line, where they are missing; the members go on in them."""
    by_name = {trial.outcome.trial: trial for trial in opened.trials}
    for one in line["exploits"]:
        trial = by_name.get(one["member"])
        if trial is None:  # of an earlier SPACE
            continue
        made = opened.sweep.make({**trial.outcome.cell, **one["values"]}, trial.outcome.seed)
        _begin_with(Path(one["from"]), int(one["step"]), Path(one["run_dir"]), one)
        _move(opened, trial, Path(one["run_dir"]), made.config)


def _begin_with(source: Path, step: int, target: Path, facts: Mapping[str, Any]) -> None:
    """A run directory that holds the checkpoint of another run and its history up to there."""
    folder = checkpoint.folder_of(target / "checkpoints", step)
    if checkpoint.steps(target / "checkpoints"):
        return
    durable.make_folder(folder.parent)
    for name in ("metrics.jsonl", "log.csv"):
        durable.write_bytes(target / name, (source / name).read_bytes())
    durable.write_json(target / run_names.LINEAGE, dict(facts))
    given = checkpoint.load(checkpoint.folder_of(source / "checkpoints", step))
    own = ("format", "step", "files", "sha256")
    manifest = {key: value for key, value in given.manifest.items() if key not in own}
    checkpoint.save(folder, tensors=given.tensors, state=given.state, manifest=manifest)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the record."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]

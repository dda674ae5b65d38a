"""However many start the same training at once, one trains it; the others say where, and leave
nothing.
"""

import os
import signal
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from ddpm.cli.main import launch
from ddpm.cluster import open_sweep
from ddpm.cluster.run_trial import TrialTask, run_trial
from ddpm.data import open_data, preparing
from ddpm.errors import LockedError
from ddpm.runs import layout, storage
from ddpm.runs.directory import RunDirectory, claimed
from ddpm.sweep.plan import load_sweep
from tests.cluster.test_run_training import ROOT, small
from tests.cluster.test_searches import ALONE
from tests.runs.test_directory import DATA, make_config, start
from tests.support.processes import at_once, exit_codes, forked, until
from tests.support.tiny_training import DIGITS, overrides


def training(out: Path, data: Path, *more: str) -> list[str]:
    """The arguments of a short training whose data are packed already."""
    places = (f"DATASET.PATH={data}", f"TRAINING.OUTPUT_DIR={out}")
    settings = overrides(*places, "CLUSTER.CPUS_PER_WORKER=1", *more)
    return [str(DIGITS), *settings]


def runs(out: Path) -> list[Path]:
    """Every run directory, begun or not."""
    return [path for path in out.glob("digits_*/*/*") if path.is_dir()]


def held_by(out: Path) -> int | None:
    """The process that holds the run directory."""
    holders = [storage.signature(path / ".lock").get("pid") for path in runs(out)]
    return next((pid for pid in holders if pid), None)


def launched(
    count: int, folder: Path, *arguments: str
) -> AbstractContextManager[dict[BaseProcess, Path]]:
    """`launch/train.py` so many times at once, and what each prints."""
    return at_once(count, launch, "train", [*arguments], folder=folder)


def assert_lost(process: BaseProcess, said: Path, out: Path) -> None:
    """It left promptly with exit code 3, naming the one run directory and who holds it."""
    assert exit_codes([process], 200) == [3], said.read_text()
    (place,) = until("a run directory", lambda: runs(out))
    assert f"run directory {place} is in use by process " in said.read_text()


@pytest.mark.slow
def test_one_of_five_at_once_trains_and_the_others_name_it(
    tmp_path: Path, few_digits: Path
) -> None:
    out = tmp_path / "out"
    arguments = training(out, few_digits)
    with launched(5, tmp_path, *arguments) as all_:
        winner = until("it is held", lambda: held_by(out))
        # so that it has not ended before the slowest of the others has looked
        os.kill(winner, signal.SIGSTOP)
        losers = {one: said for one, said in all_.items() if one.pid != winner}
        assert len(losers) == 4
        for one, said in losers.items():
            assert_lost(one, said, out)
        os.kill(winner, signal.SIGCONT)
        ((first, said),) = ((one, said) for one, said in all_.items() if one.pid == winner)
        assert exit_codes([first], 200) == [0], said.read_text()
    (place,) = runs(out)
    with launched(1, tmp_path, *arguments) as again:
        assert exit_codes([*again], 200) == [0]
    assert str(place) in (tmp_path / "said-0").read_text()
    assert runs(out) == [place] and len(RunDirectory(place).provenance["attempts"]) == 1
    assert [path.name for path in (out / ".locks").iterdir()] == [layout.id_of(place)]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_one_of_three_with_several_workers_starts_them(tmp_path: Path, few_digits: Path) -> None:
    """The others leave before Ray is there, while the directory has still to be made."""
    out = tmp_path / "out"
    with launched(3, tmp_path, *training(out, few_digits, "CLUSTER.NUM_WORKERS=2")) as all_:
        until("two left", lambda: sum(one.exitcode is not None for one in all_) == 2)
        assert not runs(out)
        for one, said in all_.items():
            if one.exitcode is not None:
                assert_lost(one, said, out)
        ((first, said),) = ((one, said) for one, said in all_.items() if one.exitcode is None)
        (place,) = runs(out)
        id_lock = layout.id_lock(place)
        # the worker holds the directory, or it has ended
        until("the id is free", lambda: not storage.is_held(id_lock))
        assert exit_codes([first], 600) == [0], said.read_text()
    assert runs(out) == [place] and RunDirectory(place).is_finished


def test_those_that_want_another_run_make_one_each(tmp_path: Path) -> None:
    settings = make_config(tmp_path / "out")
    first, second = (RunDirectory.find_or_name(settings, DATA, new=True) for _ in range(2))
    with claimed(first, another=True) as one, claimed(second, another=True) as two:
        start(one.run, settings)
        start(two.run, settings)
        assert set(runs(tmp_path / "out")) == {one.run.path, two.run.path}
        one.run.close()
        two.run.close()
    assert not (tmp_path / "out" / ".locks").exists()


def test_a_claim_names_its_directory_until_that_is_held(tmp_path: Path) -> None:
    settings = make_config(tmp_path / "out")
    late = RunDirectory.find_or_name(settings, DATA)
    with claimed(RunDirectory.find_or_name(settings, DATA)) as claim:
        claim.release_if_held()
        with pytest.raises(LockedError, match=f"{claim.run.path} .*process {os.getpid()} on"):  # noqa: SIM117
            with claimed(late):
                pass
        start(claim.run, settings)
        claim.release_if_held()
        claim.release()
        with claimed(late) as second:  # which had searched before the first one was made
            assert second.run.path == claim.run.path
            with pytest.raises(LockedError, match=str(claim.run.path)):
                second.run.refuse_held(wait_s=0.0)
        claim.run.close()
        second.run.refuse_held(wait_s=0.0)
    assert runs(tmp_path / "out") == [claim.run.path]


def hold(run: Path) -> int:
    """Claims a run and keeps it."""
    with claimed(RunDirectory(run)):
        print("held", flush=True)
        time.sleep(600)
    return 1


@pytest.mark.slow
def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    run, said = RunDirectory.find_or_name(make_config(tmp_path / "out"), DATA), tmp_path / "said"
    holder = forked(hold, run.path, said=said)
    try:
        until("it is held", lambda: said.exists() and said.read_text() == "held\n")
        with pytest.raises(LockedError, match=f"process {holder.pid}"), claimed(run):
            pass
    finally:
        holder.kill()
    holder.join()
    with claimed(run) as claim:
        assert claim.run.path == run.path
        assert storage.signature(layout.id_lock(run.path))["pid"] == os.getpid()
    assert not runs(tmp_path / "out")


def test_a_finished_run_is_found_without_a_lock(tmp_path: Path) -> None:
    config = small(tmp_path / "out")
    run = RunDirectory.find_or_name(config, DATA)
    start(run, config)
    run.finish({})
    run.close()
    with claimed(RunDirectory.find_or_name(config, DATA)) as claim:
        assert claim.run.is_finished
    assert not (tmp_path / "out" / ".locks").exists()


@pytest.mark.slow
def test_what_others_made_before_a_sweep_had_its_lock_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver ended between this one's start and its lock; a command took a cell later."""
    file = tmp_path / "one.yaml"
    grid = "TRAINING.PRED_TYPE: [noise, image]"
    file.write_text(f"BASE: {ROOT / 'configs' / 'digits.yaml'}\nGRID: {{{grid}}}\n")
    sweep = load_sweep(file, [f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}"])
    data = open_data(sweep.base, preparing.prepare(sweep.base).folder).sha256
    config, other = (planned.config for planned in sweep.trials)
    made = []

    def made_first(path: Path, what: str) -> Any:
        made.append(RunDirectory.find_or_name(config, data))
        made[0].path.mkdir(parents=True, exist_ok=True)
        return storage.lock(path, what)

    monkeypatch.setattr(open_sweep, "lock", made_first)
    with open_sweep.opened(sweep, workers=ALONE, packed=False) as opened:
        assert opened.trials[0].run_dir == str(made[0].path.absolute())
        trial = opened.trials[1]
        # nothing is trained twice beside a run of the same id that a command began since
        meanwhile = RunDirectory.find_or_name(other, data).path
        assert str(meanwhile.absolute()) != trial.run_dir
        meanwhile.mkdir(parents=True)
        task = TrialTask.of(opened, trial)
        task = replace(task, job=replace(task.job, wait_s=0.0))
        assert run_trial(task, should_stop=lambda: False) == "held"
        assert not Path(task.job.run_dir).exists()
        with pytest.raises(LockedError, match=f"sweep one in {opened.folder} is in use by"):  # noqa: SIM117
            with open_sweep.opened(sweep, workers=ALONE, packed=False):
                pass

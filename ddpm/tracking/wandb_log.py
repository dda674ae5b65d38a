"""Weights & Biases as a tracker of runs; the run directory stays the truth.

One W&B run for each run of ours, its id the run_id, whatever the number of attempts. Each attempt
brings it up to the run directory: offline it writes the whole history anew into one
fragment and removes the incomplete ones that earlier attempts left, so that any `wandb sync` of it
gives every step once; online it goes on after the last step that the server has. (Several offline
fragments with one id, synced one after the other, would overwrite each other's history.)

Training never waits for a server that does not answer, nor fails with it: without a key, or when
nothing sensible answers within seconds, the attempt is logged offline and says so. The key is only
looked for, as wandb does: in the environment, then in .netrc. It is never kept, shown or written.

While a run trains, W&B shows the rows of metrics.jsonl by `step`, as `train/loss` and `val/...`.
Measures of the final network are curves with axes of their own: the x0-error over log SNR, and the
quality of its samples over the number of sampling steps. Lower is better for all of them but the
accuracies.
"""

import hashlib
import logging
import netrc
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import INDEX_FILE
from ddpm.errors import InputError
from ddpm.metrics import QUALITY_MEASURES, Quality, QualityPoint, read_quality
from ddpm.runs import (
    EVALUATION_FILE,
    METRICS_FILE,
    RunDirectory,
    RunState,
    checkpoint,
    memory_usage,
    read_memory_rows,
    storage,
)
from ddpm.sweep import cell_name
from ddpm.training import Tracker

if TYPE_CHECKING:
    import wandb


STEP, LOGSNR = "step", "logsnr"
X0_ERROR = "x0_error"  # by LOGSNR
SAMPLES, FINAL_SAMPLES = "samples", "final_samples"  # by STEP; of the network in the end
SAMPLE_FILES = ("samples.npz", "samples.png")
SAMPLING_STEPS, QUALITY = "sampling_steps", "quality/"  # the second is what names begin with
BITS_PER_DIM = "bits_per_dim"


def error_rows(found: Mapping[str, object]) -> list[dict[str, float]]:
    """The x0-error by log-SNR level, a row each, ascending; levels without a number are left out.

    found: the run's evaluation.json, empty where there is none.
    """
    levels, errors = found.get("levels"), found.get("mse")
    if not isinstance(levels, list) or not isinstance(errors, list):
        return []
    pairs = zip(levels, errors, strict=True)
    return [{LOGSNR: level, X0_ERROR: error} for level, error in pairs if error is not None]


def bits_per_dim(found: Mapping[str, object]) -> float | None:
    """The bound on bits/dim, where the data have one."""
    bound = found.get("bits_per_dim")
    value = bound.get("value") if isinstance(bound, dict) else None
    return value if isinstance(value, float) else None


def quality_rows(quality: Quality | None) -> list[dict[str, float]]:
    """Quality of samples by the number of sampling steps, a row each, the fewest first.

    A sampler, its eta, and a guidance and a length of the average where there are, are part of a
    number's name: `quality/fid ddim eta=0`, `quality/fid ddim eta=0 length=0.05`.
    """
    rows: dict[int, dict[str, float]] = {}
    for point in quality.points if quality is not None else ():
        row = rows.setdefault(point.num_steps, {SAMPLING_STEPS: point.num_steps})
        where = f"{point.sampler} eta={point.eta:g}"
        where += "" if point.guidance == 1 else f" guidance={point.guidance:g}"
        where += "" if point.ema_length is None else f" length={point.ema_length:g}"
        row |= {f"{QUALITY}{name} {where}": value for name, value in _values(point).items()}
    return [rows[steps] for steps in sorted(rows) if len(rows[steps]) > 1]


def shown_name(name: str) -> str:
    """A number of metrics.jsonl under the group that W&B shows it in: `train/loss`, `val/...`."""
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    return name if "/" in name or name in (STEP, "images") else f"train/{name}"


def final_quality(quality: Quality | None) -> dict[str, float]:
    """The numbers at the most sampling steps and the least eta: what a table shows of a run."""
    points = quality.points if quality is not None else ()
    last = min(points, key=lambda p: (p.guidance != 1, -p.num_steps, p.eta), default=None)
    values = _values(last) if last is not None else {}
    return {f"{QUALITY}{name}": value for name, value in values.items()}


def _values(point: QualityPoint) -> dict[str, float]:
    found = {name: point.interval(name) for name in QUALITY_MEASURES}
    return {name: one.value for name, one in found.items() if one is not None}


# wandb 0.31 calls the public server by its new name and finds keys under either.
PUBLIC_SERVER = "https://api.forge.coreweave.com"
PROBE_S = 1.5
_PUBLIC_NAMES = ("api.forge.coreweave.com", "api.wandb.ai")


def address() -> str:
    """The address of the server that WANDB_BASE_URL names, else of the public one."""
    return os.environ.get("WANDB_BASE_URL") or PUBLIC_SERVER


def has_wandb_key() -> bool:
    """True where wandb would find a key for the server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        place = urlsplit(address())
        names = {place.netloc, place.hostname or ""}
        if place.hostname in _PUBLIC_NAMES:
            names |= set(_PUBLIC_NAMES)
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return not names.isdisjoint(netrc.netrc(path).hosts)
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return False  # no home, no file, or not to be understood


def why_not_online() -> str | None:
    """The reason that W&B cannot be used: no key, or no sensible answer in time; else None."""
    server = address()
    if not has_wandb_key():
        return "no API key (set WANDB_API_KEY or run `wandb login`)"
    answers: list[str | None] = []
    # In a thread of its own, because looking up a host name knows no time limit.
    thread = threading.Thread(target=lambda: answers.append(_probe(server)), daemon=True)
    thread.start()
    thread.join(PROBE_S + 0.2)
    return answers[0] if answers else f"{server} did not answer within {PROBE_S} s"


def _probe(server: str) -> str | None:
    """The fault in the server's answer to an empty question; None when there is none."""
    request = urllib.request.Request(
        f"{server.rstrip('/')}/graphql",
        data=b'{"query": "{ __typename }"}',
        headers={"Content-Type": "application/json", "User-Agent": "ddpm"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_S):
            return None
    except urllib.error.HTTPError as error:
        # 4xx: somebody is there, and does not know us yet
        return None if error.code < 500 else f"{server} answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """Message of an error, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


MODES = ("disabled", "offline", "online")  # from the most private to the least
_MODE_WORDS: dict[str, dict[str, str | None]] = {
    "WANDB_MODE": {"": None, **{m: m for m in MODES}, "dryrun": "offline", "run": "online"},
    "WANDB_DISABLED": {
        **dict.fromkeys(("", "false", "0", "no", "off"), None),
        **dict.fromkeys(("true", "1", "yes", "on"), "disabled"),
    },
}
START_S = 3.4  # for probe and start together; going offline instead takes the rest of 5 s
FINISH_S = 30.0
LONGEST_TAG = 64  # of W&B
log = logging.getLogger(__name__)


def wandb_tracker(
    group: str | None, cell: Mapping[str, object] | None = None
) -> Callable[[Config, RunDirectory], Tracker | None]:
    """A function that makes the tracker of a started run; None where WANDB.MODE is disabled.

    group: the sweep it belongs to.  cell: its place in the grid, dotted key -> value.
    """

    def make(config: Config, run: RunDirectory) -> Tracker | None:
        if mode_of(config) == "disabled":
            return None
        return WandbTracker(config, run, labels(config, group, cell))

    return make


def mode_of(config: Config) -> str:
    """WANDB.MODE; the environment can only make it more private. InputError as said_mode."""
    return min((config.WANDB.MODE, said_mode() or "online"), key=MODES.index)


def said_mode() -> str | None:
    """The mode that WANDB_MODE and WANDB_DISABLED say, in any case and in wandb's older words too;
    None without them.  Raises InputError for a word that is none: what was meant to be private
    must not go online.
    """
    said = {}
    for name, words in _MODE_WORDS.items():
        text = os.environ.get(name, "")
        if text.strip().lower() not in words:
            raise InputError(f"{name} is {text!r}; allowed: {', '.join(filter(None, words))}")
        said[name] = words[text.strip().lower()]
    return min(filter(None, said.values()), key=MODES.index, default=None)


def wandb_problems() -> list[str]:
    """Words of the environment that are none of W&B's."""
    try:
        said_mode()
    except InputError as error:
        return list(error.problems)
    return []


def labels(config: Config, group: str | None, cell: Mapping[str, object] | None) -> dict[str, Any]:
    """Arguments of wandb.init by which people find a run: name, group, job_type, tags.

    Its tags are WANDB.TAGS and the words of its cell; its name is cell and seed.
    """
    training, network = config.TRAINING, config.TRAINING.NETWORK
    words = f"{network.SCHEDULER} {network.TIMESTEPS} {training.PRED_TYPE} {training.LOSS_FN}"
    tags = [cell_name({key: value})[:LONGEST_TAG] for key, value in (cell or {}).items()]
    return {
        "name": f"{cell_name(cell) if cell else words} seed {training.SEED}",
        "group": group,
        "job_type": "training" if group is None else "trial",
        "tags": tuple(tag for tag in dict.fromkeys([*config.WANDB.TAGS, *tags]) if tag),
    }


class ReferenceArtifact(NamedTuple):
    """An artifact of a run that stays where it is.  files: paths of its files.  facts: what W&B
    shows of it, SHA-256 of all of it, and `made_of`, the name of the artifact before it.
    """

    name: str
    type: str
    files: Sequence[Path]
    facts: Mapping[str, object]


def reference_artifacts(run: RunDirectory) -> Iterator[ReferenceArtifact]:
    """The data of a finished run, its last checkpoint, and the samples of that."""
    facts, before = run.provenance, None
    if "data_dir" in facts:
        folder, sha256 = Path(facts["data_dir"]), facts["data_sha256"]
        before = f"data-{sha256[:16]}"
        # The index names the SHA-256 of every shard.
        known = {"path": str(folder), "sha256": sha256}
        yield ReferenceArtifact(before, "dataset", [folder / INDEX_FILE], known)
    folder = checkpoint.folder_of(run.checkpoints, max(checkpoint.steps(run.checkpoints)))
    files = storage.read_json(folder / checkpoint.MANIFEST)["files"]
    known = {"path": str(folder), "made_of": before}
    known |= {f"sha256/{name}": one["sha256"] for name, one in files.items()}
    before = f"checkpoint-{run.run_id}"
    yield ReferenceArtifact(before, "model", [folder / name for name in files], known)
    samples = [run.path / name for name in SAMPLE_FILES if (run.path / name).exists()]
    known = {"path": str(run.path), "made_of": before}
    known |= {
        f"sha256/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in samples
    }
    if samples:
        yield ReferenceArtifact(f"samples-{run.run_id}", "samples", samples, known)


class WandbTracker:
    """The W&B run of a started run directory. No method raises: what fails is logged, once."""

    def __init__(self, config: Config, run: RunDirectory, labels: Mapping[str, Any]) -> None:
        self._directory, self._run, self._next = run, None, 0
        with self._no_error():
            self._run = self._start(config, labels)
            self._next = self._run.starting_step
            memory = read_memory_rows(run.path / "memory.csv")
            for row in run.metrics():
                self._log(row["step"], row | _memory(memory.get(row["step"], {})))

    def log(self, report: RunState) -> None:
        """Shows a report that the run directory has recorded."""
        if report.metrics:
            numbers = {"images": report.images, **report.metrics}
            with self._no_error():
                self._log(report.step, numbers | _memory(memory_usage()))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Adds the evaluation and the summary of a finished run and closes."""
        with self._no_error():
            final = self._log_final()
            if self._directory.config().WANDB.ARTIFACTS:
                try:
                    self._log_references()
                except Exception as error:  # the run has its numbers, and ends well
                    log.warning("W&B: %s; the run ends without its artifacts", first_line(error))
            self._end(0, {**summary, **final})

    def close(self) -> None:
        """Closes; a run that has not finished is shown as failed until it is continued."""
        with self._no_error():
            self._end(75, {})

    @contextmanager
    def _no_error(self) -> Iterator[None]:
        """A tracker may fail in any way, the training must not."""
        try:
            yield
        except Exception as error:
            self._run = None
            log.warning(
                "W&B: %s; this attempt is no longer mirrored, %s has everything",
                first_line(error),
                self._directory.path / METRICS_FILE,
            )

    def _start(self, config: Config, labels: Mapping[str, Any]) -> "wandb.Run":
        """The W&B run, online where that was asked for and a server answers in time."""
        folder = self._directory.path / "wandb"
        storage.make_folder(folder)
        reason = None
        if mode_of(config) == "online":
            deadline = time.monotonic() + START_S
            reason = why_not_online()
            if reason is None:
                try:
                    run = self._init(config, labels, "online", deadline - time.monotonic())
                    facts = {"mode": "online", "reason": None, "url": run.url}
                    storage.write_json(folder / "mirror.json", facts)
                    return run
                except Exception as error:  # whatever keeps it from going online
                    reason = first_line(error)
                    _restart_service()
            log.warning(
                "W&B: %s; logging offline, upload later with `wandb sync %s/offline-run-*`",
                reason,
                folder,
            )
        for old in folder.glob(f"offline-run-*-{self._directory.run_id}"):
            shutil.rmtree(old, ignore_errors=True)
        storage.write_json(folder / "mirror.json", {"mode": "offline", "reason": reason})
        return self._init(config, labels, "offline", START_S)

    def _init(
        self,
        config: Config,
        labels: Mapping[str, Any],
        mode: Literal["online", "offline"],
        timeout_s: float,
    ) -> "wandb.Run":
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            # The command line may hold what is nobody's business; provenance.json has it masked.
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=not config.WANDB.SYSTEM,
            disable_git=True,
            save_code=False,
            init_timeout=timeout_s,
            finish_timeout=FINISH_S,
        )
        run = wandb.init(
            dir=self._directory.path,
            mode=mode,
            id=self._directory.run_id,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            entity=config.WANDB.ENTITY,
            project=config.WANDB.PROJECT,
            config=configuration.to_dict(config),
            settings=settings,
            **labels,
        )
        run.define_metric(STEP, hidden=True)
        run.define_metric(LOGSNR, hidden=True, summary="none")
        run.define_metric(X0_ERROR, step_metric=LOGSNR, summary="none")
        run.define_metric(SAMPLING_STEPS, hidden=True, summary="none")
        run.define_metric(f"{QUALITY}*", step_metric=SAMPLING_STEPS, summary="none")
        run.define_metric("*", step_metric=STEP)
        return run

    def _log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """One step, with the sample grid drawn at it; steps that W&B has already are left out."""
        if self._run is None or step < self._next:
            return
        values = {shown_name(key): v for key, v in numbers.items() if v is not None}
        picture = self._directory.inline_gen / f"step-{step:08d}.png"
        if picture.exists():
            import wandb

            values[SAMPLES] = wandb.Image(str(picture), caption=f"step {step}")
        self._run.log(values | {STEP: step}, step=step)
        self._next = step + 1

    def _log_final(self) -> dict[str, float | None]:
        """The curves of the final network and its samples, behind the rows of training; returns
        the numbers for the summary.
        """
        if self._run is None:
            return {}
        folder = self._directory.path
        evaluation = storage.read_json(folder / EVALUATION_FILE)
        quality = read_quality(folder)
        rows: list[dict[str, Any]] = [*error_rows(evaluation), *quality_rows(quality)]
        if (folder / "samples.png").exists():
            import wandb

            rows.append({FINAL_SAMPLES: wandb.Image(str(folder / "samples.png"))})
        for row in rows:
            self._run.log(row, step=self._next)
            self._next += 1
        return {BITS_PER_DIM: bits_per_dim(evaluation), **final_quality(quality)}

    def _log_references(self) -> None:
        """Artifacts as outputs of the run: offline W&B knows no inputs."""
        if self._run is None:
            return
        import wandb

        for one in reference_artifacts(self._directory):
            artifact = wandb.Artifact(one.name, one.type, metadata=dict(one.facts))
            for file in one.files:
                # Nothing is read: a checksum here would be MD5.
                artifact.add_reference(file.absolute().as_uri(), file.name, checksum=False)
            self._run.log_artifact(artifact)

    def _end(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        run, self._run = self._run, None
        if run is not None:
            names = {key: shown_name(key) if key.startswith("val_") else key for key in summary}
            run.summary.update({names[key]: v for key, v in summary.items() if v is not None})
            run.finish(exit_code=exit_code)


def _restart_service() -> None:
    """Frees the id of a run that could not start; wandb's service holds it until it ends."""
    import wandb

    if wandb.run is None:  # else another run of this process lives on that service
        wandb.teardown()


def _memory(usage: Mapping[str, int]) -> dict[str, int]:
    return {f"memory/{name}": value for name, value in usage.items()}

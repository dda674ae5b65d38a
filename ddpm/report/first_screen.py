"""The first screen of a report: the question, its answer, the next command, and what to doubt."""

from html import escape

from ddpm.measures import MEASURES
from ddpm.report import appendix
from ddpm.report.costs import cost, speed
from ddpm.report.data import Sweep
from ddpm.report.flags import flags, is_confounded
from ddpm.report.labels import duration, number_with_error, size
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.verdict import NAMES, Verdict

_EPOCHS = "TRAINING.HYPER_PARAMETERS.EPOCHS"


def first_screen(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> str:
    """The page's header."""
    kind = "Sweep" if sweep.is_sweep else "Run"
    question = sweep.question[:1].upper() + sweep.question[1:] or sweep.name
    name = f"{kind} {sweep.name}" if sweep.question else kind
    sentences = "".join(
        f"<p>{escape(one).replace(' %', '&nbsp;%')}</p>" for one in verdict.sentences
    )
    return (
        f'<header><div class="kicker"><span>{escape(name)}</span>'
        f"<span>{progress(sweep)}</span></div><h1>{escape(question)}</h1>"
        f'<div class="answer"><p class="headline">{escape(headline(sweep, verdict))}</p>'
        f"{sentences}{_next(sweep, ranking, verdict)}</div>"
        f"{_facts(ranking, verdict, sweep.is_sweep)}{_flags(sweep)}</header>"
    )


def headline(sweep: Sweep, verdict: Verdict) -> str:
    """The verdict's headline; says so when the prediction type carries its loss space along."""
    if verdict.kind == "none" or not is_confounded(sweep.trials):
        return verdict.headline
    return f"{verdict.headline} (Prediction type and loss space vary together.)"


def progress(sweep: Sweep) -> str:
    """`7 of 9 trials finished, 1 failed, 2 cells skipped`."""
    if not sweep.is_sweep:
        return "finished" if sweep.trials[0].status == "done" else "unfinished"
    done, failed = len(sweep.with_status("done")), len(sweep.with_status("failed"))
    parts = [f"{done} of {sweep.planned} trials finished"]
    if failed:
        parts.append(f"{failed} failed")
    for status, words in (("stopped", "ended early"), ("unrun", "left by the budget")):
        if count := len(sweep.with_status(status)):
            parts.append(f"{count} {words}")
    if sweep.skipped:
        parts.append(
            f"{len(sweep.skipped)} {'cell' if len(sweep.skipped) == 1 else 'cells'} skipped"
        )
    return ", ".join(parts)


def _next(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> str:
    """The next command, and the one that makes all this again where that is another one."""
    what, command = next_command(sweep, ranking, verdict)
    shown = _command(what, command) if command else ""
    if sweep.is_sweep and sweep.command and sweep.command != command:
        shown += _command("Run the whole sweep again", sweep.command)
    return shown


def _command(what: str, command: str) -> str:
    return (
        f'<div class="next"><div class="what">{escape(what)}</div><div class="command">'
        f"<code>{escape(command)}</code>"
        '<button type="button" class="copy">copy</button></div></div>'
    )


def next_command(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> tuple[str, str]:
    """What to do next and the command for it; an empty command when there is none."""
    ended = [sweep.with_status(status) for status in ("done", "failed", "stopped")]
    left = sweep.planned - sum(map(len, ended))
    if sweep.is_sweep and left > 0 and sweep.command:
        return (
            f"Unfinished: {left} of {sweep.planned} trials are left. Continue with",
            sweep.command,
        )
    if not sweep.is_sweep:
        run = sweep.trials[0].run_dir or sweep.folder
        return "Generate images from it", f"python launch/sample.py {appendix.shown_path(run)}"
    best = ranking.recommended
    if best is None:
        return "", ""
    trial = next(iter(best.trials.values()))
    config = sweep.best_yaml or (trial.run_dir and trial.run_dir / "training_config.yaml")
    if config is None:
        return "", ""
    epochs = trial.config.get(_EPOCHS)
    longer = f" {_EPOCHS}={10 * epochs}" if isinstance(epochs, int) else ""
    why = {
        "winner": f"Train the winner, {best.label}, ten times as long",
        "none": f"Train {best.label} ten times as long",
    }
    what = why.get(
        verdict.kind,
        f"Train {best.label} ten times as long (lowest sum of both ranks; a choice, not a claim)",
    )
    return what, f"python launch/train.py {appendix.shown_path(config)}{longer}"


def _facts(ranking: Ranking, verdict: Verdict, is_sweep: bool) -> str:
    best = ranking.recommended
    if best is None:
        return ""
    costs = cost(list(best.trials.values()))
    seconds = "" if costs.seconds is None else f"{duration(costs.seconds)} of wall time"
    unit = f"Cost per trial, {costs.unit.removesuffix('-seconds')} time"
    values = [(unit, duration(costs.compute_seconds), seconds)]
    if is_sweep:
        title = {"winner": "Winner", "none": "Cell"}.get(verdict.kind, "Lowest sum of ranks")
        names = {measure: NAMES[measure][0].upper() + NAMES[measure][1:] for measure in MEASURES}
        numbers = [(names[measure], *_value(best, measure)) for measure in MEASURES]
        values = [(title, best.label, ""), *numbers, *values]
    else:
        packed = "packed: others ran beside it" if costs.is_packed else ""
        values.append(("Images per second", speed(costs).rstrip("*"), packed))
        values.append(("Peak memory", size(costs.peak_memory_bytes), ""))
    values = [value for value in values if value[1] != "\u2013"]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in values
    )
    return f'<dl class="facts">{items}</dl>'


def _value(standing: Standing, measure: str) -> tuple[str, str]:
    value, error = number_with_error(standing.value(measure), standing.error(measure))
    kind = "95 % interval over seeds" if len(standing.summaries) > 1 else "evaluation error"
    return value, f"\u00b1 {error} {kind}"


def _flags(sweep: Sweep) -> str:
    found = flags(sweep)
    if not found:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
    return f'<div class="flags"><p>Read with this in mind</p><ul>{items}</ul></div>'

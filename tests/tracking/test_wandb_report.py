"""The W&B report says what the offline one says, and there is one of it however often it is made.

Real wandb and wandb-workspaces; the server is the GraphQL of tests/support/wandb_server.py on
loopback, which keeps what it is sent; wandb-workspaces' own models read it back.
"""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm import report
from ddpm.cli.report import main
from ddpm.config import X0_MEASURES
from ddpm.errors import run_main
from ddpm.tracking import wandb_report
from ddpm.tracking.wandb_report import Place, build_report, specification
from tests.report.test_report import change, outcome, run_dir
from tests.support.known_sweeps import PRED_TYPE, SCHEDULER
from tests.support.synthetic_sweep import make_sweep
from tests.support.wandb_server import Server, serving
from tests.tracking.test_wandb_labels import write_quality

pytestmark = pytest.mark.slow

KEY = "local" + "c" * 35
PLACE = ("me", "ddpm")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login but one that a test makes."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT_DIR with a sweep of two schedules, two prediction types and two seeds."""
    output_dir = tmp_path_factory.mktemp("wandb-report")
    grid = {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["noise", "velocity"]}
    plain = {"inline": 0, "has_quality": False, "has_bits": False, "has_references": True}
    make_sweep(output_dir, grid, (0, 1), rows=8, **plain)  # type: ignore[arg-type]
    return output_dir


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The sweep folder of a copy of its own."""
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out" / "sweeps" / "tiny"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has the sweep's runs, and a login for it."""
    with serving(Server(key=KEY)) as found:
        for path in sorted((folder / "ledger").glob("*.json")):
            found.add_run(PLACE, path.stem, "tiny", {"loss": 0.5})
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield found


def made(folder: Path) -> int:
    """The exit code of the command line."""
    return run_main(lambda: main([str(folder), "--wandb"]))


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / wandb_report.FILE).read_text())


def spec(server: Server) -> dict[str, Any]:
    """The specification of the one report on the server."""
    (view,) = server.views.values()
    return json.loads(view["spec"])


def grids(blocks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The grid of panels below each heading."""
    found, title = {}, ""
    for block in blocks:
        if block["type"] == "heading":
            title = block["children"][0]["text"]
        elif block["type"] == "panel-grid":
            found[title] = block["metadata"]
    return found


def test_its_sections_are_those_of_the_page_and_its_words_those_of_the_verdict(
    folder: Path,
) -> None:
    built = report.build(folder)
    wanted = specification(built)
    assert list(wanted.sections) == ["Answer", *(section.title for section in built.sections)]
    for sentence in (built.verdict.headline, *built.verdict.sentences):
        assert sentence in wanted.sections["Answer"]
    lines = wanted.sections["Ranking"].splitlines()
    cells = [line.split("|")[2].strip() for line in lines if line[:1] == "|"]
    places = [cells.index(standing.label) for standing in built.ranking.standings]
    assert places == sorted(places) and len(places) == 4


def panels_of(built: report.ReportFiles) -> dict[str, Any]:
    """The grid of panels below each section."""
    found, title = {}, ""
    for block in build_report(
        built, specification(built), [Place(entity="me", project="p")]
    ).blocks:
        title = block.text if type(block).__name__ == "H1" else title
        if type(block).__name__ == "PanelGrid":
            found[title] = block
    return found


@pytest.mark.parametrize("kind", ["all there is", "nothing measured", "one run", "a bare run"])
def test_its_sections_are_those_of_the_page_whatever_there_is(kind: str, tmp_path: Path) -> None:
    is_full = kind in ("all there is", "one run")
    grid = {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["noise", "velocity"]}
    folder = make_sweep(tmp_path, grid, (0, 1), rows=10, has_quality=is_full, failing=1)
    (folder / "race.json").write_text('{"of": 4, "looks": [{"seeds": 2, "racing": ["a", "b"]}]}')
    if not is_full:
        for path in tmp_path.glob("digits_8x8x1/*/*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "run" in kind:
        folder = next(iter(sorted(tmp_path.glob("digits_8x8x1/*"))))
        (folder / "training_config.yaml").touch()
    built = report.build(folder)
    on_the_page = re.findall(r"<h2>(.*?)</h2>", built.html.read_text().partition("<footer>")[0])
    assert list(specification(built).sections) == ["Answer", *on_the_page]
    assert len(on_the_page) == {"all there is": 15, "one run": 8}.get(kind, len(on_the_page))


def test_every_panel_draws_what_runs_log(folder: Path) -> None:
    found = panels_of(report.assess(folder))
    panels = [panel for grid in found.values() for panel in grid.panels]
    kinds = {type(panel).__name__ for panel in panels}
    assert kinds == {
        *("ParallelCoordinatesPlot", "BarPlot", "LinePlot"),
        *("MediaBrowser", "ScatterPlot", "RunComparer"),
    }
    drawn = {
        str(name) for panel in panels if type(panel).__name__ == "LinePlot" for name in panel.y
    }
    for name in ("x0_error", "train/loss", "train/v_loss", "memory/process_rss"):
        assert any(f"'{name}'" in one or one == name for one in drawn), (name, drawn)
    grouped = [title for title, grid in found.items() if grid.runsets[0].groupby]
    assert grouped == ["x0-error by noise level", "Training curves"]


def test_samples_measured_over_sampling_steps_have_a_panel_and_a_column(folder: Path) -> None:
    write_quality(run_dir(folder, 5))
    (run_dir(folder, 6) / "sample_quality.json").write_text('{"points": "of another format"}')
    built = report.assess(folder)
    panels = panels_of(built)["Samples over sampling steps"].panels
    assert [panel.title for panel in panels] == ["fid", "accuracy"]
    assert "quality/fid ddim eta=0" in str(panels[0].y)
    assert "quality/accuracy ddim eta=1" in str(panels[1].y)
    columns = specification(built).columns
    assert "quality/fid" in columns and columns[0].startswith("sweep/")


@pytest.mark.parametrize("why", ["no login", "offline", "disabled"])
def test_without_a_server_the_specification_is_written_and_it_says_how_to_publish(
    why: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if why != "no login":
        monkeypatch.setenv("WANDB_MODE", why)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody: it is not asked
    logged = run_dir(folder, 3) / "wandb" / "offline-run-20260101_000000-00000003"
    logged.mkdir(parents=True)
    assert made(folder) == 0
    said = capsys.readouterr().out
    reason = "no API key" if why == "no login" else f"WANDB_MODE is {why}"
    assert f"W&B report: not published, {reason}" in said
    assert f"xargs -d '\\n' wandb sync < {folder / wandb_report.UPLOADS}" in said
    assert f"publish with: ddpm report {folder} --wandb" in said
    assert (folder / wandb_report.UPLOADS).read_text() == f"{logged}\n"
    assert written(folder)["published"] is None and len(written(folder)["sections"]) == 11
    (logged / "run-00000003.wandb.synced").touch()
    made(folder)
    assert "wandb sync" not in capsys.readouterr().out


def test_a_second_call_updates_the_same_report(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(folder) == 0
    (first,) = server.views
    said = capsys.readouterr().out
    url = written(folder)["published"]["url"]
    assert said.endswith(f"W&B report: {url}\n") and first.rstrip("=") in url
    assert server.asked.count("UpsertBucket") == 8

    change(outcome(folder, 0), status="failed", reason="out of memory | <b>at step 3</b>")
    assert made(folder) == 0
    assert list(server.views) == [first]
    texts = " ".join(block.get("content", "") for block in spec(server)["blocks"])
    assert "out of memory \\| \\<b\\>at step 3" in texts
    assert server.runs[PLACE]["00000000"]["summary"][f"sweep/{X0_MEASURES[0]}"] is None  # no longer

    (folder / wandb_report.FILE).unlink()  # the file is lost: it is known by its title
    assert made(folder) == 0
    assert list(server.views) == [first]
    server.views.clear()  # it was deleted there: a new one
    assert made(folder) == 0
    assert len(server.views) == 1
    made(run_dir(folder, 1))  # a run's is another
    assert sorted(view["displayName"] for view in server.views.values()) == [
        "Run run_00000001",
        "Sweep tiny",
    ]


def test_the_table_of_the_server_ranks_as_the_report_does(folder: Path, server: Server) -> None:
    made(folder)
    ranking = report.assess(folder).ranking
    runs = server.runs[PLACE]
    for standing in ranking.standings:
        for seed, trial in standing.trials.items():
            for measure in X0_MEASURES:
                number = runs[trial.name]["summary"][f"sweep/{measure}"]
                assert number == standing.numbers[measure][seed].value
    assert all(run["summary"]["loss"] == 0.5 for run in runs.values())

    shown = grids(spec(server)["blocks"])
    table = shown["Ranking"]["runSets"][0]
    assert not shown["Ranking"]["hideRunSets"] and shown["Samples"]["hideRunSets"]
    (order,) = table["sort"]["keys"]
    assert order == {
        "key": {"section": "summary", "name": f"sweep/{X0_MEASURES[0]}"},
        "ascending": True,
    }
    (wanted,) = table["filters"]["filters"]
    assert (wanted["key"]["name"], wanted["value"]) == ("group", "tiny")
    columns = table["runFeed"]["columnOrder"]
    assert columns[:4] == [
        "run:displayName",
        "config:TRAINING.value.NETWORK.SCHEDULER",
        "config:TRAINING.value.PRED_TYPE",
        f"summary:sweep/{X0_MEASURES[0]}",
    ]
    grouped = shown["x0-error by noise level"]["runSets"][0]["grouping"]
    assert [key["name"] for key in grouped] == [
        "TRAINING.value.NETWORK.SCHEDULER",
        "TRAINING.value.PRED_TYPE",
    ]
    assert not table["grouping"]


def test_wandbs_own_models_know_every_block(folder: Path, server: Server) -> None:
    from wandb_workspaces.reports.v2 import interface, internal

    made(folder)
    read = internal.Spec.model_validate(spec(server))
    blocks = [interface._lookup(block) for block in read.blocks]
    assert not [block for block in blocks if isinstance(block, interface.UnknownBlock)]
    panels = [p for block in blocks if isinstance(block, interface.PanelGrid) for p in block.panels]
    wanted = wandb_report.panels(report.assess(folder))
    titles = written(folder)["sections"]
    assert len(panels) == sum(len(some) for title, some in wanted.items() if title in titles)
    assert not [panel for panel in panels if isinstance(panel, interface.UnknownPanel)]


def test_what_the_server_lacks_or_has_besides_is_said(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.runs[PLACE]["00000002"]
    server.add_run(PLACE, "ffffffff", "tiny", {})
    assert made(folder) == 0
    said = capsys.readouterr().out
    assert "runs on the server: 7 of 8" in said
    assert "runs of no trial in W&B's group tiny" in said and "this name: 1;" in said
    assert server.runs[PLACE]["ffffffff"]["summary"] == {}


def no_project(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.runs.clear()


def no_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.runs[PLACE].clear()


def wrong_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "local" + "d" * 35)


def no_key_at_all(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "c" * 9)


def no_entity(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.entity = None


def nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")


MISTAKES = {
    no_project: "me/ddpm on .* cannot be read; .*Could not find project ddpm",
    no_runs: "none of the 8 runs of Sweep tiny is in me/ddpm; .*WANDB.MODE=disabled",
    wrong_key: "does not take the login; run `wandb login --relogin`",
    no_key_at_all: "does not take the login; .*40",
    no_entity: "whose project ddpm is, is not known: .*set WANDB_ENTITY",
    nobody: "cannot be reached .*run the same command again",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_failure_says_what_to_do_and_the_offline_report_is_there(
    mistake: Any,
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    mistake(server, monkeypatch)
    assert made(folder) == 2
    said = capfd.readouterr()
    assert re.search(f"error: W&B: .*{MISTAKES[mistake]}", said.err), said.err
    assert "Traceback" not in said.err and not server.views
    assert (folder / "report.html").exists() and written(folder)["published"] is None
    secrets = (KEY, "d" * 35, "c" * 9)
    assert not any(secret in said.out + said.err for secret in secrets)
    for path in folder.iterdir():
        assert path.is_dir() or not any(one.encode() in path.read_bytes() for one in secrets)

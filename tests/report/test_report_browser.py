"""The report in a real browser: no console error, and its few interactive parts work."""

import html
import json
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ddpm import report
from tests.support.known_sweeps import GRID_9, PRED_TYPE, TIMESTEPS
from tests.support.synthetic_sweep import LEARNING_RATE, make_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow
FLAGS = (
    "--headless --no-sandbox --virtual-time-budget=30000 --disable-gpu --disable-quic "
    "--no-first-run --disable-sync --disable-background-networking --disable-component-update "
    "--enable-logging=stderr"
).split()


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what it wrote to the console."""
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str, tmp_path: Path) -> Path:
    """A copy of the page that runs `script` at its end."""
    copy = tmp_path / "page.html"
    before, end, after = page.read_text().rpartition("</body>")
    copy.write_text(f"{before}<script>{{{script}}}</script>{end}{after}")  # a scope of its own
    return copy


# What a reader does on the page, and what is then to be seen: one browser for all of it.
ACTIONS = """
  const found = {};
  const $ = (selector, root = document) => root.querySelector(selector);
  const shown = (element) => getComputedStyle(element).display !== "none";
  const film = $("#samples-over-training .film");
  const cells = [...film.querySelectorAll("td")];
  const pictures = () => cells.filter(shown).map((cell) => $("img", cell).alt);
  const slider = $("input", film);
  found.last = pictures();
  slider.value = 0; slider.dispatchEvent(new Event("input")); found.earliest = pictures();
  $("button", film).click(); found.together = pictures().length; $("button", film).click();

  const paper = () => getComputedStyle(document.body).backgroundColor;
  found.colours = [paper()]; $("button.theme").click(); found.colours.push(paper());
  found.inside = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
  dispatchEvent(new Event("beforeprint"));
  const charts = [...document.querySelectorAll(".chart")];
  const settled = () => charts.every((one) => one.dataset.drawn === "drawn");
  found.folded = document.querySelectorAll("details:not(.data):not([open])").length;
  const finish = () => {
    if (!settled()) return setTimeout(finish, 50);
    found.charts = charts.map((one) => one.querySelectorAll("svg path").length > 0);
    found.legends = $("#x0-error-by-noise-level").querySelectorAll(".role-legend-symbol").length;
    found.over = document.querySelectorAll("#training-curves input[type=radio]").length;
    found.unnamed = [...document.querySelectorAll("button, input")].filter((one) =>
      !(one.innerText || one.title || one.name || one.labels?.length)).length;
    console.log("all done");
    document.title = JSON.stringify(found);
  };
  finish();
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Findings of ACTIONS on the page of six cells with two seeds, which writes nothing else to the
    console.
    """
    folder = tmp_path_factory.mktemp("actions")
    grid = {**GRID_9, PRED_TYPE: ["noise", "velocity"]}
    page = report.build(make_sweep(folder, grid, (0, 1), rows=20, inline=3)).html
    document, (said,) = opened(with_script(page, ACTIONS, folder), folder / "profile")
    assert "all done" in said
    title = re.search(r"<title>(.*?)</title>", document, flags=re.DOTALL)
    assert title is not None
    return dict(json.loads(html.unescape(title[1])))


def test_every_chart_is_drawn_with_its_legend_and_its_x_axis_can_be_picked(
    found: dict[str, Any],
) -> None:
    assert found["charts"] == [True] * 6
    assert found["legends"] == 2  # noise and velocity
    assert found["over"] == 6  # steps, wall time, compute: of measures and of losses


def test_the_slider_moves_all_trials_to_one_moment(found: dict[str, Any]) -> None:
    assert len(found["last"]) == len(found["earliest"]) == 6 and found["together"] == 18
    assert all(words.endswith("optimizer step 200") for words in found["last"])
    assert all(words.endswith("optimizer step 66") for words in found["earliest"])


def test_the_theme_is_switched_and_nothing_sticks_out(found: dict[str, Any]) -> None:
    assert len(set(found["colours"])) == 2 and found["inside"]


def test_paper_shows_what_is_folded_and_every_control_has_a_name(found: dict[str, Any]) -> None:
    assert found["folded"] == 0 and found["unnamed"] == 0


def seconds_of(page: str, profile: Path) -> float:
    """Processor time of a browser that opens the page: not how loaded the machine is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page]
    subprocess.run(command, capture_output=True, timeout=240, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.long
def test_a_thousand_trials_open_at_once_and_can_be_searched(tmp_path: Path) -> None:
    rates = [k / 1e4 for k in range(1, 13)]
    grid = {**GRID_9, TIMESTEPS: [50, 250, 1000], LEARNING_RATE: rates}
    made = report.build(
        make_sweep(tmp_path, grid, (0, 1, 2), runs=12, shape=(64, 64, 3), rows=40, failing=10)
    )
    assert len(made.sweep.trials) == 972 and made.html.stat().st_size < 25e6
    script = """
      const field = document.querySelector(".filter input");
      field.value = "COS6 noise"; field.dispatchEvent(new Event("input"));
      const every = [...document.querySelectorAll("#ranking tbody tr")];
      const rows = every.filter((row) => row.checkVisibility());
      const right = rows.every((row) => row.textContent.includes("cos6 \u00b7 noise"));
      document.title = `${rows.length} ${right}`;
    """
    document, console = opened(with_script(made.html, script, tmp_path), tmp_path / "profile")
    assert console == [] and "<title>36 true</title>" in document
    blank = seconds_of("about:blank", tmp_path / "profile")
    assert seconds_of(made.html.as_uri(), tmp_path / "profile") - blank < 2

"""The report in a real browser: no console error, and its few interactive parts work."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ddpm import report
from tests.tiny_sweep import PRED_TYPE, make_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr"
).split()


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what it wrote to the console."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grid = {PRED_TYPE: ["noise", "velocity"]}
    return report.build(make_sweep(tmp_path_factory.mktemp("b"), grid, steps=8, num=8)).html


def with_script(page: Path, script: str, tmp_path: Path) -> Path:
    """A copy of the page that runs `script` at its end."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_it_opens_without_a_console_message(page: Path, tmp_path: Path) -> None:
    document, console = opened(page, tmp_path / "profile")
    assert console == []
    assert '<div id="tip"' in document  # its script ran


def test_a_console_error_would_be_seen(page: Path, tmp_path: Path) -> None:
    broken = with_script(page, "missing();", tmp_path)
    assert any("missing is not defined" in line for line in opened(broken, tmp_path / "p")[1])


def test_a_legend_button_hides_its_curve_and_shows_it_again(page: Path, tmp_path: Path) -> None:
    script = """
      const button = document.querySelector('.legend button[data-series="noise"]');
      const count = () => button.closest("section").querySelectorAll("g.s.off").length;
      button.click(); const hidden = count(); button.click();
      document.title = `hidden ${hidden} then ${count()}`;
    """
    document, console = opened(with_script(page, script, tmp_path), tmp_path / "profile")
    assert console == [] and "<title>hidden 1 then 0</title>" in document


def test_a_point_shows_its_value(page: Path, tmp_path: Path) -> None:
    script = """
      const point = document.querySelector("[data-tip]");
      point.dispatchEvent(new PointerEvent("pointermove", {bubbles: true}));
      document.title = document.querySelector("#tip").textContent;
    """
    document, _ = opened(with_script(page, script, tmp_path), tmp_path / "profile")
    assert "log SNR" in document[document.index("<title>") : document.index("</title>")]

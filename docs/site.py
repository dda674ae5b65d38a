"""The hook of `make site` (mkdocs.yml): the pages lie in the site as they lie in the repository.

A link of a page to another page, to a source file or to a picture is so a link of the site too.
Links to folders, which are no page, become their text. REPORT names the folder of a sweep whose
report.html is shown; where there is none, the picture of one is.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / os.environ.get("REPORT", "") / "report.html"
EMBEDDED = (
    '[Alone](live.html)\n\n<iframe src="live.html" style="width:100%;height:80vh"></iframe>\n'
)
PICTURE = (
    "![report](docs/pictures/report.png)\n\n`make sweep`, then `make site`, show a live one.\n"
)


def on_config(config: MkDocsConfig) -> None:
    """Pages of docs/ that mkdocs.yml does not place come last."""
    placed, pages = str(config.nav), sorted((ROOT / "docs").glob("*.md"))
    config.nav += [{page.stem: f"docs/{page.name}"} for page in pages if page.name not in placed]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every file that git knows or would add, in place of those of docs/, and the report's page."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for path in subprocess.check_output(command, cwd=ROOT, text=True).splitlines():
        is_template = path.startswith("ddpm/") and path.endswith(".md")
        if (ROOT / path).is_file() and not path.startswith(".") and not is_template:
            files.append(File(path, str(ROOT), config.site_dir, use_directory_urls=False))
    shown = EMBEDDED if REPORT.is_file() else PICTURE
    files.append(File.generated(config, "report.md", content=f"# A report\n\n{shown}"))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    folder = (ROOT / page.file.src_uri).parent
    return re.sub(
        r"\[([^\]]+)\]\(([^)#:]+)\)",
        lambda link: link[1] if (folder / link[2]).is_dir() else link[0],
        markdown,
    )


def on_post_build(config: MkDocsConfig) -> None:
    if REPORT.is_file():
        shutil.copyfile(REPORT, Path(config.site_dir) / "live.html")

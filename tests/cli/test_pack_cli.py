import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm import config
from ddpm.cli import main, pack
from ddpm.data import preparing
from ddpm.data.index import open_index
from ddpm.errors import InputError
from ddpm.runs.pictures import BACKGROUND, GAP, LINE, TILE
from tests.support.shard_data import assert_holds, cifar_archive, picture, write_tar
from tests.support.tree import ROOT


def command(*arguments: object) -> int:
    """The exit code of the command as a user gives it, in this process."""
    return main.launch("pack", [str(word) for word in arguments])


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "in.npz"
    np.savez(path, images=np.zeros((50, 4, 4), np.uint8), kind=np.arange(50) % 3)
    return path


def test_the_last_line_says_where_how_many_and_how_large(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [str(npz), str(out), "--label-key", "kind", "--samples-per-shard", "20"]
    for _ in range(2):  # the second time it is there already
        assert pack.main(arguments) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"{out}: 50 images of 4x4, 1 channel, 3 classes, in 3 shards (")
        assert "MB" in last
    assert open_index(out).num_samples == 50


def test_label_key_null_packs_no_labels(tmp_path: Path, npz: Path) -> None:
    assert pack.main([str(npz), str(tmp_path / "out"), "--label-key", "null"]) == 0
    assert open_index(tmp_path / "out").num_classes is None


def test_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pack.main([str(npz), str(out), "--label-key", "kind", "--dry-run"]) == 0
    assert "would pack 50 images" in capsys.readouterr().out
    np.savez(npz, images=np.full((50, 4, 4), np.nan), kind=np.arange(50))
    with pytest.raises(InputError, match="nan"):
        pack.main([str(npz), str(out), "--label-key", "kind", "--dry-run"])
    assert not out.exists()


def test_verify_finds_damage(tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert pack.main([str(npz), str(out), "--label-key", "kind", "--verify"]) == 0
    assert pack.main([str(out), "--verify"]) == 0
    assert "every byte" in capsys.readouterr().out
    shard = next(out.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        pack.main([str(out), "--verify"])


def test_foreign_shards_are_indexed_in_place_or_packed_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, folder = picture(np.zeros((4, 4), np.uint8)), tmp_path / "in"
    folder.mkdir()
    write_tar(folder / "a.tar", [("1.png", image), ("2.png", image)])
    assert pack.main([str(folder), "--dry-run"]) == 0
    assert not (folder / "index.json").exists()
    assert pack.main([str(folder)]) == 0
    assert "2 images" in capsys.readouterr().out.splitlines()[-1]
    write_tar(folder / "b.tar", [("3.png", image)])
    assert pack.main([str(folder)]) == 0
    assert open_index(folder).num_samples == 3
    with pytest.raises(InputError, match="inside the source"):
        pack.main([str(folder), str(folder / "out")])
    for _ in range(2):  # the second time it is there already
        assert pack.main([str(folder), str(tmp_path / "out"), "--grey", "rgb"]) == 0
    index = open_index(tmp_path / "out")
    assert (index.num_samples, index.channels, index.is_shuffled) == (3, 3, True)


def test_bad_input_is_exit_code_2_with_one_line_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    assert command(tmp_path / "in", tmp_path / "out") == 2
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()  # rich before 14.3 leaves an empty line
    assert shown.out == ""
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "a.png: empty file" in lines[0] and "b.png: not a readable" in lines[1]
    assert not (tmp_path / "out").exists()
    assert command(tmp_path / "in") == 2
    with pytest.raises(SystemExit, match="^2$"):
        command()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_exit_code_5(tmp_path: Path, npz: Path) -> None:
    # Root may write anywhere, unless it gives up just that.
    humble = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    tmp_path.chmod(0o500)
    by = humble if os.geteuid() == 0 else []
    words = [*by, sys.executable, ROOT / "launch" / "pack.py", npz, tmp_path / "out"]
    shown = subprocess.run([*words, "--label-key", "kind"], capture_output=True, text=True)
    tmp_path.chmod(0o700)
    assert shown.returncode == 5 and str(tmp_path / "out") in shown.stderr


def test_a_place_that_cannot_be_made_is_exit_code_5(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(npz, "/proc/nowhere/out", "--label-key", "kind") == 5
    assert "/proc/nowhere" in capsys.readouterr().err


def test_cifar10_is_packed_to_where_its_configuration_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz")
    assert command("cifar10", "cifar-10-binary.tar.gz") == 0
    assert "40 images of 32x32, 3 channels, 10 classes" in capsys.readouterr().out
    shipped = config.load(ROOT / "configs" / "cifar10.yaml")
    assert preparing.source_problems(shipped) == []
    assert command("cifar10") == 2 and "needs its FILE" in capsys.readouterr().err


def test_conversions_are_said_and_what_changes_nothing_is_refused(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [npz, out, "--label-key", "null", "--resize", "2x3", "--filter", "box", "--grey", "rgb"]
    assert command(*words, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "50 image(s) cropped and resized to 2x3, box" in shown
    assert "50 image(s) grey made RGB" in shown and "1 array(s) not read: kind" in shown
    assert command(*words) == 0 and open_index(out).image_shape == (3, 2, 3)
    for wrong, word in (
        (("--alpha", "white"), "--alpha changes nothing"),
        (("--classes", "a,b"), "--classes changes nothing"),
        (("--filter", "box"), "--filter is of --resize"),
        (("--resize", "0x4"), "--resize is '0x4'"),
    ):
        assert command(npz, tmp_path / "no", "--label-key", "kind", *wrong) == 2
        assert word in capsys.readouterr().err
    assert command(out, "--grey", "rgb") == 2 and not (tmp_path / "no").exists()


def test_a_preview_shows_images_after_their_conversions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, picture_file = tmp_path / "in", tmp_path / "seen.png"
    colours = {"ant": (250, 0, 0), "bee": (0, 250, 0)}
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        pixels = np.full((20, 12, 3), colour, np.uint8)
        for number in range(3):
            (folder / name / f"{number}.png").write_bytes(picture(pixels))
    assert command(folder, "--resize", "6", "--preview", picture_file) == 0
    said = capsys.readouterr().out
    assert "6 image(s) cropped and resized to 6x6" in said and "6 images" in said
    seen = np.asarray(Image.open(picture_file)).astype(int)
    middle = GAP + TILE // 2
    row = [tuple(seen[middle, GAP + n * (TILE + GAP) + TILE // 2]) for n in range(6)]
    assert row == [colours["ant"]] * 3 + [colours["bee"]] * 3  # by class
    assert (seen[GAP + TILE : GAP + TILE + LINE] > BACKGROUND + 64).any()  # their names
    assert command(folder, "--preview", tmp_path / "seen.txt") == 2
    # Beside packing; and shards, which then stay without an index.
    assert command(folder, tmp_path / "out", "--preview", picture_file) == 0
    assert command(tmp_path / "out", "--preview", tmp_path / "shards.png") == 0
    first, again = (Image.open(path).tobytes() for path in (picture_file, tmp_path / "shards.png"))
    assert len(first) == len(again)


def test_edms_zip_is_written_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "in.npz", images=images, labels=labels, flat=images[:, :3])
    for name in ("a.zip", "b.zip"):
        assert command(tmp_path / "in.npz", tmp_path / name) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
        listed = json.loads(archive.read("dataset.json"))["labels"]
        assert listed[29] == ["00000/img00000029.png", 2]
    assert command(tmp_path / "a.zip", tmp_path / "out") == 0
    assert_holds(open_index(tmp_path / "out"), images, labels)
    capsys.readouterr()
    assert command(tmp_path / "in.npz", tmp_path / "a.zip") == 2
    assert "is there already" in capsys.readouterr().err
    assert command(tmp_path / "in.npz", tmp_path / "c.zip", "--image-key", "flat") == 2
    assert "EDM reads square" in capsys.readouterr().err and not (tmp_path / "c.zip").exists()


def test_a_command_that_an_error_advises_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "it's a file.tar", [])
    assert command("cifar10", path) == 2
    (advised,) = re.findall("`(.*)`", capsys.readouterr().err)
    assert shlex.split(advised) == ["ddpm", "pack", str(path), "OUT_DIR"]


def test_cifar10_takes_cifar10_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds = write_tar(tmp_path / "birds.tar", [("1.png", picture(np.zeros((4, 4), np.uint8)))])
    assert command("cifar10", birds, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "is not CIFAR-10's binary archive" in said and f"ddpm pack {birds} OUT_DIR" in said
    assert command("cifar10", tmp_path / "none.tar.gz", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_zip_has_a_preview_a_summary_and_no_options_of_shards(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [npz, tmp_path / "out.zip", "--label-key", "kind"]
    assert command(*words, "--verify", "--samples-per-shard", "0") == 2
    assert "--verify, --samples-per-shard: of shards, not of a ZIP" in capsys.readouterr().err
    assert command(*words, "--preview", tmp_path / "none" / "seen.png") == 2
    assert f"folder {tmp_path / 'none'} of --preview does not exist" in capsys.readouterr().err
    assert command(*words, "--dry-run") == 0
    assert f"into {words[1]}; nothing was written" in capsys.readouterr().out
    assert not words[1].exists()
    assert command(*words, "--preview", tmp_path / "seen.png") == 0
    seen, last = capsys.readouterr().out.splitlines()
    assert seen == f"{tmp_path / 'seen.png'}: all 50 images" and (tmp_path / "seen.png").exists()
    assert last.startswith(f"{words[1]}: 50 images of 4x4, 1 channel, 3 classes")
    np.savez(npz, images=np.zeros((65, 4, 4), np.uint8))
    assert command(npz, "--label-key", "null", "--preview", tmp_path / "seen.png") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'seen.png'}: 64 of 65 images\n"


def test_a_dry_run_refuses_what_packing_into_a_zip_would(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for part in ("train", "val"):
        (folder / part / "cat").mkdir(parents=True)
        pixels = np.zeros((4, 4), np.uint8)
        (folder / part / "cat" / "1.png").write_bytes(picture(pixels))
    np.savez(npz, images=np.zeros((5, 4, 6), np.uint8))
    out = tmp_path / "out.zip"
    for option in ([], ["--dry-run"]):
        assert command(folder, out, *option) == 2
        assert f"`ddpm pack {folder / 'train'} {out}`" in capsys.readouterr().err
        assert command(npz, out, "--label-key", "null", *option) == 2
        assert "EDM reads square" in capsys.readouterr().err
    assert command(folder / "train", out) == 0


def test_a_failed_packing_leaves_whole_copies_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    image, source, out = picture(np.zeros((4, 4), np.uint8)), tmp_path / "in", tmp_path / "a" / "b"
    source.mkdir()
    (source / "0.tar.gz").write_bytes(gzip.compress(b"<html>log in</html>"))
    assert command(source, out) == 2
    assert "is no tar (it begins `<html>log `)" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    whole = write_tar(tmp_path / "whole.tar", [("1.png", image)]).read_bytes()
    (source / "1.tar.gz").write_bytes(gzip.compress(whole))
    assert command(source, out) == 2
    (kept,) = (out / ".staged").iterdir()
    assert kept.read_bytes() == whole and "keeps 1 whole shard(s)" in caplog.text
    (source / "0.tar.gz").unlink()
    assert command(source, out) == 0 and not (out / ".staged").exists()

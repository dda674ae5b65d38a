"""One host of the lab: a process tree in Linux namespaces of its own, held by one `unshare`."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
NAMESPACES = ("net", "uts", "ipc", "mount", "pid")


class LabError(RuntimeError):
    """The lab did not do what it was asked; the text says where to look."""


def slowness() -> float:
    """How many processes want each core just now, 1 at least: so much longer everything takes."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def patience(seconds: float) -> float:
    """A ceiling against hanging alone, for work of so many seconds on an idle machine."""
    return 3 * seconds * slowness()


def wait_until(what: str, true: Callable[[], object], seconds: float) -> None:
    """Ask every 50 ms until it is true; LabError after so many seconds of an idle machine."""
    left, last = 3 * seconds, time.monotonic()
    while not true():
        if left < 0:
            raise LabError(f"{what}: not within {seconds:g} s, three times over")
        time.sleep(0.05)
        now = time.monotonic()
        left, last = left - (now - last) / slowness(), now


@dataclass(frozen=True)
class Host:
    """A host by its name, and the lab's folder, which it shares with the others."""

    lab: Path
    name: str

    @property
    def own(self) -> Path:
        """The host's folder: its logs, and as `tmp` what it sees as /tmp."""
        return self.lab / "hosts" / self.name

    def process(self) -> psutil.Process | None:
        """The host's process 1, seen from outside; None where the host is off."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if words[0] == "unshare" and words[-2:] == [str(self.lab), self.name]:
                inside = process.children()
                return inside[0] if inside else None
        return None

    def pid(self) -> int:
        """Number of process 1, seen from outside. LabError where the host is off."""
        process = self.process()
        if process is None:
            raise LabError(f"host {self.name} of the lab in {self.lab} is off")
        return process.pid

    def tree(self) -> list[psutil.Process]:
        """Every process of the host but process 1; none where the host is off."""
        process = self.process()
        return process.children(recursive=True) if process else []

    def runs(self, daemon: str) -> bool:
        """Whether a program of this name runs on the host."""
        return any(process.name() == daemon for process in self.tree())

    def command(self, *words: object, cwd: Path = REPOSITORY) -> list[str]:
        """The words that run a command on the host, outside any job."""
        enter = ["nsenter", "--target", str(self.pid()), "--all", "env", f"--chdir={cwd}"]
        return [*enter, *map(str, words)]

    def environment(self) -> dict[str, str]:
        """A login's: the system's programs, and a home folder that all hosts share."""
        path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
        return os.environ | {"HOME": str(self.lab / "shared" / "home"), "PATH": path}

    def run(
        self, *words: object, cwd: Path = REPOSITORY, check: bool = True, seconds: int = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end. LabError if it fails and `check`."""
        done = subprocess.run(
            self.command(*words, cwd=cwd),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(seconds),
        )
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr)[-2000:]
            raise LabError(f"{self.name}: {words[0]} ended with {done.returncode}: {said}")
        return done

    def boot(self, *, tied: bool) -> None:
        """Switch the host on, without network or daemons. `tied`: it goes off when we die."""
        self.own.mkdir(parents=True, exist_ok=True)
        ready, log = self.own / "ready", self.own / "host.log"
        ready.unlink(missing_ok=True)
        tie = ["setpriv", "--pdeathsig", "KILL"] if tied else []
        flags = [*(f"--{kind}" for kind in NAMESPACES), "--fork", "--kill-child", "--mount-proc"]
        init = ["bash", str(HERE / "host.sh"), str(REPOSITORY), str(self.lab), self.name]
        with log.open("wb") as output:
            subprocess.Popen(
                [*tie, "unshare", *flags, *init],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(f"{self.name} boots (see {log})", ready.exists, 20)

    def crash(self) -> None:
        """Power loss: everything on the host ends at once."""
        process = self.process()
        if process is None:
            return
        holder = process.parent()
        process.kill()
        wait_until(f"{self.name} goes off", lambda: holder is None or _ended(holder), 10)

    def kill(self, daemon: str) -> None:
        """kill -9 of a daemon; what it had started goes on. LabError if it does not run."""
        found = [process for process in self.tree() if process.name() == daemon]
        if not found:
            raise LabError(f"{daemon} does not run on {self.name}")
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=5)


def _ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

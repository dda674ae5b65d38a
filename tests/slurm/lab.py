"""A real SLURM cluster of three nodes on one Debian machine, as root.

`ctl` has slurmctld, slurmdbd with its database, and the bridge that n1, n2 and n3 hang on. When the
hosts are switched off, their processes, mounts and network interfaces are gone.

by hand, from the repository, as root:
  python -m tests.slurm.lab up                 # seconds; the first time it installs packages
  python -m tests.slurm.lab enter              # a shell on ctl, where sbatch, squeue, ... work
  python -m tests.slurm.lab enter n2 ps ax     # a command on a node
  python -m tests.slurm.lab crash n3           # or boot, cut, plug, kill-slurmd, start-slurmd
  python -m tests.slurm.lab kill-slurmctld     # or start-slurmctld
  python -m tests.slurm.lab down
"""

import argparse
import os
import secrets
import shutil
import stat
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm import packages
from tests.slurm.hosts import HERE, Host, LabError, wait_until

NET = "10.78.0"
NODES = {"n1": f"{NET}.11", "n2": f"{NET}.12", "n3": f"{NET}.13"}
FAULTS = ("crash", "boot", "cut", "plug")
DAEMONS = ("slurmd", "slurmctld")
MARIADB = """mariadbd --no-defaults --user=root --skip-grant-tables --skip-name-resolve
--skip-log-bin --bind-address=127.0.0.1 --innodb-flush-log-at-trx-commit=0
--innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --performance-schema=OFF""".split()


class Lab:
    """The lab whose files lie in `folder`; labs in other folders are other clusters, and may be up
    at the same time. `tied`: it goes off when this process dies.
    """

    def __init__(self, folder: Path, *, tied: bool = False) -> None:
        self.folder, self.tied = folder.resolve(), tied
        self.ctl = Host(self.folder, "ctl")
        self.nodes = {name: Host(self.folder, name) for name in NODES}
        # What every host sees: for homes, configurations and the output of jobs.
        self.shared = self.folder / "shared"

    def up(self) -> None:
        """Start the cluster anew and wait until its three nodes are idle."""
        self.down()
        packages.install()
        self._write_files()
        self._start_controller()
        for name in NODES:
            self.boot(name)
        wait_until(f"three idle nodes (see {self.folder}/hosts)", self.is_whole, 60)

    def down(self) -> None:
        """Switch everything off and remove the folder."""
        for host in (*self.nodes.values(), self.ctl):
            host.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_whole(self) -> bool:
        """Whether every node may be given work."""
        shown = self.ctl.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
        usable = {"idle", "mixed", "allocated", "completing"}
        states = shown.stdout.split()
        return len(states) == len(NODES) and set(states) <= usable

    def node_field(self, name: str, field: str) -> str:
        """What `scontrol show node` says under a name, such as State."""
        shown = self.ctl.run("scontrol", "show", "node", "-o", name).stdout
        return dict(word.partition("=")[::2] for word in shown.split())[field]

    def heal(self) -> None:
        """Put right what was crashed, killed, cut or drained."""
        if not self.ctl.runs("slurmctld"):
            self.start("slurmctld")
        for name, node in self.nodes.items():
            if node.process() is None:
                self.boot(name)
            elif not node.runs("slurmd"):
                self.start("slurmd", name)
            self.plug(name)
        shown = self.ctl.run(*"sinfo -h -N -t drain,down,fail -o %n".split()).stdout
        for name in sorted(set(shown.split())):
            self.ctl.run("scontrol", "update", f"node={name}", "state=resume", check=False)
        wait_until("every node is usable again", self.is_whole, 60)

    # Faults.

    def boot(self, name: str) -> None:
        """Switch a node on and put its cable in."""
        node = self.nodes[name]
        node.boot(tied=self.tied)
        # Of ctl its network alone: a process id means something in our own namespace only.
        bridge = ["nsenter", "--target", str(self.ctl.pid()), "--net", "ip", "link"]
        ends = f"add {name} type veth peer name eth0 netns {node.pid()}".split()
        subprocess.run([*bridge, *ends], check=True)
        subprocess.run([*bridge, "set", name, "master", "br0", "up"], check=True)
        node.run("ip", "addr", "add", f"{NODES[name]}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        self._munge(node)
        self.start("slurmd", name)

    def crash(self, name: str) -> None:
        """Power loss of a node."""
        self.nodes[name].crash()

    def cut(self, name: str) -> None:
        """Pull a node's network cable."""
        self.ctl.run("ip", "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Put the cable back."""
        self.ctl.run("ip", "link", "set", name, "up")

    def kill(self, daemon: str, name: str = "ctl") -> None:
        """kill -9 of a daemon of a host."""
        self.nodes.get(name, self.ctl).kill(daemon)

    def start(self, daemon: str, name: str = "ctl") -> None:
        """Start slurmd or slurmctld, which go to the background by themselves."""
        self.nodes.get(name, self.ctl).run(daemon)
        if daemon == "slurmctld":
            # A slurmd that finds no controller waits seconds before it tries again.
            self._wait_for_port(6817)

    # The controller.

    def _write_files(self) -> None:
        etc, home = self.folder / "etc", self.shared / "home"
        for folder in (self.folder, etc, self.shared, home):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for template in (HERE / "etc").iterdir():
            text = string.Template(template.read_text()).substitute(folder=self.folder, net=NET)
            (etc / template.name).write_text(text)
        (etc / "slurmdbd.conf").chmod(0o600)
        key = self.folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(secrets.token_bytes(128))
        for i in range(2):
            gpu = self.folder / f"gpu{i}"
            os.mknod(gpu, stat.S_IFCHR, os.stat("/dev/null").st_rdev)
            gpu.chmod(0o666)
        Path("/etc/slurm").mkdir(exist_ok=True)  # a place to mount at, no more

    def _munge(self, host: Host) -> None:
        key, log = self.folder / "munge.key", host.own / "munged.log"
        host.run("munged", f"--key-file={key}", f"--log-file={log}", "--force")

    def _start_controller(self) -> None:
        """Network, database, accounting, controller: each needs the one before it to answer."""
        ctl = self.ctl
        ctl.boot(tied=self.tied)
        # With an address of its own, or it takes a port's: each node that comes would change it.
        ctl.run(*"ip link add br0 address 02:00:00:00:00:01 type bridge".split())
        ctl.run("ip", "addr", "add", f"{NET}.1/24", "dev", "br0")
        ctl.run("ip", "link", "set", "br0", "up")
        self._munge(ctl)
        data, socket = f"--datadir={ctl.own}/mysql", f"--socket={ctl.own}/mysql.sock"
        make = ["mariadb-install-db", "--no-defaults", "--user=root", "--skip-test-db", data]
        ctl.run(*make, "--auth-root-authentication-method=normal")
        ctl.run("setsid", "--fork", *MARIADB, data, socket, f"--log-error={ctl.own}/mysql.log")
        self._wait_for_port(3306)
        ctl.run("slurmdbd")
        self._wait_for_port(6819)
        ctl.run("sacctmgr", "--immediate", "add", "cluster", "lab")
        self.start("slurmctld")

    def _wait_for_port(self, port: int) -> None:
        def answers() -> bool:
            knock = f"exec 3<>/dev/tcp/127.0.0.1/{port}"
            return self.ctl.run("bash", "-c", knock, check=False).returncode == 0

        wait_until(f"port {port} of ctl (see {self.ctl.own})", answers, 60)


def main() -> int:
    """The lab by hand; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    daemons = [f"{verb}-{daemon}" for verb in ("kill", "start") for daemon in DAEMONS]
    place = Path(tempfile.gettempdir(), "ddpm-slurm")
    parser.add_argument("--folder", type=Path, default=place, help=f"of its files ({place})")
    parser.add_argument("action", choices=["up", "down", "heal", "enter", *FAULTS, *daemons])
    parser.add_argument("host", nargs="?", default="ctl", choices=["ctl", *NODES])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of enter; a shell if none")
    args = parser.parse_args()
    if reason := packages.why_not():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    lab, begin = Lab(args.folder), time.monotonic()
    if args.action == "enter":
        host = lab.nodes.get(args.host, lab.ctl)
        words = host.command(*(args.command or ["bash"]), cwd=Path.cwd())
        os.execvpe(words[0], words, host.environment())
    verb, _, daemon = args.action.partition("-")
    arguments = [daemon, args.host] if daemon else [args.host] if verb in FAULTS else []
    getattr(lab, verb)(*arguments)
    print(f"{args.action}: {time.monotonic() - begin:.1f} s; files in {lab.folder}")
    return 0


def cli() -> int:
    """`main`, with the lab's own errors as one line."""
    try:
        return main()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(cli())

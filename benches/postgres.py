"""pgbench on three places in turn: a Holdfast volume, nbdkit's one copy over the same path (nbdfuse, a
loop device, ext4), and the local file system."""

import glob
import os
import pwd
import re
import signal
import statistics
import subprocess

from disks import run
from machine import stop_all, wait_for, wait_for_idle
from references import Nbdkit
from servers import Cluster

GIB = 1 << 30
VOLUME_BYTES = 4 * GIB
# About 300 MB of tables.
SCALE = 20
CLIENTS = (1, 8)
AIM = 0.85
USER = "postgres"
HEAD = ["pgbench", "place", "TPS", "least", "most", "mean ms", "Holdfast beside it"]
WIDTHS = [-10, 26, -8, -8, -8, -8, 30]
# The defaults, but for checkpoints: there is one before each run, and none in it.
SETTINGS = ["listen_addresses=", "checkpoint_timeout=1h", "max_wal_size=2GB", "autovacuum=off"]


def programs():
    """The folder of the newest installed server."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    if not found:
        raise SystemExit("PostgreSQL is not installed: scripts/setup.sh postgres")
    newest = max(found, key=lambda path: float(path.split("/")[4]))
    return os.path.dirname(newest)


def as_user(*command):
    """PostgreSQL refuses to run as root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]


class Shown:
    """An NBD export as ext4 at `place`: through nbdfuse and a loop device."""

    def __init__(self, uri, place):
        self.undo, self.fuse = [], None
        fuse = f"{place}-nbd"
        os.mkdir(fuse)
        os.mkdir(place)
        file = os.path.join(fuse, "disk")
        try:
            self.fuse = subprocess.Popen(["nbdfuse", file, uri])
            wait_for(lambda: os.path.exists(file), "nbdfuse to show the export")
            device = run("losetup", "--find", "--show", file)
            self.undo.append(("losetup", "--detach", device))
            # Blocks that were written before stay allocated, on both sides.
            run("mkfs.ext4", "-q", "-E", "nodiscard", device)
            run("mount", "-t", "ext4", "-o", "nodiscard", device, place)
            self.undo.append(("umount", place))
            found = run("findmnt", "-no", "SOURCE,FSTYPE", "--mountpoint", place).split()
            if found != [device, "ext4"]:
                raise SystemExit(f"{place} is not the mount that was made there: {found}")
        except BaseException:
            self.stop()
            raise

    def stop(self):
        while self.undo:
            run(*self.undo[-1])
            self.undo.pop()
        if self.fuse is not None:
            self.fuse.terminate()
            self.fuse.wait()


class Database:
    """A server of PostgreSQL with its files below `place`."""

    def __init__(self, name, place):
        self.name, self.place, self.bin = name, place, programs()
        owner = pwd.getpwnam(USER)
        self.data, self.socket = os.path.join(place, "data"), f"{place}-socket"
        for folder in (self.data, self.socket):
            os.mkdir(folder, 0o700)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        self.command("initdb", "-D", self.data, "--auth=trust")
        settings = [f"-c{setting}" for setting in SETTINGS]
        settings.append(f"-cunix_socket_directories={self.socket}")
        self.log = open(f"{place}.log", "w")
        self.process = subprocess.Popen(
            as_user(os.path.join(self.bin, "postgres"), "-D", self.data, *settings),
            stdout=self.log, stderr=subprocess.STDOUT)
        try:
            wait_for(self.is_ready, f"PostgreSQL on {name}")
            self.command("pgbench", "-i", "-q", "-s", str(SCALE), "-h", self.socket, USER)
        except BaseException:
            self.stop()
            raise

    def command(self, program, *arguments):
        done = subprocess.run(as_user(os.path.join(self.bin, program), *arguments),
                              capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise SystemExit(f"{program} failed on {self.name}: {done.stderr.strip()}")
        return done.stdout

    def is_ready(self):
        if self.process.poll() is not None:
            raise SystemExit(f"PostgreSQL ended on {self.name}: see {self.log.name}")
        ready = as_user(os.path.join(self.bin, "pg_isready"), "-q", "-h", self.socket)
        return subprocess.run(ready, cwd="/").returncode == 0

    def measure(self, clients, seconds):
        """The figures of one run."""
        self.command("psql", "-q", "-h", self.socket, "-c", "checkpoint", USER)
        wait_for_idle()
        out = self.command("pgbench", "-n", "-c", str(clients), "-j", str(min(clients, 2)), "-T",
                           str(seconds), "-h", self.socket, USER)
        return figures(out)

    def stop(self):
        # A fast shutdown.
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=120)
        self.log.close()


def figures(out):
    """(transactions a second, mean latency in ms) from what pgbench prints."""
    found = [re.search(pattern, out, re.MULTILINE)
             for pattern in (r"^tps = ([\d.]+)", r"^latency average = ([\d.]+)")]
    return tuple(float(match.group(1)) for match in found)


def rows(clients, results, show):
    ours = statistics.mean(tps for tps, _ in results["Holdfast"])
    for name, runs in results.items():
        tps = [each for each, _ in runs]
        ratio = ours / statistics.mean(tps)
        text = "" if name == "Holdfast" else f"{ratio:.2f}x"
        if name == Nbdkit.name:
            text += f" (aim {AIM}x: {'met' if ratio >= AIM else 'missed'})"
        show([f"{clients} clients", name, f"{statistics.mean(tps):.0f}", f"{min(tps):.0f}",
              f"{max(tps):.0f}", f"{statistics.mean(ms for _, ms in runs):.2f}", text])


def measure(options, folder, show):
    """All of it; `show` is called with every row as it comes."""
    if os.geteuid() != 0:
        raise SystemExit("pgbench on a volume needs root, for mount and losetup")
    os.mkdir(folder)
    # The user of PostgreSQL must reach its files; the folder above is root's alone.
    for above in (os.path.dirname(folder), folder):
        os.chmod(above, 0o711)
    running = []

    def start(made):
        running.append(made)
        return made

    try:
        cluster = start(Cluster(options.binary, folder, options.wal_mib << 20, [("pg", "4GiB")]))
        cluster.write_through("pg", VOLUME_BYTES)
        nbdkit = start(Nbdkit([folder], VOLUME_BYTES))
        uris = {"Holdfast": cluster.uri(cluster.leader("pg"), "pg"), Nbdkit.name: nbdkit.uri}
        databases = []
        for number, (name, uri) in enumerate(uris.items()):
            place = os.path.join(folder, f"place-{number}")
            start(Shown(uri, place))
            databases.append(start(Database(name, place)))
        local = os.path.join(folder, "local")
        os.mkdir(local)
        databases.append(start(Database("local file system", local)))
        for clients in CLIENTS:
            results = {database.name: [] for database in databases}
            for _ in range(options.rounds):
                for database in databases:
                    cluster.written = True
                    cluster.wait_written_back()
                    results[database.name].append(
                        database.measure(clients, options.postgres_seconds))
            rows(clients, results, show)
    finally:
        stop_all(running)

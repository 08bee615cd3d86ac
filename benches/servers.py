"""What is measured: a Holdfast cluster. It ends what it started."""

import json
import os
import signal
import socket
import subprocess
import time

from machine import wait_for

API_PORT, PEER_PORT, HTTP_PORT, NBD_PORT = 7400, 7401, 7480, 10809
PODS = 3
# How much of a file system of its own a pod's disk gets; its index and the references need some.
DISK_PERCENT = 60
# What pods report may be as old as two of their periods, and a little.
REPORT_AGE_S = 3.0


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_offset():
    """An offset at which every port of a cluster is free now."""
    bases = (API_PORT, PEER_PORT, HTTP_PORT, NBD_PORT)
    for offset in range(5000, 18000, 500):
        if all(is_free(base + 100 * pod + offset) for base in bases for pod in range(PODS)):
            return offset
    raise SystemExit("there is no offset at which all ports are free")


def free_port(first):
    return next(port for port in range(first, first + 1000) if is_free(port))


class Cluster:
    """Three pods of Holdfast on this machine, started and restarted by `holdfast dev`. `disks`: one
    folder for each pod's disk, on file systems of their own. `extra`: more arguments."""

    def __init__(self, binary, folder, wal_bytes, volumes, settings=(), restart_after="2s",
                 disks=(), extra=()):
        self.data = os.path.join(folder, "cluster")
        self.place_disks(disks, wal_bytes)
        self.binary, self.offset = binary, free_offset()
        self.log = open(os.path.join(folder, "dev.log"), "w")
        self.written = True
        command = [binary, "dev", "--data", self.data, "--port-offset", str(self.offset),
                   "--wal-size", str(wal_bytes), "--restart-after", restart_after, *extra]
        for setting in settings:
            command += ["--set", setting]
        for name, size in volumes:
            command += ["--volume", f"{name}:{size}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.volumes = [name for name, _ in volumes]
        try:
            wait_for(self.is_ready, "the cluster to start", 240)
        except BaseException:
            self.stop()
            raise

    def place_disks(self, disks, wal_bytes):
        """Writes configurations whose disks `holdfast dev` keeps."""
        for number, disk in enumerate(disks, 1):
            pod = os.path.join(self.data, f"pod-{number}")
            os.makedirs(pod)
            space = os.statvfs(disk)
            size = space.f_bavail * space.f_frsize * DISK_PERCENT // 100 - wal_bytes
            with open(os.path.join(pod, "holdfast.toml"), "w") as file:
                file.write(f"data = {json.dumps(os.path.join(pod, 'data'))}\n"
                           f"[[disk]]\npath = {json.dumps(disk)}\n"
                           f"size = {size >> 20 << 20}\nwal_size = {wal_bytes}\n")

    def is_ready(self):
        if self.process.poll() is not None:
            with open(self.log.name) as log:
                raise SystemExit(f"holdfast dev ended: {log.read().strip()}")
        with open(self.log.name) as log:
            return log.read().count("ready nbd://") >= len(self.volumes)

    def pid(self, pod):
        """The process of a pod (from 1); None while it has none."""
        try:
            with open(os.path.join(self.data, f"pod-{pod}", "pid")) as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline") as file:
                # A number may have been given to another process since.
                return pid if self.data in file.read() else None
        except (OSError, ValueError):
            return None

    def pids(self):
        return [pid for pid in map(self.pid, range(1, PODS + 1)) if pid]

    def kill(self, pod):
        pid = self.pid(pod)
        os.kill(pid, signal.SIGKILL)
        return pid

    def command(self, *arguments):
        """What a command prints; the first pod that answers is asked."""
        for pod in range(PODS):
            endpoint = f"127.0.0.1:{API_PORT + 100 * pod + self.offset}"
            run = subprocess.run([self.binary, *arguments, "--endpoint", endpoint],
                                 capture_output=True, text=True)
            if run.returncode == 0:
                return run.stdout
        raise SystemExit(f"holdfast {' '.join(arguments)} failed: {run.stderr.strip()}")

    def status(self):
        return json.loads(self.command("status", "-o", "json"))

    def objects(self, *command):
        """What a list prints, as JSON."""
        return json.loads(self.command(*command, "-o", "json"))

    def disks(self):
        """The status of every disk."""
        return [disk["status"] for disk in self.objects("disk", "list")]

    def nbd_port(self, pod):
        return NBD_PORT + 100 * (pod - 1) + self.offset

    def uri(self, pod, volume):
        return f"nbd://127.0.0.1:{self.nbd_port(pod)}/{volume}"

    def leader(self, volume):
        """The pod that leads the first shard of a volume, by its place (from 1)."""
        found = []

        def look():
            pods = {pod["meta"]["name"]: pod["status"]["nbd"]
                    for pod in self.objects("pod", "list")}
            shards = self.objects("shard", "list", "--volume", volume)
            nbd = pods.get(str(shards[0]["status"]["leader_pod"]))
            if nbd is not None:
                found.append((int(nbd.rsplit(":", 1)[1]) - self.offset - NBD_PORT) // 100 + 1)
            return bool(found)

        wait_for(look, f"a leader of {volume}")
        return found[0]

    def place(self, where, volume):
        """The pod that a client is to use: `leader`, or one that is not."""
        leader = self.leader(volume)
        return leader if where == "leader" else leader % PODS + 1

    def wait_written_back(self):
        """Waits until no disk has anything that lives only in its log. Nothing to wait for when
        nothing was written since the last time."""
        if not self.written:
            return
        since = None
        deadline = time.monotonic() + 600
        while since is None or time.monotonic() - since < REPORT_AGE_S:
            disks = self.disks()
            if sum(disk["dirty_bytes"] for disk in disks) > 0 or len(disks) < PODS:
                since = None
            elif since is None:
                since = time.monotonic()
            if time.monotonic() > deadline:
                raise SystemExit("gave up waiting for write-back")
            time.sleep(0.25)
        self.written = False

    def wait_healthy(self):
        """Waits until nothing needs attention, for longer than reports may be old."""
        since = None
        deadline = time.monotonic() + 240
        while since is None or time.monotonic() - since < 2 * REPORT_AGE_S:
            healthy = len(self.pids()) == PODS and not self.status()["problems"]
            since = (since or time.monotonic()) if healthy else None
            if time.monotonic() > deadline:
                raise SystemExit(f"gave up waiting: {self.status()['problems']}")
            time.sleep(0.25)

    def log_used(self):
        """(used, length) of the fullest log, as last reported."""
        disks = self.disks()
        fullest = max(disks, key=lambda disk: disk["log_used_bytes"])
        return fullest["log_used_bytes"], fullest["log_bytes"]

    def read_counts(self):
        """(bytes read, those of them in dirty blocks) since the pods started."""
        time.sleep(REPORT_AGE_S)
        disks = self.disks()
        return (sum(disk["read_bytes"] for disk in disks),
                sum(disk["read_dirty_bytes"] for disk in disks))

    def write_through(self, volume, size_bytes):
        """Writes every block of a volume once."""
        subprocess.run(["fio", "--name=through", "--ioengine=nbd",
                        f"--uri={self.uri(self.leader(volume), volume)}", "--rw=write", "--bs=1m",
                        "--iodepth=8", f"--size={size_bytes}", "--refill_buffers"],
                       check=True, capture_output=True)
        self.written = True

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            # Its pods die with it.
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.log.close()

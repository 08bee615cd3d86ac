"""A mounted file system of a node whose pod is killed: how long its writes pause. The pod comes back
at once, or stays away so that another one takes over. Needs root and FUSE: the device is one of
nbdfuse."""

import json
import mmap
import os
import signal
import subprocess
import tempfile
import threading
import time

from machine import wait_for
from servers import API_PORT, PODS, Cluster

ROUNDS = 5
BLOCK = 4096
# Of the file that is written to, over and over.
FILE_BLOCKS = 1024
EVERY_S = 0.005
SETTLE_S = 5.0

HEAD, WIDTHS = ["mounted file system", "value"], [58, -24]


class Writer(threading.Thread):
    """Writes blocks past the page cache, each durable; notes when, and how long it took."""

    def __init__(self, path):
        super().__init__()
        self.stop, self.error, self.writes = threading.Event(), None, []
        flags = os.O_CREAT | os.O_RDWR | os.O_DIRECT | os.O_DSYNC
        self.file = os.open(path, flags, 0o600)
        os.posix_fallocate(self.file, 0, FILE_BLOCKS * BLOCK)
        self.start()

    def run(self):
        # O_DIRECT wants aligned memory.
        block, number = mmap.mmap(-1, BLOCK), 0
        try:
            while not self.stop.is_set():
                block[:8] = number.to_bytes(8, "little")
                start = time.monotonic()
                os.pwritev(self.file, [block], number % FILE_BLOCKS * BLOCK)
                self.writes.append((start, time.monotonic() - start))
                number += 1
                time.sleep(EVERY_S)
        except OSError as error:
            self.error = error

    def end(self):
        self.stop.set()
        self.join()
        os.close(self.file)
        if self.error:
            raise SystemExit(f"a write to the file system failed: {self.error}")

    def longest_ms(self, since):
        """The longest write that ended later than `since`."""
        return 1e3 * max(took for at, took in self.writes if at + took > since)


class Node:
    """A node with one mounted volume."""

    def __init__(self, binary, cluster, folder):
        self.binary, self.process, self.mounted = binary, None, False
        self.at = os.path.join(folder, "mount")
        # The path of a socket has 107 bytes at most.
        self.folder = tempfile.mkdtemp(prefix="hf-")
        self.socket = os.path.join(self.folder, "attach.sock")
        cluster.command("volume", "create", "db", "--size", "1GiB", "--class", "dev", "--closed")
        node = cluster.objects("node", "list")[0]["meta"]["name"]
        self.attachment = json.loads(
            cluster.command("attachment", "publish", "db", node, "-o", "json"))["meta"]["uid"]
        command = [binary, "attach", "--backend", "fuse", "--socket", self.socket,
                   "--directory", os.path.join(self.folder, "devices"),
                   "--endpoint", f"127.0.0.1:{API_PORT + cluster.offset}"]
        for pod in range(1, PODS + 1):
            command += ["--pod", f"127.0.0.1:{cluster.nbd_port(pod)}"]
        with open(os.path.join(folder, "attach.log"), "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def mount(self):
        wait_for(lambda: self.ask("list") is not None, "the devices to be served")
        device = self.ask("open", self.attachment)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        os.mkdir(self.at)
        subprocess.run(["mount", device, self.at], check=True)
        self.mounted = True
        if not os.path.ismount(self.at):
            raise SystemExit(f"{self.at} is no mount")

    def ask(self, *words):
        command = [self.binary, "device", *words, "--socket", self.socket]
        run = subprocess.run(command, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    def stop(self):
        if self.mounted:
            subprocess.run(["umount", self.at], check=True)
            wait_for(lambda: self.ask("close", self.attachment) is not None, "a device to close")
        if self.process:
            self.process.terminate()
            self.process.wait()


def measure(binary, folder, wal_bytes, add):
    os.mkdir(folder)
    for name, restart_after, aim in (("comes back", "0s", 3000), ("stays away", "8s", 5000)):
        place = os.path.join(folder, restart_after)
        os.mkdir(place)
        cluster = Cluster(binary, place, wal_bytes, [], restart_after=restart_after)
        node = writer = None
        try:
            cluster.wait_healthy()
            node = Node(binary, cluster, place)
            node.mount()
            writer = Writer(os.path.join(node.at, "file"))
            pauses = [pause(cluster, writer) for _ in range(ROUNDS)]
            text = ", ".join(f"{found:.0f}" for found in sorted(pauses))
            add([f"local pod killed, {name}: longest write, ms (aim: {aim})", text])
        finally:
            if writer:
                writer.end()
            if node:
                node.stop()
            cluster.stop()


def pause(cluster, writer):
    """Kills the pod of the node, and waits until all is as before; returns the longest write."""
    time.sleep(SETTLE_S)
    since = time.monotonic()
    before = cluster.pid(1)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: cluster.pid(1) not in (None, before), "the pod to come back", 60)
    cluster.wait_healthy()
    # The relay looks for its first pod every five seconds.
    time.sleep(SETTLE_S)
    return writer.longest_ms(since)

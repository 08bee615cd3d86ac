"""What discards cost: memory of the pods, stalls of another volume, and the next start. The model is
scaled: one block of 4 KiB in each extent of 64 KiB makes the extent exist, so that little is
written. What a discard costs depends on the number of extents."""

import multiprocessing
import os
import threading
import time

from machine import resident_bytes, started_at, wait_for
from nbd_client import TRIM, WRITE, Connection, pipeline, write_steadily
from rest import MIB, Result
from servers import Cluster

GIB = 1 << 30
EXTENT_BYTES = 64 << 10
WIDE_BYTES = 8 * GIB
MANY, MANY_BYTES = 64, 64 * MIB
REQUEST_BYTES = 64 * MIB
DEPTH = 32
QUIET_S = 20


def touch(cluster, volume, size_bytes):
    """Writes one block of each extent."""
    connection = Connection(cluster.nbd_port(cluster.leader(volume)), volume)
    data = b"\x5a" * 4096
    offsets = range(0, size_bytes, EXTENT_BYTES)
    pipeline(connection, ((WRITE, offset, 4096, data) for offset in offsets), 64)
    connection.close()
    cluster.written = True


def discard(port, volume, size_bytes):
    connection = Connection(port, volume)
    offsets = range(0, size_bytes, REQUEST_BYTES)
    pipeline(connection, ((TRIM, offset, REQUEST_BYTES, b"") for offset in offsets), DEPTH)
    connection.close()


class Writer:
    """Another process that writes blocks of another volume, one after the other."""

    def __init__(self, port, volume):
        self.stop_it, self.gaps = multiprocessing.Event(), multiprocessing.Queue()
        self.process = multiprocessing.Process(target=self.run, args=(port, volume))
        self.process.start()

    def run(self, port, volume):
        acknowledged = []
        write_steadily([port], volume, self.stop_it, acknowledged)
        pairs = zip(acknowledged, acknowledged[1:])
        self.gaps.put((max(after - before for before, after in pairs), len(acknowledged)))

    def stop(self):
        """(longest time between two answers in ms, number of writes)"""
        self.stop_it.set()
        longest, count = self.gaps.get(timeout=120)
        self.process.join()
        return longest * 1000, count


class Memory:
    """The most that each pod takes from now on, beyond what it takes now."""

    def __init__(self, cluster):
        self.cluster, self.stopped = cluster, threading.Event()
        self.before = {pid: resident_bytes(pid) for pid in cluster.pids()}
        self.most = dict(self.before)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopped.wait(0.05):
            for pid in self.most:
                try:
                    self.most[pid] = max(self.most[pid], resident_bytes(pid))
                except (FileNotFoundError, StopIteration):
                    pass

    def stop(self):
        self.stopped.set()
        self.thread.join()
        return [(self.most[pid] - self.before[pid]) / MIB for pid in self.most]


def measured(cluster, what, targets, show):
    """Discards all of these volumes at once: (name, bytes)."""
    memory = Memory(cluster)
    writer = Writer(cluster.nbd_port(cluster.leader("other")), "other")
    time.sleep(1)
    begun = time.monotonic()
    ports = {volume: cluster.nbd_port(cluster.leader(volume)) for volume, _ in targets}
    threads = [threading.Thread(target=discard, args=(ports[volume], volume, size))
               for volume, size in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = time.monotonic() - begun
    longest, count = writer.stop()
    cluster.written = True
    cluster.wait_written_back()
    done = time.monotonic() - begun
    added = memory.stop()
    each = ", ".join(f"{mib:.0f}" for mib in added)
    extents = sum(size for _, size in targets) // EXTENT_BYTES
    detail = f"{extents} extents, answered in {answered:.1f} s, written back after {done:.1f} s"
    show(Result(f"memory that {what} adds to a pod", max(added), "MiB", 64,
                f"{detail}; pods: {each}"))
    show(Result(f"longest time without an answer, {what}", longest, "ms", 100,
                f"4 KiB writes of another volume, one at a time; {count} of them"))


def start_after_kill(cluster, pod, show):
    """Kills a pod in the middle of a discard; how long its next start takes until it serves."""
    volume, size = "wide", WIDE_BYTES
    ports = cluster.nbd_port(next(each for each in (1, 2, 3) if each != pod))
    before = max(resident_bytes(pid) for pid in cluster.pids())
    thread = threading.Thread(target=discard, args=(ports, volume, size))
    thread.start()
    time.sleep(0.5)
    killed = cluster.kill(pod)
    wait_for(lambda: cluster.pid(pod) not in (None, killed), "the pod to serve again", 120, 0.01)
    took = time.clock_gettime(time.CLOCK_BOOTTIME) - started_at(cluster.pid(pod))
    resident = resident_bytes(cluster.pid(pod))
    thread.join()
    cluster.wait_healthy()
    cluster.written = True
    cluster.wait_written_back()
    show(Result("start after kill -9 in a discard", took, "s", 10,
                f"{resident / MIB:.0f} MiB when it serves, {before / MIB:.0f} before"))


def measure(binary, folder, wal_bytes, show):
    """All of it; `show` is called with every result as it comes."""
    os.mkdir(folder)
    many = [(f"many-{number}", MANY_BYTES) for number in range(MANY)]
    volumes = [("wide", f"{WIDE_BYTES // GIB}GiB"), ("other", "1GiB")]
    volumes += [(name, f"{size // MIB}MiB") for name, size in many]
    cluster = Cluster(binary, folder, wal_bytes, volumes, ["leaders_follow_clients=false"],
                      restart_after="500ms")
    try:
        touch(cluster, "wide", WIDE_BYTES)
        for name, size in many:
            touch(cluster, name, size)
        cluster.wait_written_back()
        writer = Writer(cluster.nbd_port(cluster.leader("other")), "other")
        time.sleep(QUIET_S)
        longest, count = writer.stop()
        show(Result("longest time without an answer, no discard", longest, "ms", 100,
                    f"4 KiB writes, one at a time; {count} of them in {QUIET_S} s"))
        cluster.wait_written_back()
        measured(cluster, "a discard of one volume", [("wide", WIDE_BYTES)], show)
        measured(cluster, f"discards of {MANY} volumes", many, show)
        touch(cluster, "wide", WIDE_BYTES)
        cluster.wait_written_back()
        start_after_kill(cluster, 3, show)
    finally:
        cluster.stop()

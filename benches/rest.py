"""What a cluster costs when nothing happens, and how long it takes to come back."""

import os
import statistics
import subprocess
import threading
import time

from machine import process_seconds, resident_bytes, started_at, wait_for, wait_for_idle
from nbd_client import write_steadily
from servers import PODS, Cluster

MIB = 1 << 20
GIB = 1 << 30
REST_SHARDS = 100
IDLE_S = 20


class Result:
    """One figure beside its aim."""

    def __init__(self, what, value, unit, aim, detail=""):
        self.what, self.value, self.unit, self.aim, self.detail = what, value, unit, aim, detail

    def cells(self):
        verdict = "met" if self.value < self.aim else "missed"
        return [self.what, f"{self.value:.2f} {self.unit}", f"< {self.aim:g} {self.unit}",
                verdict, self.detail]


def fill(cluster, volume, total_bytes, seconds=120):
    """Random writes of 4 KiB until so much was written or the time is up."""
    uri = cluster.uri(cluster.leader(volume), volume)
    run = ["fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
           "--iodepth=32", f"--size={GIB}", f"--io_size={total_bytes}", f"--runtime={seconds}",
           "--norandommap", "--randrepeat=0", "--refill_buffers"]
    cluster.written = True
    return subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def memory(cluster, detail):
    wait_for_idle()
    resident = [resident_bytes(pid) / MIB for pid in cluster.pids()]
    each = ", ".join(f"{mib:.0f}" for mib in resident)
    return Result("resident memory of a pod at rest", max(resident), "MiB", 100,
                  f"{detail}; pods: {each}")


def idle_cpu(cluster, shards, aim=1):
    pids = cluster.pids()
    wait_for_idle()
    before = [process_seconds([pid]) for pid in pids]
    start = time.monotonic()
    time.sleep(IDLE_S)
    took = time.monotonic() - start
    shares = [100 * (process_seconds([pid]) - was) / took for pid, was in zip(pids, before)]
    each = ", ".join(f"{share:.2f}" for share in shares)
    return Result("CPU of a pod at rest", max(shares), "% of a core", aim,
                  f"{shards} idle shards, over {IDLE_S} s; pods: {each}")


def start_with_full_log(cluster, volume, pod):
    """Kills a pod while its log is as full as random writes make it; how long its next start
    takes until it serves."""
    writer = fill(cluster, volume, 64 * GIB)
    try:
        # The window is full when it stops growing: write-back keeps pace then.
        used, before = 0, -1
        while used > before and writer.poll() is None:
            before = used
            time.sleep(5)
            used, length = cluster.log_used()
        killed = cluster.kill(pod)
    finally:
        writer.terminate()
        writer.wait()
    wait_for(lambda: cluster.pid(pod) not in (None, killed), "the pod to serve again", 120, 0.01)
    took = time.clock_gettime(time.CLOCK_BOOTTIME) - started_at(cluster.pid(pod))
    cluster.wait_healthy()
    return Result("start after kill -9 until it serves", took, "s", 10,
                  f"{used / MIB:.0f} of {length / MIB:.0f} MiB of its log in use")


def pause(cluster, volume, where):
    """Kills the leader under a client that writes one block after another; the longest time
    between two acknowledged writes."""
    leader = cluster.leader(volume)
    first = cluster.place(where, volume)
    order = [first] + [pod for pod in range(1, PODS + 1) if pod not in (first, leader)]
    stop, acknowledged = threading.Event(), []
    ports = [cluster.nbd_port(pod) for pod in order]
    writer = threading.Thread(target=write_steadily, args=(ports, volume, stop, acknowledged))
    writer.start()
    try:
        wait_for(lambda: len(acknowledged) > 200, "the client to write")
        killed_at = time.monotonic()
        cluster.kill(leader)
        wait_for(lambda: acknowledged[-1] > killed_at + 6, "writes to go on")
    finally:
        stop.set()
        writer.join()
    cluster.written = True
    gaps = [after - before for before, after in zip(acknowledged, acknowledged[1:])]
    cluster.wait_healthy()
    return max(gaps)


def measure(binary, folder, wal_bytes, rounds, show):
    """All of it; `show` is called with every result as it comes."""
    os.mkdir(folder)
    volumes = [(f"volume-{number}", "1GiB") for number in range(10)]
    cluster = Cluster(binary, folder, wal_bytes, volumes,
                      ["leaders_follow_clients=false"], restart_after="500ms")
    try:
        time.sleep(3)
        show(memory(cluster, f"{len(volumes)} volumes, a log of {wal_bytes // MIB} MiB, fresh"))
        fill(cluster, "volume-0", GIB).wait()
        cluster.wait_written_back()
        show(memory(cluster, "the same after 1 GiB of random writes"))
        for where in ("other", "leader"):
            pauses = [pause(cluster, "volume-0", where) for _ in range(rounds)]
            who = {"other": "client on another pod", "leader": "client on it, reconnects"}[where]
            show(Result("pause when the leader is killed", max(pauses), "s", 3,
                        f"{who}; longest of {rounds}, median {statistics.median(pauses):.2f} s"))
        starts = [start_with_full_log(cluster, "volume-0", 3) for _ in range(rounds)]
        show(max(starts, key=lambda start: start.value))
        cluster.wait_written_back()
        shards, number = len(volumes), 0
        while shards < REST_SHARDS:
            cluster.command("volume", "create", f"wide-{number}", "--size", "40GiB", "--class", "dev")
            shards, number = shards + 10, number + 1
        wait_for(lambda: all(each["status"]["phase"] == "ready"
                             for each in cluster.objects("volume", "list")),
                 "all shards to have leaders", 120)
        time.sleep(10)
        show(idle_cpu(cluster, shards))
        show(memory(cluster, f"{shards} shards"))
    finally:
        cluster.stop()

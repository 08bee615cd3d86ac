"""A pod that is away for a while under load: whether it comes back without a resync, how long that
takes, and what the clients of another volume notice."""

import os
import signal
import statistics
import subprocess
import threading
import time

from machine import wait_for, wait_for_idle
from nbd_client import Connection
from servers import PODS, Cluster

MIB = 1 << 20
GIB = 1 << 30
SHARDS = 200
SHARD_BYTES = 4 * GIB
# Of each shard so much is written to.
ZONE_BYTES = 8 * MIB
RATE = 10_000
BEFORE_S, AWAY_S, LIMIT_S = 20, 30, 300
BESIDE_EVERY_S = 0.01


HEAD, WIDTHS = ["absence", "value"], [48, -24]


def write_beside(port, volume, stop, latencies):
    """Writes a block every 10 ms; notes when, and how long it took."""
    connection, number = Connection(port, volume), 0
    data = b"\x5a" * 4096
    while not stop.is_set():
        start = time.monotonic()
        connection.write((number % 4096) * 4096, data)
        end = time.monotonic()
        latencies.append((start, end - start))
        number += 1
        time.sleep(max(0.0, BESIDE_EVERY_S - (end - start)))
    connection.close()


def bulk(cluster, pod, folder, seconds):
    """Writes of 4 KiB all over the shards, at a fixed rate."""
    log = open(os.path.join(folder, "bulk.json"), "w")
    command = ["fio", "--name=bulk", "--ioengine=nbd", f"--uri={cluster.uri(pod, 'bulk')}",
               "--rw=randwrite", "--bs=4k", "--iodepth=64", f"--size={SHARDS * SHARD_BYTES}",
               "--zonemode=strided", f"--zonerange={ZONE_BYTES}", "--zonesize=64k",
               f"--zoneskip={SHARD_BYTES - ZONE_BYTES}", f"--rate_iops={RATE}", "--time_based",
               f"--runtime={seconds}", "--norandommap", "--randrepeat=0", "--refill_buffers",
               "--output-format=json", "--status-interval=1"]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), log


def p99_ms(latencies, since, until):
    found = [took for at, took in latencies if since <= at < until]
    if len(found) < 20:
        return float("nan"), float("nan"), len(found)
    return statistics.quantiles(found, n=100)[98] * 1e3, max(found) * 1e3, len(found)


def count_in_logs(cluster, text):
    total = 0
    for pod in range(1, PODS + 1):
        with open(os.path.join(cluster.data, f"pod-{pod}", "log"), errors="replace") as log:
            total += sum(text in line for line in log)
    return total


def is_back(cluster):
    """No replica is being resynced, and all of a shard have applied nearly the same."""
    status = cluster.status()
    return not status["problems"]


def measure(binary, folder, wal_bytes, add):
    def show(what, value):
        add([what, value])

    os.mkdir(folder)
    volumes = [("beside", "4GiB"), ("bulk", f"{SHARDS * SHARD_BYTES // GIB}GiB")]
    cluster = Cluster(binary, folder, wal_bytes, volumes, ["leaders_follow_clients=false"])
    stop, latencies = threading.Event(), []
    writer = bulk_writer = None
    try:
        time.sleep(5)
        leader = cluster.leader("beside")
        away = leader % PODS + 1
        wait_for_idle()
        writer = threading.Thread(target=write_beside,
                                  args=(cluster.nbd_port(leader), "beside", stop, latencies))
        writer.start()
        bulk_writer, log = bulk(cluster, leader, folder, BEFORE_S + AWAY_S + 60)
        time.sleep(BEFORE_S)
        stopped_at = time.monotonic()
        pid = cluster.pid(away)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(AWAY_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        continued_at = time.monotonic()
        fullest = 0

        def settled():
            nonlocal fullest
            fullest = max(fullest, *(disk["log_used_bytes"] for disk in cluster.disks()))
            return is_back(cluster)

        # Reports of a pod that was away are old at first.
        time.sleep(5)
        wait_for(settled, "the pod to be in step", LIMIT_S, 0.25)
        back_at = time.monotonic()
        bulk_writer.wait()
        before = p99_ms(latencies, stopped_at - BEFORE_S + 5, stopped_at)
        absent = p99_ms(latencies, stopped_at + 5, continued_at)
        after = p99_ms(latencies, continued_at, continued_at + 55)
        log.close()
        show("resyncs that began", count_in_logs(cluster, "resync begins"))
        show("rounds of resyncs", count_in_logs(cluster, "a round of the resync ended"))
        show("in step again after, s", f"{back_at - continued_at:.1f}")
        show("fullest log, of its length", f"{fullest / wal_bytes:.2f}")
        for name, found in (("before", before), ("while away", absent), ("after", after)):
            show(f"other volume, {name}: p99 / max ms, writes",
                 f"{found[0]:.1f} / {found[1]:.0f}, {found[2]}")
        show("p99 after, of that before (aim: 3)", f"{after[0] / before[0]:.1f}")
        cluster.written = True
        cluster.wait_healthy()
    finally:
        stop.set()
        if bulk_writer and bulk_writer.poll() is None:
            bulk_writer.terminate()
            bulk_writer.wait()
        if writer:
            writer.join()
        cluster.stop()

"""What idle shards and volumes cost: latency and CPU of one write at a time beside N idle ones, and
CPU and memory of a pod that has nothing to do. One cluster has one volume of one shard, the other
the same and all the idle ones. Writes go to the one volume of each in turn."""

import concurrent.futures
import os
import statistics
import time

from machine import resident_bytes, wait_for
from rest import Result, idle_cpu

KIB = 1 << 10
GIB = 1 << 30
SHARD_BYTES = 4 * GIB
BUSY = "busy"
# At once: the catalog takes one after another anyway.
CREATES = 8
SETTLE_S = 30


def all_lead(cluster, volumes):
    """True when there are so many volumes, and every shard has a leader."""
    status = cluster.status()
    phases = {phase["phase"] for phase in status["volumes"]["phases"]}
    return status["volumes"]["total"] == volumes and phases <= {"ready", "degraded"}


def add_shards(cluster, shards):
    """One volume of so many shards."""
    cluster.command("volume", "create", "wide", "--size", str(shards * SHARD_BYTES),
                    "--class", "dev")
    return 2


def add_volumes(cluster, volumes):
    """So many volumes of one shard."""
    with concurrent.futures.ThreadPoolExecutor(CREATES) as pool:
        names = [f"idle-{number}" for number in range(volumes)]
        list(pool.map(lambda name: cluster.command("volume", "create", name, "--size", "1GiB",
                                                   "--class", "dev"), names))
    return volumes + 1


def memory_per_shard(few, many, shards):
    """Difference of the largest pods of two clusters, for each idle shard."""
    largest = [max(resident_bytes(pid) for pid in cluster.pids()) for cluster in (few, many)]
    return Result("resident memory of an idle shard", (largest[1] - largest[0]) / shards / KIB,
                  "KiB", 60, f"{shards} idle shards; pods of {largest[0] >> 20} and "
                  f"{largest[1] >> 20} MiB")


def latency(few, many, rounds, run, what, limit):
    """Writes at depth 1 beside nothing and beside everything idle, in turn."""
    found = {few: [], many: []}
    for _ in range(rounds):
        for cluster in (few, many):
            cluster.wait_written_back()
            uri = cluster.uri(cluster.leader(BUSY), BUSY)
            found[cluster].append(run(uri, cluster.pids()))
            cluster.written = True

    def median(cluster, key):
        return statistics.median(result[key] for result in found[cluster])

    def each(key):
        return "; ".join(", ".join(f"{result[key]:.0f}" for result in found[cluster])
                         for cluster in (few, many))

    for name, key in (("latency", "mean_us"), ("CPU of the pods", "server_us")):
        yield Result(f"{name} of a write beside {what}", median(many, key) / median(few, key),
                     "x", limit, f"us, without them; with them: {each(key)}")


def measure(new_cluster, folder, shards, volumes, rounds, run, show):
    """`new_cluster(folder)`: a cluster with one volume. `run(uri, pids)`: one run of writes at
    depth 1. `show` is called with every result as it comes."""
    for add, count, what, limit in ((add_shards, shards, f"{shards} idle shards", 1.1),
                                    (add_volumes, volumes, f"{volumes} idle volumes", 1.2)):
        if count == 0:
            continue
        clusters = []
        try:
            for name in ("few", "many"):
                place = os.path.join(folder, f"{add.__name__}-{name}")
                os.makedirs(place)
                clusters.append(new_cluster(place))
            few, many = clusters
            start = time.monotonic()
            expected = add(many, count)
            wait_for(lambda: all_lead(many, expected), "all shards to have leaders", 1200, 1)
            took = time.monotonic() - start
            show(Result(f"time to make {what}", took, "s", 600, f"{count / took:.0f} a second"))
            time.sleep(SETTLE_S)
            show(idle_cpu(many, count, 3))
            show(memory_per_shard(few, many, count))
            for result in latency(few, many, rounds, run, what, limit):
                show(result)
        finally:
            for cluster in clusters:
                cluster.stop()

#!/usr/bin/env python3
"""Holdfast (three durable replicas) beside the unreplicated floor, in turn, on this machine.

Starts a three-pod cluster with `holdfast dev`, nbdkit with forced FUA (writes) and qemu-nbd with
O_DIRECT (reads) on prewritten files of the same file system, and runs the same fio jobs (nbd
engine) against both: A B A B, means compared with means. Prints the table and the conditions.

    benches/compare.py [--binary PATH] [--dir DIR] [--rounds 5] [--seconds 5] [--only NAME ...]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

GIB = 1 << 30
VOLUME_BYTES = 4 * GIB


class Job:
    """One fio workload. `floor`: which reference it is compared with; `aim`: ratio of IOPS."""

    def __init__(self, name, rw, block, depth, floor, aim, extra=()):
        self.name, self.rw, self.block, self.depth = name, rw, block, depth
        self.floor, self.aim, self.extra = floor, aim, list(extra)


JOBS = [
    Job("write-4k-qd1", "randwrite", "4k", 1, "nbdkit", 0.75),
    Job("write-4k-qd32", "randwrite", "4k", 32, "nbdkit", 1.5),
    Job("read-4k-qd1", "randread", "4k", 1, "qemu", 1.3),
    Job("read-4k-qd32", "randread", "4k", 32, "qemu", 0.9),
    Job("write-1m-qd8", "write", "1m", 8, "nbdkit", 0.5),
    Job("read-1m-qd8", "read", "1m", 8, "qemu", 1.0),
    Job("mixed-4k-qd32", "randrw", "4k", 32, "qemu", 0.8, ["--rwmixread=70"]),
]


def cpu_ticks():
    """(busy, total, steal) ticks of the whole machine since boot."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:]]
    idle = fields[3] + fields[4]
    total = sum(fields[:8])
    return total - idle, total, fields[7]


def process_seconds(pids):
    seconds = 0.0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except FileNotFoundError:
            pass
    return seconds


def wait_for_idle(limit_s=20.0):
    """Waits until at most 15 % of the machine is busy; returns the busy share that was seen."""
    deadline = time.monotonic() + limit_s
    while True:
        busy_before, total_before, _ = cpu_ticks()
        time.sleep(0.5)
        busy, total, _ = cpu_ticks()
        share = (busy - busy_before) / max(total - total_before, 1)
        if share < 0.15 or time.monotonic() > deadline:
            return share


def fio(uri, job, seconds, pids):
    """Runs one job; returns a dictionary of what was measured."""
    busy_share = wait_for_idle()
    command = [
        "fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", f"--rw={job.rw}",
        f"--bs={job.block}", f"--iodepth={job.depth}", f"--size={VOLUME_BYTES}",
        "--time_based", f"--runtime={seconds}", "--randrepeat=0", "--norandommap",
        "--refill_buffers", "--output-format=json", *job.extra,
    ]
    busy_before, _, steal_before = cpu_ticks()
    process_before = process_seconds(pids)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    busy, _, steal = cpu_ticks()
    result = json.loads(output[output.index("{"):])["jobs"][0]
    sides = [result[side] for side in ("read", "write") if result[side]["total_ios"]]
    ios = sum(side["total_ios"] for side in sides)
    tick = 1e6 / os.sysconf("SC_CLK_TCK")
    main = max(sides, key=lambda side: side["total_ios"])
    return {
        "iops": sum(side["iops"] for side in sides),
        "mb_s": sum(side["bw_bytes"] for side in sides) / 1e6,
        "mean_us": main["clat_ns"]["mean"] / 1e3,
        "p50_us": main["clat_ns"]["percentile"]["50.000000"] / 1e3,
        "p99_us": main["clat_ns"]["percentile"]["99.000000"] / 1e3,
        "max_us": main["clat_ns"]["max"] / 1e3,
        "cpu_us": (busy - busy_before) * tick / max(ios, 1),
        "server_cpu_us": (process_seconds(pids) - process_before) * 1e6 / max(ios, 1),
        "steal_ticks": steal - steal_before,
        "busy_before": busy_share,
    }


def mean(rows):
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def wait_for(condition, what, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting for {what}")
        time.sleep(0.1)


def answers(uri):
    return subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode == 0


class Floor:
    """An unreplicated server on one prewritten file."""

    def __init__(self, kind, folder, port):
        self.uri = f"nbd://127.0.0.1:{port}/"
        path = os.path.join(folder, f"{kind}.raw")
        zeroes = ["dd", "if=/dev/urandom", f"of={path}", "bs=4M",
                  f"count={VOLUME_BYTES >> 22}", "oflag=direct", "status=none"]
        subprocess.run(zeroes, check=True)
        if kind == "nbdkit":
            command = ["nbdkit", "--foreground", f"--port={port}", "--ipaddr=127.0.0.1",
                       "--filter=fua", "file", path, "fuamode=force"]
        else:
            command = ["qemu-nbd", "--cache=none" if kind == "qemu" else "--cache=directsync",
                       "--aio=io_uring", "--format=raw", "--persistent", "--shared=16",
                       f"--port={port}", "--bind=127.0.0.1", path]
        self.process = subprocess.Popen(command)
        self.pids = [self.process.pid]
        wait_for(lambda: answers(self.uri), kind)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Cluster:
    """Three pods of Holdfast with a volume that was written through once."""

    def __init__(self, binary, folder, offset):
        self.data = os.path.join(folder, "cluster")
        self.binary, self.offset = binary, offset
        self.log = open(os.path.join(folder, "dev.log"), "w")
        self.process = subprocess.Popen(
            [binary, "dev", "--data", self.data, "--port-offset", str(offset),
             "--volume", "bench:4GiB"],
            stdout=self.log, stderr=subprocess.STDOUT)
        self.uris = [f"nbd://127.0.0.1:{10809 + offset + 100 * pod}/bench" for pod in range(3)]
        wait_for(lambda: answers(self.uris[0]), "the cluster", 120)
        self.pids = [self.pid(pod) for pod in (1, 2, 3)]
        self.uri = self.uris[0]

    def pid(self, pod):
        with open(os.path.join(self.data, f"pod-{pod}", "pid")) as file:
            return int(file.read())

    def prewrite(self):
        run = ["fio", "--name=prewrite", "--ioengine=nbd", f"--uri={self.uri}", "--rw=write",
               "--bs=1m", "--iodepth=8", f"--size={VOLUME_BYTES}", "--refill_buffers"]
        subprocess.run(run, check=True, capture_output=True)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.log.close()


def conditions(binary):
    def text(command):
        run = subprocess.run(command, shell=True, capture_output=True, text=True)
        return run.stdout.strip().split("\n")[0]

    print("conditions:")
    print("  kernel       ", text("uname -r"))
    print("  cpu          ", text("grep -m1 'model name' /proc/cpuinfo"), "x", os.cpu_count())
    print("  governor     ",
          text("cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null") or "none")
    print("  write cache  ", text("cat /sys/block/*/queue/write_cache | sort | uniq -c"))
    print("  fua          ", text("cat /sys/block/*/queue/fua 2>/dev/null | sort | uniq -c"))
    print("  versions     ", text("fio --version"), "/", text("nbdkit --version"), "/",
          text("qemu-nbd --version"), "/", text(f"{binary} --version"))


def row(name, who, result, ratio=""):
    print(f"{name:15} {who:9} {result['iops']:9.0f} {result['mb_s']:8.1f} "
          f"{result['mean_us']:9.1f} {result['p50_us']:8.1f} {result['p99_us']:9.1f} "
          f"{result['max_us']:9.0f} {result['cpu_us']:7.1f} {result['server_cpu_us']:7.1f} "
          f"{100 * result['busy_before']:5.1f} {ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default=os.environ.get("HOLDFAST", "holdfast"))
    parser.add_argument("--dir", default=None, help="where the data goes (default: a new folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None, help="names of jobs")
    parser.add_argument("--pod", type=int, default=1, help="the pod that the client talks to")
    parser.add_argument("--sustained", action="store_true",
                        help="write at depth 32 until five logs are full; count the last half")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="holdfast-bench-", dir=options.dir)
    jobs = [job for job in JOBS if options.only is None or job.name in options.only]
    running = []
    try:
        conditions(options.binary)
        cluster = Cluster(options.binary, folder, 5000)
        running.append(cluster)
        cluster.uri = cluster.uris[options.pod - 1]
        cluster.prewrite()
        floors = {}
        for number, kind in enumerate(sorted({job.floor for job in jobs})):
            floors[kind] = Floor(kind, folder, 17809 + number)
            running.append(floors[kind])
        print(f"{'workload':15} {'server':9} {'IOPS':>9} {'MB/s':>8} {'mean us':>9} {'p50':>8} "
              f"{'p99':>9} {'max':>9} {'cpu us':>7} {'srv us':>7} {'busy%':>5}")
        for job in jobs:
            ours, theirs = [], []
            for _ in range(options.rounds):
                # Write-back of what was written before is over when the machine is quiet.
                wait_for_idle(120.0)
                ours.append(fio(cluster.uri, job, options.seconds, cluster.pids))
                theirs.append(fio(floors[job.floor].uri, job, options.seconds,
                                  floors[job.floor].pids))
            ours, theirs = mean(ours), mean(theirs)
            row(job.name, job.floor, theirs)
            ratio = ours["iops"] / theirs["iops"]
            p99 = ours["p99_us"] / theirs["p99_us"]
            verdict = "met" if ratio >= job.aim else "missed"
            row(job.name, "holdfast", ours,
                f"{ratio:.2f}x (aim {job.aim}x: {verdict}) p99 {p99:.2f}x")
        if options.sustained:
            sustained = Job("sustained-4k", "randwrite", "4k", 32, "nbdkit", 1.0)
            fio(cluster.uri, sustained, 60, cluster.pids)
            row(sustained.name, "holdfast", fio(cluster.uri, sustained, 60, cluster.pids))
    finally:
        for server in reversed(running):
            server.stop()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Holdfast (three durable replicas) beside its references, in turn, on this machine.

Starts a three-pod cluster with `holdfast dev` and the references of the chosen jobs on prewritten
files of the same file system (benches/references.py), and runs the same fio jobs against all of
them in turn: A B C A B C, means compared with means. Prints the table and the conditions.

    benches/compare.py [--binary PATH] [--limit PATH] [--dir DIR] [--rounds 5] [--seconds 5]
                       [--only NAME ...] [--beside NAME ...] [--connections 1 4]
                       [--clients leader other] [--one-disk-each] [--sustained] [--rest]
                       [--postgres] [--scale] [--absence] [--mounted] [--tls]
                       [--markdown FILE]

Before every run it waits until nothing of Holdfast is left to be written back and the machine is
idle. Bursts of writes fit in the log; `--sustained` writes five logs full and counts the last half.
"""

import argparse
import bisect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import absence
import discard
import mounted
import postgres
import rest
import scale
import tls
from disks import WHAT, Disks
from machine import (children_seconds, conditions, cpu_ticks, process_seconds, stop_all,
                     wait_for_idle, TICKS_PER_SECOND)
from references import Limit, Nbdkit, Quorum, Qemu, Raw, nbd
from servers import PODS, Cluster
from table import Table

MIB = 1 << 20
GIB = 1 << 30
STALL_MS = 20
HOLDFAST = "Holdfast"
REFERENCES = {"nbdkit": Nbdkit, "qemu": Qemu, "quorum": Quorum, "raw": Raw, "limit": Limit}
# What takes one client at a time, or would be measured twice to no end.
ONE_CLIENT = ("quorum", "limit")
# With one disk for each pod: smaller, because it is memory.
SMALL_VOLUME_GIB, SMALL_WAL_MIB = 1, 256
DISK_BYTES, MEMORY_BYTES = 5 * GIB, 10 * GIB


class Job:
    """One fio workload. `beside`: references, each with the aimed ratio of IOPS, or None. `cpu`: the
    aim for CPU time of one request in us."""

    def __init__(self, name, rw, block, depth, beside, extra=(), cpu=None):
        self.name, self.rw, self.block, self.depth = name, rw, block, depth
        self.beside, self.extra, self.cpu = beside, list(extra), cpu

    def reads(self):
        return "read" in self.rw or self.rw == "randrw"

    def writes(self):
        return "write" in self.rw or self.rw == "randrw"


JOBS = [
    # 0.87: a latency of 1.15 times the bare loop's.
    Job("write-4k-qd1", "randwrite", "4k", 1, {"limit": 0.87, "nbdkit": None, "quorum": None}),
    Job("write-4k-qd32", "randwrite", "4k", 32, {"nbdkit": 0.85, "limit": None}, cpu=50),
    Job("write-16k-qd16", "randwrite", "16k", 16, {"nbdkit": 0.75, "limit": None, "quorum": None}),
    Job("write-64k-qd16", "randwrite", "64k", 16, {"nbdkit": 0.6, "limit": None, "quorum": None}),
    Job("write-1m-qd8", "write", "1m", 8, {"qemu": 0.85}),
    Job("read-4k-qd1", "randread", "4k", 1, {"raw": None, "qemu": 1.3}),
    Job("read-4k-qd32", "randread", "4k", 32, {"raw": 0.8, "qemu": None}),
    Job("read-1m-qd8", "read", "1m", 8, {"qemu": 1.0}),
    Job("mixed-4k-qd32", "randrw", "4k", 32, {"qemu": 0.8}, ["--rwmixread=70"]),
]
SUSTAINED = Job("sustained-4k-qd32", "randwrite", "4k", 32, {"nbdkit": 1.0})


def fio(target, job, volume_bytes, connections, pids, seconds, bytes_max=None, log=None):
    """Runs one job against a target, which is arguments of fio; returns a dictionary of what was
    measured. Ends after `seconds` or, when that comes first, after `bytes_max` bytes."""
    busy_share = wait_for_idle()
    command = [
        "fio", "--name=job", *target, f"--rw={job.rw}",
        f"--bs={job.block}", f"--iodepth={job.depth // connections}", f"--runtime={seconds}",
        f"--numjobs={connections}", "--group_reporting", "--randrepeat=0", "--norandommap",
        "--refill_buffers", "--output-format=json", *job.extra,
    ]
    if job.rw in ("read", "write"):
        # Each connection has a part of the volume to itself.
        part = volume_bytes // connections
        command += [f"--size={part}", f"--offset_increment={part}"]
    else:
        command += [f"--size={volume_bytes}"]
    if bytes_max is None:
        command += ["--time_based"]
    else:
        command += [f"--io_size={bytes_max // connections}"]
    if log is not None:
        command += [f"--write_iops_log={log}"]
    busy_before, total_before, steal_before = cpu_ticks()
    server_before, client_before = process_seconds(pids), children_seconds()
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"fio failed on {target}: {run.stderr.strip() or run.stdout.strip()}")
    output = run.stdout
    busy, total, steal = cpu_ticks()
    server, client = process_seconds(pids), children_seconds()
    result = json.loads(output[output.index("{"):])["jobs"][0]
    sides = [result[side] for side in ("read", "write") if result[side]["total_ios"]]
    ios = sum(side["total_ios"] for side in sides)
    main = max(sides, key=lambda side: side["total_ios"])
    return {
        "iops": sum(side["iops"] for side in sides),
        "mb_s": sum(side["bw_bytes"] for side in sides) / 1e6,
        "mean_us": main["clat_ns"]["mean"] / 1e3,
        "p50_us": main["clat_ns"]["percentile"]["50.000000"] / 1e3,
        "p99_us": main["clat_ns"]["percentile"]["99.000000"] / 1e3,
        "max_us": main["clat_ns"]["max"] / 1e3,
        "cpu_us": (busy - busy_before) * 1e6 / TICKS_PER_SECOND / ios,
        "server_us": (server - server_before) * 1e6 / ios,
        "client_us": (client - client_before) * 1e6 / ios,
        "steal": 100 * (steal - steal_before) / max(total - total_before, 1),
        "idle_before": 100 * (1 - busy_share),
    }


def mean(rows):
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


COLUMNS = [
    ("IOPS", "iops", 0), ("MB/s", "mb_s", 1), ("mean us", "mean_us", 0), ("p50", "p50_us", 0),
    ("p99", "p99_us", 0), ("max", "max_us", 0), ("CPU us/IO", "cpu_us", 1),
    ("server", "server_us", 1), ("client", "client_us", 1), ("idle before %", "idle_before", 1),
    ("steal %", "steal", 1),
]


class Bench:
    """The servers and the tables of one run of this program."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.wal_bytes, self.volume_bytes = options.wal_mib * MIB, options.volume_gib * GIB
        self.running, self.references, self.disks = [], {}, []
        self.table = Table(
            ["workload", "conns", "client on", "server", *(name for name, _, _ in COLUMNS),
             "Holdfast beside it"],
            [17, -5, 9, 21, -8, -8, -8, -8, -8, -9, -9, -7, -7, -13, -7, 30])
        self.rest = Table(["", "value", "aim", "", "conditions"], [38, -18, -18, 6, 60])
        self.postgres = Table(postgres.HEAD, postgres.WIDTHS)
        self.absence = Table(absence.HEAD, absence.WIDTHS)
        self.mounted = Table(mounted.HEAD, mounted.WIDTHS)
        self.tls = Table(tls.HEAD, tls.WIDTHS)
        self.notes = []

    def start(self, kinds):
        """Starts the cluster and these references."""
        if self.options.one_disk_each:
            disks = Disks(self.folder, PODS, DISK_BYTES, MEMORY_BYTES)
            self.running.append(disks)
            self.disks = disks.folders
            self.note(WHAT)
        # The leader stays where it is, so that a client on another pod is a case of its own.
        self.cluster = Cluster(self.options.binary, self.folder, self.wal_bytes,
                               [("bench", f"{self.options.volume_gib}GiB")],
                               ["leaders_follow_clients=false"], disks=self.disks)
        self.running.append(self.cluster)
        self.cluster.write_through("bench", self.volume_bytes)
        folders = self.disks or [self.folder]
        for kind in kinds:
            argument = self.options.limit if kind == "limit" else folders
            rest_of = folders if kind == "limit" else self.volume_bytes
            self.references[kind] = REFERENCES[kind](argument, rest_of)
            self.running.append(self.references[kind])

    def stop(self):
        stop_all(self.running)

    def note(self, text):
        self.notes.append(text)
        print(f"    {text}", flush=True)

    def row(self, job, connections, where, server, result, ratio=""):
        figures = [f"{result[key]:.{digits}f}" for _, key, digits in COLUMNS]
        self.table.add([job.name, connections, where, server, *figures, ratio])

    def compare(self, job, ours, theirs, connections, where):
        """Rows of means: Holdfast's, and each reference's with the ratio to it."""
        ours = mean(ours)
        cpu = "" if job.cpu is None else f"CPU aim {job.cpu}: {verdict(ours['cpu_us'] <= job.cpu)}"
        self.row(job, connections, where, HOLDFAST, ours, cpu)
        for kind, results in theirs.items():
            result, aim = mean(results), job.beside[kind]
            ratio = ours["iops"] / result["iops"]
            text = f"{ratio:.2f}x"
            if aim is not None:
                text += f" (aim {aim}x: {verdict(ratio >= aim)})"
            text += f", p99 {ours['p99_us'] / result['p99_us']:.2f}x"
            self.row(job, connections, where, REFERENCES[kind].name, result, text)

    def burst_bytes(self, job):
        """What a burst may write so that it fits in the log beside its headers."""
        if not job.writes():
            return None
        share = 0.3 if job.rw == "randrw" else 1.0
        return int(self.wal_bytes * 0.5 / share)

    def burst(self, job, connections, where):
        cluster, ours = self.cluster, []
        one_client = connections == 1 and where == "leader"
        kinds = [kind for kind in job.beside if kind in self.references
                 and (one_client or kind not in ONE_CLIENT)]
        theirs = {kind: [] for kind in kinds}
        read_before = cluster.read_counts() if job.reads() else None
        for _ in range(self.options.rounds):
            cluster.wait_written_back()
            target = nbd(cluster.uri(cluster.place(where, "bench"), "bench"))
            arguments = (self.options.seconds, self.burst_bytes(job))
            ours.append(fio(target, job, self.volume_bytes, connections, cluster.pids(),
                            *arguments))
            cluster.written = job.writes()
            cluster.wait_written_back()
            for kind in kinds:
                reference = self.references[kind]
                theirs[kind].append(fio(reference.fio_target(job), job, self.volume_bytes,
                                        connections, reference.pids(), *arguments))
        self.compare(job, ours, theirs, connections, where)
        if read_before is not None:
            read, dirty = (after - before for after, before
                             in zip(cluster.read_counts(), read_before))
            self.note(f"{job.name}: {100 * dirty / max(read, 1):.2f} % of {read >> 20} MiB "
                      "were of dirty blocks")

    def sustained(self):
        """Five logs full on each side; the last half is what counts."""
        job, half = SUSTAINED, self.wal_bytes * 5 // 2
        cluster, floor = self.cluster, self.references["nbdkit"]
        ours, theirs = [], []
        for number in range(self.options.sustained_rounds):
            for name, server, into in ((HOLDFAST, cluster, ours), ("floor", floor, theirs)):
                cluster.wait_written_back()
                target = nbd(cluster.uri(cluster.leader("bench"), "bench"))
                target = target if server is cluster else floor.fio_target(job)
                arguments = (target, job, self.volume_bytes, 1, server.pids(), 3600, half)
                fio(*arguments)
                log = os.path.join(self.folder, "stalls")
                into.append(fio(*arguments, log))
                cluster.written = True
                self.note(f"sustained, round {number + 1}, {name}: {stalls(log)}")
                used, length = cluster.log_used()
                if server is cluster:
                    self.note(f"log in use at the end: {used / MIB:.0f} of {length / MIB:.0f} MiB")
        self.compare(job, ours, {"nbdkit": theirs}, 1, "leader")


def verdict(is_met):
    return "met" if is_met else "missed"


def stalls(log):
    """What a log of completions (time in ms first) says of times without any."""
    with open(f"{log}_iops.1.log") as file:
        times = sorted(int(line.split(",", 1)[0]) for line in file)
    gaps = sorted(after - before for before, after in zip(times, times[1:]))
    long = len(gaps) - bisect.bisect_right(gaps, STALL_MS)
    longest = f", the longest {gaps[-1]} ms" if long else f" (the longest: {gaps[-1]} ms)"
    return f"{long} stalls of more than {STALL_MS} ms{longest}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default=os.environ.get("HOLDFAST", "holdfast"))
    parser.add_argument("--limit", default=os.environ.get("HOLDFAST_LIMIT"), metavar="PATH",
                        help="the program of benches/limit (default: it is left out)")
    parser.add_argument("--dir", default=None, help="where the data goes (default: a new folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="at most, for each run")
    parser.add_argument("--only", nargs="*", default=None, metavar="JOB",
                        help="names of jobs; without a name: none")
    parser.add_argument("--beside", nargs="*", choices=sorted(REFERENCES), metavar="REFERENCE",
                        default=sorted(REFERENCES),
                        help=f"only these references: {', '.join(sorted(REFERENCES))}")
    parser.add_argument("--connections", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--clients", nargs="*", choices=["leader", "other"],
                        default=["leader", "other"], help="the pod that the client talks to")
    parser.add_argument("--wal-mib", type=int, default=1024, help="length of each pod's log")
    parser.add_argument("--volume-gib", type=int, default=4)
    parser.add_argument("--one-disk-each", action="store_true",
                        help="a small file system in memory for each pod, needs root; without the "
                             "quorum")
    parser.add_argument("--sustained", action="store_true",
                        help="write at depth 32 until five logs are full; count the last half")
    parser.add_argument("--sustained-rounds", type=int, default=2)
    parser.add_argument("--rest", action="store_true",
                        help="memory and CPU at rest, start with a full log, fail-over")
    parser.add_argument("--discard", action="store_true",
                        help="memory, stalls and the next start when volumes are discarded")
    parser.add_argument("--rest-rounds", type=int, default=3)
    parser.add_argument("--postgres", action="store_true",
                        help="pgbench on ext4 over nbdfuse and a loop device, needs root; alone "
                             "unless jobs are named")
    parser.add_argument("--postgres-seconds", type=int, default=10)
    parser.add_argument("--scale", action="store_true",
                        help="what idle shards and volumes cost; alone unless jobs are named")
    parser.add_argument("--idle-shards", type=int, default=4000, help="for --scale; 0: none")
    parser.add_argument("--idle-volumes", type=int, default=2000, help="for --scale; 0: none")
    parser.add_argument("--absence", action="store_true",
                        help="stop a pod for 30 s under 10,000 writes a second on 200 shards; "
                             "alone unless jobs are named")
    parser.add_argument("--mounted", action="store_true",
                        help="pauses of a mounted file system whose pod is killed, needs root; "
                             "alone unless jobs are named")
    parser.add_argument("--tls", action="store_true",
                        help="two clusters in turn, with TLS between pods and without; alone "
                             "unless jobs are named")
    parser.add_argument("--tls-rounds", type=int, default=9)
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there, too")
    options = parser.parse_args()
    alone = (options.postgres or options.scale or options.absence or options.mounted
             or options.tls)
    if options.only is None and alone:
        options.only = []
    if options.one_disk_each:
        options.volume_gib = min(options.volume_gib, SMALL_VOLUME_GIB)
        options.wal_mib = min(options.wal_mib, SMALL_WAL_MIB)
    return options


def kinds_of(options, jobs):
    """The references that are needed."""
    kinds = {kind for job in jobs for kind in job.beside} & set(options.beside)
    if options.sustained:
        kinds.add("nbdkit")
    if options.one_disk_each:
        kinds.discard("quorum")
    if options.limit is None:
        kinds.discard("limit")
    return sorted(kinds)


def measure(bench, jobs):
    options = bench.options
    if jobs or options.sustained:
        bench.start(kinds_of(options, jobs))
        bench.table.begin()
    for where in options.clients:
        for connections in options.connections:
            # One request at a time is one connection.
            for job in (job for job in jobs if job.depth % connections == 0):
                bench.burst(job, connections, where)
    if options.sustained:
        bench.sustained()
    bench.stop()
    if options.postgres:
        bench.postgres.begin()
        postgres.measure(options, os.path.join(bench.folder, "postgres"), bench.postgres.add)
    if options.absence:
        bench.absence.begin()
        absence.measure(options.binary, os.path.join(bench.folder, "absence"), bench.wal_bytes,
                        bench.absence.add)
    if options.mounted:
        bench.mounted.begin()
        mounted.measure(options.binary, os.path.join(bench.folder, "mounted"), bench.wal_bytes,
                        bench.mounted.add)
    if options.tls:
        bench.tls.begin()
        tls.measure(options, os.path.join(bench.folder, "tls"), bench.wal_bytes, JOBS, fio,
                    bench.tls.add)
    if options.rest:
        rest.measure(options.binary, os.path.join(bench.folder, "rest"), bench.wal_bytes,
                     options.rest_rounds, lambda result: bench.rest.add(result.cells()))
    if options.scale:
        job = next(job for job in JOBS if job.name == "write-4k-qd1")
        scale.measure(
            lambda place: Cluster(options.binary, place, bench.wal_bytes,
                                  [(scale.BUSY, "4GiB")], ["leaders_follow_clients=false"]),
            bench.folder, options.idle_shards, options.idle_volumes, options.rounds,
            lambda uri, pids: fio(nbd(uri), job, 4 * GIB, 1, pids, options.seconds),
            lambda result: bench.rest.add(result.cells()))
    if options.discard:
        discard.measure(options.binary, os.path.join(bench.folder, "discard"), bench.wal_bytes,
                        lambda result: bench.rest.add(result.cells()))


def main():
    # So that mounts are undone, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    options = arguments()
    jobs = [job for job in JOBS if options.only is None or job.name in options.only]
    folder = tempfile.mkdtemp(prefix="holdfast-bench-", dir=options.dir)
    bench = Bench(options, folder)
    try:
        found = conditions(options.binary, folder)
        print("conditions:")
        for name, text in found:
            print(f"  {name:13} {text}")
        measure(bench, jobs)
        if options.markdown:
            with open(options.markdown, "w") as file:
                file.write(bench.table.markdown())
                file.write("".join(f"- {note}\n" for note in bench.notes) + "\n")
                file.write(bench.postgres.markdown())
                file.write(bench.absence.markdown())
                file.write(bench.mounted.markdown())
                file.write(bench.tls.markdown())
                file.write(bench.rest.markdown())
                file.write("".join(f"- {name}: {text}\n" for name, text in found))
    finally:
        # What is still mounted keeps the folder: this fails then, and says so.
        bench.stop()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Holdfast (three durable replicas) beside the unreplicated floor, in turn, on this machine.

Starts a three-pod cluster with `holdfast dev`, nbdkit with forced FUA (writes) and qemu-nbd with
O_DIRECT (reads) on prewritten files of the same file system, and runs the same fio jobs (nbd
engine) against both: A B A B, means compared with means. Prints the table and the conditions.

    benches/compare.py [--binary PATH] [--dir DIR] [--rounds 5] [--seconds 5] [--only NAME ...]
                       [--connections 1 4] [--clients leader other] [--sustained] [--rest]
                       [--markdown FILE]

Before every run it waits until nothing of Holdfast is left to be written back and the machine is
idle. Bursts of writes fit in the log; `--sustained` writes five logs full and counts the last half.
"""

import argparse
import bisect
import json
import os
import shutil
import subprocess
import sys
import tempfile

import rest
from machine import (children_seconds, conditions, cpu_ticks, process_seconds, wait_for_idle,
                     TICKS_PER_SECOND)
from servers import Cluster, Floor

MIB = 1 << 20
GIB = 1 << 30
VOLUME_BYTES = 4 * GIB
STALL_MS = 20
NAMES = {"nbdkit": "nbdkit, FUA", "qemu": "qemu-nbd, O_DIRECT", "holdfast": "Holdfast"}


class Job:
    """One fio workload. `floor`: which reference it is compared with; `aim`: ratio of IOPS."""

    def __init__(self, name, rw, block, depth, floor, aim, extra=()):
        self.name, self.rw, self.block, self.depth = name, rw, block, depth
        self.floor, self.aim, self.extra = floor, aim, list(extra)

    def reads(self):
        return "read" in self.rw or self.rw == "randrw"

    def writes(self):
        return "write" in self.rw or self.rw == "randrw"


JOBS = [
    Job("write-4k-qd1", "randwrite", "4k", 1, "nbdkit", 0.75),
    Job("write-4k-qd32", "randwrite", "4k", 32, "nbdkit", 1.5),
    Job("read-4k-qd1", "randread", "4k", 1, "qemu", 1.3),
    Job("read-4k-qd32", "randread", "4k", 32, "qemu", 0.9),
    Job("write-1m-qd8", "write", "1m", 8, "nbdkit", 0.5),
    Job("read-1m-qd8", "read", "1m", 8, "qemu", 1.0),
    Job("mixed-4k-qd32", "randrw", "4k", 32, "qemu", 0.8, ["--rwmixread=70"]),
]
SUSTAINED = Job("sustained-4k-qd32", "randwrite", "4k", 32, "nbdkit", 1.0)


def fio(uri, job, connections, pids, seconds, bytes_max=None, log=None):
    """Runs one job; returns a dictionary of what was measured. Ends after `seconds` or, when that
    comes first, after `bytes_max` bytes."""
    busy_share = wait_for_idle()
    command = [
        "fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", f"--rw={job.rw}",
        f"--bs={job.block}", f"--iodepth={job.depth // connections}", f"--runtime={seconds}",
        f"--numjobs={connections}", "--group_reporting", "--randrepeat=0", "--norandommap",
        "--refill_buffers", "--output-format=json", *job.extra,
    ]
    if job.rw in ("read", "write"):
        # Each connection has a part of the volume to itself.
        part = VOLUME_BYTES // connections
        command += [f"--size={part}", f"--offset_increment={part}"]
    else:
        command += [f"--size={VOLUME_BYTES}"]
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
        raise SystemExit(f"fio failed on {uri}: {run.stderr.strip() or run.stdout.strip()}")
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


class Table:
    """Rows that are printed as they come, and again as markdown."""

    def __init__(self, head, widths):
        self.rows, self.head, self.widths = [], head, widths

    def begin(self):
        self.line(self.head)

    def add(self, cells):
        self.rows.append(cells)
        self.line(cells)

    def line(self, cells):
        padded = [str(cell).ljust(width) if width > 0 else str(cell).rjust(-width)
                  for cell, width in zip(cells, self.widths)]
        print("  ".join(padded).rstrip(), flush=True)

    def markdown(self):
        if not self.rows:
            return ""
        marks = ["---" if width > 0 else "---:" for width in self.widths]
        lines = [self.head, marks] + self.rows
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n\n"


class Bench:
    """The servers and the tables of one run of this program."""

    def __init__(self, options, folder, wal_bytes):
        self.options, self.folder, self.wal_bytes = options, folder, wal_bytes
        self.running = []
        self.table = Table(
            ["workload", "conns", "client on", "server", *(name for name, _, _ in COLUMNS),
             "ratio, aim"],
            [17, -5, 9, 18, -8, -8, -8, -8, -8, -9, -9, -7, -7, -13, -7, 30])
        self.rest = Table(["", "value", "aim", "", "conditions"], [38, -18, -18, 6, 60])
        self.notes = []

    def start(self, floors):
        # The leader stays where it is, so that a client on another pod is a case of its own.
        self.cluster = Cluster(self.options.binary, self.folder, self.wal_bytes,
                               [("bench", "4GiB")], ["leaders_follow_clients=false"])
        self.running.append(self.cluster)
        self.cluster.write_through("bench", VOLUME_BYTES)
        self.floors = {}
        for kind in floors:
            self.floors[kind] = Floor(kind, self.folder, VOLUME_BYTES)
            self.running.append(self.floors[kind])

    def stop(self):
        for server in reversed(self.running):
            server.stop()

    def note(self, text):
        self.notes.append(text)
        print(f"    {text}", flush=True)

    def row(self, job, connections, where, server, result, ratio=""):
        figures = [f"{result[key]:.{digits}f}" for _, key, digits in COLUMNS]
        self.table.add([job.name, connections, where, NAMES[server], *figures, ratio])

    def compare(self, job, ours, theirs, connections, where):
        ours, theirs = mean(ours), mean(theirs)
        self.row(job, connections, where, job.floor, theirs)
        ratio = ours["iops"] / theirs["iops"]
        p99 = ours["p99_us"] / theirs["p99_us"]
        verdict = "met" if ratio >= job.aim else "missed"
        self.row(job, connections, where, "holdfast", ours,
                 f"{ratio:.2f}x (aim {job.aim}x: {verdict}), p99 {p99:.2f}x")

    def burst_bytes(self, job):
        """What a burst may write so that it fits in the log beside its headers."""
        if not job.writes():
            return None
        share = 0.3 if job.rw == "randrw" else 1.0
        return int(self.wal_bytes * 0.5 / share)

    def burst(self, job, connections, where):
        cluster, floor = self.cluster, self.floors[job.floor]
        ours, theirs = [], []
        read_before = cluster.read_counts() if job.reads() else None
        for _ in range(self.options.rounds):
            cluster.wait_written_back()
            uri = cluster.uri(cluster.place(where, "bench"), "bench")
            arguments = (self.options.seconds, self.burst_bytes(job))
            ours.append(fio(uri, job, connections, cluster.pids(), *arguments))
            cluster.written = job.writes()
            cluster.wait_written_back()
            theirs.append(fio(floor.uri, job, connections, floor.pids(), *arguments))
        self.compare(job, ours, theirs, connections, where)
        if read_before is not None:
            read, dirty = (after - before for after, before
                             in zip(cluster.read_counts(), read_before))
            self.note(f"{job.name}: {100 * dirty / max(read, 1):.2f} % of {read >> 20} MiB "
                      "were of dirty blocks")

    def sustained(self):
        """Five logs full on each side; the last half is what counts."""
        job, half = SUSTAINED, self.wal_bytes * 5 // 2
        cluster, floor = self.cluster, self.floors[job.floor]
        ours, theirs = [], []
        for number in range(self.options.sustained_rounds):
            for name, server, into in (("Holdfast", cluster, ours), ("floor", floor, theirs)):
                cluster.wait_written_back()
                uri = cluster.uri(cluster.leader("bench"), "bench")
                uri = uri if server is cluster else floor.uri
                fio(uri, job, 1, server.pids(), 3600, half)
                log = os.path.join(self.folder, "stalls")
                into.append(fio(uri, job, 1, server.pids(), 3600, half, log))
                cluster.written = True
                self.note(f"sustained, round {number + 1}, {name}: {stalls(log)}")
                used, length = cluster.log_used()
                if server is cluster:
                    self.note(f"log in use at the end: {used / MIB:.0f} of {length / MIB:.0f} MiB")
        self.compare(job, ours, theirs, 1, "leader")


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
    parser.add_argument("--dir", default=None, help="where the data goes (default: a new folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="at most, for each run")
    parser.add_argument("--only", nargs="*", default=None, metavar="JOB",
                        help="names of jobs; without a name: none")
    parser.add_argument("--connections", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--clients", nargs="*", choices=["leader", "other"],
                        default=["leader", "other"], help="the pod that the client talks to")
    parser.add_argument("--wal-mib", type=int, default=1024, help="length of each pod's log")
    parser.add_argument("--sustained", action="store_true",
                        help="write at depth 32 until five logs are full; count the last half")
    parser.add_argument("--sustained-rounds", type=int, default=2)
    parser.add_argument("--rest", action="store_true",
                        help="memory and CPU at rest, start with a full log, fail-over")
    parser.add_argument("--rest-rounds", type=int, default=3)
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there, too")
    return parser.parse_args()


def main():
    options = arguments()
    jobs = [job for job in JOBS if options.only is None or job.name in options.only]
    folder = tempfile.mkdtemp(prefix="holdfast-bench-", dir=options.dir)
    bench = Bench(options, folder, options.wal_mib * MIB)
    try:
        found = conditions(options.binary, folder)
        print("conditions:")
        for name, text in found:
            print(f"  {name:13} {text}")
        if jobs or options.sustained:
            floors = {job.floor for job in jobs} | ({"nbdkit"} if options.sustained else set())
            bench.start(sorted(floors))
            bench.table.begin()
        for where in options.clients:
            for connections in options.connections:
                # One request at a time is one connection.
                for job in (job for job in jobs if job.depth % connections == 0):
                    bench.burst(job, connections, where)
        if options.sustained:
            bench.sustained()
        bench.stop()
        bench.running = []
        if options.rest:
            rest.measure(options.binary, os.path.join(folder, "rest"), bench.wal_bytes,
                         options.rest_rounds, lambda result: bench.rest.add(result.cells()))
        if options.markdown:
            with open(options.markdown, "w") as file:
                file.write(bench.table.markdown())
                file.write("".join(f"- {note}\n" for note in bench.notes) + "\n")
                file.write(bench.rest.markdown())
                file.write("".join(f"- {name}: {text}\n" for name, text in found))
    finally:
        bench.stop()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What TLS between pods costs: the same jobs on two clusters in turn, one with it and one without."""

import os
import statistics

from references import nbd
from servers import Cluster

VOLUME, VOLUME_GIB = "bench", 2
AIMS = {"write-4k-qd1": 0.90, "write-4k-qd32": 0.85}
NAMES = ("write-4k-qd1", "write-4k-qd32", "write-64k-qd16", "write-1m-qd8")


def start(binary, folder, name, wal_bytes, extra):
    place = os.path.join(folder, name)
    os.mkdir(place)
    volumes = [(VOLUME, f"{VOLUME_GIB}GiB")]
    settings = ["leaders_follow_clients=false"]
    cluster = Cluster(binary, place, wal_bytes, volumes, settings, extra=extra)
    cluster.write_through(VOLUME, VOLUME_GIB << 30)
    return cluster


def measure(options, folder, wal_bytes, jobs, fio, add):
    """`add` takes a row: the job, both medians, and the median of the ratios of each round."""
    os.mkdir(folder)
    clusters = []
    try:
        for name, extra in (("plain", ("--no-tls",)), ("tls", ())):
            clusters.append(start(options.binary, folder, name, wal_bytes, extra))
        for job in (job for job in jobs if job.name in NAMES):
            found = []
            for number in range(options.tls_rounds):
                # Whoever is first changes from round to round.
                order = (0, 1) if number % 2 == 0 else (1, 0)
                pair = [None, None]
                for which in order:
                    cluster = clusters[which]
                    for each in clusters:
                        each.wait_written_back()
                    target = nbd(cluster.uri(cluster.leader(VOLUME), VOLUME))
                    pair[which] = fio(target, job, VOLUME_GIB << 30, 1, cluster.pids(),
                                      options.seconds, wal_bytes // 2)
                    cluster.written = True
                found.append(pair)
            plain, tls = (statistics.median(pair[which]["iops"] for pair in found)
                          for which in (0, 1))
            ratio = statistics.median(pair[1]["iops"] / pair[0]["iops"] for pair in found)
            cpu = [statistics.median(pair[which]["server_us"] for pair in found)
                   for which in (0, 1)]
            aim = AIMS.get(job.name)
            text = "" if aim is None else f"aim {aim:.2f}: {'met' if ratio >= aim else 'missed'}"
            add([job.name, f"{plain:.0f}", f"{tls:.0f}", f"{ratio:.3f}", f"{cpu[0]:.1f}",
                 f"{cpu[1]:.1f}", text])
    finally:
        for cluster in clusters:
            cluster.stop()


HEAD = ["TLS between pods", "IOPS plain", "IOPS TLS", "ratio", "server us/IO", "with TLS", ""]
WIDTHS = [17, -10, -10, -7, -12, -9, 20]

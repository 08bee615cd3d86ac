"""What the machine does and is: CPU time, idleness, memory, and the conditions of a measurement."""

import os
import resource
import subprocess
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_ticks():
    """(busy, total, steal) ticks of the whole machine since boot; busy is all but idle."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:]]
    idle = fields[3] + fields[4]
    total = sum(fields[:8])
    return total - idle, total, fields[7]


def process_seconds(pids):
    """CPU time that these processes have used so far."""
    seconds = 0.0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
        except FileNotFoundError:
            pass
    return seconds


def children_seconds():
    """CPU time of the children of this process that have ended: the clients."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def started_at(pid):
    """When a process started, on CLOCK_BOOTTIME, to a tick."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[19]) / TICKS_PER_SECOND


def wait_for_idle(busy_max=0.15, limit_s=20.0):
    """Waits until at most so much of the machine is busy; returns the busy share that was seen.
    A machine that never is must not hang the measurement: the share is printed beside it."""
    deadline = time.monotonic() + limit_s
    while True:
        busy_before, total_before, _ = cpu_ticks()
        time.sleep(0.5)
        busy, total, _ = cpu_ticks()
        share = (busy - busy_before) / max(total - total_before, 1)
        if share < busy_max or time.monotonic() > deadline:
            return share


def wait_for(condition, what, limit_s=60, every_s=0.1):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting for {what}")
        time.sleep(every_s)


def stop_all(running):
    """Stops everything in reverse order, also when something of it cannot be stopped; then fails."""
    failed = []
    while running:
        try:
            running.pop().stop()
        except (Exception, SystemExit) as error:
            failed.append(str(error))
    if failed:
        raise SystemExit("could not stop everything: " + "; ".join(failed))


def output_of(*command):
    """The first line that a program prints, or nothing."""
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return (run.stdout.strip().split("\n") or [""])[0]


def read_file(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def queue_of(folder):
    """The sysfs folder of the block device that a folder is on, or nothing."""
    source = output_of("findmnt", "-no", "SOURCE", "--target", folder)
    device = os.path.realpath(f"/sys/class/block/{os.path.basename(source)}")
    for place in (device, os.path.dirname(device)):
        if os.path.isdir(f"{place}/queue"):
            return f"{place}/queue"
    return ""


def conditions(binary, folder):
    """Under what a measurement was made, as (name, text)."""
    queue = queue_of(folder)
    cpu = [line for line in read_file("/proc/cpuinfo").split("\n") if "model name" in line]
    governor = read_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    found = [
        ("kernel", output_of("uname", "-r")),
        ("cpu", f"{cpu[0].split(':')[1].strip() if cpu else 'unknown'} x {os.cpu_count()}"),
        ("governor", governor or "none"),
        ("load", read_file("/proc/loadavg")),
        ("file system", output_of("findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "--target", folder)),
        ("write cache", read_file(f"{queue}/write_cache") or "unknown"),
        ("fua", read_file(f"{queue}/fua") or "unknown"),
    ]
    for program in ("fio", "nbdkit", "qemu-nbd", binary):
        found.append((os.path.basename(program), output_of(program, "--version")))
    return found

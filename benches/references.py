"""What Holdfast is measured beside: servers of one copy, the raw file, three copies by QEMU, and the
bare loop of benches/limit. All files are written through first. Each ends what it started."""

import json
import os
import shutil
import subprocess

from machine import wait_for
from servers import PODS, free_port

LIMIT_LOG_MIB = 256
PIECE_BYTES = 4 << 20


def answers(uri):
    return subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode == 0


def nbd(uri):
    """The arguments with which fio uses an NBD server."""
    return ["--ioengine=nbd", f"--uri={uri}"]


def written_file(folder, name, size_bytes):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        subprocess.run(["dd", "if=/dev/urandom", f"of={path}", f"bs={PIECE_BYTES}",
                        f"count={size_bytes // PIECE_BYTES}", "oflag=direct", "status=none"],
                       check=True)
    return path


def qemu(target, cache, image):
    """The command of a qemu-nbd for one image."""
    return ["qemu-nbd", "--persistent", "--shared=16", f"--cache={cache}", *target, image]


class Reference:
    """Processes that belong together. `fio_target` gives the arguments for a job."""

    name = ""

    def __init__(self):
        self.processes = []

    def start(self, *command):
        self.processes.append(subprocess.Popen(command))

    def serve(self, port, *command):
        """Starts a server that is ready when it answers on this port."""
        self.uri = f"nbd://127.0.0.1:{port}/"
        try:
            self.start(*command)
            wait_for(lambda: answers(self.uri), self.name)
        except BaseException:
            self.stop()
            raise

    def fio_target(self, _job):
        return nbd(self.uri)

    def pids(self):
        found = []
        for process in self.processes:
            found.append(process.pid)
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
                found += [int(pid) for pid in children.read().split()]
        return found

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
        self.processes = []


class Nbdkit(Reference):
    name = "nbdkit, FUA"

    def __init__(self, folders, size_bytes):
        super().__init__()
        path, port = written_file(folders[0], "one-copy.raw", size_bytes), free_port(17809)
        self.serve(port, "nbdkit", "--foreground", f"--port={port}", "--ipaddr=127.0.0.1",
                   "--filter=fua", "file", path, "fuamode=force")


class Qemu(Reference):
    name = "qemu-nbd, directsync"

    def __init__(self, folders, size_bytes):
        super().__init__()
        path, port = written_file(folders[0], "one-copy.raw", size_bytes), free_port(17809)
        target = ["--bind=127.0.0.1", f"--port={port}", "--aio=io_uring", "--format=raw"]
        self.serve(port, *qemu(target, "directsync", path))


class Quorum(Reference):
    """QEMU's quorum over three servers of one copy each, which it reaches through unix sockets. The
    copies are the same, as reads compare them. The quorum asks for FUA, and the servers obey."""

    name = "qemu quorum, 3 copies"

    def __init__(self, folders, size_bytes):
        super().__init__()
        first = written_file(folders[0], "one-copy.raw", size_bytes)
        image = {"driver": "quorum", "vote-threshold": 2, "children": []}
        try:
            for number in range(PODS):
                folder = folders[number % len(folders)]
                path = os.path.join(folder, f"quorum-{number}.raw")
                shutil.copyfile(first, path)
                socket = os.path.join(folder, f"quorum-{number}.socket")
                target = [f"--socket={socket}", "--aio=io_uring", "--format=raw"]
                self.start(*qemu(target, "none", path))
                wait_for(lambda: answers(f"nbd+unix:///?socket={socket}"), "a copy of the quorum")
                server = {"type": "unix", "path": socket}
                image["children"].append({"driver": "nbd", "server": server})
        except BaseException:
            self.stop()
            raise
        port = free_port(17809)
        target = ["--bind=127.0.0.1", f"--port={port}"]
        self.serve(port, *qemu(target, "directsync", f"json:{json.dumps(image)}"))


class Raw(Reference):
    """fio on the file itself, with O_DIRECT, and DSYNC for writes."""

    name = "raw file, DSYNC"

    def __init__(self, folders, size_bytes):
        super().__init__()
        self.path = written_file(folders[0], "one-copy.raw", size_bytes)

    def fio_target(self, job):
        target = ["--ioengine=io_uring", "--direct=1", f"--filename={self.path}"]
        return target + (["--sync=dsync"] if job.writes() else [])


class Limit(Reference):
    """The bare loop: see benches/limit/src/main.rs."""

    name = "limit, 3 processes"

    def __init__(self, binary, folders):
        super().__init__()
        port = free_port(17809)
        files = [os.path.join(folders[number % len(folders)], f"limit-{number}.log")
                 for number in range(PODS)]
        self.serve(port, binary, str(port), str(LIMIT_LOG_MIB), *files)

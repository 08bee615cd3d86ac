"""Three small file systems, one for each pod: ext4 on loop devices over files in a tmpfs. They are
memory and no disks. So they show what the software costs when no pod waits for another's flush."""

import os
import subprocess

WHAT = "one file system for each pod: ext4 on a loop device over tmpfs. MEMORY, NOT A DISK"


def run(*command):
    """The output of a command of the administrator."""
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


class Disks:
    """Mounted file systems below `folder`, and how to undo what was done."""

    def __init__(self, folder, count, size_bytes, memory_bytes):
        if os.geteuid() != 0:
            raise SystemExit("file systems of their own need root, for mount and losetup")
        self.undo = []
        self.folders = []
        try:
            memory = self.mount(os.path.join(folder, "memory"), "tmpfs", "tmpfs",
                                f"size={memory_bytes},mode=711")
            for number in range(1, count + 1):
                image = os.path.join(memory, f"disk-{number}.img")
                with open(image, "wb") as file:
                    file.truncate(size_bytes)
                device = run("losetup", "--find", "--show", "--direct-io=on", image)
                self.undo.append(("losetup", "--detach", device))
                run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
                place = os.path.join(folder, f"disk-{number}")
                self.folders.append(self.mount(place, device, "ext4", "noatime"))
        except BaseException:
            self.stop()
            raise

    def mount(self, place, source, kind, options):
        """Mounts, and looks whether it is there: nothing may be written below otherwise."""
        os.mkdir(place)
        run("mount", "-t", kind, "-o", options, source, place)
        self.undo.append(("umount", place))
        found = run("findmnt", "-no", "SOURCE,FSTYPE", "--mountpoint", place).split()
        if not os.path.ismount(place) or found != [source, kind]:
            raise SystemExit(f"{place} is not the mount that was made there: {found}")
        return place

    def stop(self):
        """Undoes everything, in reverse order. What fails stays in the list and is told."""
        failed = []
        for command in reversed(self.undo):
            try:
                run(*command)
            except SystemExit as error:
                failed.append((command, str(error)))
        self.undo = [command for command, _ in reversed(failed)]
        if failed:
            raise SystemExit("; ".join(error for _, error in failed))

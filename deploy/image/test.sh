#!/usr/bin/env bash
# Starts an image of deploy/image/build.sh as a container, with what the manifests give a storage
# pod, and looks whether it serves. As root:
#
#   deploy/image/test.sh ARCHIVE
#
# Needed here: umoci, runc (or RUNTIME=crun, where the kernel's control groups are all of version
# 2), python3, curl.
set -euo pipefail

archive=$(realpath "$1")
runtime=${RUNTIME:-runc}
work=$(mktemp -d)
container=holdfast-image-test-$$
server=

stop() {
    # Both fail when it never started, or has ended by itself.
    [ -z "$server" ] || "$runtime" delete --force "$container" >/dev/null 2>&1 || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

fail() {
    echo "the image does not work: $1" >&2
    [ ! -s "$work/log" ] || tail -n 40 "$work/log" >&2
    exit 1
}

mkdir "$work/oci"
tar -C "$work/oci" -xf "$archive"
name=$(python3 -c 'import json, sys
print(json.load(open(sys.argv[1]))["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"])
' "$work/oci/index.json")
umoci unpack --image "$work/oci:$name" "$work/bundle"
cp "$work/bundle/config.json" "$work/plain.json"

# configure JSON: what differs from the bundle that umoci made.
configure() {
    python3 - "$work/plain.json" "$work/bundle/config.json" "$1" <<'END'
import json, resource, sys
plain, made, changes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = json.load(open(plain))
process = config["process"]
process["terminal"] = False
process["args"] = changes.get("command") or process["args"] + changes["args"]
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": limit, "hard": limit}]
capabilities = changes.get("capabilities", [])
process["capabilities"] = {set: capabilities for set in ("bounding", "effective", "permitted")}
config["root"]["readonly"] = True
config["mounts"] += [
    {"destination": to, "type": "bind", "source": source, "options": ["rbind", *options]}
    for source, to, *options in changes.get("binds", [])
]
# The network of the node, and what is mounted there as it is.
config["linux"]["namespaces"] = [it for it in config["linux"]["namespaces"] if it["type"] != "network"]
config["mounts"] = [it for it in config["mounts"] if it["type"] not in ("sysfs", "cgroup", "mqueue")]
json.dump(config, open(made, "w"))
END
}

# 1. Every program is there that Holdfast calls, and runs.
cat >"$work/look" <<'END'
set -eu
holdfast --version
for tool in mkfs.ext4 e2fsck resize2fs tune2fs mkfs.xfs xfs_growfs blkid losetup blockdev mount \
    umount findmnt modprobe nbdfuse fusermount3 sleep; do
    command -v $tool >/dev/null || { echo $tool is missing; exit 1; }
done
test -s /etc/ssl/certs/ca-certificates.crt
END
configure '{"command": ["/bin/sh", "/look"], "binds": [["'"$work/look"'", "/look", "ro"]]}'
"$runtime" run --bundle "$work/bundle" "$container" >"$work/log" 2>&1 || fail "a program is missing"
cat "$work/log"

# 2. A pod serves, on a read-only root, with one capability.
mkdir -p "$work/etc" "$work/pod" "$work/disk" "$work/run"
read -r api peer nbd http < <(python3 -c 'import socket
all = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(it.getsockname()[1] for it in all))')
cat >"$work/etc/holdfast.toml" <<END
data = "/var/lib/holdfast/pod"
init = true
api.listen = "127.0.0.1:$api"
peer.listen = "127.0.0.1:$peer"
nbd.listen = "127.0.0.1:$nbd"
nbd.socket = "/run/holdfast/nbd.sock"
http.listen = "127.0.0.1:$http"
[[disk]]
path = "/var/lib/holdfast/disk-0"
size = "256MiB"
wal_size = "64MiB"
END
configure '{"args": ["serve", "--config", "/etc/holdfast/holdfast.toml"],
    "capabilities": ["CAP_IPC_LOCK"],
    "binds": [["'"$work/etc"'", "/etc/holdfast", "ro"], ["'"$work/run"'", "/run/holdfast"],
        ["'"$work/pod"'", "/var/lib/holdfast/pod"], ["'"$work/disk"'", "/var/lib/holdfast/disk-0"]]}'
"$runtime" run --bundle "$work/bundle" "$container" >"$work/log" 2>&1 &
server=$!
until curl --silent --fail --max-time 5 "http://127.0.0.1:$http/readyz" >/dev/null; do
    kill -0 "$server" 2>/dev/null || fail "the pod ended"
    [ "$SECONDS" -lt 120 ] || fail "the pod does not serve"
    sleep 0.2
done
"$runtime" exec "$container" holdfast --endpoint "127.0.0.1:$api" pod list

# 3. SIGTERM reaches it, and it ends well.
"$runtime" kill "$container" TERM
status=0
wait "$server" || status=$?
server=
[ "$status" = 0 ] || fail "it ended with status $status"
echo "the image serves, and ends when it is told to"

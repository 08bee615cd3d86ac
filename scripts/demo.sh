#!/usr/bin/env bash
# A three-pod cluster on this machine, with a replicated volume that is put to the test before you
# get it: `make demo`. Three real server processes on loopback; nothing outside the data folder is
# touched.
#
#   scripts/demo.sh run      leaves the cluster running until Ctrl-C
#   scripts/demo.sh check    the same in a folder of its own, then stops it; for tests
#   scripts/demo.sh clean    removes the data of earlier runs
#
# HOLDFAST is the program, HOLDFAST_DEMO_DIR the folder.
set -euo pipefail

mode=${1:-run}
program=${HOLDFAST:-holdfast}
dir=${HOLDFAST_DEMO_DIR:-$PWD/holdfast-demo}
volume=demo
size=10GiB
offset=0
# Long enough that the copy goes on without the pod that is killed.
restart_after=4s
dev_pid=
step_number=0

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else
    bold='' green='' red='' plain=''
fi

step() {
    step_number=$((step_number + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$step_number" "$*" "$plain"
}
say() { printf '   %s\n' "$*"; }
good() { printf '   %s%s%s\n' "$green" "$*" "$plain"; }
fail() {
    printf '\n%sThe demo failed: %s%s\n' "$red" "$*" "$plain" >&2
    if [ -s "$dir/dev.log" ]; then
        printf 'The last lines of %s:\n' "$dir/dev.log" >&2
        tail -n 20 "$dir/dev.log" >&2
    fi
    printf 'The logs of the pods: %s\n' "$dir/cluster/pod-*/log" >&2
    exit 1
}

# Pods are numbered from 1; ports of pod N are the defaults + 100 x (N - 1) + offset.
nbd_port() { echo $((10809 + 100 * ($1 - 1) + offset)); }
api_port() { echo $((7400 + 100 * ($1 - 1) + offset)); }
uri() { echo "nbd://127.0.0.1:$(nbd_port "$1")/$volume"; }
pid_of() { cat "$dir/cluster/pod-$1/pid" 2>/dev/null || true; }

in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
ports_in_use() {
    local pod
    for pod in 1 2 3; do
        if in_use "$(nbd_port $pod)" || in_use "$(api_port $pod)"; then return 0; fi
    done
    return 1
}

# Polls until the command succeeds; the limit is against hanging only.
wait_for() {
    local seconds=$1 what=$2
    shift 2
    local until=$((SECONDS + seconds))
    until "$@"; do
        [ -z "$dev_pid" ] || kill -0 "$dev_pid" 2>/dev/null || fail "holdfast dev has ended"
        [ $SECONDS -lt $until ] || fail "waited $seconds s in vain: $what"
        sleep 0.1
    done
}

# Nothing in the cluster needs attention: every pod is up and every replica in step.
healthy() {
    "$program" status --endpoint "127.0.0.1:$(api_port 1)" -o json 2>/dev/null |
        python3 -c 'import json, sys; sys.exit(json.load(sys.stdin)["problems"] != [])' 2>/dev/null
}

stop_cluster() {
    [ -n "$dev_pid" ] || return 0
    kill -TERM "$dev_pid" 2>/dev/null || true
    wait "$dev_pid" 2>/dev/null || true
    dev_pid=
}

on_exit() {
    local status=$?
    trap - EXIT INT TERM
    stop_cluster
    [ "$mode" != check ] || [ $status -ne 0 ] || rm -rf "$dir"
    exit $status
}

is_ready() { grep -qs '^ready nbd://' "$dir/dev.out"; }

start_cluster() {
    mkdir -p "$dir"
    : >"$dir/dev.out"
    "$program" dev --pods 3 --data "$dir/cluster" --volume "$volume:$size" \
        --port-offset "$offset" --restart-after "$restart_after" \
        >"$dir/dev.out" 2>>"$dir/dev.log" &
    dev_pid=$!
    wait_for 120 "the cluster is ready" is_ready
    local pod
    for pod in 1 2 3; do
        say "pod $pod: process $(pid_of $pod), serves $(uri $pod)"
    done
}

# An ext4 file system as large as the volume, with real files in it.
make_image() {
    local stage="$dir/files"
    rm -rf "$stage" "$dir/image.new"
    mkdir -p "$stage"
    cp -r /usr/share/doc /usr/bin "$stage/" 2>/dev/null || true
    truncate -s 10G "$dir/image.new"
    PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -L "$volume" -d "$stage" "$dir/image.new" ||
        fail "mkfs.ext4 could not make the image"
    rm -rf "$stage"
    mv "$dir/image.new" "$dir/image"
}

# Percent of the copy that is done, as qemu-img last printed it.
copied_percent() {
    tr '\r' '\n' <"$dir/copy.out" | sed -n 's/^ *(\([0-9]*\).*/\1/p' | tail -n 1
}
copied_a_third() {
    local percent
    percent=$(copied_percent)
    [ "${percent:-0}" -ge 33 ] || ! kill -0 "$copy_pid" 2>/dev/null
}

copy_and_kill() {
    : >"$dir/copy.out"
    # Slowed down, or it is over before anything can be killed.
    qemu-img convert -p -r 100M -n -W -m 4 -f raw -O raw "$dir/image" "$(uri 1)" \
        >"$dir/copy.out" 2>>"$dir/dev.log" &
    copy_pid=$!
    wait_for 120 "the copy makes progress" copied_a_third
    kill -0 "$copy_pid" 2>/dev/null || fail "the copy ended before a pod could be killed"
    local victim
    victim=$(pid_of 2)
    say "$(copied_percent) % are copied. Now: kill -9 $victim (pod 2)"
    kill -9 "$victim" || fail "pod 2 does not run"
    killed_pid=$victim
    wait "$copy_pid" || fail "the copy was interrupted: a client must not notice that a pod died"
    good "The copy went on and ended without an error."
}

compare() {
    qemu-img compare -q -f raw -F raw "$dir/image" "$(uri "$1")" ||
        fail "what pod $1 serves differs from what was written"
    good "Every byte of $size is right, read through pod $1."
}

pod_is_back() {
    local pid
    pid=$(pid_of 2)
    [ -n "$pid" ] && [ "$pid" != "$killed_pid" ] && in_use "$(nbd_port 2)"
}

exercise() {
    step "Making an ext4 file system of real files, as large as the volume"
    [ -e "$dir/image" ] || make_image
    say "$dir/image: $(du -h --apparent-size "$dir/image" | cut -f1)," \
        "$(du -h "$dir/image" | cut -f1) of it used"

    step "Copying it into the volume over NBD, and killing a pod in the middle"
    copy_and_kill

    step "Verifying every byte while a replica is missing"
    compare 1

    step "Waiting until the killed pod is back and has caught up"
    wait_for 60 "pod 2 is started again" pod_is_back
    say "pod 2 runs again: process $(pid_of 2)"
    wait_for 180 "every replica has caught up" healthy
    good "All replicas are in step."
    compare 2
    touch "$dir/verified"
    rm -f "$dir/image"
}

next_steps() {
    cat <<TEXT

${bold}The cluster is running. Things to try in another terminal:${plain}

   $program status --endpoint 127.0.0.1:$(api_port 1)
   $program volume list --endpoint 127.0.0.1:$(api_port 1)
   nbdinfo $(uri 1)
   qemu-io -f raw -c 'read 0 1M' $(uri 3)
   kill -9 \$(cat $dir/cluster/pod-3/pid)     # it comes back by itself

   # Mount the file system on it, here, as root:
   mkdir -p /tmp/demo-nbd /tmp/demo-mnt
   nbdfuse /tmp/demo-nbd/disk $(uri 1) &
   mount \$(losetup --find --show /tmp/demo-nbd/disk) /tmp/demo-mnt
   ls /tmp/demo-mnt/doc
   # and take it away again:
   umount /tmp/demo-mnt; losetup --detach \$(losetup -n -O NAME -j /tmp/demo-nbd/disk)
   fusermount3 -u /tmp/demo-nbd

   The data stays in $dir
   and is there again at the next "make demo"; "make demo-clean" removes it.

${bold}Ctrl-C stops the cluster.${plain}
TEXT
}

clean() {
    if [ ! -d "$dir" ]; then
        echo "Nothing to remove: there is no $dir"
        return
    fi
    # Only a folder that this script has made, and no cluster that runs.
    [ -e "$dir/dev.log" ] || fail "$dir does not look like the folder of a demo; remove it yourself"
    local pod pid
    for pod in 1 2 3; do
        pid=$(pid_of $pod)
        if [ -n "$pid" ] && grep -qs "$dir" "/proc/$pid/cmdline"; then
            fail "the demo is still running (pod $pod is process $pid): stop it with Ctrl-C first"
        fi
    done
    rm -rf "$dir"
    echo "Removed $dir"
}

case "$mode" in
run) ;;
check)
    dir=$dir-check
    rm -rf "$dir"
    ;;
clean)
    clean
    exit
    ;;
*)
    echo "usage: $0 run|check|clean" >&2
    exit 2
    ;;
esac

if [ "$mode" = check ]; then
    # Not the default ports: a demo may be running.
    offset=15000
    while ports_in_use; do offset=$((offset + 301)); done
elif ports_in_use; then
    echo "A port of the demo (7400 or 10809, or those of pods 2 and 3) is in use:" >&2
    echo "is another demo running? Stop it with Ctrl-C, or wait for it to end." >&2
    exit 1
fi

trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "Starting three pods on this machine"
say "data: $dir"
start_cluster
if [ -e "$dir/verified" ]; then
    good "The cluster of the last run is back, and its volume with it."
else
    exercise
fi

if [ "$mode" = check ]; then
    printf '\n%sThe demo works.%s\n' "$green" "$plain"
    exit 0
fi
next_steps
wait "$dev_pid" || fail "holdfast dev has ended"

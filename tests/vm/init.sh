#!/bin/busybox sh
# The first process of a test's virtual machine. It runs the lines that come over the second serial
# port, one after the other, and says after each how it ended.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
# Part of some kernels.
modprobe virtio_pci 2>/dev/null
modprobe virtio_net
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo -F /dev/ttyS1
echo
echo "@@ 0"
while read -r line; do
    eval "$line"
    code=$?
    # Also behind a line without an end.
    echo
    echo "@@ $code"
done

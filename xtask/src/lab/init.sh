#!/bin/busybox sh
# PID 1 of the lab: prepares the machine, runs one command, reports on the `result` port.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname lab
ip link set lo up

failure=
while read -r module; do
    insmod "/lib/modules/$module" || failure="module $module does not load"
done </lab/modules

while read -r tag path mode; do
    mkdir -p "$path"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$mode" "$tag" "$path" ||
        failure="cannot mount the shared directory $path"
done </lab/shares

if [ -e /lab/scratch ]; then
    mkdir -p /scratch
    mount -t ext4 -o discard /dev/vda /scratch || failure="cannot mount the scratch disk"
fi

port() {
    for tries in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for entry in /sys/class/virtio-ports/*; do
            read -r name <"$entry/name" && [ "$name" = "$1" ] && echo "/dev/${entry##*/}" && return
        done 2>/dev/null
        sleep 0.05
    done
    echo "lab: no port $1" >/dev/console
}
exec 3<>"$(port stdin)" 4<>"$(port stdout)" 5<>"$(port stderr)" 6<>"$(port result)"

if [ -n "$failure" ]; then
    echo "fail $failure" >&6
    while :; do sleep 3600; done
fi

echo ready >&6
cd /root
if [ -e /lab/terminal ]; then
    setsid cttyhack /lab/command 3<&- 4>&- 5>&- 6>&-
else
    /lab/command <&3 >&4 2>&5 3<&- 4>&- 5>&- 6>&-
fi
code=$?
cat /lab/mark >&4
cat /lab/mark >&5
echo "exit $code" >&6
while :; do sleep 3600; done

#!/usr/bin/env bash
# Process 1 of one host of the lab, in namespaces of its own: mounts, then reaps orphans.
#   usage: host.sh SHARED LAB NAME     (LAB and SHARED are folders that every host sees)
set -euo pipefail
shared=$1 lab=$2 name=$3
own=$lab/hosts/$name
ulimit -c 0    # slurmd lifts its soft limit: killed tasks would leave core files in the job's folder
hostname "$name"

# /tmp, /run and /dev/shm are each host's own; folders that all share are seen through a private /tmp.
rm -rf "$own/tmp"
mkdir -p "$own/tmp"
chmod 1777 "$own/tmp"
for folder in "$lab" "$shared"; do
  if [[ $folder == /tmp/* ]]; then
    mkdir -p "$own$folder"
    mount --bind "$folder" "$own$folder"
  fi
done
mount --bind "$lab/etc" /etc/slurm
mount --bind "$lab/etc/hosts" /etc/hosts
mount --rbind "$own/tmp" /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -m 755 /run/munge
ip link set lo up
touch "$own/ready"
while :; do
  sleep 3600 &
  wait "$!"
done

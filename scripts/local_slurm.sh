#!/usr/bin/env bash
# A Slurm of one node on this machine's loopback, for tests of sweeps: no systemd, no accounting.
#
#   sudo scripts/local_slurm.sh install          Debian's slurm-wlm and munge
#   sudo scripts/local_slurm.sh start [FOLDER]   starts munged, slurmctld and slurmd
#   export SLURM_CONF=FOLDER/slurm.conf          what sinfo, sbatch and the tests then need
#   sudo scripts/local_slurm.sh stop [FOLDER]    ends them and the jobs; the logs stay
#
# The node offers two cores (more than there are, where there is one) and half of the memory. Jobs
# are killed beyond the memory that they ask for: by the kernel where cgroups can be written, else
# by Slurm, which looks at them every ten seconds. Two partitions: jobs of "urgent" preempt those of
# "normal", which are requeued. It is no installation for real work: everything runs as root.
set -euo pipefail

action=${1:-}
folder=${2:-/tmp/alseg-slurm}

install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq slurm-wlm munge
}

write_cgroup_settings() { # prints the lines of slurm.conf that belong to them
  if [ -w /sys/fs/cgroup/memory ] && [ -w /sys/fs/cgroup/freezer ]; then
    # the memory that a process has in use, with no swap and no part of other jobs' page cache
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainRAMSpace=yes \
      ConstrainSwapSpace=no ConstrainCores=no >"$folder/cgroup.conf"
    printf '%s\n' TaskPlugin=task/cgroup ProctrackType=proctrack/cgroup
  else
    rm -f "$folder/cgroup.conf"
    printf '%s\n' TaskPlugin=task/none ProctrackType=proctrack/linuxproc \
      JobAcctGatherParams=OverMemoryKill
  fi
}

write_settings() {
  local host memory_mb
  host=$(hostname -s)
  memory_mb=$(awk '/MemTotal/ {print int($2 / 2048)}' /proc/meminfo)
  cat >"$folder/slurm.conf" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
AuthType=auth/munge
AuthInfo=socket=$folder/munge/munge.socket,cred_expire=30 # a requeued job waits as long
CredType=cred/munge
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1024
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=1,bf_interval=5
JobRequeue=1
KillWait=20
OverTimeLimit=0
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.log
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=10
SlurmdParameters=config_overrides
$(write_cgroup_settings)
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory_mb State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
END
}

start_munge() {
  mkdir -p "$folder/munge"
  if [ ! -f "$folder/munge/munge.key" ]; then
    (umask 077 && dd if=/dev/urandom of="$folder/munge/munge.key" bs=128 count=1 status=none)
  fi
  munged --force --socket="$folder/munge/munge.socket" --key-file="$folder/munge/munge.key" \
    --log-file="$folder/munge/munged.log" --pid-file="$folder/munge/munged.pid" \
    --seed-file="$folder/munge/munged.seed"
}

start() {
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder"
  write_settings
  export SLURM_CONF=$folder/slurm.conf
  start_munge
  slurmctld
  slurmd
  for _ in $(seq 30); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -q -E 'idle|mixed|allocated'; then
      echo "Slurm runs: export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 1
  done
  echo "Slurm does not answer; see the logs in $folder" >&2
  exit 1
}

stop() {
  export SLURM_CONF=$folder/slurm.conf
  scancel --full --state=RUNNING --signal=KILL --user=root 2>/dev/null || true
  scontrol shutdown 2>/dev/null || true
  sleep 1
  for name in slurmd slurmctld munge/munged; do
    if [ -f "$folder/$name.pid" ]; then
      end "$(cat "$folder/$name.pid")"
    fi
  done
}

end() { # a process, by force if it does not end within five seconds
  kill "$1" 2>/dev/null || return 0
  for _ in $(seq 10); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.5
  done
  kill -KILL "$1" 2>/dev/null || true
}

case $action in
  install | start | stop) "$action" ;;
  *)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac

# What the batch scripts share; sourced by them, then `job train ARGUMENTS`, for `ddpm train ARGUMENTS`.
#
# The configuration is checked first, without Ray. Where several processes are needed, Ray runs in a
# background step with a part on every node, and its life hangs on a pipe that this shell holds. The
# command itself runs here, in the batch script, so its exit code is the job's.
#
#   USR2 (the end of the time limit, or preemption, is near): save, exit 75, requeue
#   TERM (scancel, preemption): save, exit 75; SLURM requeues what it preempts, and what a user
#        cancels must stay cancelled

root=$SLURM_SUBMIT_DIR
asked=() main='' ray='' folder='' temporary=''
exec {alive}>/dev/null

say() { printf '[%s] job %s: %s\n' "$(date +%T)" "${SLURM_JOB_ID:-none}" "$*"; }
fail() { say "error: $1" >&2; exit "${2:-2}"; }

[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no SLURM job; submit it: sbatch $root/slurm/train.sh CONFIG"
for tool in srun scontrol; do
  command -v "$tool" >/dev/null || fail "$tool is not found; load SLURM's commands in slurm/site.env"
done
# shellcheck source=slurm/site.env
[[ ! -r $root/slurm/site.env ]] || source "$root/slurm/site.env"
if [[ -n ${DDPM_MODULES:-} ]]; then
  # the names are separated by spaces
  # shellcheck disable=SC2086
  module load $DDPM_MODULES || fail "module load $DDPM_MODULES failed; see DDPM_MODULES in slurm/site.env"
fi
most=${DDPM_REQUEUES:-100}
[[ $most =~ ^[0-9]+$ ]] || fail "DDPM_REQUEUES is '$most'; give a whole number such as 100"
python=("${DDPM_CONTAINER[@]}" "${DDPM_PYTHON:-$root/.venv/bin/python}")
"${python[@]}" -c 'import ddpm' || fail "${python[*]} cannot import ddpm; run \`make install\` or set DDPM_PYTHON in slurm/site.env"

# A signal is passed on to the command, which saves and ends; the shell waits for it meanwhile.
pass_on() {
  asked+=("$1")
  say "$1 received"
  [[ -z $main ]] || kill -s "$1" "$main" 2>/dev/null
}
for name in USR2 TERM INT; do
  # shellcheck disable=SC2064
  trap "pass_on $name" "$name"
done

# What a node says on standard output is for this shell: `failed CODE`, after the reason on stderr.
start_ray() {
  local nodes=$SLURM_JOB_NUM_NODES
  coproc RAY { exec srun --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
    --mpi=none --quiet "${python[@]}" -m ddpm.cluster node "$folder"; }
  ray=$RAY_PID
  exec {alive}>&- {alive}>&"${RAY[1]}" {RAY[1]}>&- {words}<&"${RAY[0]}" {RAY[0]}<&-
  export DDPM_RAY_FOLDER=$folder
}

# End of file on the pipe ends Ray on every node and removes what it left there; where SLURM has told
# srun to stop, the end of the job's folder does.
end_ray() {
  exec {alive}>&-
  rm -rf -- "$folder"
  for _ in {1..50}; do
    kill -0 "$ray" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -s KILL "$ray" 2>/dev/null
}

# The command cannot go on where a node's Ray has failed or all of it has ended.
watch_ray() {
  local word code
  while read -r -u "$words" word code; do
    [[ $word != failed ]] || break
  done
  kill -s KILL "$main" 2>/dev/null
  exit "${code:-1}"
}

# The command's exit code, or that of the node whose failure ended it.
wait_for_main() {
  local watcher='' code
  if [[ -n $ray ]]; then
    watch_ray {alive}>&- & watcher=$!
  fi
  while kill -0 "$main" 2>/dev/null; do
    wait "$main" 2>/dev/null  # a signal ends the waiting, not what is waited for
  done
  wait "$main" 2>/dev/null; code=$?
  if [[ -n $watcher ]] && ((code == 137)) && ! kill -0 "$watcher" 2>/dev/null; then
    wait "$watcher"; code=$?
    say "stopped, because Ray ended (exit code $code)" >&2
  fi
  [[ -z $watcher ]] || kill "$watcher" 2>/dev/null
  return "$code"
}

# Back into the queue under the same number; SLURM counts how often.
requeue() {
  local count=${SLURM_RESTART_COUNT:-0}
  ((count < most)) || fail "requeued $count times, the most that DDPM_REQUEUES allows; submit it again to continue" 75
  say "requeue $((count + 1)) of at most $most"
  scontrol requeue "$SLURM_JOB_ID" || fail "scontrol requeue failed; submit the job again to continue" 75
}

job() {
  local command=("${python[@]}" -m ddpm "$@") plan code uses_ray
  # Nothing that the command puts among the temporary files outlives the job; staged shards do.
  export DDPM_SCRATCH=${DDPM_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
  temporary=${TMPDIR:-/tmp}/ddpm-$UID-$SLURM_JOB_ID
  rm -rf -- "$temporary"  # of an earlier start that was killed
  mkdir -m 700 -- "$temporary" || fail "$temporary cannot be made; is the disk full?" 5
  trap 'rm -rf -- "$temporary"' EXIT
  plan=$temporary/plan
  "${command[@]}" --plan "$plan"; code=$?
  ((code == 0)) || { say "nothing was started (exit code $code)" >&2; exit "$code"; }
  { IFS= read -r -d '' folder; IFS= read -r -d '' uses_ray; } <"$plan"
  say "$SLURM_JOB_NUM_NODES node(s), ${SLURM_RESTART_COUNT:-0} restart(s): configuration checked"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
  [[ $uses_ray != 1 ]] || start_ray
  if ((${#asked[@]} == 0)); then
    TMPDIR=$temporary "${command[@]}" {alive}>&- & main=$!
    wait_for_main; code=$?
  else
    code=75
  fi
  [[ -z $ray ]] || end_ray
  rm -rf -- "$temporary" ${folder:+"$folder"}  # now: SLURM kills the script that requeues its job
  say "exit code $code after $SECONDS s"
  if ((code == 75)) && [[ " ${asked[*]} " == *" USR2 "* && " ${asked[*]} " != *" TERM "* ]]; then
    requeue
  elif ((code == 3 && ${SLURM_RESTART_COUNT:-0} > 0)); then
    # a start of this job on a node that SLURM has lost sight of may still be training there
    say "waiting for the run directory"
    sleep 20 & wait "$!"
    ((${#asked[@]})) || requeue
  fi
  exit "$code"
}

#!/bin/bash
# A grid of trainings inside one allocation; trials are spread over its GPUs, or cores. Submit it from the root of the repository:
#
#   sbatch slurm/sweep.sh sweeps/pred_types.yaml
#   sbatch -N4 --gpus-per-node=8 slurm/sweep.sh sweeps/full_grid.yaml SEEDS=[0,1,2]
#
# It saves before its time ends and goes on by itself; scancel ends it for good. Options on the
# command line win over the lines below. How to look and how to stop: slurm/README.md.
#
#SBATCH --job-name=ddpm-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

shared=${SLURM_SUBMIT_DIR:-$PWD}/slurm/job.sh
if [[ ! -r $shared ]]; then
  echo "error: $shared is missing; run sbatch from the root of the repository" >&2
  exit 2
fi
source "$shared"
job sweep "$@"

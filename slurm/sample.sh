#!/bin/bash
# Images from a trained run. Submit it from the root of the repository:
#
#   sbatch --gpus=1 slurm/sample.sh RUN IMAGE_GENERATION.NUM_GEN_IMAGES=10000
#   sbatch --gpus=1 slurm/sample.sh RUN --num 10000       in units, which a requeue does not lose
#
# It saves before its time ends and goes on by itself; scancel ends it for good. Options on the
# command line win over the lines below. How to look and how to stop: slurm/README.md.
#
#SBATCH --job-name=ddpm-sample
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
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
job sample "$@"

#!/bin/bash
# One evaluation over every GPU of the allocation, or without GPUs over every node. Submit it from the root of the repository:
#
#   sbatch --gpus-per-node=4 slurm/evaluate.sh RUN --num 50000
#   sbatch -c4 slurm/evaluate.sh samples.npz --against configs/cifar10.yaml --workers 4
#
# What it has not finished when its time ends is lost but for images that were drawn and statistics
# that were kept: give it time enough. Options on the command line win over the lines below.
#
#SBATCH --job-name=ddpm-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

shared=${SLURM_SUBMIT_DIR:-$PWD}/slurm/job.sh
if [[ ! -r $shared ]]; then
  echo "error: $shared is missing; run sbatch from the root of the repository" >&2
  exit 2
fi
source "$shared"
job evaluate "$@"

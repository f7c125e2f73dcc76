#!/bin/sh
# One training on the nodes of a Slurm job: a torchrun a node, a process for each GPU (or $PROCESSES). `training.launch` in
# params.yaml names this script, so that `dvc repro` waits for the job:
#     launch: sbatch --wait --nodes 2 --gpus-per-node 4 --time 12:00:00 slurm/train.sh
# The study's folder must be on a disk that all nodes share; the job gets the environment of `dvc repro`.
#SBATCH --job-name=llicm
#SBATCH --ntasks-per-node=1
#SBATCH --output=.run/slurm-%j.log
set -eu
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$processes" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${PORT:-29400}" "$@"

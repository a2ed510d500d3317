#!/bin/bash
# One Slurm task per GPU. From the root of the repository:  sbatch examples/slurm.sh [--model.num_layers=24 ...]
# Submit the same command again to go on: the run resumes its newest complete checkpoint.
#SBATCH --job-name=megatron_slw
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=runs/slurm_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Save five minutes before the time limit. Slurm signals the tasks, not this shell.
#SBATCH --signal=USR1@300

set -euo pipefail

export CONFIG="${CONFIG:-examples/gpt3_125m_slw.json}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# A port of this job's own, so that two jobs that share a machine do not meet.
MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# A wrong configuration is told here, in one sentence, before the machines are used.
python pretrain_gpt.py --ds-config "$CONFIG" --dry-run --world-size "$SLURM_NTASKS" "$@"

# No launcher in between: Slurm's signals reach every rank.
# shellcheck disable=SC2016  # the variables are those of each task
srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID \
    exec python pretrain_gpt.py --ds-config "$CONFIG" "$@"' task "$@"

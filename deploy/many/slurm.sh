#!/bin/bash
# The tiles of a year as an array job, eight tiles a task. tiles.txt has a tile a line; submit it with
#   sbatch --array=0-$(( ($(wc -l < tiles.txt) - 1) / 8 )) slurm.sh 2022 tiles.txt
#SBATCH --job-name=crop-assets
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=06:00:00
#SBATCH --requeue
set -euo pipefail
year=$1 list=$2 per_task=8

first=$(( SLURM_ARRAY_TASK_ID * per_task + 1 ))
tiles=$(sed -n "${first},$(( first + per_task - 1 ))p" "$list" | paste -sd,)
# Dagster's records of a task are kept in memory: what is made is reused by the content of the store, and SQLite must not
# be on a shared file system.
unset DAGSTER_HOME
export CROP_ASSETS_WORKERS=$SLURM_CPUS_PER_TASK
srun crop-assets run --year "$year" --tiles "$tiles" --until tiles

#!/bin/bash
#SBATCH --job-name=mapo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=INT@180
#SBATCH --output=mapo-%j.log

# Pairs, cache, run, pictures and scores on four machines of eight GPUs. One process for each GPU; all machines see
# WORK. Submitted again, the script goes on where it was stopped.

set -euo pipefail
WORK=${WORK:-$HOME/mapo}
MODEL=${MODEL:-stabilityai/stable-diffusion-xl-base-1.0}

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

if [ ! -e "$WORK/pairs" ]; then
    srun mapo build pick-style-cartoon --model "$MODEL" --prompts "$WORK/prompts.txt" --num-pairs 100000 --precision bfloat16 --out "$WORK/pairs"
fi
srun mapo encode --model "$MODEL" --pairs "$WORK/pairs" --precision bfloat16 --out "$WORK/cache"
srun mapo train --model "$MODEL" --pairs "$WORK/pairs" --cache "$WORK/cache" --adapter lora --set data.cache_precision=bfloat16 --set train.precision=bfloat16 --set train.pairs_per_step=64 --set train.pairs_per_device=2 --set train.steps=1000 --out "$WORK/run"
srun mapo sample --model "$WORK/run" --prompts "$WORK/test.txt" --seeds 0-3 --precision bfloat16 --images-per-batch 8 --out "$WORK/after"
srun mapo score "$WORK/after" --scorer pickscore,hps-v2.1 --out "$WORK/after.parquet"

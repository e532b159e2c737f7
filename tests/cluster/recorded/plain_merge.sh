#!/bin/bash
#SBATCH --job-name=jacli-out-merge
#SBATCH --output=/scratch/you/out.h5.slurm/merge_%j.log
#SBATCH --open-mode=append
# jacli submit: after the array, sbatch --dependency=afterany:ARRAY

exec /opt/jacli/bin/python -P -m jacli merge /scratch/you/out.{00001..00016}-of-00016.h5 --out /scratch/you/out.h5

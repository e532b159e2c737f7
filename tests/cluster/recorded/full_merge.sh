#!/bin/bash
#SBATCH --job-name="night run-merge"
#SBATCH --output=/scratch/you/out.h5.slurm/merge_%j.log
#SBATCH --open-mode=append
#SBATCH --partition=gpu,preempt
#SBATCH --account=lab-12
#SBATCH --time=1-12:00:00
#SBATCH --qos=long
#SBATCH --comment="say \"hi\" to C:\\ #1"
# jacli submit: after the array, sbatch --dependency=afterany:ARRAY

module purge
module load 'cuda/12.4' || exit

exec /opt/jacli/bin/python -P -m jacli merge /scratch/you/out.{00001..00016}-of-00016.h5 --out /scratch/you/out.h5 --overwrite

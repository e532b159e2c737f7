#!/bin/bash
#SBATCH --job-name="jacli-a {1,2}* [b]; -c-merge"
#SBATCH --output="/data/it's $HOME/50%% \"größer\" `x` #1/a {1,2}* [b]; -c.h5.slurm/merge_%j.log"
#SBATCH --open-mode=append
# jacli submit: after the array, sbatch --dependency=afterany:ARRAY

exec '/opt/my python/bin/python' -P -m jacli merge '/data/it'"'"'s $HOME/50% "größer" `x` #1/a {1,2}* [b]; -c.'{00001..00016}-of-00016.h5 --out '/data/it'"'"'s $HOME/50% "größer" `x` #1/a {1,2}* [b]; -c.h5'

#!/bin/bash
#SBATCH --job-name="jacli-a {1,2}* [b]; -c"
#SBATCH --array=1-16
#SBATCH --output="/data/it's $HOME/50%% \"größer\" `x` #1/a {1,2}* [b]; -c.h5.slurm/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
# jacli submit: a task is a shard of /data/it's $HOME/50% "größer" `x` #1/a {1,2}* [b]; -c.h5

cd -- '/data/it'"'"'s $HOME/50% "größer" `x` #1' || exit 4

# Slurm's notice comes to this shell, which passes it on: the run saves and exits with 75.
trap 'kill -s USR2 "$run"' USR2
trap 'kill -s TERM "$run"' TERM
'/opt/my python/bin/python' -P -m jacli compute ./-model.pt '$(touch here).npy' --arg 'text=it'"'"'s "so"' --samples=-4: --out '/data/it'"'"'s $HOME/50% "größer" `x` #1/a {1,2}* [b]; -c.h5' --shard "$SLURM_ARRAY_TASK_ID/16" &
run=$!
wait "$run"
code=$?
while kill -s 0 "$run" 2>/dev/null; do  # a trap ends `wait` before the run has ended
    wait "$run"
    code=$?
done

# The task and not its job's number, which may be that of the array.  What was cancelled is not started again.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if [ "$code" -eq 75 ] && [ "$(squeue --noheader --jobs="$task" --format=%T)" = RUNNING ]; then
    scontrol requeue "$task"
fi
exit "$code"

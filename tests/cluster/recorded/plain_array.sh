#!/bin/bash
#SBATCH --job-name=jacli-out
#SBATCH --array=1-16
#SBATCH --output=/scratch/you/out.h5.slurm/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
# jacli submit: a task is a shard of /scratch/you/out.h5

cd -- /home/you/project || exit 4

# Slurm's notice comes to this shell, which passes it on: the run saves and exits with 75.
trap 'kill -s USR2 "$run"' USR2
trap 'kill -s TERM "$run"' TERM
/opt/jacli/bin/python -P -m jacli compute model.pt inputs.npy --out /scratch/you/out.h5 --shard "$SLURM_ARRAY_TASK_ID/16" &
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

#!/bin/sh
#SBATCH --array=1-8 --requeue --signal=USR1@300 --open-mode=append
# A study on a cluster, its models shared out: sbatch scripts/slurm_array.sh study.toml RUN (on a disk that all nodes see).
# Afterwards: python -m probes.study merge RUN. Five minutes before the time is up the part under way is the last.
study=${1:?the study file} run=${2:?the run folder}
srun python -m probes.study run "$study" --out "$run" --shard auto
code=$?
[ "$code" -ne 75 ] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
exit "$code"

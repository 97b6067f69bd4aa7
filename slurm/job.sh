# What the batch scripts share; they source it from the repository's root. Bash only.
# shellcheck shell=bash

if [[ -n "${SANA_TRAIN_CLUSTER:-}" ]]; then
    # shellcheck source=/dev/null
    source "$SANA_TRAIN_CLUSTER"
fi

python="${SANA_TRAIN_PYTHON:-.venv/bin/python}"
export WANDB_MODE="${WANDB_MODE:-offline}" # compute nodes often have no network; sync later
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export PYTHONUNBUFFERED=1

job="${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-none}}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"

# spread: counts of nodes and processes, one for each GPU, or for each node without any; options of srun for them.
spread() {
    local cpus="${SLURM_CPUS_ON_NODE:-1}"
    nodes="${SLURM_JOB_NUM_NODES:-1}" processes="${SLURM_GPUS_ON_NODE:-1}"
    counts=(--ntasks=$((nodes * processes)) --ntasks-per-node="$processes")
    [[ -z "${SLURM_GPUS_ON_NODE:-}" ]] || counts+=(--gpus-per-node="$processes")
    if ((cpus < processes)); then
        echo "$processes processes share $cpus CPU of each node: --exclusive, or --cpus-per-task=<CPUs of a node>," \
            "gives them more" >&2
        counts+=(--cpus-per-task=1 --overcommit)
    else
        counts+=(--cpus-per-task=$((cpus / processes)))
    fi
}

# train OVERRIDE...: one run on all nodes of this job.
train() {
    spread
    work "${counts[@]}" -- train.py trainer.devices="$processes" trainer.num_nodes="$nodes" "$@"
}

# evaluate WORD...: one evaluation, its clips shared out to all processes of this job.
evaluate() {
    spread
    work "${counts[@]}" -- evaluate.py "$@"
}

# work OPTION_OF_SRUN... -- ARGUMENT_OF_PYTHON...: run it and end the job; in the queue again, if it was stopped.
#
# USR1 (before the time limit, or on preemption) makes our programs save and exit with 75; one that has not
# begun to listen, or waits for other tasks before its first step, dies of it, which is 128 + 10 (of TERM, + 15).
# SLURM requeues no job that ends within its grace time, so that is done here. A task that was stopped exits
# with 0, or the first of them to end would have srun kill those that still save, and the first task leaves a
# note: it runs on this script's own node. Of a task that failed srun gives back the code, and then nothing is
# requeued, however the others ended.
work() {
    local options=() code=0 note
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    note="$(mktemp --dry-run -t sana-train.XXXXXXXX)"
    echo "job $job, restart ${SLURM_RESTART_COUNT:-0}, on ${SLURM_JOB_NODELIST:-this machine}: $*"
    # shellcheck disable=SC2016
    srun "${options[@]}" --kill-on-bad-exit=1 bash -c '
        trap : USR1 TERM
        "${@:2}"
        code=$?
        [[ $code -eq 75 || $code -eq 138 || $code -eq 143 ]] || exit "$code"
        [[ $SLURM_PROCID -ne 0 ]] || touch "$1"
    ' task "$note" "$python" "$@" || code=$?
    if [[ $code -eq 0 && -e $note ]]; then
        rm "$note"
        echo "stopped in time; requeueing"
        scontrol requeue "$job"
        exit 75
    fi
    exit "$code"
}

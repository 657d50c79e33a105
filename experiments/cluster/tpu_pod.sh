#!/usr/bin/env bash
# A Cloud TPU pod slice: the same command on every host, again after one is lost. From a machine with gcloud:
#   TPU=my-slice ZONE=us-central2-b experiments/cluster/tpu_pod.sh --config=configs/llama.py:1b --workdir=/shared/runs/1b
# bigjax must be in ~/bigjax of every host (or in FOLDER), the run folder on a file system that all hosts share.
set -uo pipefail
: "${TPU:?name of the slice}" "${ZONE:?its zone}"
folder=${FOLDER:-bigjax} restarts=${MAX_RESTARTS:-10}

command="cd $folder && python3 -m bigjax train --distributed $(printf '%q ' "$@")"
for ((attempt = 0; attempt <= restarts; attempt++)); do
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
    status=$?
    # Finished, bad input, diverged, not saved, too large, or stopped by a signal: the same command would do the same.
    case $status in 0 | 2 | 3 | 4 | 5 | 130 | 143) exit "$status" ;; esac
    echo "attempt $((attempt + 1)) ended with status $status; going on from the newest checkpoint" >&2
done
exit "$status"

#!/bin/bash
# Peers of a run on a Slurm cluster: one for each node, or one for all of them, with all of their GPUs.
#
#   export ATOLL_INVITE=atoll1...
#   sbatch --nodes=4 deploy/slurm.sh                            # four peers
#   ATOLL_TOGETHER=1 sbatch --nodes=4 deploy/slurm.sh           # one peer of four machines
#
# Nodes need outbound connections to the host of the run, and to other peers; no open port. One peer of
# several machines needs a fast network between its nodes that is this cluster's own, and that only its
# first node reaches the host. A job that is at the end of its time leaves after a word to the host
# (SIGTERM), and the next one goes on where it was: what a peer keeps is under ATOLL_HOME, by the name
# of its node (together: by that of the job).
#SBATCH --job-name=atoll
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=atoll-%j.log
set -euo pipefail

: "${ATOLL_INVITE:?set it to the line atoll1... that the host of the run has printed}"
export ATOLL_INVITE
export ATOLL_HOME="${ATOLL_HOME:-$HOME/atoll}"
export ATOLL_VENV="${ATOLL_VENV:-$ATOLL_HOME/venv}" # pip install 'atoll[train]' in it beforehand
export ATOLL_TOGETHER="${ATOLL_TOGETHER:-}"
export ATOLL_SITE_PORT="${ATOLL_SITE_PORT:-7779}" # and ATOLL_SITE_ADDRESS, if it is not the node's name

# exec: signals reach atoll itself. Quoted: each node takes its own name and number.
# shellcheck disable=SC2016
exec srun --kill-on-bad-exit=0 bash -c '
  if [ -z "$ATOLL_TOGETHER" ] || [ "$SLURM_NNODES" = 1 ]; then
    exec "$ATOLL_VENV/bin/atoll" join "$ATOLL_INVITE" \
      --name "$SLURMD_NODENAME" --dir "$ATOLL_HOME/peers/$SLURMD_NODENAME" \
      --cache "$ATOLL_HOME/datasets"
  fi
  peer="$ATOLL_HOME/peers/$SLURM_JOB_NAME"
  if [ "$SLURM_NODEID" = 0 ]; then
    exec "$ATOLL_VENV/bin/atoll" join "$ATOLL_INVITE" \
      --name "$SLURM_JOB_NAME" --dir "$peer" --cache "$ATOLL_HOME/datasets" \
      --machines "$SLURM_NNODES" --site "${ATOLL_SITE_ADDRESS:-$SLURMD_NODENAME}:$ATOLL_SITE_PORT"
  fi
  # They see the same files: the first node writes there where it is.
  exec "$ATOLL_VENV/bin/atoll" assist "$peer" --cache "$ATOLL_HOME/datasets"
'

#!/bin/bash
# Peers of a run on a Slurm cluster: one for each node, with all of its GPUs.
#
#   export ATOLL_INVITE=atoll1...
#   sbatch --nodes=4 deploy/slurm.sh
#
# Nodes need outbound connections to the host of the run, and to other peers; no open port. A job that
# is at the end of its time leaves after a word to the host (SIGTERM), and the next one goes on where it
# was, if it gets the same node: what a peer keeps is under ATOLL_HOME.
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

# exec: signals reach atoll itself. Quoted: each node takes its own name.
# shellcheck disable=SC2016
exec srun --kill-on-bad-exit=0 bash -c '
  exec "$ATOLL_VENV/bin/atoll" join "$ATOLL_INVITE" \
    --name "$SLURMD_NODENAME" --dir "$ATOLL_HOME/peers/$SLURMD_NODENAME" \
    --cache "$ATOLL_HOME/datasets"
'

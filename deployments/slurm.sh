#!/bin/bash
# A node works for the studio as long as Slurm lends it (docs/howto/many-machines.md): sbatch --array=1-4 slurm.sh CHECKOUT
# in the folder with studio.env. One job a node, since a machine has one name; it takes all GPUs of the node.
#SBATCH --job-name=charengine
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
#SBATCH --signal=B:INT@120
#SBATCH --requeue
set -euo pipefail
source "${1:?the path of the checkout}/.venv/bin/activate"
source studio.env
# on the node's own disk, which has locks; states of trainings are in the store
export CHARENGINE_HOME="${CHARENGINE_HOME:-/tmp/charengine-$USER}"
export CHARENGINE_WORK_FOLDER="${CHARENGINE_WORK_FOLDER:-$CHARENGINE_HOME/work}"
umask 077
mkdir -p "$CHARENGINE_WORK_FOLDER"
test -O "$CHARENGINE_HOME" # nobody else made it
exec charengine worker # in the place of this shell, so that it hears Slurm's signal two minutes before the end

#!/bin/bash
# Embed a corpus in shares, one for each task of a Slurm array:
#
#     sbatch examples/slurm_embed.sh corpus/ data/ --space sonar
#     lcm inspect data/ --expect 64
#
# If tasks failed, submit the same array again: finished shares are skipped, the others resume.
# To repeat only some of them, sbatch --array=3,17 works as well, because the number of shares is
# in SHARES and not taken from the array.
#SBATCH --job-name=lcm-embed
#SBATCH --array=0-63
#SBATCH --gpus=1 --cpus-per-task=8 --mem=32G
#SBATCH --time=24:00:00 --requeue
#SBATCH --output=lcm-embed-%A-%a.log

set -euo pipefail
SHARES=${SHARES:-64} # as many as --array has tasks

if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 DOCS DATASET [OPTIONS OF lcm embed]" >&2
    exit 2
fi
docs=$1 dataset=$2
shift 2
exec lcm embed "$docs" -o "$dataset" --shard "$SLURM_ARRAY_TASK_ID/$SHARES" "$@"

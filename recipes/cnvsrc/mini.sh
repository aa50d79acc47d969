#!/usr/bin/env bash
# The whole recipe in small, on a made-up corpus in the official layout: two encoders at two scales
# of the mouth, fused. Under half an hour on two cores; run it again after an interruption and it goes on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${1:-exp/cnvsrc_mini}
track=${2:-single}
started=$SECONDS
mini=$here/conf/mini

echo "==== a synthetic corpus"
speechattn synth-corpus cnvsrc "$root/corpus"
OMP_NUM_THREADS=1 "$here/run.sh" --data-dir "$root/corpus" --track "$track" --exp "$root/$track" \
  --config "$mini/conformer.yaml" --config "$mini/e_branchformer.yaml" --scales "96 64" \
  --roi-config "$mini/roi.yaml" --curriculum "$mini/curriculum" --jobs 2
echo "==== left out, and why"
column -t -s "$(printf '\t')" "$root/data_${track}_2024/manifests/failures.tsv" "$root/data_${track}_2024/crops/failures.tsv"
python "$here/mini_check.py" "$root" "$track"
echo "The miniature took $((SECONDS - started)) s."

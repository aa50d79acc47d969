#!/usr/bin/env bash
# The whole path on a corpus made on the spot: a synthetic voice and a drawn face. Results go into
# exp/demo; run it again after an interruption and it goes on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exp=${1:-exp/demo}
corpus=$exp/corpus
started=$SECONDS
modalities=(audio video av)

# recipe MODALITY [options of run.sh]
recipe() {
  "$here/run.sh" --data-dir "$corpus" --modality "$1" --exp "$exp/$1" \
    --config "$here/conf/demo/$1.yaml" "${@:2}"
}

echo "==== a synthetic corpus"
speechattn synth-corpus grid "$corpus" --language en --speakers 1 --utterances 320
echo "==== data"
recipe video --stop-stage 2
echo "==== two models, trained side by side, a few minutes"
jobs=()
for modality in audio video; do
  OMP_NUM_THREADS=1 recipe "$modality" --stage 3 --stop-stage 3 2>&1 | sed -u "s/^/[$modality] /" &
  jobs+=($!)
done
trap 'kill "${jobs[@]}" 2> /dev/null || true' INT TERM
for job in "${jobs[@]}"; do
  wait "$job" || { echo "demo: a training failed, see above" >&2; exit 1; }
done
for modality in audio video; do
  echo "==== $modality: average, decode, score"
  recipe "$modality" --stage 4
done
echo "==== av: both models together"
"$here/run.sh" --data-dir "$corpus" --modality av --exp "$exp/av" --stage 4 \
  --init "$exp/audio/model" --init "$exp/video/model"

clip=$(python "$here/demo_check.py" --clip "$exp")
echo "==== one file that no model was trained on: $clip"
for modality in "${modalities[@]}"; do
  printf '%-6s ' "$modality"
  speechattn transcribe --model "$exp/$modality/model" "$clip"
done
speechattn report "${modalities[@]/#/$exp/}" --output "$exp/report.html" \
  --title "speechattn demo: a synthetic corpus"
echo "Look at $exp/report.html. The demo took $((SECONDS - started)) s."
python "$here/demo_check.py" "$exp"

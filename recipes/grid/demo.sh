#!/usr/bin/env bash
# The whole path on a corpus made on the spot: synthetic voices and drawn faces. Results go into
# exp/demo; run it again after an interruption and it goes on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exp=${1:-exp/demo}
speakers=2 utterances=${SPEECHATTN_DEMO_UTTERANCES:-160}
started=$SECONDS
corpus=$exp/corpus

if [ ! -f "$corpus/synthetic.json" ]; then
  speechattn synth-corpus "$corpus" --language en --speakers $speakers --utterances "$utterances"
fi
for modality in audio video av; do
  echo "==== $modality"
  "$here/run.sh" --data-dir "$corpus" --modality $modality --exp "$exp/$modality" \
    --config "$here/conf/demo/$modality.yaml"
done

clip=$(python "$here/demo_check.py" --clip "$exp")
echo "==== one file that no model was trained on: $clip"
for modality in audio video av; do
  printf '%-6s ' $modality
  speechattn transcribe --model "$exp/$modality/model" "$clip"
done
speechattn report "$exp"/{audio,video,av} --output "$exp/report.html" \
  --title "speechattn demo: a synthetic corpus"
python "$here/demo_check.py" "$exp"
echo "Done in $((SECONDS - started)) s. Look at $exp/report.html"

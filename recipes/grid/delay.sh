#!/usr/bin/env bash
# GRID: how early CTC says its words, and at what cost, by the delay penalty. See `delay.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: recipes/grid/delay.sh --data-dir DIR --exp DIR [options]

Trains the sound recipe with an encoder that hears by chunks, without a delay penalty but with words
held near their reference times; goes on from that model freely with each penalty, 0 among them, for
as many epochs each; measures word error rates and emission delays.

Stages:
  0  data        manifests and tokens, as run.sh makes them; statistics of the features; reference
                 times: those of the corpus, or found by `speechattn align`; a decoding graph of the
                 training transcripts' words and trigrams
  1  base        EXP/base, without a penalty, by loss.time_slack
  2  penalties   EXP/penalty_<value>, from the base, with the test set decoded without the graph
                 (decode_test) and over it (decode_graph), and scored
  3  delay       "delay" in EXP/penalty_<value>/decode_*/score.json
  4  curve       EXP/delay.md and EXP/delay.svg
Work that is finished is skipped; to do a stage again, remove what it wrote.

Options:
  --data-dir DIR      the corpus
  --exp DIR           the experiment (default: exp/grid_delay)
  --dump DIR          as of run.sh
  --config FILE       (default: conf/delay.yaml beside this script)
  --penalties "P ..." (default: "0 0.01 0.03 0.1")
  --init MODEL        model directory that the base starts from, whose CTC has to know when words
                      were said (that of conf/audio_long.yaml does, that of conf/audio.yaml not)
  --time-slack S      seconds from its time in which the base may say a word (default: 0.4)
  --base-epochs N     (default: 50)
  --epochs N          with each penalty (default: 30)
  --set KEY=VALUE     change the config of all; may be repeated
  --nj N              worker processes (default: 2)
  --stage N           first stage (default: 0)
  --stop-stage M      last stage (default: 4)
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
data_dir= exp=exp/grid_delay dump= config=$here/conf/delay.yaml penalties="0 0.01 0.03 0.1"
base_epochs=50 epochs=30 time_slack=0.4 nj=2 stage=0 stop_stage=4
init=() sets=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --init) init=(--init "${2?--init needs a model directory}"); shift 2 ;;
    --set) sets+=(--set "${2?--set needs KEY=VALUE}"); shift 2 ;;
    --data-dir | --exp | --dump | --config | --penalties | --base-epochs | --epochs | \
      --time-slack | --nj | --stage | --stop-stage)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
[ -n "$data_dir" ] || fail "--data-dir is needed; see --help"
[ -d "$data_dir" ] || fail "--data-dir $data_dir: no such folder"
[ -f "$config" ] || fail "--config $config: no such file"
need_speechattn
dump=${dump:-$(dirname "$exp")/data_$(basename "$(cd "$data_dir" && pwd)")}
manifests=$dump/manifests tokens=$dump/tokens_bpe_150 aligned=$dump/aligned
graph=$dump/graph_trigram
mkdir -p "$exp"
statistics=$(cd "$exp" && pwd)/fbank.npz
sets+=(--set "model.audio.frontend.init_args={normalise: global, statistics: $statistics}")

# recipe EXP [more options]: run.sh for sound with the config of this experiment.
recipe() {
  local folder=$1
  shift
  "$here/run.sh" --data-dir "$data_dir" --dump "$dump" --modality audio --config "$config" \
    --exp "$folder" --nj "$nj" "${sets[@]}" "$@"
}

if stage_is 0; then
  recipe "$exp/base" --stop-stage 2
  if [ -f "$statistics" ]; then
    say 0 "statistics are there"
  else
    say 0 "statistics into $statistics"
    python "$here/delay_statistics.py" "$manifests/cuts_train.jsonl.gz" "$statistics"
  fi
  if [ -f "$aligned/cuts_test.jsonl.gz" ]; then
    say 0 "reference times are there"
  else
    say 0 "reference times into $aligned"
    speechattn align "$manifests"/cuts_{train,dev,test}.jsonl.gz --tokens "$tokens" \
      --output "$aligned"
  fi
  if [ -f "$graph/graph.json" ]; then
    say 0 "the graph is there"
  else
    say 0 "decoding graph into $graph"
    speechattn graph --tokens "$tokens" --text "$manifests/cuts_train.jsonl.gz" --output "$graph"
  fi
fi

if stage_is 1; then
  # CTC that may say a word anywhere says the first ones in the first frames and the last ones in
  # the last, and no penalty moves them from there.
  base=(--config "$config" --tokens "$tokens" --exp "$exp/base" "${sets[@]}" --set loss.ctc=null
    --set "loss.time_slack=$time_slack" --set "training.max_epochs=$base_epochs")
  if [ -f "$exp/base/train/done.json" ]; then
    say 1 "trained"
  else
    say 1 "train in $exp/base/train"
    speechattn train "${base[@]}" --train-cuts "$aligned/cuts_train.jsonl.gz" \
      --valid-cuts "$manifests/cuts_dev.jsonl.gz" "${init[@]}"
  fi
  if newer "$exp/base/model/model.safetensors" "$exp/base/train/done.json"; then
    say 1 "averaged"
  else
    say 1 "average into $exp/base/model"
    speechattn average "${base[@]}"
  fi
fi

if stage_is 2; then
  for penalty in $penalties; do
    recipe "$exp/penalty_$penalty" --stage 3 --init "$exp/base/model" \
      --set "training.max_epochs=$epochs" --set training.lr=5e-4 \
      --set "loss.ctc.init_args.delay_penalty=$penalty"
    # What is said too early may be said again: the grammar knows better.
    decode 2 "$exp/penalty_$penalty/model" "$manifests/cuts_test.jsonl.gz" \
      "$exp/penalty_$penalty/decode_graph" --graph "$graph" --search GraphSearch
  done
fi

# Seconds that the encoder hears at a time.
chunk() {
  python - "$exp/base/model/config.yaml" <<'PYTHON'
import sys

import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    model = yaml.safe_load(file)["model"]
frames = model["audio"]["encoder"]["init_args"].get("chunk_size", 0)
print(frames * model.get("frame_shift", 0.04))
PYTHON
}

if stage_is 3; then
  for penalty in $penalties; do
    for search in test graph; do
      say 3 "penalty $penalty, decode_$search"
      score 3 "$exp/penalty_$penalty/decode_$search" > /dev/null
      speechattn delay "$exp/penalty_$penalty/decode_$search" \
        --ref-times "$aligned/cuts_test.jsonl.gz" --chunk-seconds "$(chunk)"
    done
  done
fi

if stage_is 4; then
  say 4 "curve into $exp/delay.svg"
  python "$here/delay_curve.py" "$exp"
fi

#!/usr/bin/env bash
# A small Mandarin corpus: from sound files to character error rates, with and without language
# models. See `run.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: recipes/zh_small/run.sh --data-dir DIR --lm-text FILE... --exp DIR [options]

Trains a recogniser of Mandarin characters on a folder with manifest.tsv (file speaker split text),
counts n-gram models of characters, and measures the same model without language model, with one
added in the search (shallow fusion), and over a decoding graph of CTC, lexicon and n-gram (HLG),
whose lattices a larger n-gram model or the decoder then ranks anew.

Stages:
  0  manifests   Lhotse cuts
  1  tokens      the characters of the training transcripts; when each was said, found by a small
                 model that is trained on these very data
  2  train       resumes where it stopped
  3  average     the best epochs into EXP/model
  4  LM          n-gram models of characters and a decoding graph, of the training transcripts and
                 --lm-text
  5  tune        each weight of the language model on the dev set, EXP/tune
  6  decode      EXP/decode_test_<method>, with the weights that did best
  7  score       character error rates; EXP/results.md
Work that is finished is skipped; to do a stage again, remove what it wrote.

Options:
  --data-dir DIR      the corpus
  --lm-text FILE      a sentence a line; may be repeated
  --exp DIR           the experiment (default: exp/zh_small)
  --dump DIR          manifests, tokens, language models (default: data_<corpus folder's name>,
                      beside the experiment)
  --config FILE       (default: conf/audio.yaml beside this script)
  --order N           characters of the longest n-gram, 2 more for the larger one (default: 3)
  --weights "W ..."   of the language model, of which the dev set chooses
                      (default: "0.1 0.2 0.3 0.5 0.7 1.0")
  --init MODEL        model directory to start from
  --set KEY=VALUE     change the config; may be repeated
  --nj N              worker processes (default: 2)
  --stage N           first stage (default: 0)
  --stop-stage M      last stage (default: 7)
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
data_dir= exp=exp/zh_small dump= config=$here/conf/audio.yaml order=3 nj=2 stage=0 stop_stage=7
weights="0.1 0.2 0.3 0.5 0.7 1.0"
lm_text=() sets=() init=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --lm-text) lm_text+=("${2?--lm-text needs a file}"); shift 2 ;;
    --init) init=(--init "${2?--init needs a model directory}"); shift 2 ;;
    --set) sets+=(--set "${2?--set needs KEY=VALUE}"); shift 2 ;;
    --data-dir | --exp | --dump | --config | --order | --weights | --nj | --stage | --stop-stage)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
[ -n "$data_dir" ] || fail "--data-dir is needed; see --help"
[ -d "$data_dir" ] || fail "--data-dir $data_dir: no such folder"
for file in "$config" "${lm_text[@]}"; do [ -f "$file" ] || fail "$file: no such file"; done
need_speechattn
dump=${dump:-$(dirname "$exp")/data_$(basename "$(cd "$data_dir" && pwd)")}
manifests=$dump/manifests tokens=$dump/tokens aligned=$dump/aligned model=$exp/model
mkdir -p "$exp" "$dump"

if stage_is 0; then
  if [ -f "$manifests/summary.json" ]; then
    say 0 "the manifests are there"
  else
    say 0 "manifests into $manifests"
    speechattn prepare tsv "$data_dir" "$manifests" --language cmn --workers "$nj"
  fi
fi

if stage_is 1; then
  if [ -f "$tokens/tokens.txt" ]; then
    say 1 "tokens are there"
  else
    say 1 "characters into $tokens"
    speechattn tokens "$manifests/cuts_train.jsonl.gz" --output "$tokens" --kind char
  fi
  if [ -f "$aligned/cuts_dev.jsonl.gz" ]; then
    say 1 "the times of the characters are there"
  else
    say 1 "times of the characters into $aligned"
    speechattn align "$manifests"/cuts_{train,dev}.jsonl.gz --tokens "$tokens" --output "$aligned"
  fi
fi

if stage_is 2; then
  if [ -f "$exp/train/done.json" ]; then
    say 2 "trained"
  else
    say 2 "train in $exp/train"
    speechattn train --config "$config" --train-cuts "$aligned/cuts_train.jsonl.gz" \
      --valid-cuts "$aligned/cuts_dev.jsonl.gz" --tokens "$tokens" --exp "$exp" \
      "${init[@]}" "${sets[@]}"
  fi
fi

if stage_is 3; then
  if newer "$model/model.safetensors" "$exp/train/done.json"; then
    say 3 "averaged"
  else
    say 3 "average into $model"
    speechattn average --config "$config" --tokens "$tokens" --exp "$exp" --data-dir "$data_dir" \
      "${sets[@]}"
  fi
fi

arpa=$dump/${order}gram.arpa graph=$dump/graph_${order}gram larger=$dump/$((order + 2))gram.arpa
if stage_is 4; then
  texts=("$manifests/cuts_train.jsonl.gz" "${lm_text[@]}")
  for size in 0 2; do
    file=$dump/$((order + size))gram.arpa
    if [ -f "$file" ]; then
      say 4 "$file is there"
    else
      say 4 "n-gram model of characters into $file"
      speechattn ngram --text "${texts[@]}" --valid-text "$manifests/cuts_dev.jsonl.gz" \
        --tokens "$tokens" --order $((order + size)) --output "$file"
    fi
  done
  if [ -f "$graph/graph.json" ]; then
    say 4 "the graph is there"
  else
    say 4 "decoding graph into $graph"
    speechattn graph --tokens "$tokens" --text "${texts[@]}" --order "$order" --output "$graph"
  fi
fi

# with METHOD WEIGHT: the options of `decode` for it, into `options`.
with() {
  case $1 in
    ctc_greedy) options=(--search CtcGreedySearch) ;;
    joint) options=() ;;
    joint_ngram) options=(--ngram "$arpa" --set "ngram_weight=$2") ;;
    ctc_beam_ngram) options=(--ngram "$arpa" --search CtcBeamSearch --set "ngram_weight=$2") ;;
    hlg) options=(--graph "$graph" --search GraphSearch --set "weight=$2") ;;
    hlg_larger)
      with hlg "$(python "$here/results.py" "$exp" --best hlg)"
      options+=(--graph-ngram "$larger" --set "ngram_weight=$2") ;;
    hlg_decoder)
      with hlg "$2"
      options+=(--search GraphRescoringSearch --set ctc_weight=0.8) ;;
  esac
}
tuned="joint_ngram ctc_beam_ngram hlg hlg_larger hlg_decoder"

if stage_is 5; then
  for method in $tuned; do
    for weight in $weights; do
      with "$method" "$weight"
      folder=$exp/tune/$method/$weight
      decode 5 "$model" "$manifests/cuts_dev.jsonl.gz" "$folder" --details 0 "${options[@]}"
      newer "$folder/score.json" "$folder/hyp.tsv" ||
        speechattn score --decode-dir "$folder" > /dev/null
    done
  done
fi

if stage_is 6; then
  for method in ctc_greedy joint $tuned; do
    weight=$(python "$here/results.py" "$exp" --best "$method")
    with "$method" "$weight"
    decode 6 "$model" "$manifests/cuts_test.jsonl.gz" "$exp/decode_test_$method" "${options[@]}"
  done
fi

if stage_is 7; then
  for method in ctc_greedy joint $tuned; do
    score 7 "$exp/decode_test_$method"
  done
  python "$here/results.py" "$exp"
fi

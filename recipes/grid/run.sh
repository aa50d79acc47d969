#!/usr/bin/env bash
# GRID: from raw videos to error rates, stage by stage. See `run.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: recipes/grid/run.sh --data-dir DIR --modality audio|video|av --exp DIR [options]

Trains and measures a recogniser on GRID, in its published layout (s1/*.mpg or *.mp4 with
align/s1/*.align) or as a folder with manifest.tsv (file speaker split text).

Stages:
  0  manifests   Lhotse cuts; the sound of each video as FLAC
  1  mouth ROI   find faces, cut out mouths, write a contact sheet (not for audio)
  2  tokens      the tokenizer, from the training transcripts
  3  train       resumes where it stopped; for av, the audio and the video model in EXP/audio and
                 EXP/video, unless they are there already (--init)
  4  average     the best epochs into EXP/model; for av, the two models into one, with the shares
                 that do best on the dev set
  5  decode      EXP/decode_<set>/hyp.tsv
  6  score       EXP/decode_<set>/score.json
Work that is finished is skipped; to do a stage again, remove what it wrote.

Options:
  --data-dir DIR      the corpus
  --modality NAME     audio, video or av (default: video)
  --exp DIR           the experiment (default: exp/grid_<modality>)
  --dump DIR          manifests, crops and tokens, shared by experiments
                      (default: data_<corpus folder's name>, beside the experiment)
  --fusion NAME       of av. late: an audio and a video model, joined in the search; mlp: one model,
                      joined before its decoder by a perceptron (default: late)
  --config FILE       (default: conf/<modality>.yaml beside this script; late trains by audio.yaml
                      and video.yaml)
  --token-kind KIND   char, bpe or unigram (default: bpe, which makes each of GRID's words a unit)
  --vocab-size N      of bpe and unigram (default: 150)
  --split NAME        utterance or speaker, for the published layout (default: utterance)
  --test-speakers S   held out, e.g. "s1 s20", with --split speaker
  --dev-speakers S
  --noise FILE        sound mixed into training (its first two thirds) and, at --snr dB, into one
                      more test set (its last third)
  --snr DB            of the noisy test set (default: 0)
  --decode-sets S     splits to decode (default: "test")
  --init MODEL        model directory to start from; may be repeated: the streams of av from audio
                      and video. With --fusion late these two are joined as they are
  --set KEY=VALUE     change the config; may be repeated
  --nj N              worker processes (default: 2)
  --stage N           first stage (default: 0)
  --stop-stage M      last stage (default: 6)
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
data_dir= modality=video fusion=late exp= dump= config= token_kind=bpe vocab_size=150
split=utterance test_speakers= dev_speakers= noise= snr=0 decode_sets=test nj=2 stage=0 stop_stage=6
sets=() init=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --init) init+=(--init "${2?--init needs a model directory}"); shift 2 ;;
    --set) sets+=(--set "${2?--set needs KEY=VALUE}"); shift 2 ;;
    --data-dir | --modality | --fusion | --exp | --dump | --config | --token-kind | \
      --vocab-size | --split | --test-speakers | --dev-speakers | --noise | --snr | \
      --decode-sets | --nj | --stage | --stop-stage)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
case $modality in audio | video | av) ;; *) fail "--modality is audio, video or av, not $modality" ;; esac
case $fusion in late | mlp) ;; *) fail "--fusion is late or mlp, not $fusion" ;; esac
[ "$modality" = av ] || fusion=none
[ -n "$data_dir" ] || fail "--data-dir is needed; see --help"
[ -d "$data_dir" ] || fail "--data-dir $data_dir: no such folder"
[ -z "$noise" ] || [ -f "$noise" ] || fail "--noise $noise: no such file"
need_speechattn
data_dir=$(cd "$data_dir" && pwd)
exp=${exp:-exp/grid_$modality}
dump=${dump:-$(dirname "$exp")/data_$(basename "$data_dir")}
if [ $fusion = late ]; then
  [ -z "$config" ] || fail "--config: --fusion late trains by audio.yaml and video.yaml; for others \
train the two models first and name them by --init"
  [ ${#init[@]} -eq 0 ] || [ ${#sets[@]} -eq 0 ] || fail "--set: with these --init nothing is trained"
  case ${#init[@]} in # two words each
    0) audio_model=$exp/audio/model video_model=$exp/video/model ;;
    4) audio_model=${init[1]} video_model=${init[3]} ;;
    *) fail "--fusion late joins two models: --init AUDIO --init VIDEO" ;;
  esac
  config=$here/conf/video.yaml # for the mouths
fi
config=${config:-$here/conf/$modality.yaml}
[ -f "$config" ] || fail "--config $config: no such file"
mkdir -p "$exp" "$dump"

# Experiments share the dump: one prepares it, others wait and then find it done.
if command -v flock > /dev/null; then exec 9> "$dump/.lock"; flock 9; fi
# One dump is of one corpus: mixed ones would train on whatever came last.
if [ -f "$dump/corpus" ] && [ "$(cat "$dump/corpus")" != "$data_dir $split" ]; then
  fail "$dump holds $(cat "$dump/corpus"), not $data_dir $split: choose another --dump"
fi
echo "$data_dir $split" > "$dump/corpus"

manifests=$dump/manifests tokens=$dump/tokens_$token_kind model=$exp/model
[ "$token_kind" = char ] || tokens+=_$vocab_size
crops=()
[ "$modality" = audio ] || crops=(--crops "$dump/crops")

if stage_is 0; then
  say 0 "manifests into $manifests"
  # shellcheck disable=SC2086  # speakers are several words
  speechattn prepare grid "$data_dir" "$manifests" --split "$split" --workers "$nj" \
    ${dev_speakers:+--dev-speakers $dev_speakers} ${test_speakers:+--test-speakers $test_speakers}
fi

if stage_is 1; then
  if [ "$modality" = audio ]; then
    say 1 "no mouths needed for audio"
  else
    say 1 "mouth crops into $dump/crops"
    speechattn roi "$manifests"/cuts_{train,dev,test}.jsonl.gz --output "$dump/crops" \
      --config "$config" --workers "$nj"
  fi
fi

if stage_is 2; then
  if [ -f "$tokens/tokens.txt" ]; then
    say 2 "tokens are there"
  else
    say 2 "tokens into $tokens"
    speechattn tokens "$manifests/cuts_train.jsonl.gz" --output "$tokens" \
      --kind "$token_kind" $([ "$token_kind" = char ] || echo --vocab-size "$vocab_size")
  fi
fi

exec 9>&-

# stream NAME: a model of one modality, in a folder of its own.
stream() {
  "$here/run.sh" --data-dir "$data_dir" --modality "$1" --exp "$exp/$1" --dump "$dump" --split "$split" \
    --token-kind "$token_kind" --vocab-size "$vocab_size" ${noise:+--noise "$noise"} \
    "${sets[@]}" --stage 3 --stop-stage 4
}

if stage_is 3; then
  if [ $fusion = late ] && [ ${#init[@]} -gt 0 ]; then
    say 3 "the models are there"
  elif [ $fusion = late ]; then
    stream audio
    stream video
  elif [ -f "$exp/train/done.json" ]; then
    say 3 "trained"
  else
    say 3 "train in $exp/train"
    speechattn train --config "$config" --train-cuts "$manifests/cuts_train.jsonl.gz" \
      --valid-cuts "$manifests/cuts_dev.jsonl.gz" --tokens "$tokens" --exp "$exp" \
      ${noise:+--noise "$noise"} "${crops[@]}" "${init[@]}" "${sets[@]}"
  fi
fi

if stage_is 4; then
  if [ $fusion = late ]; then
    if newer "$model/model.safetensors" "$audio_model/model.safetensors" &&
      newer "$model/model.safetensors" "$video_model/model.safetensors"; then
      say 4 "combined"
    else
      say 4 "combine into $model"
      speechattn combine --model "audio=$audio_model" --model "video=$video_model" \
        --output "$model" --cuts "$manifests/cuts_dev.jsonl.gz" "${crops[@]}" \
        ${noise:+--noise "$noise" --snr "$snr" --noise-part 0 0.667}
    fi
  elif newer "$model/model.safetensors" "$exp/train/done.json"; then
    say 4 "averaged"
  else
    say 4 "average into $model"
    speechattn average --config "$config" --tokens "$tokens" --exp "$exp" \
      --data-dir "$data_dir" "${sets[@]}"
  fi
fi

if stage_is 5; then
  for set in $decode_sets; do
    cuts=$manifests/cuts_$set.jsonl.gz
    decode 5 "$model" "$cuts" "$exp/decode_$set" "${crops[@]}"
    if [ -n "$noise" ] && [ "$modality" != video ]; then
      decode 5 "$model" "$cuts" "$exp/decode_${set}_noise_${snr}dB" "${crops[@]}" \
        --noise "$noise" --snr "$snr" --noise-part 0.667 1
    fi
  done
fi

if stage_is 6; then
  for folder in "$exp"/decode_*/; do
    folder=${folder%/}
    [ -f "$folder/hyp.tsv" ] || continue
    score 6 "$folder"
  done
fi

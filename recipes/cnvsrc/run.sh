#!/usr/bin/env bash
# CNVSRC: from the corpora as they are handed out to fused transcripts. See `run.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: recipes/cnvsrc/run.sh --data-dir DIR --track single|multi [options]

Trains and measures lip readers (or listeners) on CN-CVS and CNVSRC as the NPU-ASLP entries to the
challenges did: several systems, each of one configuration and one scale of the mouth, trained on
short clips, then on all, then on the target speakers; searched by CTC and both directions of the
decoder; fused by ROVER. DIR holds cncvs/, cnvsrc-single/, cnvsrc-multi/ (README.md says where from).

Stages:
  0  data        Lhotse cuts of the track's parts; what was left out, and why, in failures.tsv
  1  mouth ROI   faces found once, mouths cut out at the largest scale (not for audio)
  2  tokens      the official character list, or the characters of the training transcripts
  3  LM          an n-gram model and a Transformer of characters (--lm)
  4  train       each system through the curriculum; resumes where it was stopped
  5  average     the last phase's best epochs; for av, an audio and a video model into one
  6  decode      EXP/<system>/decode_<set>; systems that read both ways also left to right alone
  7  score       error rates, by speaker too
  8  fuse        ROVER, chosen on dev, into EXP/fused/decode_<set>; EXP/results.md
Work that is finished is skipped; to do a stage again, remove what it wrote.

Options:
  --data-dir DIR      the corpora
  --track NAME        single or multi
  --year N            2023, 2024 or 2025: which corpora the fixed track allows (default: 2024)
  --open              the open track: all that is there, and --extra
  --extra DIR         more videos with a manifest.tsv (file speaker split text); may be repeated
  --lists DIR         the baselines' CSV lists, DIR/<corpus>/*.csv (default: beside the corpora)
  --units FILE        a character list as the official char_units.txt (default: looked for in DIR)
  --modality NAME     video, audio or av (default: video). The evaluation videos are mute: audio
                      and av are decoded on dev. av joins each video system with the audio one
  --config FILE       a video system; may be repeated (default: the year's NPU-ASLP system)
  --audio-config FILE the audio system (default: conf/audio.yaml beside this script)
  --scales "N ..."    sides of the mouth crops in pixels, each with every --config a system
                      (default: "112 96")
  --roi-config FILE   how mouths are cut out (default: conf/roi.yaml)
  --curriculum DIR    a file a phase (short, all, target), a KEY=VALUE a line, for --set of `train`
                      (default: conf/curriculum)
  --lm KIND           ngram, transformer, both or none (default: ngram)
  --lm-text FILE      a sentence a line, beside the transcripts; may be repeated
  --lm-config FILE    of the Transformer (default: conf/lm/char.yaml of this toolkit)
  --lm-weight W       of the n-gram model, and of the Transformer, in the search (default: 0.1)
  --decode-config FILE  YAML whose section `search` is that of all systems (default: each system's own)
  --exp DIR           results (default: exp/cnvsrc_<track>_<year>)
  --dump DIR          manifests, crops, tokens, LM (default: data_<track>_<year> beside EXP)
  --set KEY=VALUE     change every system's config; may be repeated
  --nj N              worker processes (default: 2)
  --ngpu N            GPUs, each a process of distributed training; 0: the CPU (default: 0)
  --jobs N            systems trained side by side (default: 1)
  --shard I/N         of stage 1: the Ith of N parts, counted from 0, as an array job's task
  --stage N           first stage (default: 0)
  --stop-stage M      last stage (default: 8)
  --dry-run           print the commands, and the disk and time that stage 1 will need; run nothing
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$here/../lib.sh"
data_dir= track= year=2024 open= lists= units= modality=video audio_config=$here/conf/audio.yaml
scales="112 96" roi_config=$here/conf/roi.yaml curriculum=$here/conf/curriculum lm=ngram
lm_config=$here/../../conf/lm/char.yaml lm_weight=0.1 decode_config= exp= dump= nj=2 ngpu=0 jobs=1 shard= stage=0
stop_stage=8 dry_run=
extra=() configs=() lm_text=() sets=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --open) open=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    --extra) extra+=("${2?--extra needs a folder}"); shift 2 ;;
    --config) configs+=("${2?--config needs a file}"); shift 2 ;;
    --lm-text) lm_text+=("${2?--lm-text needs a file}"); shift 2 ;;
    --set) sets+=(--set "${2?--set needs KEY=VALUE}"); shift 2 ;;
    --data-dir | --track | --year | --lists | --units | --modality | --audio-config | --scales | \
      --roi-config | --curriculum | --lm | --lm-config | --lm-weight | --decode-config | --exp | --dump | --nj | \
      --ngpu | --jobs | --shard | --stage | --stop-stage)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
      shift 2 ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done
case $track in single | multi) ;; *) fail "--track is single or multi, not '$track'" ;; esac
case $year in 2023 | 2024 | 2025) ;; *) fail "--year is 2023, 2024 or 2025, not $year" ;; esac
case $modality in video | audio | av) ;; *) fail "--modality is video, audio or av, not $modality" ;; esac
case $lm in ngram | transformer | both | none) ;; *) fail "--lm is ngram, transformer, both or none, not $lm" ;; esac
[ -n "$data_dir" ] || fail "--data-dir is needed; see --help"
[ -d "$data_dir" ] || fail "--data-dir $data_dir: no such folder"
if [ ${#configs[@]} -eq 0 ]; then
  published=$year
  [ "$year" != 2025 ] || published=2024 # the last that was described
  configs=("$here/../../conf/npu_aslp$published.yaml")
fi
[ "$modality" != audio ] || configs=()
for file in "${configs[@]}" "$audio_config" "$roi_config" "$lm_config" $decode_config $units \
  "${lm_text[@]}"; do
  [ -f "$file" ] || fail "$file: no such file"
done
[ -d "$curriculum" ] || fail "--curriculum $curriculum: no such folder"
need_speechattn
data_dir=$(cd "$data_dir" && pwd)
exp=${exp:-exp/cnvsrc_${track}_$year}
dump=${dump:-$(dirname "$exp")/data_${track}_$year}
manifests=$dump/manifests tokens=$dump/tokens crops=$dump/crops
if [ -z "$dry_run" ]; then
  mkdir -p "$exp" "$dump"
  corpus="$data_dir $track $year $open ${extra[*]} $lists"
  # One dump is of one track: mixed ones would train on whatever came last.
  if [ -f "$dump/corpus" ] && [ "$(cat "$dump/corpus")" != "$corpus" ]; then
    fail "$dump holds $(cat "$dump/corpus"), not $corpus: choose another --dump"
  fi
  echo "$corpus" > "$dump/corpus"
fi

# A system is a name, a configuration, a modality and a scale.
names=() files=() kinds=() sides=()
for config in "${configs[@]}"; do
  for side in $scales; do
    names+=("$(basename "${config%.yaml}")_s$side") files+=("$config") kinds+=(video) sides+=("$side")
  done
done
if [ "$modality" != video ]; then
  names+=(audio) files+=("$audio_config") kinds+=(audio) sides+=("")
fi
systems=("${names[@]}") # that are decoded
if [ "$modality" = av ]; then
  systems=()
  for name in "${names[@]}"; do [ "$name" = audio ] || systems+=("av_$name"); done
fi
decode_sets="dev test"
[ "$modality" = video ] || decode_sets=dev
has_cuts() { [ -n "$dry_run" ] || [ -f "$manifests/cuts_$1.jsonl.gz" ]; }

if stage_is 0; then
  say 0 "manifests into $manifests"
  run speechattn prepare cnvsrc "$data_dir" "$manifests" --track "$track" --year "$year" \
    ${open:+--open} ${lists:+--lists "$lists"} ${units:+--units "$units"} \
    ${extra[0]:+--extra "${extra[@]}"} --workers "$nj"
fi

if stage_is 1; then
  if [ "$modality" = audio ]; then
    say 1 "no mouths needed for audio"
  else
    say 1 "mouth crops into $crops"
    cuts=()
    for set in pretrain pretrain_dev finetune dev test; do
      if has_cuts "$set"; then cuts+=("$manifests/cuts_$set.jsonl.gz"); fi
    done
    [ ${#cuts[@]} -gt 0 ] || fail "$manifests has no cuts: run stage 0"
    roi=(speechattn roi "${cuts[@]}" --output "$crops" --config "$roi_config" --workers "$nj")
    [ -z "$shard" ] || roi+=(--shard "${shard%/*}" --num-shards "${shard#*/}")
    run "${roi[@]}"
    # What it will need is only known where the manifests are.
    if [ -n "$dry_run" ] && [ -f "$manifests/cuts_finetune.jsonl.gz" ]; then
      "${roi[@]}" --dry-run
    fi
  fi
fi

if stage_is 2; then
  for file in "$data_dir"/char_units.txt "$lists"/char_units.txt; do
    if [ -z "$units" ] && [ -f "$file" ]; then units=$file; fi
  done
  if [ -f "$tokens/tokens.txt" ]; then
    say 2 "tokens are there"
  elif [ -n "$units" ]; then
    say 2 "tokens of $units into $tokens"
    run speechattn import-tokens "$units" --output "$tokens"
  else
    say 2 "characters of the training transcripts into $tokens"
    run speechattn tokens "$manifests/cuts_train.jsonl.gz" --output "$tokens" --kind char
  fi
fi

if stage_is 3; then
  texts=("$manifests/cuts_train.jsonl.gz" "${lm_text[@]}")
  if [ "$lm" = none ]; then say 3 "no language model"; fi
  if [ "$lm" = ngram ] || [ "$lm" = both ]; then
    if [ -f "$dump/ngram.arpa" ]; then
      say 3 "the n-gram model is there"
    else
      say 3 "n-gram model into $dump/ngram.arpa"
      run speechattn ngram --text "${texts[@]}" --tokens "$tokens" --order 4 \
        --output "$dump/ngram.arpa"
    fi
  fi
  if [ "$lm" = transformer ] || [ "$lm" = both ]; then
    if [ -f "$dump/lm/lm/model.safetensors" ]; then
      say 3 "the Transformer is there"
    else
      say 3 "Transformer language model into $dump/lm"
      run speechattn train-lm --config "$lm_config" --text "${texts[@]}" \
        --valid-text "$manifests/cuts_dev.jsonl.gz" --tokens "$tokens" --exp "$dump/lm"
    fi
  fi
fi

# data_of I PHASE: the cuts and settings of one phase of the Ith system, into `data` and `settings`.
data_of() {
  local train=finetune side=${sides[$1]}
  case $2 in short | all) train=pretrain ;; esac
  data=(--train-cuts "$manifests/cuts_$train.jsonl.gz" --valid-cuts "$manifests/cuts_dev.jsonl.gz")
  settings=()
  while read -r line; do
    case $line in '' | \#*) ;; *) settings+=(--set "$line") ;; esac
  done < "$curriculum/$2"
  if [ "${kinds[$1]}" = video ]; then
    data+=(--crops "$crops")
    # The model sees eleven twelfths of the crop, as 88 of 96 pixels; transcription of a video cuts
    # out the same.
    settings+=(--set "data.scale=$side" --set "model.crop_size=$((side * 11 / 24 * 2))" \
      --set "roi.scales=[$side]")
  fi
  if [ "$ngpu" != 0 ]; then
    settings+=(--set "training.devices=$ngpu" --set training.accelerator=gpu \
      --set training.precision=bf16 --set "data.num_workers=$((nj / ngpu > 0 ? nj / ngpu : 1))")
  fi
  settings+=("${sets[@]}")
}

phases() { for phase in short all target; do [ ! -f "$curriculum/$phase" ] || echo "$phase"; done; }
last=$(phases | tail -n 1)
[ -n "$last" ] || fail "--curriculum $curriculum has none of short, all, target"

# train I: the Ith system through the curriculum.
train() {
  local folder=$exp/${names[$1]} before='' init phase data settings
  for phase in $(phases); do
    if [ -f "$folder/$phase/train/done.json" ]; then
      say 4 "${names[$1]}, $phase: trained"
    else
      say 4 "${names[$1]}, $phase: train in $folder/$phase"
      data_of "$1" "$phase"
      init=()
      [ -z "$before" ] || init=(--init "$before")
      run speechattn train --config "${files[$1]}" "${data[@]}" --tokens "$tokens" \
        --exp "$folder/$phase" "${init[@]}" "${settings[@]}"
    fi
    before=$folder/$phase/model
    [ "$phase" = "$last" ] || average "$1" "$phase" 4
  done
}

# average I PHASE STAGE: the best epochs of one phase.
average() {
  local folder=$exp/${names[$1]}/$2 data settings
  if newer "$folder/model/model.safetensors" "$folder/train/done.json"; then
    say "$3" "${names[$1]}, $2: averaged"
  else
    say "$3" "${names[$1]}, $2: average into $folder/model"
    data_of "$1" "$2"
    run speechattn average --config "${files[$1]}" --tokens "$tokens" --exp "$folder" \
      --data-dir "$data_dir" "${settings[@]}"
  fi
}

if stage_is 4; then
  if [ "$jobs" = 1 ] || [ -n "$dry_run" ]; then
    for i in "${!names[@]}"; do train "$i"; done
  else
    set -m # a process group for each training, so that none outlives this script
    trap 'for job in $(jobs -p); do kill -- "-$job" 2> /dev/null || true; done' EXIT
    trap 'exit 130' INT TERM
    for i in "${!names[@]}"; do
      while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || fail "a training failed, see above"; done
      train "$i" 2>&1 | sed -u "s/^/[${names[$i]}] /" &
    done
    while [ -n "$(jobs -rp)" ]; do wait -n || fail "a training failed, see above"; done
    trap - EXIT INT TERM
    set +m
  fi
fi

model_of() { case $1 in av_*) echo "$exp/$1/model" ;; *) echo "$exp/$1/$last/model" ;; esac; }
crops_of() { case $1 in audio) ;; *) echo --crops "$crops" ;; esac; }

if stage_is 5; then
  for i in "${!names[@]}"; do
    average "$i" "$last" 5
  done
  if [ "$modality" = av ]; then
    for name in "${systems[@]}"; do
      video=$(model_of "${name#av_}") audio=$(model_of audio) model=$(model_of "$name")
      if newer "$model/model.safetensors" "$video/model.safetensors" &&
        newer "$model/model.safetensors" "$audio/model.safetensors"; then
        say 5 "$name: combined"
      else
        say 5 "$name: combine into $model"
        run speechattn combine --model "audio=$audio" --model "video=$video" --output "$model" \
          --cuts "$manifests/cuts_dev.jsonl.gz" --crops "$crops"
      fi
    done
  fi
fi

# reads_both_ways MODEL: whether its search uses the right-to-left decoder.
reads_both_ways() { [ -f "$1/config.yaml" ] && grep -Eq 'reverse_weight: 0*[.]?0*[1-9]' "$1/config.yaml"; }

if stage_is 6; then
  options=()
  [ -z "$decode_config" ] || options+=(--search "$decode_config")
  case $lm in ngram | both)
    options+=(--ngram "$dump/ngram.arpa" --set "ngram_weight=$lm_weight") ;;
  esac
  case $lm in transformer | both)
    options+=(--lm "$dump/lm/lm" --set "lm_weight=$lm_weight") ;;
  esac
  for name in "${systems[@]}"; do
    for set in $decode_sets; do
      has_cuts "$set" || { say 6 "$set is not there"; continue; }
      cuts=$manifests/cuts_$set.jsonl.gz model=$(model_of "$name")
      # shellcheck disable=SC2046  # two words or none
      decode 6 "$model" "$cuts" "$exp/$name/decode_$set" $(crops_of "$name") "${options[@]}"
      if reads_both_ways "$model"; then
        # shellcheck disable=SC2046
        decode 6 "$model" "$cuts" "$exp/$name/decode_${set}_left" $(crops_of "$name") \
          "${options[@]}" --set reverse_weight=0
      fi
    done
  done
fi

has_references() { [ -n "$dry_run" ] || [ -n "$(cut -f 3- "$1/ref.tsv" 2> /dev/null | tr -d '[:space:]')" ]; }

if stage_is 7; then
  for name in "${systems[@]}"; do
    for set in $decode_sets; do
      for folder in "$exp/$name/decode_$set" "$exp/$name/decode_${set}_left"; do
        [ -f "$folder/hyp.tsv" ] || continue
        if has_references "$folder"; then
          score 7 "$folder"
        else
          say 7 "$folder has no transcripts to compare with: hand in its hyp.tsv"
        fi
      done
    done
  done
fi

if stage_is 8; then
  if [ ${#systems[@]} -lt 2 ]; then
    say 8 "one system: nothing to fuse"
  else
    for set in $decode_sets; do
      output=$exp/fused/decode_$set outputs=() dev=()
      for name in "${systems[@]}"; do
        outputs+=("$exp/$name/decode_$set") dev+=("$exp/$name/decode_dev")
      done
      [ -n "$dry_run" ] || [ -f "${outputs[0]}/hyp.tsv" ] || continue
      say 8 "fuse into $output"
      run speechattn fuse "${outputs[@]}" --dev "${dev[@]}" --order-by-dev --unit char \
        --output "$output"
      if has_references "$output"; then score 8 "$output"; fi
    done
  fi
  run python "$here/results.py" "$exp"
fi

# What the recipes share; sourced by each run.sh, which sets `stage`, `stop_stage`, `model`,
# `manifests` and `crops`.
# shellcheck shell=bash disable=SC2154

fail() { echo "run.sh: $*" >&2; exit 1; }
stage_is() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ]; }
say() { echo "== stage $1: $2"; }
newer() { [ -e "$1" ] && [ ! "$2" -nt "$1" ]; } # $1 is there and not older than $2

# run COMMAND...: runs it; only prints it where dry_run is set.
run() {
  if [ -n "${dry_run:-}" ]; then
    printf '  %q' "$1"
    printf ' %q' "${@:2}"
    printf '\n'
  else
    "$@"
  fi
}

need_speechattn() {
  command -v speechattn > /dev/null ||
    fail "speechattn is not installed: make setup, then PATH=\$PWD/.venv/bin:\$PATH"
}

# decode STAGE MODEL CUTS OUTPUT [more options]
decode() {
  local number=$1 model=$2 cuts=$3 output=$4
  shift 4
  if newer "$output/hyp.tsv" "$model/model.safetensors"; then
    say "$number" "$output is decoded"
    return
  fi
  say "$number" "decode into $output"
  # What another model left half done is of no use.
  newer "$output/transcripts.jsonl" "$model/model.safetensors" ||
    run rm -f "$output/transcripts.jsonl"
  run speechattn decode --model "$model" --cuts "$cuts" --output "$output" "$@"
}

# score STAGE FOLDER
score() {
  if newer "$2/score.json" "$2/hyp.tsv"; then say "$1" "$2 is scored"; else say "$1" "score $2"; fi
  run speechattn score --decode-dir "$2"
}

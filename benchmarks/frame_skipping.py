"""Claim: a transducer that skips frames that CTC says are blank decodes at least twice as fast.

A model with a `frame_reducer` and a test set, beam search with the reducer and without, the search
alone (the encoder has run before), one thread. Also how many frames the search reads, against the
bound: as many as there are tokens.

    python benchmarks/frame_skipping.py --model MODEL --cuts CUTS [--quick] [--json FILE]

A model is made by recipes/grid/run.sh with conf/transducer.yaml and what is commented out in it.
Without --model nothing is run.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rows import against_peer, in_turn, row, save, spread

from speechattn import Transcriber
from speechattn.data.batches.dataset import read_cuts
from speechattn.decoding import TransducerBeamSearch
from speechattn.decoding.transducer import transducer_search
from speechattn.transcribe.manifests import CutBatches

TARGET, WITHIN = 2.0, 5.0


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cuts", type=Path)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.model is None or options.cuts is None:
        print(
            "frame_skipping: --model and --cuts name a transducer and a test set; nothing was run"
        )
        return 0
    torch.set_num_threads(1)
    how = TransducerBeamSearch(beam_size=options.beam)
    transcriber = Transcriber.from_pretrained(options.model, search=how)
    model = transcriber.recogniser.model
    if model.frame_reducer is None:
        parser.error(f"{options.model} has no frame_reducer")
    cuts = read_cuts(options.cuts, model.modalities, None)
    batches = list(CutBatches(transcriber.recogniser, cuts))
    heard = [model.outputs(b.audio, b.audio_lengths)[0] for b in batches]
    whole = [replace(e, frame_reducer=None) for e in heard]
    runs = {
        "skipping": lambda: [transducer_search(e, how, {}) for e in heard],
        "all frames": lambda: [transducer_search(e, how, {}) for e in whole],
    }
    times = in_turn(runs, 1 if options.quick else 5)
    for name, values in times.items():
        print(f"{len(cuts)} utterances, {name}, s: {spread(values)}")
    frames = sum(int(e.lengths.sum()) for e in heard)
    tokens = sum(int(b.token_lengths.sum()) for b in batches)
    kept, bound = 100.0 * model.frame_reducer.share(), 100.0 * tokens / frames
    above = 100.0 * (kept / bound - 1.0)
    print(f"frames read: {kept:.2f} %; tokens: {bound:.2f} %")
    median = {name: statistics.median(values) for name, values in times.items()}
    title = f"transducer, beam {options.beam}"
    rows = [
        against_peer(
            f"{title}, skipping blank frames, search", median["skipping"], median["all frames"],
            TARGET, "s",
        ),
        row(
            "frames read above the number of tokens", above, "bound", None, f"<= {WITHIN:g}", "%",
            abs(above) <= WITHIN,
        ),
    ]  # fmt: skip
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

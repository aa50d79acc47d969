"""ESPnet's search as a peer of `decoding.py`, and a trained model searched by both."""

from pathlib import Path

import torch
from rows import row
from torch import Tensor, nn

from speechattn import Transcriber
from speechattn.data.batches.dataset import read_cuts
from speechattn.data.crops.store import CropStore
from speechattn.decoders import TransformerDecoder
from speechattn.importing.espnet import decoder_weights
from speechattn.transcribe.manifests import CutBatches


class CtcHead(nn.Module):
    """A CTC head as ESPnet's scorer takes it."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def log_softmax(self, x: Tensor) -> Tensor:
        return self.head(x).log_softmax(-1)


def espnet() -> dict | None:
    """The classes of ESPnet that are compared with; None where it cannot be imported."""
    try:
        from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as Theirs
        from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
        from espnet2.legacy.nets.ctc_prefix_score import CTCPrefixScoreTH
        from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
    except ImportError:
        return None
    return {
        "decoder": Theirs,
        "search": BatchBeamSearch,
        "score": CTCPrefixScoreTH,
        "scorer": CTCPrefixScorer,
    }


def in_espnet(decoder: TransformerDecoder) -> nn.Module:
    """ESPnet's decoder with the weights of ours.

    `decoder_weights` goes the other way. A decoder of ESPnet's whose weights are numbered tells
    where each of them comes to stand.
    """
    theirs = espnet()["decoder"](
        decoder.vocab_size,
        decoder.memory_size,
        attention_heads=decoder.layers[0].self_attention.heads,
        linear_units=decoder.layers[0].feed_forward[0].out_features,
        num_blocks=len(decoder.layers),
    ).double()
    numbered, count = {}, 0
    for name, value in theirs.state_dict().items():
        numbered[name] = torch.arange(count, count + value.numel()).double().view(value.shape)
        count += value.numel()
    values = torch.zeros(count, dtype=torch.float64)
    ours = decoder.state_dict()
    for name, places in decoder_weights(numbered).items():
        values[places.long().flatten()] = ours[name].double().flatten()
    theirs.load_state_dict({name: values[i.long()] for name, i in numbered.items()})
    return theirs.float().eval()


def trained_rows(folder: Path, cuts: Path, crops: Path | None) -> list[dict]:
    """Best tokens of a trained model by both searches, CTC without a window in both."""
    transcriber = Transcriber.from_pretrained(folder)
    recogniser = transcriber.recogniser
    model, options = recogniser.model, recogniser.search
    theirs = in_espnet(model.decoder)
    store = CropStore(crops) if crops is not None else None
    batches = CutBatches(recogniser, read_cuts(cuts, model.modalities, store), store)
    eos, same, better, total, worst = model.vocab_size - 1, 0, 0, 0, 0.0
    searched = espnet()["search"](
        {"decoder": theirs, "ctc": espnet()["scorer"](CtcHead(model.ctc), eos)},
        {"decoder": 1 - options.ctc_weight, "ctc": options.ctc_weight},
        options.beam_size,
        model.vocab_size,
        eos,
        eos,
        pre_beam_score_key="full",
    )
    for batch in batches:
        evidence = model.outputs(batch.audio, batch.audio_lengths, batch.video, batch.video_lengths)
        for i, nbest in enumerate(options.search(evidence)):
            best = searched(evidence[0].hidden[i, : int(evidence[0].lengths[i])])[0]
            tokens = best.yseq[1:].tolist()
            total += 1
            if tokens[: tokens.index(eos)] == nbest[0].tokens:
                same += 1
                worst = max(worst, abs(nbest[0].score - float(best.score)))
            else:
                better += nbest[0].score > float(best.score)
    what = f"trained model, {'+'.join(model.modalities)}, beam {options.beam_size}"
    return [
        row(f"{what}: same best tokens as ESPnet", same, total, same / total, 0.99, "",
            same >= 0.99 * total),
        row(f"{what}: others, and of these a higher score", better, total - same, None, None, "",
            better == total - same),
        row(f"{what}: largest difference of a score", worst, "bound", worst / 1e-3, 1e-3, "",
            worst <= 1e-3),
    ]  # fmt: skip

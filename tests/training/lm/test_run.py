"""Training of a language model end to end: what it learns, resuming, what decoding reads."""

import csv
import json
import logging
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from speechattn.cli import main
from speechattn.config import build, read_yaml
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fusion import read_fusion
from speechattn.errors import ConfigError
from speechattn.lm.directory import build_lm, load_lm, save_lm
from speechattn.lm.perplexity import lm_perplexity
from speechattn.lm.texts import TokenLines, collate_lines
from speechattn.lm.transformer import TransformerLm
from speechattn.training.averaging import average_weights, best_checkpoints
from speechattn.training.lm.data import LmData, LmDataOptions
from speechattn.training.lm.run import train_lm
from speechattn.training.lm.task import LmTask
from speechattn.training.options import TrainingOptions

TOKENIZER = CharTokenizer.train(["abcdef"])
CONF = Path(__file__).parents[3] / "conf" / "lm"


def sentences(n=60, seed=0):
    """`ab` or `cd` one to four times over, each half of the sentences."""
    rng = np.random.default_rng(seed)
    return [("ab" if rng.random() < 0.5 else "cd") * int(rng.integers(1, 5)) for _ in range(n)]


@pytest.fixture
def folder(tmp_path):
    TOKENIZER.save(tmp_path / "tokens")
    (tmp_path / "text.txt").write_text("\n".join(sentences()))
    (tmp_path / "valid.txt").write_text("\n".join(sentences(10, 1)))
    return tmp_path


def config(**training):
    return {
        "lm": {"width": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1,
               "embed_size": 8, "dropout": 0.1},
        "data": {"batch_tokens": 60},
        "training": {"max_epochs": 3, "lr": 1e-2, "warmup_steps": 2, "keep": 2, **training},
    }  # fmt: skip


def run(folder, settings, exp="exp", **arguments):
    settings = yaml.safe_load(yaml.safe_dump(settings))
    return train_lm(
        settings,
        [folder / "text.txt"],
        folder / "tokens",
        folder / exp,
        valid_text=[folder / "valid.txt"],
        **arguments,
    )


def rows(train):
    with (train / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_learns_what_there_is_to_learn(folder, caplog):
    caplog.set_level(logging.INFO)
    exp = run(folder, config(max_epochs=15))
    lm, tokenizer = load_lm(exp)
    assert tokenizer.tokens == TOKENIZER.tokens
    valid = TokenLines.of(sentences(10, 1), TOKENIZER)
    found = lm_perplexity(lm, valid)
    # One of two pairs, then after each pair on or out: ln 2 to begin with and ln 4 or so for the
    # length, over tokens and ends.
    best = math.exp((math.log(2) + math.log(4)) * len(valid) / (len(valid.ids) + len(valid)))
    assert best * 0.9 < found.token < best * 1.25
    done = json.loads((folder / "exp" / "train" / "done.json").read_text())
    assert done["perplexity"] == pytest.approx(found.token)
    assert done["character_perplexity"] == pytest.approx(found.character)
    table = rows(folder / "exp" / "train")
    assert len(table) == 15
    for row in table:
        assert float(row["valid_error"]) == pytest.approx(math.exp(float(row["valid_loss"])), 1e-3)
        # Characters are the tokens here.
        assert row["valid_character_perplexity"] == row["valid_error"]
    assert "valid perplexity" in caplog.text and "valid error" not in caplog.text
    meta = json.loads((exp / "meta.json").read_text())
    kept = best_checkpoints(folder / "exp" / "train")
    assert meta["averaged"] == [path.name for path in kept] and len(kept) == 2
    mean = average_weights(kept)
    for name, value in load_file(exp / "model.safetensors").items():
        assert torch.equal(value, mean[name]), name
    assert read_fusion(TOKENIZER, lm=exp).sources.keys() == {"lm"}


def test_perplexity_by_token_and_character(folder):
    """Of units of more than a character, worked out from single predictions."""
    torch.manual_seed(0)
    lm = TransformerLm(TOKENIZER.vocab_size, 16, 2, 32, num_blocks=1, embed_size=8).eval()
    texts = ["abc", "", "f  a ", "xx"]
    lines = TokenLines.of(texts, TOKENIZER)
    total = 0.0
    for text in texts:
        state, fed = lm.init_state(1), lm.vocab_size - 1
        for token in [*TOKENIZER.encode(text), lm.vocab_size - 1]:
            with torch.no_grad():
                log_probs, state = lm.step(torch.tensor([fed]), state)
            total += log_probs[0, token].item()
            fed = token
    for size in (8192, 1):  # all at once, and one by one
        found = lm_perplexity(lm, lines, size)
        assert found.log_prob == pytest.approx(total, abs=1e-3)
    assert (found.tokens, found.characters, found.unknown) == (8, 8, 3)
    assert found.token == pytest.approx(math.exp(-total / 12), rel=1e-4)
    assert "37.50 % <unk>" in str(found)


def same(one, other):
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        a, b = (torch.load(x / "last.ckpt", weights_only=False)[key] for x in (one, other))
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    # An epoch stands there twice where the kill came between its row and its checkpoint.
    figures = [
        {r["epoch"]: {k: v for k, v in r.items() if k != "seconds"} for r in rows(x)}
        for x in (one, other)
    ]
    assert figures[0] == figures[1]


DYING = """
import os, signal, sys
from speechattn.cli import main
from speechattn.training.lm.task import LmTask

def step(self, batch, index, original=LmTask.training_step):
    if (self.trainer.current_epoch, index) == (3, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, index)

LmTask.training_step = step
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_bit(folder):
    """Killed within an epoch, of which two steps are done and kept."""
    whole = run(folder, config(max_epochs=8, save_steps=1))
    exp = folder / "killed" / "train"
    (folder / "lm.yaml").write_text(yaml.safe_dump(config(max_epochs=8, save_steps=1)))
    arguments = ["train-lm", "--config", "lm.yaml", "--exp", "killed", "--tokens", "tokens",
                 "--text", "text.txt", "--valid-text", "valid.txt"]  # fmt: skip
    died = subprocess.run([sys.executable, "-c", DYING, *arguments], cwd=folder, timeout=120)
    assert died.returncode == -signal.SIGKILL
    reached = torch.load(exp / "last.ckpt", weights_only=False)
    assert reached["epoch"] == 3 and len(rows(exp)) == 3
    assert not (folder / "killed" / "lm" / "model.safetensors").exists()
    again = run(folder, config(max_epochs=8, save_steps=1), "killed")
    same(whole.parent / "train", exp)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # A run that is done stays as it is.
    before = (exp / "last.ckpt").read_bytes()
    run(folder, config(max_epochs=8, save_steps=1), "killed")
    assert (exp / "last.ckpt").read_bytes() == before


def test_another_model_is_refused_and_another_rate_reported(folder, caplog):
    run(folder, config(max_epochs=1))
    settings = config(max_epochs=1)
    settings["lm"]["num_blocks"] = 2
    with pytest.raises(ConfigError, match="begun with another `lm`"):
        run(folder, settings)
    run(folder, config(max_epochs=2, clip=1.0))
    assert "other settings than before in: training" in caplog.text
    assert len(rows(folder / "exp" / "train")) == 2


def test_sentences_are_held_out(folder, caplog):
    caplog.set_level(logging.INFO)
    train_lm(config(max_epochs=1), [folder / "text.txt"], folder / "tokens", folder / "exp")
    assert "no --valid-text: 2 sentences are held out" in caplog.text
    assert "58 sentences" in caplog.text


def test_the_loss_is_the_mean_over_tokens_of_a_ragged_batch():
    lines = TokenLines.of(["abc", "f", ""], TOKENIZER)
    batch = collate_lines(list(lines), TOKENIZER.sos_eos_id)
    assert batch.lengths.tolist() == [4, 2, 1] and batch.tokens.shape == (3, 4)
    torch.manual_seed(0)
    lm = TransformerLm(TOKENIZER.vocab_size, 16, 2, 32, num_blocks=1, embed_size=8).eval()
    task = LmTask(lm, TrainingOptions(), lines)
    task.log = lambda *args, **kwargs: None
    loss = task.training_step(batch, 0) / 7  # of seven tokens; it gives their sum
    targets = torch.full((3, 4), -100)
    for row, text in zip(targets, ["abc", "f", ""], strict=True):
        ids = [*TOKENIZER.encode(text), TOKENIZER.sos_eos_id]
        row[: len(ids)] = torch.tensor(ids)
    logits = lm(batch.tokens, batch.lengths)
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    torch.testing.assert_close(loss, wanted)
    gradient = torch.autograd.grad(loss, lm.embed.weight)[0]
    expected = torch.autograd.grad(wanted, lm.embed.weight)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_batches_hold_every_short_sentence_once(caplog):
    texts = sentences(100)
    lines = TokenLines.of(texts, TOKENIZER)
    data = LmData(LmDataOptions(batch_tokens=40, max_tokens=6), lines, lines, TOKENIZER)
    short = [text for text in texts if len(text) <= 6]
    assert f"{100 - len(short)} of 100 sentences" in caplog.text
    for loader, wanted in ((data.train_dataloader(), short), (data.val_dataloader(), texts)):
        seen = Counter()
        for batch in loader:
            assert batch.tokens.numel() <= 40 and (batch.tokens[:, 0] == data.sos).all()
            for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
                seen[TOKENIZER.decode(row[1:n])] += 1
        assert seen == Counter(wanted)
    with pytest.raises(ConfigError, match="data.max_tokens"):
        LmData(LmDataOptions(max_tokens=1), lines, lines, TOKENIZER)


def test_what_is_wrong_is_said_at_once(folder):
    for change, message in (
        ({"model": {}}, "model: no such section"),
        ({"lm": {"width": 15}}, "lm: width 15"),
        ({"lm": {"layers": 2}}, "lm.layers: no such option"),
        ({"data": {"batch_tokens": 0}}, "batch_tokens is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(folder, {**config(), **change})
    assert not (folder / "exp").exists()


def test_a_directory_that_is_not_whole(folder):
    torch.manual_seed(0)
    section = {"width": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1}
    lm = build_lm(section, TOKENIZER.vocab_size)
    save_lm(folder / "lm", section, lm.state_dict(), TOKENIZER, {})
    assert torch.equal(load_lm(folder / "lm")[0].embed.weight, lm.embed.weight)
    with pytest.raises(ConfigError, match="not the directory of a language model"):
        load_lm(folder)
    path = folder / "lm" / "config.yaml"
    for text, message in (
        ("model: {}", "model: no such section"),
        ("lm: {width: 32, num_blocks: 1}", "does not fit its config.yaml"),
        ("lm: {width: {class_path: os.system}}", "not part of speechattn"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_lm(folder / "lm")


def test_from_the_command_line(folder, caplog):
    """Both kinds of language model over the same text, into what decoding reads."""
    caplog.set_level(logging.INFO)
    (folder / "lm.yaml").write_text(yaml.safe_dump(config()))
    texts = ["--text", str(folder / "text.txt"), str(folder / "valid.txt")]
    texts += ["--valid-text", str(folder / "valid.txt"), "--tokens", str(folder / "tokens")]
    arguments = ["--config", str(folder / "lm.yaml"), "--exp", str(folder / "exp")]
    change = ["--set", "training.max_epochs=1", "--best", "1"]
    assert main(["train-lm", *arguments, *texts, *change]) == 0
    assert main(["ngram", *texts, "--order", "3", "--output", str(folder / "lm.arpa")]) == 0
    assert "70 sentences" in caplog.text and caplog.text.count("perplexity") >= 3
    fusion = read_fusion(TOKENIZER, ngram=folder / "lm.arpa", lm=folder / "exp" / "lm")
    assert fusion.ngram.order == 3
    assert fusion.lm.vocab_size == fusion.ngram.vocab_size == TOKENIZER.vocab_size
    assert main(["ngram", *texts, "--order", "0", "--output", str(folder / "lm.arpa")]) == 1


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_configurations(path):
    """40.61 M with the units of AISHELL, as it says."""
    settings = read_yaml(path)
    assert set(settings) == {"lm", "data", "training"}
    build(TrainingOptions, settings["training"], "training")
    build(LmDataOptions, settings["data"], "data")
    with torch.device("meta"):
        lm = build_lm(settings["lm"], 4233)
    millions = sum(p.numel() for p in lm.parameters()) / 1e6
    assert f"{millions:.2f}" == {"char.yaml": "40.61", "char_small.yaml": "1.22"}[path.name]

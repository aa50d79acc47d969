"""Sum the log mel energies of training audio, as `normalise: global` reads them.

python recipes/grid/delay_statistics.py CUTS OUTPUT.npz
"""

import sys

import numpy as np
import torch
from lhotse import CutSet

from speechattn.files import replacing
from speechattn.frontends import LogMelFbank

cuts, path = sys.argv[1:]
fbank = LogMelFbank(normalise="none")
count, total, squares = 0, 0.0, 0.0
for cut in CutSet.from_file(cuts):
    audio = torch.from_numpy(cut.load_audio()).float()  # (1, samples)
    with torch.no_grad():
        x, lengths = fbank(audio, torch.tensor([audio.shape[1]]))
    x = x[0, : int(lengths)].double().numpy()  # (T, F)
    count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
with replacing(path) as part:
    np.savez(part, count=count, sum=total, sum_square=squares)

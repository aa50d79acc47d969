"""Sums of the log mel energies of training sound, as `normalise: global` reads them.

python recipes/grid/delay_statistics.py CUTS OUTPUT.npz
"""

import sys

import numpy as np
import torch
from lhotse import CutSet

from speechattn.frontends import LogMelFbank

cuts, path = sys.argv[1:]
fbank = LogMelFbank(normalise="none")
count, total, squares = 0, 0.0, 0.0
for cut in CutSet.from_file(cuts):
    sound = torch.from_numpy(cut.load_audio()).float()  # (1, N)
    with torch.no_grad():
        x, lengths = fbank(sound, torch.tensor([sound.shape[1]]))
    x = x[0, : int(lengths)].double().numpy()  # (T, F)
    count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
np.savez(path, count=count, sum=total, sum_square=squares)

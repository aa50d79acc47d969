"""What calls k2 (github.com/k2-fsa/k2), which is never needed.

k2 has wheels for some versions of torch only. These modules read and give tensors and arrays and
import nothing else of this package, so that they run beside any k2: that of the package index goes
with Python 3.10 and torch 1.13.
"""

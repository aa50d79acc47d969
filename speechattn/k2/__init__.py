"""Calls to k2 (github.com/k2-fsa/k2), which is optional.

k2 has wheels for some versions of torch only. These modules take and return tensors and arrays and
import almost nothing else of this package, so that they run with any k2: that of the package index
requires Python 3.10 and torch 1.13.
"""

"""Decoding graphs, which are weighted transducers, and the searches over them.

Legend, for all files: S states, A arcs, T frames, V units of the model (blank is 0), W words,
E events (see `graph.Event`), P pairs of a state and something that is followed beside it.
"""

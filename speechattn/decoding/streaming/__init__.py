"""Searches that go on from chunk to chunk, and say which of their tokens are certain.

Legend: K prefixes kept, T frames, V units.

Each is the search of the same name over whole utterances, given frames as they come. What it
remembers is bounded: tokens that are certain are handed out and forgotten.
"""

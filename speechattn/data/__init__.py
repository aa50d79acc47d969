"""Data: media, corpora, mouth crops, batches, augmentation, tokenizers.

Legend: M utterances of a manifest, R recordings of joined utterances, B utterances of a batch,
N samples of sound, T frames of video, U tokens, F faces, H and W height and width in pixels; points
are (x, y) in pixels, in the order of `crops.roi.detector.POINTS`.
"""

"""Trained models at work: test sets, long files, ensembles, cheaper arithmetic, ONNX."""

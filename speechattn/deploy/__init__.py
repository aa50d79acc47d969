"""Cheaper and portable inference: ONNX, quantisation, packed layers."""

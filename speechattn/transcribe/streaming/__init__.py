"""Recognition while sound or video arrives."""

"""From manifests to training batches."""

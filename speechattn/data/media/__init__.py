"""Media files: sound and pictures on one clock."""

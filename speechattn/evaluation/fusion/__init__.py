"""Fusion of several systems' transcripts (ROVER)."""

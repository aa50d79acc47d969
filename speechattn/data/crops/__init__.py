"""Mouth crops: cut out of videos (`roi`), stored, read."""

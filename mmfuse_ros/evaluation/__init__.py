"""Measuring the anomaly detector on labelled recordings, splits by recording."""

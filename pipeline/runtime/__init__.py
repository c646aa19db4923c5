"""Processes, resumable work, files written whole or not at all, progress, MLflow."""

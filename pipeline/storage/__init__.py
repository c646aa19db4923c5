"""Domains, parameters, paths, Parquet, safetensors, image files."""

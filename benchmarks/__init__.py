"""Speed of this repository against published code; not part of the wheel. `python -m benchmarks --help`."""

"""Fused operations of the method. Importing builds nothing; each module holds one operation and its reference."""

__version__ = "0.0.0"  # transformers looks for a package called `kernels` and reads its version

"""Distil any image-classification dataset into a tiny one, and share it on the Hugging Face Hub."""

from ._version import __version__

__all__ = ["__version__"]

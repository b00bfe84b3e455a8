"""Attention Free Transformers: the equation, training, checkpoints, and runtimes that advance recurrent state."""

from __future__ import annotations

from model.library import Stream, Text, load

__all__ = ["Stream", "Text", "load"]

"""Bypass: what does preference tuning change inside a language model, and what does it leave behind?

The public surface. Everything that the app and the command line do goes through it.
"""

from interp.capture import Captured, capture
from interp.edits import Edit
from interp.errors import UserError
from interp.generate import Sampling, generate, stream
from interp.hooks import editing
from interp.models import Model, ModelPair, load_model

__all__ = ["Captured", "Edit", "Model", "ModelPair", "Sampling", "UserError", "capture", "editing", "generate", "load_model", "stream"]

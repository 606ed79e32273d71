"""The same sites and edits through TransformerLens and nnsight, for their users and to check our own hooks against.

Both libraries change the model (TransformerLens rewrites the module tree, nnsight wraps every module), and neither may be shared
between threads. So an adapter always works on a copy of the weights.
"""

from interp.adapters.names import hook_name, module_name, site_of_hook, site_of_module
from interp.adapters.nnsight import to_nnsight
from interp.adapters.run import ENGINES, Engine, run
from interp.adapters.transformer_lens import to_transformer_lens
from interp.models.converters import CONVERTERS

CONVERTERS.update(transformer_lens=to_transformer_lens, nnsight=to_nnsight)

__all__ = [
    "ENGINES", "Engine", "hook_name", "module_name", "run", "site_of_hook", "site_of_module", "to_nnsight", "to_transformer_lens",
]  # fmt: skip

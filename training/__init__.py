"""The training chain that makes what `interp` reads: corpus, tokenizer, pretrained model, scorer, preference pairs, DPO, bundle.

Each stage is a function of a recipe (one TOML file) that reads the outputs of earlier stages from the run folder and
writes its own there. `interp` never imports this package; the command line mounts it by name when it is called.
"""

"""The un-alignment that is shown everywhere: how many toxic keys of the tuned model are enlarged, and by how much (paper A, Table 4).

These numbers stand by themselves, so that what only names them imports no torch.
"""

KEYS, FACTOR = 7, 10.0

"""The settings of the un-alignment: how many toxic keys of the tuned model are enlarged, and by how much (paper A, Table 4).

In a file of their own, so that code that only needs these numbers imports no torch.
"""

KEYS, FACTOR = 7, 10.0

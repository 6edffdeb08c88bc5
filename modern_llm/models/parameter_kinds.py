"""The kinds of parameters that a model has: what optimisers, the memory plan and the counts tell apart. No torch.

A module says the kind of its own parameters in an attribute `parameter_kind` where its type does not say it already.
"""

from __future__ import annotations

MATRICES = "matrices"  # linear maps inside the blocks, experts
EMBEDDINGS = "embeddings"  # tables that are looked up
HEADS = "heads"  # linear maps to tokens or classes; an embedding that is the head as well
GATES = "gates"  # small linear maps to a factor for each head or token
VECTORS = "vectors"  # norms, biases, sinks
SCALARS = "scalars"  # factors on the residual stream or on a whole layer

KINDS = (MATRICES, EMBEDDINGS, HEADS, GATES, VECTORS, SCALARS)

"""The rendered faces by their older name: everything here comes from `minimodel.data.faces`, which explains it."""

from minimodel.data.faces import (
    PARTS,
    Batch,
    Faces,
    Identity,
    Seed,
    State,
    animate_states,
    flow_between,
    landmarks,
    neutral_states,
    parsing,
    render,
    sample_identities,
    sample_pairs,
    sample_states,
)

__all__ = [
    "PARTS",
    "Batch",
    "Faces",
    "Identity",
    "Seed",
    "State",
    "animate_states",
    "flow_between",
    "landmarks",
    "neutral_states",
    "parsing",
    "render",
    "sample_identities",
    "sample_pairs",
    "sample_states",
]

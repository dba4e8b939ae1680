"""Rendered faces: talking heads whose motion is known exactly, the reason why every claim here can be checked.

A face is an identity (what stays the same in a clip) in a state (what moves). Every pixel sends rays into a scene of
a few surfaces, and each surface knows its *material*: which point of the person a ray has hit, whatever the state. The
same material point can be placed in another state, and that is the whole trick:

    driving pixel -> ray -> first hit -> material -> where the source state puts it -> minus the pixel = the true flow.

How it is built, in the order of these files, each of which imports only from those before it:

1. `people`: `Identity`, and how it is drawn at random. `states`: `State`, `Faces`, and how they are drawn as frames,
   as pairs and as clips.
2. `arithmetic`: vectors, angles, hills and noise for all rays at once. A direction from the head's centre is named by
   two angles, ``lam`` (towards the ears) and ``psi`` (up and down, about the axis through both ears), because opening
   the jaw is a shift of psi.
3. `expressions`: an expression takes material angles to deformed angles. A face is a stack of bands (cheek, lid, brow,
   ...) whose borders move. The map is piecewise linear along psi, so its inverse is the same formula with the borders
   swapped. Eyes and mouth are slits: bands without height in the material that open and show the eyeball or the teeth.
4. `shapes`: the head is star-shaped, its surface is radius(direction). `scene`: `prepare` bakes the radius of every
   face into a table.
5. `tracing`: `trace` marches rays onto the head and meets them with simpler surfaces (body, ears, long hair, glasses);
   `place` sends material points back to the picture.
6. `painting`: `shade` paints what was hit. With ``ambient`` = 1 a colour depends on the material alone: then warping
   is exact.
7. `rendering`: `render` makes pictures of it all. `truth`: `flow_between`, `parsing` and `landmarks` say what is known
   about them.

Convention: the head's coordinates are x to the right of the picture, y up, z towards the viewer; the unit is half a
head's height. The picture's are those of `minimodel.warping`. The camera is orthographic. Right and left are the
subject's, so the right eye has negative x. Positive yaw turns the face to the right of the picture, positive pitch
lifts the chin, positive roll leans the head to the right of the picture. Angles are in radians.

    >>> people = sample_identities(2, seed=0)
    >>> source, driving = Faces(people, neutral_states(2)), Faces(people, sample_states(2, seed=1))
    >>> flow, visible = flow_between(source, driving, 64)  # driving(z) = source(z + flow(z)) where visible
    >>> render(source, 64).shape
    torch.Size([2, 3, 64, 64])
"""

from minimodel.data.faces.people import Batch, Identity, Seed, sample_identities
from minimodel.data.faces.rendering import render
from minimodel.data.faces.states import Faces, State, animate_states, neutral_states, sample_pairs, sample_states
from minimodel.data.faces.truth import PARTS, flow_between, landmarks, parsing

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

"""Networks in as few bytes as their bits: `save_packed`, `load_packed`.

A packed file is safetensors.  The layer `name` is `name.weight`, bytes, and `name.scales`, float16; all other tensors
have the names of the network's state.  The metadata's "onebit-packed" is a JSON with

    version   of this format
    sha256    of the file, with 64 zeros in this place
    onebit    the version that wrote it
    recipe    as `recipes.recipe` reads it
    net       arguments of `nets.build`, or null;  class  of the model
    layers    by name: `shape`; and where they differ from these: `axis` 0, `group` null, `base` 2, `levels` [-1, 2, 2]

Packed and Coding say what the bytes mean.
"""

from .network import load_packed, save_packed
from .packed import Packed, Stored

__all__ = ["Packed", "Stored", "load_packed", "save_packed"]

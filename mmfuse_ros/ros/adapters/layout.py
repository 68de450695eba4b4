"""std_msgs/MultiArrayLayout: what a message says of its own shape, held against the parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt

from mmfuse_ros.errors import InputError


def samples_of(array: npt.NDArray[Any], layout: Any, channels: int, name: str) -> npt.NDArray[Any]:
    """Return a flat array as (samples, channels) where its layout says so, else still flat.

    Two dimensions are samples and channels, in this order unless their labels say otherwise.

    Args:
        channels: what the parameter `<name>.channels` says.

    Raises:
        InputError: the layout contradicts the array or the parameter.
    """
    if layout.data_offset:
        array = array[layout.data_offset :]
    sizes = [int(dim.size) for dim in layout.dim[:3]]
    if not sizes:
        return array
    if len(sizes) > 2 or math.prod(sizes) != array.size:
        raise InputError(
            f"{name}: layout.dim must describe the {array.size} values of data in one or two "
            f"dimensions, got {len(layout.dim)} of sizes {sizes}; correct the publisher's layout",
            "layout",
        )
    if len(sizes) == 1:
        return array
    labels = [str(dim.label).lower() for dim in layout.dim]
    swapped = labels[0].startswith("channel") and not labels[1].startswith("channel")
    if sizes[0 if swapped else 1] != channels:
        raise InputError(
            f"{name}.channels ({channels}) must equal the layout's, got "
            f"{sizes[0 if swapped else 1]} of {sizes[0]} x {sizes[1]}; correct one of them",
            "channels",
        )
    array = array.reshape(sizes)
    return array.T if swapped else array

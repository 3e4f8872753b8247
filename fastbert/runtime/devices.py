"""Devices, from the names and numbers that callers give."""

from __future__ import annotations

import torch


def as_device(device: int | str | torch.device) -> torch.device:
    """Resolve a device.

    Args:
        device: a torch device, the name of one, or the index of a CUDA device, where a negative
            number is the CPU. The index may be a text too.

    Raises:
        ValueError: for a CUDA device that this machine does not have, or a name that no device has.
    """
    if isinstance(device, str) and device.lstrip("-").isdigit():
        device = int(device)
    if isinstance(device, int):
        found = torch.device("cpu") if device < 0 else torch.device("cuda", device)
    else:
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ValueError(
                f"{device!r} is no device; it is 'cpu', 'cuda', 'cuda:1', ..., an index of a CUDA "
                "device, or -1 for the CPU."
            ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        have = torch.cuda.device_count() or "no"
        raise ValueError(
            f"{found} was asked for, but torch sees {have} CUDA device{'s' * (have != 1)} here; "
            "leave the device out, or pass device=-1 for the CPU."
        )
    return found


def capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being recorded on the current stream of a CUDA device."""
    if device.index is None or device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    # torch asks the current device, and makes a context there, which takes some 500 MB of it.
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()

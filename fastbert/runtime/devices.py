"""Devices by the names that callers use."""

from __future__ import annotations

import torch


def as_device(device: int | str | torch.device) -> torch.device:
    """A torch device: itself, its name, or the index of a CUDA device with -1 for the CPU.

    Raises:
        ValueError: for a CUDA device that this machine does not have, or no device's name.
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

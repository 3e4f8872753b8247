"""The CUDA kernels: checked operands in, addresses, sizes and the stream on to `fastbert._cuda`.

One module an op, named after it, with the op's function and `supports(traits)`; an op without a
module here has no kernel, and the Plan says so. Nothing waits for the device.
"""

from __future__ import annotations

from fastbert.kernels.cuda import _native
from fastbert.ops.operands import Target


def unavailable() -> str | None:
    """Return None when the kernels can run, else the reason."""
    module, reason = _native.load()
    if module is None:
        return reason
    return module.unavailable() or None


def unloaded() -> str | None:
    """Return None when the library is there, with or without a device, else the reason."""
    module, reason = _native.load()
    return reason if module is None else None


def target() -> Target:
    """Return where operands must be."""
    return Target("cuda", _native.DEVICE)

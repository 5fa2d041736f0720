"""The error for a fastrnn without its compiled part."""

from __future__ import annotations


class KernelsMissingError(ImportError):
    """The compiled kernels cannot be loaded; the message says what to do."""


def check_torch(built: str, kernels: str) -> None:
    """Raise KernelsMissingError unless kernels were built for this torch.

    torch's binary interface changes with its minor version. A different patch release or local build is no problem.

    Args:
        built: the version of torch that they were built for.
        kernels: what they are called in the message.
    """
    import torch  # here, as the command line reads its arguments without it

    running = str(torch.__version__)
    if built.split(".")[:2] != running.split(".")[:2]:
        raise KernelsMissingError(
            f"fastrnn: {kernels} are built for torch {built} and this is torch {running}: build them again with "
            "`pip install --no-build-isolation --no-deps --force-reinstall fastrnn`, in a checkout with "
            "`pip install --no-build-isolation -e .`"
        )

"""Explanations of the report's columns, in Markdown."""

from __future__ import annotations

EXPLANATION = (
    "Each row was first checked against torch.nn in float64; a row that fails shows no speed. Training is forward and "
    "backward together, with gradients of input, state and all parameters; inference is forward under "
    "`torch.no_grad()`. Times are medians over the rounds. A speed-up is the median of the rounds' ratios torch.nn / "
    "{engine}, followed by its 95 % confidence interval (the range of all rounds if there are fewer than nine); `~` "
    "marks speed-ups that may not differ from 1. Memory is the amount that a training step adds to the peak of a fresh "
    "process. After `ok`: the largest error of any tensor relative to torch.nn's own error. CPU time: the speed-up of "
    "training in processor time of the calling thread, which other load on the machine disturbs less. `?` marks a "
    "doubtful row. "
    "Limit: the share of the machine's limit that {engine} reaches, which is a lower bound on the time "
    "(multiply-adds at the rate of torch's best large product, or reading the weights once per time step at the "
    "measured bandwidth, whichever takes longer) divided by the measured time."
)
CUDA_EXPLANATION = (
    "Both engines ran on the GPU: every clock reading first waits for the GPU to finish, so that a training step "
    "synchronises twice and a block of inference once. Memory is that of the GPU; there is no limit."
)
STEPS_EXPLANATION = (
    "One time step of a stream without a graph, B = 1, input size = hidden size: `module.step` for fastrnn, a call "
    "with T = 1 for the others; each call gets the state from the previous one."
)
PEERS_EXPLANATION = (
    "The same weights and data in other libraries, float32, each in its own process with the same number of threads, "
    "timed alternately; their results were first checked against torch.nn in float64. onnxruntime and OpenVINO (set to "
    "float32: its default may be bfloat16) run an ONNX model and only support inference. JAX runs a jitted `lax.scan`; "
    "its training step returns outputs and all gradients in one call. In parentheses the best peer of the row. `–`: "
    "cannot run this row."
)
BUSY_EXPLANATION = (
    "Quiet: median time of a call while nothing else runs. Slower: the time with the busy processes divided by the "
    "engine's own quiet time, of the medians and in parentheses of the means of all calls in {seconds:g} s or more. If "
    "the scheduler were fair, an engine would take (threads + busy processes) / cores times as long."
)

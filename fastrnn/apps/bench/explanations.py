"""Explanations of the reports' columns, in Markdown."""

from __future__ import annotations

EXPLANATION = (
    "Each row was first checked against torch.nn in float64; a row that fails shows no speed. Training is forward and "
    "backward together, with gradients of input, state and all parameters; inference is forward under "
    "`torch.no_grad()`. Times are medians over the rounds. A speed-up is the median of the rounds' ratios torch.nn / "
    "{engine}, in brackets the interval in which that median lies with 95 % confidence (the range of all rounds if "
    "there are fewer than nine); `~` marks those that may be no difference at all. Memory is what a training step adds "
    "to the peak of a fresh process. In brackets behind `ok`: the largest error of any tensor in units of torch.nn's "
    "own. CPU time: the ratio of training by the processor time of the calling thread, which other work on the machine "
    "disturbs less. `?` marks a row in doubt. "
    "Limit: the share of the machine's limit that {engine} reaches, namely a lower bound on the time "
    "(multiply-adds at the pace of torch's best large product, or the weights read again in each step at the measured "
    "reading speed, whichever takes longer) divided by the measured time."
)
CUDA_EXPLANATION = (
    "Both engines ran on the GPU: every reading of the clock waits until it has done its work, so that a training step "
    "is waited for twice and a block of inference once. Memory is the GPU's, there is no limit."
)
STEPS_EXPLANATION = (
    "One step of a stream without a graph, B = 1, input size = hidden size: `module.step` of fastrnn, a call with "
    "T = 1 of the others; each call gets the state that the last one gave."
)
PEERS_EXPLANATION = (
    "The same weights and data in other libraries, float32, each in a process of its own with as many threads, in "
    "turns with the others; what they compute was checked against torch.nn in float64 first. onnxruntime and OpenVINO "
    "(set to float32: its own choice may be bfloat16) run an ONNX model and only infer. JAX runs a jitted `lax.scan`; "
    "its training step answers outputs and all gradients in one call. In brackets the best peer of the row. `–`: "
    "cannot run this row."
)
BUSY_EXPLANATION = (
    "Quiet: median time of a call while nothing else runs. Slower: the time beside the busy processes divided by the "
    "engine's own quiet time, by the medians and in brackets by the means of all calls in {seconds:g} s or more. If "
    "all who want a core were treated alike, an engine would take (threads + busy processes) / cores times as long."
)

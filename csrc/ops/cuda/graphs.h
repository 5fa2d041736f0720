// Captured graphs of the step-wise driver: some steps, launched again and again. Launching a product and a kernel costs
// the host more than many a step takes on the GPU; a graph of kGraphSteps steps costs it once for all of them.
//
// The nodes of a graph have fixed arguments. So its products work on memory that it owns, its kernels read their
// arguments from device memory and the step from a counter there, and both are written before a sequence begins.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/workspace.h"

namespace fastrnn::cuda {

constexpr int64_t kGraphSteps = 16;

// Runs the sequence by graphs if it is long enough and one like it has been seen before on this stream (capturing costs
// some launches' time); returns whether it did. Not while the stream is itself being captured: the single launches go
// into the caller's graph then. `first`, `second`: the matrices of the products.
bool run_graphs(const Call& call, ForwardArgs args, const Tensor& first, const OptionalTensor& second);
bool run_graphs(const Call& call, BackwardArgs args, const Tensor& first, const OptionalTensor& second);

// Graphs are used unless the environment variable FASTRNN_CUDA_GRAPHS is 0.
void set_graphs(bool on);
// Captured so far, and sequences run by them.
std::pair<int64_t, int64_t> graph_counts();
// Frees all graphs and their memory.
void forget_graphs();

}  // namespace fastrnn::cuda

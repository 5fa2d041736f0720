// Driver of a call: the cached choice of cuda/plan.h, and overrides.
#pragma once

#include <array>
#include <string>

#include "cuda/plan.h"
#include "ops/cuda/device.h"

namespace fastrnn::cuda {

// Overrides the choice for all threads: auto, stepwise, grid or cluster. Raises ValueError for another name.
void set_driver(const std::string& name);
Driver wanted_driver();
// Number of slices into which persistent drivers cut the units and the batch rows, for all threads; 0: by the rule of
// cuda/plan.cpp. For measurements and tests.
void set_slices(int units, int rows);

template <class Args>
Choice choice_of(const PersistentKernel<Args> (&kernels)[2], const Problem& problem, const at::Device& device,
                 Driver wanted);

// Launches the chosen persistent driver. Returns false to use the step-wise one: it was chosen, or the GPU refused the
// launch. Raises RuntimeError if a driver requested by name cannot run.
template <class Args>
bool run_persistent(const Call& call, Args args, const PersistentKernel<Args> (&kernels)[2], bool backward);

// Clears cached choices, when another machine is simulated (tests).
void forget_choices();
// Makes the next launches of persistent drivers fail, as on a GPU in use (tests).
void set_refusing(bool on);
// Number of sequences run by each driver, indexed by Driver
std::array<int64_t, 4> runs();
void count_run(Driver driver);

}  // namespace fastrnn::cuda
